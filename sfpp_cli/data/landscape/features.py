"""Light and colour of frames of the landscape, and the band that each time of day and land keeps them in.

Everything is read at the world's reference height, so that the numbers do not depend on a video's size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.data.landscape.captions import Attributes
from sfpp_cli.data.landscape.palette import BALLOONS, LANDS, LUMA_WEIGHTS, TIMES
from sfpp_cli.data.landscape.view import HEIGHT
from sfpp_cli.data.landscape.world import draw_scenes

LUMA = ("luma", "ground_luma", "sky_luma")
HUE = ("chroma_u", "chroma_v", "ground_u", "ground_v", "sky_u", "sky_v")
CONTRAST = ("contrast", "saturation")
GROUPS = {"luma": LUMA, "hue": HUE, "contrast": CONTRAST}
FEATURES = (*LUMA, *HUE, *CONTRAST)
"""Means over the frame, its lowest quarter (ground) and its highest (sky); chroma is (red - luma, blue -
luma). Contrast is the standard deviation of luma, saturation the mean length of chroma."""
MARGIN = {"luma": 0.015, "hue": 0.012, "contrast": 0.012}
"""How far past the range that was seen over many scenes the world's band reaches."""
CREST_ROWS = ((13, 37), (25, 43), (39, 52), (52, 62))
"""Rows between which each ridge's crest lies, far to near."""
CREST = 0.45
"""A ridge is there when the steps of colour at its crest are this share of the world's own."""
BLOCK = 256
"""Video frames read at once."""


def reference_frames(video: Tensor | np.ndarray) -> Tensor:
    """A video, uint8 [T, H, W, 3], at the reference height: float32 [T, 3, 64, W'] in [0, 1].

    Raises ValueError for another shape or type.
    """
    pixels = torch.as_tensor(video)
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"a video is uint8 [T, H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    height, width = pixels.shape[1:3]
    size = (HEIGHT, round(width * HEIGHT / height))
    return torch.cat(
        [_resized(block.permute(0, 3, 1, 2).float() / 255, size) for block in pixels.split(BLOCK)]
    )


def read_features(frames: Tensor) -> Tensor:
    """`FEATURES` of reference frames [T, 3, 64, W]: float32 [T, 11]."""
    red, green, blue = frames.unbind(1)
    luma = LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue
    chroma = frames[:, ::2] - luma[:, None]
    quarter = HEIGHT // 4
    ground = slice(-quarter, None)
    sky = slice(0, quarter)
    columns = [
        luma.mean((1, 2)),
        luma[:, ground].mean((1, 2)),
        luma[:, sky].mean((1, 2)),
        *chroma.mean((2, 3)).unbind(1),
        *chroma[:, :, ground].mean((2, 3)).unbind(1),
        *chroma[:, :, sky].mean((2, 3)).unbind(1),
        luma.std((1, 2)),
        chroma.square().sum(1).sqrt().mean((1, 2)),
    ]
    return torch.stack(columns, 1)


def crest_strength(frames: Tensor) -> Tensor:
    """Largest step of colour between rows within each ridge's reach, mean over columns: [T, 4]."""
    step = (frames[:, :, 2:] - frames[:, :, :-2]).square().sum(1).sqrt()
    reaches = [step[:, top - 1 : bottom - 1].amax(1).mean(1) for top, bottom in CREST_ROWS]
    return torch.stack(reaches, 1)


@dataclass(frozen=True)
class Bands:
    """What the world keeps to, by time of day and land: 16 of each, time first."""

    low: Tensor
    """Of each feature, [16, 11]."""
    high: Tensor
    middle: Tensor
    spread: Tensor
    """Mean and standard deviation of each feature, [16, 11]."""
    crests: Tensor
    """Usual `crest_strength`, [16, 4]."""

    def outside(self, features: Tensor) -> Tensor:
        """How far features [T, 11] lie outside each band, 0 within: [T, 16, 11]."""
        values = features[:, None]
        return torch.maximum(self.low - values, values - self.high).clamp(min=0)

    def nearest(self, features: Tensor) -> Tensor:
        """Index of the time and land whose scenes look most like features [T, 11]: int64 [T]."""
        distance = (features[:, None] - self.middle) / (self.spread + 0.01)
        return distance.square().sum(2).argmin(1)


@cache
def world_bands() -> Bands:
    """The world's bands, as `measure_bands` found them over 256 scenes of each time and land."""
    table = json.loads((Path(__file__).parent / "bands.json").read_text())
    return Bands(**{name: torch.tensor(rows) for name, rows in table.items()})


def measure_bands(seed: int, scenes: int, width: int) -> Bands:
    """The bands over `scenes` frames of each time and land, `width` reference pixels wide."""
    features = []
    crests = []
    for number, (time, land) in enumerate(product(TIMES, LANDS)):
        drawn = draw_scenes(seed, range(number * scenes, (number + 1) * scenes))
        words = [Attributes(time, land, BALLOONS[i % len(BALLOONS)], "left", "slowly") for i in range(scenes)]
        frames = drawn.showing(words).render(0, 1, (HEIGHT, width))[:, 0]
        features.append(read_features(frames))
        crests.append(crest_strength(frames).mean(0))
    seen = torch.stack(features)
    margin = torch.tensor([MARGIN[group] for group in MARGIN for _ in GROUPS[group]])
    return Bands(seen.amin(1) - margin, seen.amax(1) + margin, seen.mean(1), seen.std(1), torch.stack(crests))


def _resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    return frames if frames.shape[-2:] == size else F.interpolate(frames, size, mode="area")
