"""Sky, sun or moon, stars and clouds."""

from __future__ import annotations

import math

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


def draw_sky(view: View, colors: Palette, time: Tensor, salt: Tensor, sun_x: Tensor) -> Tensor:
    """The sky without its clouds, which stands still: [B, 1, 3, H, W]. `sun_x` [B] is in reference pixels."""
    height = (view.ys / HORIZON).clamp(0, 1)
    high = mix(colors.top, colors.middle, smooth(height / 0.55))
    sky = torch.where(height < 0.55, high, mix(colors.middle, colors.low, smooth((height - 0.55) / 0.45)))
    sky = sky.expand(-1, -1, -1, -1, view.width)
    night = (time == NIGHT).view(-1, 1, 1, 1, 1)
    sky = sky + _stars(view, salt)[:, None, None] * night

    across = view.xs - sun_x[:, None, None]
    down = view.ys - _by_time(SUN_HEIGHT, time)
    radius = _by_time(SUN_RADIUS, time)
    away = torch.hypot(across, down)
    halo = 0.62 * torch.exp(-((away / (2.3 * radius)) ** 2)) + 0.38 * torch.exp(-away / 17)
    sky = mix(sky, colors.glow, (_by_time(GLOW, time) * halo)[:, None, None])
    spots = 0.13 * torch.exp(-((torch.hypot(across + 0.9, down + 0.6) / 1.6) ** 2))
    spots = spots + 0.10 * torch.exp(-((torch.hypot(across - 1.6, down - 1.3) / 1.2) ** 2))
    disc = colors.sun * (1 - spots[:, None, None] * night)
    return mix(sky, disc, view.soft(radius - away)[:, None, None])


def draw_clouds(canvas: Tensor, view: View, colors: Palette, speed: Tensor, salt: Tensor, amount: Tensor) -> None:
    """Clouds pass over the canvas, slower than any ridge; `amount` [B] is 0 for few and 1 for many."""
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


def _by_time(table: tuple[float, ...], time: Tensor) -> Tensor:
    return torch.tensor(table, device=time.device)[time].view(-1, 1, 1)
