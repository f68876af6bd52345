"""Local stability: how near exposure and sharpness stay to the video's own beginning, 0..100.

Not Visual Stability: that name belongs to the judgement of a video LLM (Self-Forcing++, section 3.4).
"""

from __future__ import annotations

import numpy as np

from sfpp_cli.evaluation.metrics.motion import Curve, Curves
from sfpp_cli.evaluation.metrics.parameters import Parameters


def reference_frames(frames: int, fps: float, seconds: float = 5.0) -> int:
    """How many frames are the reference: `seconds` of them, in a short video a third, at least one."""
    return max(1, min(round(seconds * fps), frames // 3))


def smooth(values: Curve, window: int) -> Curve:
    """Mean of the `window` values around each, fewer at the ends; NaN counts as absent."""
    present = np.isfinite(values)
    kernel = np.ones(min(window, len(values)))
    total = np.convolve(np.where(present, values, 0.0), kernel, mode="same")
    count = np.convolve(present.astype(np.float64), kernel, mode="same")
    return np.asarray(total / np.maximum(count, 1), np.float64)


def drift_to_white_and_black(luma: Curve, base: Curve | float) -> tuple[Curve, Curve]:
    """Share of the way from `base` to white and to black, each 0..1."""
    white = np.clip((luma - base) / np.maximum(1 - np.asarray(base), 1e-6), 0, 1)
    black = np.clip((base - luma) / np.maximum(np.asarray(base), 1e-6), 0, 1)
    return np.asarray(white), np.asarray(black)


def local_stability(curves: Curves, fps: float, parameters: Parameters) -> Curve:
    """The score [T] of each frame: 100 x (1 - the worst departure of the second around it).

    Departures from the mean of the reference, each 0 up to the first of its two limits and 1 from the second
    on: the way of mean luma to white or black; the rise of clipped and of crushed pixels; contrast and
    sharpness in octaves.
    """
    count = reference_frames(len(curves["luma"]), fps, parameters.reference_seconds)
    now = {
        name: smooth(curves[name], max(1, round(fps)))
        for name in ("luma", "clipped", "crushed", "contrast", "sharpness")
    }
    base = {name: float(np.mean(curves[name][:count])) for name in now}
    white, black = drift_to_white_and_black(now["luma"], base["luma"])
    lost = np.maximum(now["clipped"] - base["clipped"], now["crushed"] - base["crushed"])
    departures = [
        _ramp(np.maximum(white, black), parameters.stability_way),
        _ramp(lost, parameters.stability_clipped),
        _ramp(_octaves(now["contrast"], base["contrast"], 1 / 255), parameters.stability_contrast),
        _ramp(_octaves(now["sharpness"], base["sharpness"], 1.0), parameters.stability_sharpness),
    ]
    return np.asarray(100 * (1 - np.max(departures, axis=0)), np.float64)


def _ramp(value: Curve, limits: tuple[float, float]) -> Curve:
    return np.clip((value - limits[0]) / (limits[1] - limits[0]), 0, 1)


def _octaves(value: Curve, base: float, floor: float) -> Curve:
    """|log2| of the ratio; both are lifted by `floor`, so that a plain picture's noise is no octave."""
    return np.abs(np.log2((value + floor) / (base + floor)))
