"""The hot-air balloon: its path and its picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfpp_cli.data.landscape.noise import smooth
from sfpp_cli.data.landscape.palette import CREAM, FIRE, NIGHT, WICKER, Palette, constant
from sfpp_cli.data.landscape.sky import Sun
from sfpp_cli.data.landscape.view import View, lay, mix

RADIUS = (8.0, 9.0)
ABOVE, ENVELOPE, BELOW = 1.0, 2.25, 1.88
"""In radii: widest place to crown, crown to the envelope's mouth, widest place to the basket's foot."""
MARGIN = 1.5
LOWEST = 36.5
"""Distance kept from the frame's edges, and the row that the basket stays above (reference pixels): what
stands on the nearest ridge begins below it."""
WIDEST = ABOVE / ENVELOPE
PERIODS = (320, 480)
"""Video frames that the slower swing of the path may take. The quicker one takes 0.618 of it."""
ROWS = (0.0, LOWEST + 1.0)


@dataclass(frozen=True)
class Path:
    """Where balloons are, each [B, T], reference pixels; x and y of the widest place."""

    x: Tensor
    y: Tensor
    radius: Tensor


def follow(frames: Tensor, breadth: float, radius: Tensor, period: Tensor, phases: Tensor) -> Path:
    """Path at video `frames` [B, T]: two swings on each axis, within the frame; `phases` [B, 4] in turns."""
    slow = period[:, None]
    quick = (slow * 0.618).round().long()

    def swing(length: Tensor, phase: int) -> Tensor:
        turns = (frames % length).float() / length + phases[:, phase, None]
        return torch.sin(2 * math.pi * turns)

    radius = radius[:, None]
    reach = breadth / 2 - radius - MARGIN
    top = radius * ABOVE + MARGIN
    fall = LOWEST - radius * BELOW - top
    x = breadth / 2 + reach * (0.68 * swing(slow, 0) + 0.32 * swing(quick, 1))
    y = top + fall * (0.5 + 0.32 * swing(slow, 2) + 0.18 * swing(quick, 3))
    return Path(x, y, radius.expand_as(x))


@dataclass(frozen=True)
class _Shape:
    """Shares of each pixel that the parts cover, and places on the envelope; all [B, T, H, W]."""

    envelope: Tensor
    ropes: Tensor
    basket: Tensor
    down: Tensor
    """0 at the crown, 1 at the mouth."""
    across: Tensor
    """-1 at the left rim, 1 at the right one."""

    @property
    def cover(self) -> Tensor:
        return torch.maximum(torch.maximum(self.envelope, self.ropes), self.basket)


def cover(view: View, path: Path) -> Tensor:
    """Share of each pixel that the balloon covers, [B, T, H, W]."""
    result = torch.zeros(*view.frames.shape, view.height, view.width, device=view.device)
    rows = view.rows(*ROWS)
    result[:, :, rows] = _shape(view, path, view.ys[rows]).cover
    return result


def draw_balloon(canvas: Tensor, view: View, path: Path, colors: Palette, time: Tensor, sun: Sun) -> None:
    """Lay the balloon over the canvas [B, T, 3, H, W]; at night its burner lights it from within."""
    rows = view.rows(*ROWS)
    canvas = canvas[..., rows, :]
    shape = _shape(view, path, view.ys[rows])
    night = (time == NIGHT).view(-1, 1, 1, 1, 1)
    light = 0.55 * colors.far_light + 0.45
    light = torch.where(night, 0.15 + 0.75 * light, light)
    wicker = constant(WICKER, view.device) * light

    across = shape.across[:, :, None]
    down = shape.down[:, :, None]
    angle = torch.asin(0.999 * across)
    stripe = smooth((torch.cos(4.5 * angle) + 0.72) / 0.6)
    to_sun = torch.tanh((sun.x[:, 0] - path.x) / 20)[:, :, None, None, None]
    shade = 0.84 + 0.20 * across * to_sun + 0.16 * (WIDEST - down) - 0.10 * across * across
    shade = shade * (1 - 0.25 * smooth((down - 0.86) / 0.06))
    cloth = mix(colors.balloon, constant(CREAM, view.device), 0.9 * (1 - stripe))
    glow = torch.exp(-(((down - 0.95) / 0.55) ** 2)) * (1 - 0.5 * across * across) * night * 0.75
    lit = mix(cloth * shade * light, constant(FIRE, view.device) * (0.25 + 0.95 * cloth), glow)

    lay(canvas, wicker * 0.8, shape.ropes * 0.85)
    lay(canvas, lit, shape.envelope)
    lay(canvas, wicker, shape.basket)


def _shape(view: View, path: Path, ys: Tensor) -> _Shape:
    radius = path.radius[:, :, None, None]
    right = view.xs - path.x[:, :, None, None]
    height = ENVELOPE * radius
    below_crown = ys - (path.y - path.radius * ABOVE)[:, :, None, None]
    down = below_crown / height
    dome = torch.sqrt((1 - ((WIDEST - down) / WIDEST) ** 2).clamp(min=0)) * radius
    cone = (
        0.24 + 0.76 * (0.5 + 0.5 * torch.cos(math.pi * ((down - WIDEST) / (1 - WIDEST)).clamp(0, 1))) ** 0.85
    )
    half = torch.where(down < WIDEST, dome, cone * radius)
    in_dome = radius - torch.hypot(right, below_crown - ABOVE * radius)
    in_cone = 0.8 * (half - right.abs())  # an edge leans by 0.6 radians or so
    envelope = view.soft(torch.where(down < WIDEST, in_dome, in_cone)) * view.soft(height - below_crown)

    mouth = below_crown - height
    foot = (ABOVE + BELOW - ENVELOPE) * radius
    ropes = torch.minimum(
        0.45 - (right.abs() - 0.22 * radius).abs(), torch.minimum(mouth, 0.3 * radius - mouth)
    )
    basket = torch.minimum(0.30 * radius - right.abs(), torch.minimum(mouth - 0.2 * radius, foot - mouth))
    return _Shape(
        envelope, view.soft(ropes), view.soft(basket), down, (right / half.clamp(min=0.3)).clamp(-1, 1)
    )
