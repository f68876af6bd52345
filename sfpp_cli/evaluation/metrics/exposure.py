"""Exposure and sharpness of single frames."""

from __future__ import annotations

import cv2
import numpy as np

from sfpp_cli.video import Frames

_REC_709 = np.array([[0.2126, 0.7152, 0.0722]], np.float32)
_LEVELS = np.arange(256) / 255


def luma_of(frame: Frames) -> Frames:
    """Rec. 709 luma, uint8 [H, W], of an RGB frame [H, W, 3]."""
    return np.asarray(cv2.transform(frame, _REC_709), np.uint8)


def exposure(
    frame: Frames, luma: Frames, clipped_luma: float = 0.98, crushed_luma: float = 0.02
) -> dict[str, float]:
    """The gauges of one frame [H, W, 3] and its luma [H, W] (metrics.md, section 6).

    `luma`: mean. `contrast`: standard deviation of luma. `clipped`, `crushed`: share of pixels with luma
    above and below the two limits. `saturation`: mean of (max - min) / max over RGB. All of these in 0..1.
    `sharpness`: variance of the 3 x 3 Laplacian of luma in 0..255, at the video's own size.
    """
    share = cv2.calcHist([luma], [0], None, [256], [0, 256]).astype(np.float64).ravel() / luma.size
    mean = float(share @ _LEVELS)
    saturation = cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV))[1]
    _, deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return {
        "luma": mean,
        "contrast": float(np.sqrt(share @ (_LEVELS - mean) ** 2)),
        "clipped": float(share[clipped_luma < _LEVELS].sum()),
        "crushed": float(share[crushed_luma > _LEVELS].sum()),
        "saturation": saturation / 255,
        "sharpness": float(deviation[0, 0]) ** 2,
    }
