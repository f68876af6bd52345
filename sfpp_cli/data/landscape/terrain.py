"""Four ridges, far to near, and the trees that stand on the two near ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.data.landscape.noise import UNIT, cells, fixed, smooth, uniform, value_noise
from sfpp_cli.data.landscape.palette import LANDS, Palette
from sfpp_cli.data.landscape.sky import Sun
from sfpp_cli.data.landscape.view import HEIGHT, View, lay, mix

SNOW, DESERT = LANDS.index("snow"), LANDS.index("desert")


class Ridge(NamedTuple):
    """One layer; lengths in reference pixels."""

    base: float
    amplitude: float
    width: float
    parallax: float
    haze: float
    mist: float
    warmth: float
    rows: tuple[float, float]
    """Nothing of it, its shadow or its trees is drawn outside."""


RIDGES = (
    Ridge(27.0, 14.0, 52.0, 0.125, haze=0.62, mist=0.30, warmth=0.55, rows=(7, 46)),
    Ridge(36.0, 11.0, 46.0, 0.3125, haze=0.40, mist=0.34, warmth=0.40, rows=(19, 54)),
    Ridge(46.0, 9.0, 42.0, 0.625, haze=0.17, mist=0.24, warmth=0.22, rows=(22, 62)),
    Ridge(57.0, 7.0, 38.0, 1.25, haze=0.03, mist=0.0, warmth=0.08, rows=(26, HEIGHT)),
)
SHADOW_REACH = 5.0
SHADOW = (0.07, 0.13, 0.17, 0.20)
"""How far up a ridge's shadow falls on the paper after it, and how dark, by ridge."""
CLEARNESS = (0.92, 0.60, 0.90, 0.85)
"""Share of the haze that each time of day has."""
RELIEF = (0.16, 0.18, 0.30, 0.34)
"""Light and shade of slopes, by land."""
EDGE = 5
"""Columns beyond the frame whose ridge is computed too, so that slopes at its edges are those of its
middle."""

FIELD = (40.0, 40.0, 40.0, 44.0)
FIELD_SLANT = (0.4, 0.6, 0.8, 1.0)
FIELD_EDGE = 3.0
FIELD_TONES = (0.68, 1.1)
"""Light and dark fields lie side by side on a ridge: their width and soft edge in reference pixels, how far
an edge leans for each pixel downwards, by ridge, and what the ground's colour is multiplied by."""

TREE_CELL = {2: 19.0, 3: 27.0}
TREE_SCALE = {2: 1.0, 3: 1.5}
TREE_SHARE = (0.75, 0.85, 0.85, 0.34)
TREE_HEIGHT = (10.5, 10.5, 13.0, 8.5)
TREE_HALF = (4.2, 4.2, 3.8, 3.0)
TREE_VARIETY = (0.45, 1.0, 0.0, 0.5)
"""By land: share of cells with a tree, its height and half width, how much of the second colour there is."""


@dataclass(frozen=True)
class Land:
    """What the ridges of a batch of scenes are drawn from; fields [B]."""

    time: Tensor
    land: Tensor
    salt: Tensor
    speed: Tensor
    """Of the camera, with its sign, reference pixels a frame."""
    sun: Sun


def ridge_line(land: Land, k: int, places: Tensor) -> Tensor:
    """Crest of ridge `k` (0 is the farthest) at world places [B, T, W]: rows in reference pixels."""
    ridge = RIDGES[k]
    salt = (land.salt + 101 * k)[:, None, None]
    kind = land.land[:, None, None]
    large = value_noise(places, ridge.width, salt)
    middle = value_noise(places, ridge.width * 0.47, salt + 7)
    hills = (large + 0.28 * middle) / 1.28
    snow = hills
    if k < 3:
        small = value_noise(places, ridge.width * 0.21, salt + 13)
        peaks = (1 - (2 * large - 1).abs()) + 0.40 * (1 - (2 * middle - 1).abs()) + 0.08 * small
        snow = peaks * (1.15 / 1.48)
    desert = (large + 0.10 * middle) / 1.1
    if k == 0:
        step = (large * 3 + 0.25 * middle).clamp(0, 3)
        desert = (step.floor() + smooth((step - step.floor() - 0.35) / 0.3)) * (1.1 / 3)
    height = torch.where(kind == SNOW, snow, torch.where(kind == DESERT, desert, hills))
    scales = (1.0, 1.0, 1.25, 0.95) if k < 2 else (1.0, 1.0, 1.0, 1.15)
    return ridge.base - ridge.amplitude * _by(scales, land.land) * (height - 0.45)


def draw_ridge(canvas: Tensor, view: View, land: Land, colors: Palette, k: int) -> None:
    """Lay ridge `k`, the shadow that its paper throws and its trees over the canvas [B, T, 3, H, W]."""
    ridge = RIDGES[k]
    rows = view.rows(*ridge.rows)
    canvas = canvas[..., rows, :]
    ys = view.ys[rows]
    speed = land.speed * ridge.parallax
    wide_line = ridge_line(land, k, view.places(speed, EDGE))
    wide_slope = torch.gradient(wide_line, spacing=view.pixel, dim=2)[0]
    bend = F.avg_pool1d(wide_slope, 9, 1)[..., 1:-1]
    slope = wide_slope[..., EDGE:-EDGE]
    below = ys - wide_line[..., EDGE:-EDGE][:, :, None]
    depth = below / torch.sqrt(1 + slope * slope)[:, :, None]

    across = view.xs - land.sun.x
    warm = torch.exp(-((across / 26) ** 2)) * land.sun.glow * ridge.warmth
    veil = mix(colors.haze, colors.glow, warm[:, :, None, None])
    to_sun = -torch.tanh(across / 30)
    canvas.mul_(1 - SHADOW[k] * smooth(1 + depth / SHADOW_REACH)[:, :, None])
    if k in TREE_CELL:
        _draw_trees(canvas, view, ys, land, colors, k, veil, to_sun)
    fields = _fields(land, k, view.places(speed), below)
    ground = _ground(depth, below, bend * -to_sun, fields, land, colors, k, veil)
    lay(canvas, ground, view.soft(depth))


def _fields(land: Land, k: int, places: Tensor, below: Tensor) -> Tensor:
    """What the ground's colour is multiplied by, [B, T, H, W], at world places [B, T, W]."""
    leaning = places[:, :, None] + fixed(below.clamp(min=0) * FIELD_SLANT[k])
    number, part = cells(leaning, FIELD[k])
    salt = (land.salt + 9000 + 31 * k)[:, None, None, None]
    # One dark field in every cell, of its own place and width.
    width = 0.35 + 0.25 * uniform(number, salt + 2)
    start = (0.95 - width) * uniform(number, salt + 1)
    inside = torch.minimum(part - start, start + width - part) * FIELD[k] / FIELD_EDGE
    dark, light = FIELD_TONES
    return light + (dark - light) * smooth(inside + 0.5)


def _ground(
    depth: Tensor,
    below: Tensor,
    facing: Tensor,
    fields: Tensor,
    land: Land,
    colors: Palette,
    k: int,
    veil: Tensor,
) -> Tensor:
    """Colour of a ridge; `facing` [B, T, W] is positive where its slope looks at the sun."""
    ridge = RIDGES[k]
    near = k / (len(RIDGES) - 1)
    crest = torch.exp(-depth.clamp(min=0) / (11 - 2 * k))
    relief = _by(RELIEF, land.land) * (0.8, 0.9, 1.0, 0.8)[k] * torch.tanh(1.8 * facing)
    shade = 1 + relief[:, :, None] * crest
    if k >= 2:
        shade = shade - 0.10 * (1 - crest)
    mist = _by(CLEARNESS, land.time)[..., None] * (ridge.haze + ridge.mist * smooth(below / 15))
    rim = (1 - (depth - 0.7).abs() / 1.3).clamp(min=0) * (0.16, 0.20, 0.20, 0.16)[k]
    ground = mix(colors.far, colors.near, near) * mix(colors.far_light, colors.near_light, near)
    ground = ground * fields[:, :, None]
    body = mix(ground * shade[:, :, None], veil, mist[:, :, None])
    return mix(body, 0.5 * (colors.glow + colors.haze), rim[:, :, None])


def _draw_trees(
    canvas: Tensor, view: View, ys: Tensor, land: Land, colors: Palette, k: int, veil: Tensor, to_sun: Tensor
) -> None:
    """One tree at most in every cell along the ridge: round ones, pines or cactuses."""
    cell = TREE_CELL[k]
    number, part = cells(view.places(land.speed * RIDGES[k].parallax), cell)
    salt = (land.salt + 4000 + 77 * k)[:, None, None]
    crowd = value_noise(number, 5 / UNIT, salt + 5)
    present = uniform(number, salt) < _by(TREE_SHARE, land.land) * (crowd * 1.5 - 0.15)
    size = TREE_SCALE[k] * (0.72 + 0.45 * uniform(number, salt + 1))
    middle = 0.36 + 0.28 * uniform(number, salt + 2)
    step = round(cell * UNIT)
    foot = ridge_line(land, k, number * step + (middle * step).long()) + 0.8
    height = (_by(TREE_HEIGHT, land.land) * size)[:, :, None]
    half = (_by(TREE_HALF, land.land) * size)[:, :, None]
    right = ((part - middle) * cell)[:, :, None]
    down = (ys - foot[:, :, None]) / height + 1

    tier = (2.02 * down).remainder(1.0)
    inside = _outline(land.land[:, None, None, None], right, down, tier, height, half)
    cover = view.soft(inside) * view.soft(down * height) * (down < 1.1) * present[:, :, None]
    share = uniform(number, salt + 3) * _by(TREE_VARIETY, land.land)
    light = 1.08 - 0.30 * down + 0.13 * (right / half).clamp(-1, 1) * to_sun[:, :, None]
    color = mix(colors.tree, colors.tree_too, share[:, :, None, None]) * light[:, :, None]
    white = 0.45 * smooth((0.24 - tier) / 0.2) * (down > 0.2) * (land.land == SNOW)[:, None, None, None]
    color = mix(color, colors.tree_too, white[:, :, None]) * (
        0.4 * colors.far_light + 0.6 * colors.near_light
    )
    lay(canvas, mix(color, veil, RIDGES[k].haze + 0.04), cover)


def _outline(kind: Tensor, right: Tensor, down: Tensor, tier: Tensor, height: Tensor, half: Tensor) -> Tensor:
    """How far inside its outline a tree reaches at each pixel, reference pixels."""
    away = right.abs()
    crown = torch.sqrt((1 - ((down - 0.40) / 0.40) ** 2).clamp(min=0)) * half
    round_tree = torch.maximum(crown, 0.11 * half * (down > 0.5)) - away
    branches = (0.34 * tier + 0.66 * down).clamp(min=0) * half
    pine = torch.where(down < 0.95, branches, 0.2 * half) - away
    arms = 0.22 * half - torch.maximum((away - 0.85 * half).abs(), ((down - 0.42).abs() - 0.16) * height)
    bar = torch.minimum(0.9 * half - away, 0.20 * half - (down - 0.58).abs() * height)
    cactus = torch.maximum(0.26 * half - away, torch.maximum(arms, bar))
    return torch.where(kind == SNOW, pine, torch.where(kind == DESERT, cactus, round_tree))


def _by(table: tuple[float, ...], which: Tensor) -> Tensor:
    return torch.tensor(table, device=which.device)[which].view(-1, 1, 1)
