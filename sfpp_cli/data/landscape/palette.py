"""Colours of the landscape by time of day and land, and which of them a caption fixes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TIMES = ("dawn", "noon", "sunset", "night")
LANDS = ("spring", "autumn", "snow", "desert")
BALLOONS = ("red", "yellow", "blue", "purple", "green")
NIGHT = TIMES.index("night")
LUMA_WEIGHTS = (0.299, 0.587, 0.114)

BALLOON_COLORS = ("e2352f", "f6c32c", "2f6fe0", "9a45c9", "16a877")
CREAM, FIRE, WICKER = "fff5db", "ffb859", "6e4526"

SKIES = {
    "dawn": "79abdc c3cbe4 ffd2b4 fff3cf ffc99c f2c8c0 fff0e6 dcb2c4 ffeee4 fde2da",
    "noon": "3c8fe6 7fbdf2 cfeafb fffdea ffffff cde2f0 ffffff c9dcef ffffff ffffff",
    "sunset": "4b3a86 b7567f ff9d4a ffe7a0 ffb057 f0905e ff9f7d 8d4e86 ffc49a c07f8c",
    "night": "0b1033 1b2757 3a4a86 f6f4e4 8fa3dd 33457f 3e4d8a 1b2552 6473b0 4d5b98",
}
GROUNDS = {
    "spring": "6fa57c 6cb84a 2f8a4b 8fd05a",
    "autumn": "b06a4a e0a03c c2472a f3b83e",
    "snow": "9ab1cf f4f8fc 2f6b66 dfeaf3",
    "desert": "c47a5c eebb68 5d8a4c 7da257",
}
"""Both in the order of `Palette`'s fields: colours of the sky and its light, then of the land."""


def rgb(text: str) -> list[float]:
    """A colour written as six hexadecimal digits, in [0, 1]."""
    return [int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)]


@dataclass(frozen=True)
class Palette:
    """Colours of a batch of scenes, each [B, 1, 3, 1, 1]: ready to be laid over [B, T, 3, H, W]."""

    top: Tensor
    middle: Tensor
    low: Tensor
    sun: Tensor
    glow: Tensor
    haze: Tensor
    cloud: Tensor
    shade: Tensor
    far_light: Tensor
    near_light: Tensor
    far: Tensor
    near: Tensor
    tree: Tensor
    tree_too: Tensor
    balloon: Tensor


def palette(time: Tensor, land: Tensor, balloon: Tensor, hue: Tensor) -> Palette:
    """Colours of scenes [B]; `hue` turns those of sky and land by so many radians, at the same luma."""
    device = time.device
    turn = _hue_turn(hue).transpose(1, 2)
    skies = _table(SKIES.values(), device)[time] @ turn
    grounds = _table(GROUNDS.values(), device)[land] @ turn
    balloons = torch.tensor([rgb(color) for color in BALLOON_COLORS], device=device)[balloon]
    colors = torch.cat([skies, grounds, balloons[:, None]], 1).unbind(1)
    return Palette(*(color[:, None, :, None, None] for color in colors))


def constant(text: str, device: torch.device) -> Tensor:
    """One colour for all scenes, [3, 1, 1]."""
    return torch.tensor(rgb(text), device=device)[:, None, None]


def _table(rows: Iterable[str], device: torch.device) -> Tensor:
    """Rows of colours as numbers, [N, colours, 3]."""
    return torch.tensor([[rgb(color) for color in row.split()] for row in rows], device=device)


def _hue_turn(hue: Tensor) -> Tensor:
    """Rotation about the axis of luma in YIQ, [B, 3, 3]."""
    to_yiq = torch.tensor(
        [LUMA_WEIGHTS, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], device=hue.device
    )
    turn = torch.zeros(len(hue), 3, 3, device=hue.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = torch.cos(hue)
    turn[:, 2, 2] = torch.cos(hue)
    turn[:, 1, 2] = -torch.sin(hue)
    turn[:, 2, 1] = torch.sin(hue)
    from_yiq: Tensor = torch.linalg.inv(to_yiq)
    return from_yiq @ turn @ to_yiq
