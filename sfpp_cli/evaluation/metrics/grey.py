"""What became of grey in a view that stays: a cast moves it, saturation leaves it where it was."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PALE = 15.0
"""CIELAB units of chroma up to which a cell tells of grey; strong colours leave what a screen can show."""
_STAYED = 6.0
"""CIELAB units: a cell that the fit misses by more shows something else than in the beginning."""
_PRIOR = 4.0
"""Squared chroma added to the fit, so that grey cells have no gain."""
_ROUNDS = 4

Cells = NDArray[np.float64]


def grey_shift(cells: NDArray[np.float32], first: Cells) -> tuple[Cells, Cells]:
    """How far grey has gone from where it was in `first` [N, 3], the cells of the beginning, in each picture
    of `cells` [T, N, 3] (CIELAB): a and b [T, 2] at the cells' usual lightness, and by how much [N] that
    counts in each cell.

    Cell by cell a change of colour is a gain of its chroma plus a shift that grows with L* + 16, as a tint
    of the light makes it: CIELAB's a and b are differences of cube roots, to which factors of X, Y and Z add
    in proportion. Fitted by least squares, reweighted so that strong colours and cells whose content has
    changed count little.
    """
    colour = first[:, 1:]
    pale = 1 / (1 + (np.hypot(*colour.T) / _PALE) ** 4)
    light = first[:, 0] + 16
    light = light / np.average(light, weights=pale)
    shifts = np.zeros((len(cells), 2))
    for index, picture in enumerate(cells):
        change = picture[:, 1:] - colour
        weights = pale
        for _ in range(_ROUNDS):
            gain, shift = _fit(change, colour, light, weights / weights.sum())
            missed = np.linalg.norm(change - gain * colour - np.outer(light, shift), axis=1)
            weights = pale / (1 + (missed / _STAYED) ** 2)
        shifts[index] = shift
    return shifts, light


def _fit(change: Cells, colour: Cells, light: Cells, weights: Cells) -> tuple[float, Cells]:
    """The gain and the shift [2] for which `gain * colour + light * shift` is nearest to `change` [N, 2]."""
    square = weights @ light**2
    mixed = (weights * light) @ colour
    lit = (weights * light) @ change
    spread = weights @ (colour**2).sum(1) - mixed @ mixed / square
    along = weights @ (change * colour).sum(1) - lit @ mixed / square
    gain = float(along / (spread + _PRIOR))
    return gain, np.asarray((lit - gain * mixed) / square)
