"""Sky, sun or moon, stars and clouds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfpp_cli.data.landscape.noise import smooth, uniform, value_noise
from sfpp_cli.data.landscape.palette import NIGHT, Palette
from sfpp_cli.data.landscape.view import View, lay, mix

HORIZON = 40.0
SUN_HEIGHT = (21.0, 11.5, 25.0, 11.5)
SUN_RADIUS = (3.6, 3.4, 5.4, 4.0)
GLOW = (0.75, 0.40, 0.95, 0.45)
"""By time of day."""
CLOUD_ROW, CLOUD_SPREAD = 13.0, 8.5
CLOUD_ROWS = 38.0
"""Clouds lie about this row, so far up and down; below the last there are none."""
OCTAVES = ((26.0, 7.5, 0.60), (11.0, 4.0, 0.28), (5.5, 2.6, 0.12))
"""Width, height and share of each octave of the clouds' noise."""
CLOUD_PARALLAX, WIND = 0.06, 0.035
STARS, STAR_RADIUS = 9, 0.9


@dataclass(frozen=True)
class Sun:
    """Sun or moon of scenes [B]; fields [B, 1, 1], reference pixels."""

    x: Tensor
    y: Tensor
    radius: Tensor
    glow: Tensor
    """How strong it is."""

    def away(self, view: View) -> Tensor:
        """Distance of each pixel from its middle, [B, H, W]."""
        return torch.hypot(view.xs - self.x, view.ys - self.y)


def sun_at(x: Tensor, time: Tensor) -> Sun:
    """The sun, or the moon, of scenes [B] at that place in reference pixels and that time of day."""

    def by_time(table: tuple[float, ...]) -> Tensor:
        return torch.tensor(table, device=time.device)[time].view(-1, 1, 1)

    return Sun(x.view(-1, 1, 1), by_time(SUN_HEIGHT), by_time(SUN_RADIUS), by_time(GLOW))


def draw_sky(view: View, colors: Palette, time: Tensor, salt: Tensor, sun: Sun) -> Tensor:
    """The sky without its clouds, which stands still: [B, 1, 3, H, W]."""
    height = (view.ys / HORIZON).clamp(0, 1)
    high = mix(colors.top, colors.middle, smooth(height / 0.55))
    sky = torch.where(height < 0.55, high, mix(colors.middle, colors.low, smooth((height - 0.55) / 0.45)))
    sky = sky.expand(-1, -1, -1, -1, view.width)
    night = (time == NIGHT).view(-1, 1, 1, 1, 1)
    sky = sky + _stars(view, salt)[:, None, None] * night

    away = sun.away(view)
    halo = 0.62 * torch.exp(-((away / (2.3 * sun.radius)) ** 2)) + 0.38 * torch.exp(-away / 17)
    sky = mix(sky, colors.glow, (sun.glow * halo)[:, None, None])
    seas = 0.13 * torch.exp(-((torch.hypot(view.xs - sun.x + 0.9, view.ys - sun.y + 0.6) / 1.6) ** 2))
    seas = seas + 0.10 * torch.exp(-((torch.hypot(view.xs - sun.x - 1.6, view.ys - sun.y - 1.3) / 1.2) ** 2))
    disc = colors.sun * (1 - seas[:, None, None] * night)
    return mix(sky, disc, view.soft(sun.radius - away)[:, None, None])


def draw_clouds(
    canvas: Tensor, view: View, colors: Palette, sun: Sun, speed: Tensor, salt: Tensor, amount: Tensor
) -> None:
    """Clouds pass over the canvas and let the sun through; `amount` [B] is 0 for few, 1 for many."""
    rows = view.rows(0, CLOUD_ROWS)
    ys = view.ys[rows]
    places = view.places(speed * CLOUD_PARALLAX + WIND)
    thickness = torch.zeros((), device=view.device)
    below = torch.zeros((), device=view.device)
    for octave, (width, height, share) in enumerate(OCTAVES):
        count = math.ceil(CLOUD_ROWS / height) + 2
        line_salts = salt[:, None] + 1000 + 300 * octave + 37 * torch.arange(count, device=view.device)
        lines = value_noise(places[:, :, None], width, line_salts[:, None, :, None])
        thickness = thickness + share * _blend_rows(lines, ys / height)
        below = below + share * _blend_rows(lines, (ys - 2.2).clamp(min=0) / height)
    band = torch.exp(-(((ys - CLOUD_ROW) / CLOUD_SPREAD) ** 2))
    threshold = 0.66 - 0.18 * amount[:, None, None, None]
    density = smooth((thickness + 0.10 * band - 0.06 - threshold) / 0.20) * band * 0.92
    through = 0.72 * torch.exp(-((sun.away(view)[:, rows] / (1.5 * sun.radius)) ** 2))
    density = density * (1 - through[:, None])
    light = (0.62 + 2.6 * (thickness - below - 0.06)).clamp(0, 1)
    lay(canvas[..., rows, :], mix(colors.shade, colors.cloud, light[:, :, None]), density)


def _stars(view: View, salt: Tensor) -> Tensor:
    """A few soft stars high up, [B, H, W]."""
    number = torch.arange(STARS, device=view.device)
    salt = salt[:, None] + 500
    x = (number + 0.15 + 0.7 * uniform(number, salt)) / STARS * view.breadth
    y = 2 + 22 * uniform(number, salt + 1)
    light = 0.35 + 0.4 * uniform(number, salt + 2)
    away = torch.hypot(view.xs - x[:, :, None, None], view.ys - y[:, :, None, None])
    return (light[:, :, None, None] * torch.exp(-((away / STAR_RADIUS) ** 2))).sum(1)


def _blend_rows(lines: Tensor, y: Tensor) -> Tensor:
    """Smooth interpolation between lines [B, T, R, W] at heights y [H, 1], in lines: [B, T, H, W]."""
    upper = y[:, 0].floor().long()
    return torch.lerp(lines[:, :, upper], lines[:, :, upper + 1], smooth(y - upper[:, None]))
