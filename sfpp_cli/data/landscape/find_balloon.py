"""Find the balloon in frames of the landscape: its place and colour, whether it is whole and the only one.

The world's own balloon is laid over every place of the sky and correlated with what is there, then fitted to
a part of a pixel at the best place. Brightness, contrast and a tint are forgiven (they are judged elsewhere):
a dark balloon is still a balloon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.data.landscape.balloon import ABOVE, BELOW, RADIUS, ROWS, Path, cover, draw_balloon
from sfpp_cli.data.landscape.palette import BALLOONS, palette
from sfpp_cli.data.landscape.sky import sun_at
from sfpp_cli.data.landscape.view import HEIGHT, View

MIDDLE = sum(RADIUS) / 2
ACROSS, UP, DOWN = math.ceil(MIDDLE), math.ceil(MIDDLE * ABOVE), math.ceil(MIDDLE * BELOW)
"""Pixels of a template to either side of the widest place, above and below it."""
SHIFTS = (0.0, -1 / 3, 1 / 3)
SUN_AWAY = 60.0
POSES = tuple(product((MIDDLE, MIDDLE - 0.35, MIDDLE + 0.35), SHIFTS, SHIFTS, (0.0, -SUN_AWAY, SUN_AWAY)))
"""Radius and shift of the templates, and where the sun is, reference pixels; the search is made with the
first."""
PRESENT = 0.80
"""Correlation of the fitted template from which on there is a balloon."""
ANOTHER = 0.68
"""Correlation of the unfitted template from which on there is another one elsewhere."""
FAINT = 0.35
"""Contrast, as a share of the world's own, below which there is none."""
BROKEN = 0.50
"""Mean squared difference of a part, as a share of the template's variance, from which on it is broken."""
APART = 1.6 * MIDDLE
"""Balloons nearer to each other than this, reference pixels, are taken for one."""
PARTS = ("crown", "left", "right", "mouth", "basket")
BLOCK = 128
"""Video frames searched at once."""


@dataclass(frozen=True)
class Finding:
    """What T frames hold, each [T] unless said; lengths in reference pixels."""

    color: Tensor
    """Index in BALLOONS of the best match, whether there is a balloon or not."""
    x: Tensor
    y: Tensor
    """Where its widest place is."""
    match: Tensor
    """Correlation with the template."""
    contrast: Tensor
    """As a share of the world's own."""
    parts: Tensor
    """How far each of PARTS differs from the template, as a share of its variance, [T, 5]."""
    second: Tensor
    """Best correlation anywhere else."""

    @property
    def present(self) -> Tensor:
        return (self.match > PRESENT) & (self.contrast > FAINT)

    @property
    def whole(self) -> Tensor:
        return self.present & (self.parts < BROKEN).all(1)

    @property
    def doubled(self) -> Tensor:
        return self.present & (self.second > ANOTHER)

    def __getitem__(self, which: Tensor) -> Finding:
        return Finding(*(getattr(self, field.name)[which] for field in fields(self)))


def join(findings: Sequence[Finding]) -> Finding:
    """Findings of one stretch of frames after the other, on the CPU."""
    return Finding(
        *(torch.cat([getattr(part, field.name).cpu() for part in findings]) for field in fields(Finding))
    )


def better(first: Finding, second: Finding) -> Finding:
    """Of each frame the finding that matches more."""
    which = (second.match > first.match).long()
    number = torch.arange(len(which))
    return Finding(
        *(
            torch.stack([getattr(first, field.name), getattr(second, field.name)])[which, number]
            for field in fields(Finding)
        )
    )


def find_balloon(frames: Tensor, time: int) -> Finding:
    """Search reference frames [T, 3, 64, W] for a balloon in the light of `time` (index in TIMES)."""
    return join([_find(block, _templates(time).to(frames.device)) for block in frames.split(BLOCK)])


@dataclass(frozen=True)
class _Templates:
    """The balloon in P poses and five colours, less its mean colour."""

    pictures: Tensor
    """[P, 5, 3, h, w]."""
    weight: Tensor
    """Share of each pixel, none at the outline where the background shows through; sums to 1, [P, h, w]."""
    parts: Tensor
    """The same for each of PARTS, [P, 5, h, w]."""

    def to(self, device: torch.device) -> _Templates:
        return _Templates(self.pictures.to(device), self.weight.to(device), self.parts.to(device))


def _find(frames: Tensor, templates: _Templates) -> Finding:
    sky = _soften(frames[:, :, : math.ceil(ROWS[1])])
    match, contrast = _correlate(sky, templates.pictures[0], templates.weight[0])
    best, color = (match * (contrast > FAINT)).max(1)
    height, width = best.shape[1:]
    place = best.flatten(1).argmax(1)
    row, column = place // width, place % width
    number = torch.arange(len(frames), device=frames.device)
    color = color[number, row, column]
    high, wide = templates.weight.shape[1:]
    patches = sky.unfold(2, high, 1).unfold(3, wide, 1)[number, :, row, column]
    pose, match, contrast, parts = _fit(patches, color, templates)

    down = torch.arange(height, device=frames.device)[:, None] - row[:, None, None]
    right = torch.arange(width, device=frames.device) - column[:, None, None]
    elsewhere = torch.hypot(down.float(), right.float()) > APART
    moved = torch.tensor(POSES, device=frames.device)[pose]
    return Finding(
        color=color,
        x=column + ACROSS + 0.5 + moved[:, 1],
        y=row + UP + 0.5 + moved[:, 2],
        match=match,
        contrast=contrast,
        parts=parts,
        second=torch.where(elsewhere, best, 0).amax((1, 2)),
    )


def _correlate(frames: Tensor, pictures: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation and contrast of every picture [N, 3, h, w] at every place of frames [T, 3, H, W].

    Each is [T, N, H - h + 1, W - w + 1]. Templates have a weighted mean of 0 in each channel, so an even tint
    drops out.
    """
    along = F.conv2d(frames, pictures * weight)
    kernel = weight.expand(3, 1, *weight.shape)
    mean = F.conv2d(frames, kernel, groups=3)
    square = F.conv2d(frames.square(), kernel, groups=3)
    variance = (square - mean.square()).sum(1, keepdim=True).clamp_min(1e-6)
    own = (pictures.square() * weight).sum((1, 2, 3))[:, None, None]
    return along / (variance * own).sqrt(), along / own


def _fit(patches: Tensor, color: Tensor, templates: _Templates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Best pose for patches [T, 3, h, w]: its index, correlation, contrast and each part's difference."""
    number = torch.arange(len(patches), device=patches.device)
    weighted = templates.pictures * templates.weight[:, None, None]
    own = (templates.pictures * weighted).sum((2, 3, 4))[:, color].T
    along = torch.einsum("tchw,pnchw->tpn", patches, weighted)[number, :, color]
    mean = torch.einsum("tchw,phw->tpc", patches, templates.weight)
    square = torch.einsum("tchw,phw->tp", patches.square(), templates.weight)
    variance = (square - mean.square().sum(2)).clamp_min(1e-6)
    match, pose = (along / (variance * own).sqrt()).max(1)
    contrast = (along / own)[number, pose]

    centred = patches - mean[number, pose][:, :, None, None]
    gain = contrast.clamp_min(FAINT)[:, None, None, None]
    error = (centred / gain - templates.pictures[pose, color]).square().sum(1)
    parts = torch.einsum("thw,tkhw->tk", error, templates.parts[pose]) / own[number, pose, None]
    return pose, match, contrast, parts


@lru_cache(maxsize=4)
def _templates(time: int) -> _Templates:
    """Templates for a time of day."""
    kinds = torch.arange(len(BALLOONS)).repeat(len(POSES))
    times = torch.full_like(kinds, time)
    radius, right, down, sun = torch.tensor(POSES).repeat_interleave(len(BALLOONS), 0).T[:, :, None]
    view = View(torch.zeros(len(kinds), 1, dtype=torch.int64), HEIGHT, 2 * ACROSS + 5)
    path = Path(ACROSS + 2.5 + right, UP + 2.5 + down, radius)
    canvas = torch.full((len(kinds), 1, 3, view.height, view.width), 0.5)
    colors = palette(times, torch.zeros_like(times), kinds, torch.zeros(len(times)))
    draw_balloon(canvas, view, path, colors, times, sun_at((path.x + sun)[:, 0], times))

    inside = _soften(cover(view, path))[:: len(BALLOONS), 0]
    weight = _crop(inside * (inside > 0.9))
    weight = weight / weight.sum((1, 2), keepdim=True)
    pictures = _crop(_soften(canvas[:, 0])).unflatten(0, (len(POSES), len(BALLOONS)))
    pictures = pictures - torch.einsum("pnchw,phw->pnc", pictures, weight)[..., None, None]
    return _Templates(pictures, weight, _parts(weight))


def _parts(weight: Tensor) -> Tensor:
    down = (torch.arange(weight.shape[1]) - UP)[:, None] / MIDDLE
    right = (torch.arange(weight.shape[2]) - ACROSS)[None] / MIDDLE
    middle = (down > -0.45) & (down < 0.55)
    shapes = (
        down <= -0.45,
        middle & (right < 0),
        middle & (right > 0),
        (down >= 0.55) & (down < 1.25),
        down > 1.4,
    )
    parts = torch.stack([weight * shape for shape in shapes], 1)
    return parts / parts.sum((2, 3), keepdim=True)


def _soften(pictures: Tensor) -> Tensor:
    """Blur pictures [B, C, H, W] a little, so that a part of a pixel does not matter to a comparison."""
    kernel = torch.tensor([1.0, 2.0, 1.0], device=pictures.device) / 4
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    softened = F.conv2d(padded, torch.outer(kernel, kernel)[None, None])
    return softened.view(pictures.shape)


def _crop(pictures: Tensor) -> Tensor:
    """Pictures without two of their columns and rows at each edge, and without what is below the balloon."""
    return pictures[..., 2 : UP + DOWN + 3, 2 : 2 * ACROSS + 3]
