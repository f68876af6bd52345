"""How fast and which way the camera of a landscape pans, read off the nearest ridge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfpp_cli.data.landscape.terrain import RIDGES
from sfpp_cli.data.landscape.world import SPEED

ROWS = slice(57, 64)
"""Where the nearest ridge's fields move and hardly another ridge shows, in reference frames."""
GAP = 4
"""Displacement is measured over so many video frames: those of a latent frame."""
REACH = math.ceil(1.5 * GAP * SPEED["fast"] * RIDGES[-1].parallax)
"""The largest displacement looked for, reference pixels: half as fast again as the world's fastest."""
STOPPED = SPEED["slowly"] / 2
FAST = (SPEED["slowly"] + SPEED["fast"]) / 2
"""Speeds below which a camera stands still, and above which its pace is fast."""


def camera_speed(frames: Tensor) -> Tensor:
    """Camera's speed [T] at each of reference frames [T, 3, 64, W], in their pixels; positive to the right.

    The strip that holds the nearest ridge is matched with itself `GAP` frames later, at every displacement;
    the best one, to a part of a pixel, is divided by that ridge's share of the camera's movement.
    """
    if len(frames) <= GAP:
        raise ValueError(f"{len(frames)} video frames are too few to read a pan: it takes more than {GAP}")
    strip = frames[:, :, ROWS]
    strip = strip - strip.mean(3, keepdim=True)
    before, after = strip[:-GAP], strip[GAP:]
    costs = torch.stack([_mismatch(before, after, shift) for shift in range(-REACH, REACH + 1)], 1)
    flow = _lowest(costs) - REACH
    speed = -flow / (GAP * RIDGES[-1].parallax)
    first = GAP // 2
    return torch.cat([speed[:1].expand(first), speed, speed[-1:].expand(GAP - first)])


def _mismatch(before: Tensor, after: Tensor, shift: int) -> Tensor:
    """Mean squared difference if the picture moved `shift` pixels to the right, [T]."""
    width = before.shape[-1]
    old = before[..., max(0, -shift) : width - max(0, shift)]
    new = after[..., max(0, shift) : width + min(0, shift)]
    return (old - new).square().mean((1, 2, 3))


def _lowest(costs: Tensor) -> Tensor:
    """Place of the lowest of costs [T, N] to a part of a step, by a parabola through its neighbours."""
    best = costs.argmin(1).clamp(1, costs.shape[1] - 2)
    left, middle, right = (costs.gather(1, best[:, None] + step)[:, 0] for step in (-1, 0, 1))
    bend = (left - 2 * middle + right).clamp_min(1e-12)
    return best + (0.5 * (left - right) / bend).clamp(-0.5, 0.5)
