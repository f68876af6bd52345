"""Colour, detail and noise of a stream of frames, and how colours change on content that stays in the
picture.

What a camera passes changes the mean of a picture as much as drift does. So besides the means, what is seen
in two frames in a row is compared along the optical flow; added up, these small changes say what became of
the colours themselves. New content counts from the moment it is in the picture, and a cut, where nothing
matches, counts nothing.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.motion import Curve
from sfpp_cli.video import Frames

Picture = NDArray[np.float32]
STEPS = ("unmatched", "light_step", "gain_step", "cast_a_step", "cast_b_step")
_WIDTH = 80
"""Pixels across in which colours are compared."""
_FAR = 12.0
"""CIELAB units: pictures that differ by more along the flow do not show the same thing."""
_OUTLIER = 4.0
"""CIELAB units from the median change, beyond which a pixel is left out of the fit."""
_PRIOR = 4.0
"""Squared chroma added to the fit, so that a grey picture has no gain."""
_BLOCK = 8
"""Side, in pixels of the measuring size, of the blocks whose detail and noise are ranked."""
_SHOWN = (12, 243)
"""Levels of a block's mean in which noise and detail can be seen."""
_TEXTURED = 1.0
"""Levels of coarse detail a block needs for its fine detail to be judged."""
_IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
"""Deaf to edges and ramps (Immerkaer, Fast Noise Variance Estimation, 1996)."""
_DEVIATION = float(np.sqrt(np.pi / 2) / 6)
"""From the mean magnitude of that filter's answer to the noise's standard deviation."""


class LookMeter:
    """Rows of numbers, one a frame; `curves` gives them by name.

    `chroma`, `lightness`, `colour_a`, `colour_b`: means in CIELAB. `detail`: share of fine detail in fine and
    coarse, 0..1, at the upper quartile of the blocks with texture. `noise`: standard deviation in levels of
    255 in the calmest tenth of the picture, by what no edge explains and by what no frame before shows.
    `unmatched`: share of the picture that is not found again along the flow. Steps from the frame before, on
    what is found again: `light_step` (lightness), `gain_step` (chroma, natural log), `cast_a_step` and
    `cast_b_step` (what neutral grey has become).
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._rows: list[dict[str, float]] = []
        self._lab: Picture | None = None
        self._fine: Picture | None = None

    def update(self, frame: Frames, luma: Frames, flow: Picture | None) -> None:
        """The next frame [H, W, 3], its luma [H, W], and the flow [h, w, 2] that leads to it in pixels of the
        video."""
        width, height = self.size
        small = (_WIDTH, max(8, round(_WIDTH * height / width)))
        reduced = cv2.resize(frame, small, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        lab = np.asarray(cv2.cvtColor(reduced, cv2.COLOR_RGB2Lab), np.float32)
        means = lab.mean((0, 1), dtype=np.float64)
        row = {"chroma": float(np.hypot(lab[..., 1], lab[..., 2]).mean())}
        row |= dict(zip(("lightness", "colour_a", "colour_b"), map(float, means), strict=True))
        row |= self._detail(luma)
        lab = np.asarray(cv2.GaussianBlur(lab, (0, 0), 1.0), np.float32)
        steps = dict.fromkeys(STEPS, 0.0)
        if self._lab is not None and flow is not None:
            scaled = cv2.resize(flow, small, interpolation=cv2.INTER_AREA) * np.float32(small[0] / width)
            steps = _changes(self._lab, lab, np.asarray(scaled, np.float32))
        self._lab = lab
        self._rows.append(row | steps)

    def curves(self) -> dict[str, Curve]:
        """Curves [T] by name."""
        return {name: np.array([row[name] for row in self._rows]) for name in self._rows[0]}

    def _detail(self, luma: Frames) -> dict[str, float]:
        picture = luma.astype(np.float32)
        soft = cv2.GaussianBlur(picture, (0, 0), 1.0)
        fine = np.asarray(picture - soft, np.float32)
        coarse = _blocks(np.abs(soft - cv2.GaussianBlur(soft, (0, 0), 2.0)))
        light = _blocks(picture)
        shown = (light > _SHOWN[0]) & (light < _SHOWN[1])
        if shown.sum() < shown.size / 4:
            shown[:] = True
        textured = shown & (coarse > _TEXTURED)
        share = _blocks(np.abs(fine))
        share = share / (share + coarse + np.float32(1e-6))
        in_frame = _blocks(np.abs(cv2.filter2D(picture, cv2.CV_32F, _IMMERKAER))) * _DEVIATION
        # a first frame has nothing to be compared with
        over_time = in_frame if self._fine is None else _blocks(np.abs(fine - self._fine))
        self._fine = fine
        return {
            "detail": float(np.quantile(share[textured], 0.75)) if textured.any() else float("nan"),
            "noise": float(min(np.quantile(in_frame[shown], 0.1), np.quantile(over_time[shown], 0.1))),
        }


def _blocks(values: Picture) -> Picture:
    """Means of blocks, [H / _BLOCK, W / _BLOCK]."""
    size = (max(1, values.shape[1] // _BLOCK), max(1, values.shape[0] // _BLOCK))
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _changes(before: Picture, after: Picture, flow: Picture) -> dict[str, float]:
    """What changes from one small CIELAB picture to the next on what is seen in both.

    Chroma grows by the least-squares factor of the change over the mean of before and after (so that noise in
    either does not bend it); the cast is what a line through the changes says of neutral grey.
    """
    height, width, _ = before.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x_step = flow[..., 0] / 2
    y_step = flow[..., 1] / 2
    # both are sampled half-way, since interpolation softens: else every frame would seem paler than the last
    start = cv2.remap(before, x - x_step, y - y_step, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    end = cv2.remap(after, x + x_step, y + y_step, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (abs(x + 2 * x_step - width / 2) < width / 2) & (abs(y + 2 * y_step - height / 2) < height / 2)
    change = end - start
    near = inside & ((change**2).sum(-1) < _FAR**2)
    steps = dict.fromkeys(STEPS, 0.0)
    steps["unmatched"] = 1 - float(near.mean())
    if near.sum() < near.size / 5:
        return steps
    steps["light_step"] = float(np.median(change[near][:, 0]))
    kept = near & (np.abs(change - np.median(change[near], axis=0)).max(-1) < _OUTLIER)
    middle = ((start + end) / 2)[kept][:, 1:]
    delta = change[kept][:, 1:]
    if not len(middle):
        return steps
    prior = _PRIOR * len(middle)
    steps["gain_step"] = float((middle * delta).sum() / ((middle**2).sum() + prior))
    centred = middle - middle.mean(0)
    slope = float((centred * delta).sum() / ((centred**2).sum() + prior))
    cast = delta.mean(0) - slope * middle.mean(0)
    return steps | {"cast_a_step": float(cast[0]), "cast_b_step": float(cast[1])}
