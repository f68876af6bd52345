"""Does the terrain come back? The world's never does, so a video whose terrain does has begun to repeat.

The strip that holds the two near ridges is correlated with every one that the camera has left behind for
good: those that it saw more than a picture's width ago.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfpp_cli.data.landscape.palette import LUMA_WEIGHTS
from sfpp_cli.data.landscape.pan import STOPPED
from sfpp_cli.data.landscape.terrain import RIDGES

ROWS = slice(44, 64)
"""Where the two near ridges and their trees are, in reference frames. The nearest alone is too smooth:
different stretches of it correlate up to 0.90."""
STEP = 8
"""Video frames between two strips that are looked up. They are held against all frames: ridges that move
at different speeds match at one moment only."""
REACH = 1
"""How far two strips may be shifted against one another, reference pixels: at the world's fastest the nearest
ridge moves 2 in a frame."""
ALIKE = 0.87
"""Correlation from which on two strips show the same terrain. Over 8 scenes of 100 s two different ones came
to 0.75 at most; played over again one frame late, the slow ones to 0.98 at least, the fast ones to 0.90."""


def seen_before(frames: Tensor, speed: Tensor) -> Tensor:
    """Whether each of reference frames [T, 3, 64, W] shows terrain that was left behind: bool [T].

    `speed` [T] is the camera's, in reference pixels a frame. A camera that stands still repeats nothing.
    """
    weights = frames.new_tensor(LUMA_WEIGHTS)[:, None, None]
    strips = (frames[:, :, ROWS] * weights).sum(1)
    width = strips.shape[-1]
    middle = _normalised(strips[::STEP, :, REACH : width - REACH])
    best = middle.new_full((len(middle), len(strips)), -1.0)
    for shift in range(2 * REACH + 1):
        other = _normalised(strips[:, :, shift : shift + width - 2 * REACH])
        best = torch.maximum(best, middle @ other.T)
    moved = torch.where(speed.abs() > STOPPED, speed.abs(), 0) * RIDGES[-1].parallax
    path = moved.cumsum(0).to(frames.device)
    gone = path[::STEP, None] - path > width
    repeated = ((best > ALIKE) & gone).any(1)
    return repeated.repeat_interleave(STEP)[: len(frames)]


def _normalised(strips: Tensor) -> Tensor:
    """Strips [N, rows, W] as vectors of length 1 whose rows have mean 0: [N, rows W]."""
    centred = (strips - strips.mean(2, keepdim=True)).flatten(1)
    length: Tensor = centred.norm(dim=1, keepdim=True)
    return centred / length.clamp_min(1e-6)
