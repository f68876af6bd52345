"""A procedural captioned world: one coloured shape moves for ever over a softly lit background.

It stands in for video data that cannot be shipped. Two things make it fit for studying long rollouts:

- it is stationary: every motion is periodic or reflecting, so minute three has the law of second three;
- part of the state is uncaptioned (background tint, direction of the light, size, speed, phase), so a student
  has to carry it through its own history and can lose it.

The background's luma is the same in every scene. A video that darkens or whitens leaves the world at once;
hue may wander.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

FPS = 16
OBJECT_COLORS = {
    "red": (0.88, 0.16, 0.18),
    "orange": (0.97, 0.52, 0.13),
    "yellow": (0.97, 0.86, 0.22),
    "green": (0.22, 0.72, 0.30),
    "white": (0.96, 0.96, 0.95),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS = ("bouncing", "circling", "sliding")
BACKGROUNDS = {"blue": (215.0, 0.55), "purple": (275.0, 0.40), "grey": (210.0, 0.06), "brown": (24.0, 0.45)}
"""Name -> (hue in degrees, saturation)."""

BACKGROUND_LUMA = 0.38
LIGHT_AMPLITUDE = 0.08
"""Luma of the background at the centre, and how far the light raises or lowers it at the rim."""
TINT_DEGREES = 12.0
RADIUS = (0.105, 0.155)
"""Half-size of the object, in frame widths."""
SPEED = (0.010, 0.022)
"""Path speed, in frame widths a video frame."""
LUMA_WEIGHTS = (0.299, 0.587, 0.114)

SYNONYMS = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "bouncing": ("bouncing", "bouncing around"),
    "circling": ("circling", "going in circles"),
    "sliding": ("sliding", "sliding left and right"),
    "grey": ("grey", "gray"),
}
TEMPLATES = (
    "{article} {color} {shape} {motion} over a {background} background",
    "{color} {shape} {motion} on {background}",
    "{article} {color} {shape} is {motion} in front of a {background} wall",
    "a video of {article} {color} {shape} {motion} over {background}",
)


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes, each field [B]: indices into the tables above, lengths in frame widths, radians."""

    color: Tensor
    shape: Tensor
    motion: Tensor
    background: Tensor
    tint: Tensor
    light: Tensor
    radius: Tensor
    speed: Tensor
    x: Tensor
    y: Tensor
    heading: Tensor

    def __len__(self) -> int:
        return len(self.color)

    def __getitem__(self, which: slice) -> Scenes:
        return Scenes(*(getattr(self, field.name)[which] for field in fields(self)))

    def captions(self, variant: Sequence[int] | None = None) -> list[str]:
        """The captions; `variant` (integers, one a scene) chooses template and synonyms; 0 is plain."""
        variants = variant if variant is not None else [0] * len(self)
        return [self._caption(i, v) for i, v in enumerate(variants)]

    def _caption(self, i: int, variant: int) -> str:
        def word(name: str, salt: int) -> str:
            choices = SYNONYMS.get(name, (name,))
            return choices[(variant // salt) % len(choices)]

        color = list(OBJECT_COLORS)[self.color[i]]
        return TEMPLATES[variant % len(TEMPLATES)].format(
            article="an" if color[0] in "aeiou" else "a",
            color=color,
            shape=word(SHAPES[self.shape[i]], 4),
            motion=word(MOTIONS[self.motion[i]], 12),
            background=word(list(BACKGROUNDS)[self.background[i]], 36),
        )

    def positions(self, frames: Tensor) -> Tensor:
        """Centre of the object at absolute video `frames` [T] -> [B, T, 2] (x, y in frame widths)."""
        t = frames.to(torch.float64)[None, :]
        path = self.speed.double()[:, None] * t
        cos, sin = torch.cos(self.heading)[:, None], torch.sin(self.heading)[:, None]
        low, high = self.radius[:, None] + 0.03, 0.97 - self.radius[:, None]
        x0, y0 = low + self.x[:, None] * (high - low), low + self.y[:, None] * (high - low)
        bouncing = torch.stack(
            [_reflect(x0 + cos * path, low, high), _reflect(y0 + sin * path, low, high)], -1
        )

        orbit = 0.20 + 0.10 * self.x[:, None]
        turn = torch.where(self.y[:, None] > 0.5, 1.0, -1.0)
        angle = self.heading[:, None] + turn * path / orbit
        circling = torch.stack([0.5 + orbit * torch.cos(angle), 0.5 + orbit * torch.sin(angle)], -1)

        swing = (high - low) / 2 * (0.8 + 0.2 * self.x[:, None])
        sliding = torch.stack(
            [0.5 + swing * torch.sin(self.heading[:, None] + path / swing), y0.expand_as(path)], -1
        )
        motions = torch.stack([bouncing, circling, sliding])
        return motions[self.motion, torch.arange(len(self))].float()

    def background_colors(self) -> Tensor:
        """Colour of the background at the frame's centre, [B, 3] in [0, 1], luma `BACKGROUND_LUMA`."""
        table = list(BACKGROUNDS.values())
        rows = []
        for background, tint in zip(self.background.tolist(), self.tint.tolist(), strict=True):
            hue, saturation = table[background]
            rgb = torch.tensor(colorsys.hls_to_rgb((hue + tint) % 360 / 360, 0.4, saturation))
            rows.append(rgb * (BACKGROUND_LUMA / (rgb @ torch.tensor(LUMA_WEIGHTS))))
        return torch.stack(rows)

    def frames(self, start: int, count: int, size: tuple[int, int] = (64, 64)) -> Tensor:
        """Render video frames `start .. start + count`: float32 [B, T, 3, H, W] in [-1, 1]."""
        ys, xs = pixel_grid(size)
        dx, dy, radius = self._offsets(start, count, size)

        ramp = torch.cos(self.light)[:, None, None] * (xs - 0.5) + torch.sin(self.light)[:, None, None] * (
            ys - 0.5
        )
        light = 1 + LIGHT_AMPLITUDE / BACKGROUND_LUMA * 2 * ramp
        canvas = (self.background_colors()[:, :, None, None] * light[:, None])[:, None]

        shadow = torch.sigmoid(-self._distance(dx - 0.03, dy - 0.045, radius) / 0.018) * 0.35
        canvas = canvas * (1 - shadow[:, :, None])
        colors = torch.tensor(list(OBJECT_COLORS.values()))[self.color]
        shade = 1 - 0.16 * ((dx + dy) / radius).clamp(-1.2, 1.2)
        body = (colors[:, None, :, None, None] * shade[:, :, None]).clamp(0, 1)
        cover = (0.5 - self._distance(dx, dy, radius) * size[1]).clamp(0, 1)[:, :, None]
        return (canvas * (1 - cover) + body * cover).clamp(0, 1) * 2 - 1

    def neighbourhood(self, start: int, count: int, size: tuple[int, int] = (64, 64)) -> Tensor:
        """Where the object and its shadow are: bool [B, T, H, W]. Training losses weigh these pixels up."""
        dx, dy, radius = self._offsets(start, count, size)
        return torch.hypot(dx - 0.01, dy - 0.02) < 1.45 * radius

    def _offsets(self, start: int, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        ys, xs = pixel_grid(size)
        centre = self.positions(torch.arange(start, start + count))[:, :, :, None, None]
        return xs - centre[:, :, 0], ys - centre[:, :, 1], self.radius[:, None, None, None]

    def _distance(self, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
        return shape_distance(self.shape[:, None, None, None], dx, dy, radius)


def pixel_grid(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pixel centres in frame widths, (ys [H, 1], xs [W]); the frame's centre is always (0.5, 0.5)."""
    height, width = size
    ys = (torch.arange(height) + 0.5 - height / 2) / width + 0.5
    return ys[:, None], (torch.arange(width) + 0.5) / width


def shape_distance(shape: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the outline of `shape` (index into SHAPES); negative inside."""
    circle = torch.hypot(dx, dy) - radius
    square = torch.maximum(dx.abs(), dy.abs()) - 0.88 * radius
    triangle = torch.maximum(0.866 * dx.abs() - 0.5 * dy, dy) - 0.62 * radius
    return torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))


def _reflect(position: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Fold an unbounded coordinate into [low, high] as walls would."""
    span = high - low
    phase = torch.remainder(position - low, 2 * span)
    return low + torch.where(phase > span, 2 * span - phase, phase)


class ToyWorld:
    """Scenes by index: the same (seed, index) is the same scene on every machine and in every batch."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scenes(self, indices: Sequence[int]) -> Scenes:
        rows = torch.stack([self._draw(index) for index in indices])

        def pick(column: int, table: Collection[str]) -> Tensor:
            return (rows[:, column] * len(table)).long()

        def between(column: int, low: float, high: float) -> Tensor:
            return low + rows[:, column] * (high - low)

        motion = pick(2, MOTIONS)
        diagonal = (rows[:, 10] * 4).floor() * (math.pi / 2) + between(9, 0.3, math.pi / 2 - 0.3)
        heading = torch.where(motion == 0, diagonal, between(9, 0.0, 2 * math.pi))
        return Scenes(
            color=pick(0, OBJECT_COLORS),
            shape=pick(1, SHAPES),
            motion=motion,
            background=pick(3, BACKGROUNDS),
            tint=between(4, -TINT_DEGREES, TINT_DEGREES),
            light=between(5, 0.0, 2 * math.pi),
            radius=between(6, *RADIUS),
            speed=between(11, *SPEED),
            x=rows[:, 7],
            y=rows[:, 8],
            heading=heading,
        )

    def _draw(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % (2**63))
        return torch.rand(12, generator=generator)
