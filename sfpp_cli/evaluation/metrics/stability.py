"""What everything later is compared to: the video's own beginning."""

from __future__ import annotations

import numpy as np

from sfpp_cli.evaluation.metrics.motion import Curve


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
