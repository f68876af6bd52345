"""Sudden changes from one frame to the next: where they are, and whether they sit at chunk borders."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.motion import Curve, Curves
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.video import Frames

_MERGED = 2
"""Sudden frames this near are one jump: a decoder in time smears it over several frames."""
_LONGEST = 6
"""Sudden frames in a row beyond this are a change of pace, not a jump."""
_ROWS = 64
"""Pictures compared at a time."""
_FEWEST = 4
"""With fewer frames around, nothing can be called unusual."""
_TINY = 1e-3
"""Changes below this, a quarter of a level, are none."""
_NEW = 0.3
"""The share of frames around that must be new for the others to count as copies."""


@dataclass(frozen=True)
class Jump:
    """A sudden change: its first frame, the frame after it is over, and how far apart the pictures around it
    are, 0..1.

    `size` is the RMS difference over RGB of the median cell of the miniatures: half of the picture changes by
    at least this much. An object that is suddenly elsewhere leaves the median as it was, whatever its
    contrast; another scene does not.
    """

    start: int
    end: int
    size: float


@dataclass(frozen=True)
class Changes:
    """`picture` [T]: RMS difference of each miniature to the one before, 0..1, first 0. `reversing` [T]: part
    of an oscillation within a few frames. `jumps`: what stands out, in order."""

    picture: Curve
    reversing: NDArray[np.bool_]
    jumps: list[Jump]


def find_changes(
    miniatures: Frames,
    curves: Curves,
    shift: Curve,
    size: tuple[int, int],
    fps: float,
    parameters: Parameters,
) -> Changes:
    """Sudden changes of pictures of (W, H), as miniatures uint8 [T, cells], curves [T] of `luma` and
    `light_step`, and mean flow vectors [T, 2].

    A frame is sudden if its difference to the one before stands out from those of the second around it: in
    the picture; in the brightness of the median cell, which a moving object hardly touches, so that a faint
    flicker of the whole picture shows there; or in how the mean flow changes, where a jerk of the whole
    picture shows even while the camera moves. Flow over plain ground is a guess that turns with an encoder's
    noise, so a jerk counts only if the picture, too, changes visibly more than usual.
    """
    picture = _differences(miniatures, 1)
    steps = _median_steps(miniatures)
    jerks = np.hypot(*np.diff(np.nan_to_num(shift), axis=0, prepend=0).T) / min(size)
    new = picture > _TINY
    window = max(3, round(fps))
    usual, usual_step, usual_jerk = (_usual(changes, new, window) for changes in (picture, steps, jerks))
    sudden = picture > np.maximum(parameters.jump_picture, parameters.jump_ratio * usual)
    sudden |= steps > np.maximum(parameters.jump_luma, parameters.jump_ratio * usual_step)
    jerky = jerks > np.maximum(parameters.jump_flow, parameters.jump_ratio * usual_jerk)
    sudden |= jerky & (picture > usual + parameters.jump_jerk)
    levels = curves["luma"][:, None] * 255
    reversing = _reversing(miniatures, parameters.jump_picture, parameters.reversal)
    reversing |= _reversing(levels, parameters.jump_luma, parameters.reversal)
    # rain and ripples come and go, but what stays in the picture keeps its brightness
    reversing &= np.abs(curves["light_step"]) > parameters.flicker_light
    return Changes(picture, reversing, _group(sudden, miniatures))


def find_cuts(curves: Curves, miniatures: Frames, fps: float, parameters: Parameters) -> list[Jump]:
    """Where another scene begins: a moment at which most of the picture is not found again along the flow, as
    it is before and after, however fast things move there; and the layout of colours in the windows on both
    sides differs, which a flash and an object close by leave as it was, and by more than in as short a time
    before or after, since waves change it, too.
    """
    unmatched = curves["unmatched"]
    window = max(3, round(parameters.cut_window_seconds * fps))
    scene = max(2, round(parameters.cut_scene_seconds * fps))
    cuts: list[Jump] = []
    for place in np.flatnonzero(unmatched > parameters.cut_unmatched):
        start = int(place)
        around = unmatched[max(0, start - window) : start + window + 1].copy()
        middle = min(start, window)
        if unmatched[start] < around.max() or (cuts and start - cuts[-1].start <= _MERGED):
            continue
        around[max(0, middle - _MERGED) : middle + _MERGED + 1] = 0
        if start < scene or start > len(unmatched) - scene:
            continue
        if around.max() > parameters.cut_around * unmatched[start]:
            continue
        size = _layout_change(miniatures, start, window)
        beside = [place for place in (start - window - 1, start + window + 2) if window <= place]
        usual = [
            _layout_change(miniatures, place, window) for place in beside if place + window < len(unmatched)
        ]
        if size >= max(parameters.cut_picture, parameters.cut_ratio * min(usual, default=0)):
            cuts.append(Jump(start, start + 1, size))
    return cuts


def _layout_change(miniatures: Frames, start: int, window: int) -> float:
    """The RMS difference, 0..1, of the median cell between the pictures before and after a moment: the
    nearest of any two, one from either side."""
    before = miniatures[max(0, start - window) : max(1, start - 1)].astype(np.float32)
    after = miniatures[start + 1 : start + 1 + window].astype(np.float32)
    sizes = []
    for picture in after:
        cells = ((before - picture) ** 2).reshape(len(before), -1, 3).mean(2)
        sizes.append(np.median(cells, axis=1).min())
    return sqrt(float(np.min(sizes))) / 255


def border_frames(frames: int, first: int = 9, period: int = 12) -> NDArray[np.bool_]:
    """Which of [T] frames begin a chunk: 9, 21, 33, ... The first frame of the video begins nothing."""
    index = np.arange(frames)
    return np.asarray((index >= first) & ((index - first) % period == 0) & (index > 0), np.bool_)


def border_ratio(changes: Curve, borders: NDArray[np.bool_]) -> float | None:
    """Mean change at chunk borders over mean change inside chunks, 1 for a video without borders; None if
    nothing changes inside. `changes` [T] are non-negative and belong to the step from the frame before; the
    first is not looked at."""
    at = changes[1:][borders[1:]]
    inside = changes[1:][~borders[1:]]
    if not at.size or not inside.size or inside.mean() <= 0:
        return None
    return float(at.mean() / inside.mean())


def _differences(pictures: NDArray[Any], lag: int) -> Curve:
    """RMS difference, in 0..1, of each picture [T, cells] in 0..255 to the one `lag` before, or 0."""
    values = np.zeros(len(pictures))
    for start in range(lag, len(pictures), _ROWS):
        piece = pictures[start : start + _ROWS].astype(np.float32)
        before = pictures[start - lag : start - lag + len(piece)]
        values[start : start + _ROWS] = np.sqrt(((piece - before) ** 2).mean(1)) / 255
    return values


def _median_steps(miniatures: Frames) -> Curve:
    """How far the brightness of the median cell moves from one picture to the next, 0..1; first 0."""
    steps = np.zeros(len(miniatures))
    for start in range(1, len(miniatures), _ROWS):
        cells = miniatures[start - 1 : start + _ROWS].reshape(-1, miniatures.shape[1] // 3, 3).mean(2)
        steps[start : start + _ROWS] = np.abs(np.median(np.diff(cells, axis=0), axis=1)) / 255
    return steps


def _usual(changes: Curve, new: NDArray[np.bool_], window: int) -> Curve:
    """Median of the changes around each; of those to `new` pictures alone, if every second or third is new,
    as in 12 frames a second stored as 24."""
    around = _around(changes, window)
    new_around = _around(new, window) == 1
    usual = _median(around)
    stored_twice = new_around.sum(1) > _NEW * np.isfinite(around).sum(1)
    usual[stored_twice] = _median(np.where(new_around, around, np.nan)[stored_twice])
    return usual


def _around(values: NDArray[Any], window: int) -> Curve:
    """The `window` values before and after each, [T, 2 window + 1]; NaN in the middle and beyond the ends."""
    padded = np.pad(values.astype(np.float64), window, constant_values=np.nan)
    views = np.lib.stride_tricks.sliding_window_view(padded, 2 * window + 1).copy()
    views[:, window] = np.nan
    return views


def _median(views: Curve) -> Curve:
    """Median of each row of [T, n] without its NaN; infinite where too few are left to tell what is usual."""
    known = np.isfinite(views).sum(1) >= _FEWEST
    medians = np.full(len(views), np.inf)
    medians[known] = np.nanmedian(views[known], axis=1)
    return medians


def _reversing(pictures: NDArray[Any], floor: float, threshold: float) -> NDArray[np.bool_]:
    """Frames within a stretch of 2, 4 or 6 after which the picture [cells] is back where it was, though it
    went far.

    This is how flicker with a period of up to three frames shows, where every change is large and none stands
    out. It has to hold from nearly every frame of two such stretches: an object that bounces off a wall comes
    back, too, but once.
    """
    steps = _differences(pictures, 1)
    total = np.cumsum(steps)
    reversing = np.zeros(len(steps), np.bool_)
    for lag in (2, 4, 6):
        gone = total[lag:] - total[:-lag]
        undone = 1 - _differences(pictures, lag)[lag:] / np.maximum(gone, 1e-9)
        back = ((undone > threshold) & (gone > 2 * floor)).astype(np.float64)
        often = np.zeros(len(back))
        if len(back) >= 2 * lag:
            often = np.convolve(back, np.ones(2 * lag) / (2 * lag), mode="same")
        for start in np.flatnonzero((back > 0) & (often > 0.8)):
            stretch = slice(start + 1, start + lag + 1)
            reversing[stretch] |= steps[stretch] > floor
    return reversing


def _group(sudden: NDArray[np.bool_], miniatures: Frames) -> list[Jump]:
    """Sudden frames that are near each other are one jump, unless they go on for long."""
    places = np.flatnonzero(sudden)
    if not places.size:
        return []
    runs = np.split(places, np.flatnonzero(np.diff(places) > _MERGED) + 1)
    jumps = []
    for start, last in ((int(run[0]), int(run[-1])) for run in runs):
        if last - start < _LONGEST:
            change = miniatures[last].astype(np.float64) - miniatures[start - 1]
            cells = (change**2).reshape(-1, 3).mean(1)
            jumps.append(Jump(start, last + 1, sqrt(float(np.median(cells))) / 255))
    return jumps
