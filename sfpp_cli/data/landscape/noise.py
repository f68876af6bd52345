"""Hashed value noise: endless, without state, the same from whatever place it is asked.

Places are whole numbers, in `UNIT` parts of a reference pixel. They stay exact however far the camera has
travelled, so float32 is enough for everything that follows, and a scene at minute sixty is as sharp as at
second one.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = 1 << 16
"""Parts of a reference pixel."""
_LOW_32 = 0xFFFFFFFF


def fixed(value: Tensor) -> Tensor:
    """Reference pixels (float) as whole `UNIT` parts, int64."""
    return (value * UNIT).round().long()


def uniform(number: Tensor, salt: Tensor | int) -> Tensor:
    """Whole numbers [...] and a salt -> float32 in [0, 1), the same on every device.

    The integer hash lowbias32 (C. Wellons) of a counter.
    """
    bits = (number * 0x9E3779B1 + ((salt * 0x85EBCA77) & _LOW_32)) & _LOW_32
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & _LOW_32
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & _LOW_32
    return ((bits ^ (bits >> 16)) >> 8).float() / (1 << 24)


def cells(place: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Which cell of `width` reference pixels a place lies in (int64), and where in it (float32 in [0, 1))."""
    step = round(width * UNIT)
    number = torch.div(place, step, rounding_mode="floor")
    return number, (place - number * step).float() / step


def value_noise(place: Tensor, width: float, salt: Tensor) -> Tensor:
    """Smooth noise in [0, 1], float32: random values at every multiple of `width`, a quintic between them."""
    number, part = cells(place, width)
    rise = part * part * part * (part * (part * 6 - 15) + 10)
    return torch.lerp(uniform(number, salt), uniform(number + 1, salt), rise)


def smooth(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, a smooth step between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
