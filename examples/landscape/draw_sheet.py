"""Draw every time of day and land of the landscape in one picture, and one scene over a hundred seconds.

python examples/landscape/draw_sheet.py examples/landscape/sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sfpp_cli.data.landscape import FPS, Attributes, draw_scenes
from sfpp_cli.data.landscape.palette import BALLOONS, LANDS, TIMES

SEED = 5
SECONDS = (0, 25, 50, 100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    kinds = [(time, land) for time in TIMES for land in LANDS]
    words = [
        Attributes(time, land, BALLOONS[i % len(BALLOONS)], "left", "slowly")
        for i, (time, land) in enumerate(kinds)
    ]
    scenes = draw_scenes(SEED, range(len(words))).showing(words)
    grid = tile(scenes.render(0, 1)[:, 0])
    scene = scenes[9:10]
    strip = tile(torch.cat([scene.render(FPS * second, 1)[0] for second in SECONDS]))
    picture = torch.cat([grid, torch.ones(3, 8, grid.shape[2]), strip], 1)
    Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(out, optimize=True)


def tile(frames: Tensor, columns: int = 4) -> Tensor:
    """Frames [N, 3, H, W] in rows of `columns`."""
    rows = [torch.cat(list(row), 2) for row in frames.split(columns)]
    return torch.cat(rows, 1)


if __name__ == "__main__":
    main()
