"""An endless paper-cut landscape with a hot-air balloon: scenes, their captions and their reader."""

from sfpp_cli.data.landscape.captions import Attributes, parse_caption
from sfpp_cli.data.landscape.world import FPS, SIZE, Scenes, Truth, draw_scenes

__all__ = ["FPS", "SIZE", "Attributes", "Scenes", "Truth", "draw_scenes", "parse_caption"]
