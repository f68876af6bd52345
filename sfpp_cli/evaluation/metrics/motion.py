"""Optical flow from frame to frame (OpenCV's DIS), and VBench's dynamic degree on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from sfpp_cli.video import Frames

Curve = NDArray[np.float64]
Curves = Mapping[str, Curve]


def clip_ranges(frames: int, fps: float, seconds: int = 2) -> list[tuple[int, int]]:
    """First frame and end of VBench-Long's clips: whole ones in a row, and for a remainder one more that ends
    with the video.

    81 frames at 16 fps: (0, 32), (32, 64), (49, 81). A video shorter than a clip is one clip. The rate is cut
    to an integer, as there (utils.split_video_into_clips).
    """
    length = clip_frames(fps, seconds)
    if frames <= length:
        return [(0, frames)]
    ranges = [(start, start + length) for start in range(0, frames - length + 1, length)]
    return ranges if frames % length == 0 else [*ranges, (frames - length, frames)]


def clip_frames(fps: float, seconds: int = 2) -> int:
    return max(1, int(fps)) * seconds


def stride(fps: float) -> int:
    """VBench looks at every so many frames, about 8 a second."""
    return max(1, round(fps / 8))


def is_dynamic(top: NDArray[np.float64], kept: int, size: tuple[int, int]) -> bool:
    """VBench's rule (vbench/dynamic_degree.py): of `kept` frames enough pairs move.

    `top` holds for each pair the mean of the fastest 5 % in pixels, `size` is (W, H). The threshold is 6 px
    at a short side of 256; round(4 n / 16) pairs are enough. Where that rounds to none (n <= 2) one is asked
    for, else a still picture would be dynamic.
    """
    threshold = 6.0 * min(size) / 256
    return int((top > threshold).sum()) >= max(1, round(4 * kept / 16))


class FlowMeter:
    """Flow of a stream of luma pictures: against the frame before, and along VBench's grids.

    `mean` and `top` (the mean of the largest 5 %) get a value a frame, in pixels of the video a frame, and
    `shift` the mean vector, (x, y); the first frame's are NaN. It holds no more than one clip of downscaled
    pictures: the last clip of a video overlaps the one before, and where it begins is known only at the end.
    """

    def __init__(self, size: tuple[int, int], fps: float, short_side: int, clip_seconds: int) -> None:
        self.size = size
        self.fps = fps
        self.stride = stride(fps)
        self.seconds = clip_seconds
        self.length = clip_frames(fps, clip_seconds)
        self.working_size = working_size(size, short_side)
        self.mean: list[float] = []
        self.top: list[float] = []
        self.shift: list[tuple[float, float]] = []
        self.last: NDArray[np.float32] | None = None
        self._grid: list[float] = []
        self._clips: list[list[float]] = []
        self._recent: deque[Frames] = deque(maxlen=max(self.length, self.stride + 1))
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __len__(self) -> int:
        return len(self.mean)

    def update(self, luma: Frames) -> None:
        """The next picture, uint8 [H, W]."""
        index = len(self)
        small = luma
        if luma.shape != self.working_size[::-1]:
            small = np.asarray(cv2.resize(luma, self.working_size, interpolation=cv2.INTER_AREA), np.uint8)
        self._recent.append(small)
        flow = np.full((1, 1, 2), np.nan, np.float32)
        if index:
            flow = self._flow(self._recent[-2], self._recent[-1])
        self.last = flow if index else None
        top = fastest(flow)
        self.mean.append(float(np.hypot(flow[..., 0], flow[..., 1]).mean(dtype=np.float64)))
        self.top.append(top)
        self.shift.append((float(flow[..., 0].mean()), float(flow[..., 1].mean())))
        place = index % self.length
        if not place:
            self._clips.append([])
        in_grid = index and index % self.stride == 0
        in_clip = place and place % self.stride == 0
        if in_grid or in_clip:
            strided = top
            if self.stride > 1:
                strided = fastest(self._flow(self._recent[-1 - self.stride], self._recent[-1]))
            if in_grid:
                self._grid.append(strided)
            if in_clip:
                self._clips[-1].append(strided)

    def dynamic(self) -> bool:
        """Whether the whole video counts as moving."""
        return is_dynamic(np.array(self._grid), len(range(0, len(self), self.stride)), self.size)

    def dynamic_clips(self) -> list[bool]:
        """Whether each clip of `clip_ranges` does."""
        ranges = clip_ranges(len(self), self.fps, self.seconds)
        tops = self._clips[: len(ranges)]
        if len(self) > self.length and len(self) % self.length:
            tops[-1] = self._last_clip()
        kept = [len(range(start, end, self.stride)) for start, end in ranges]
        return [is_dynamic(np.array(top), n, self.size) for top, n in zip(tops, kept, strict=True)]

    def _last_clip(self) -> list[float]:
        pictures = list(self._recent)[-self.length :: self.stride]
        return [fastest(self._flow(a, b)) for a, b in pairwise(pictures)]

    def _flow(self, before: Frames, after: Frames) -> NDArray[np.float32]:
        """Flow [h, w, 2] in pixels of the video. Equal pictures: 0, whatever DIS makes of them."""
        if np.array_equal(before, after):
            return np.zeros((*before.shape, 2), np.float32)
        flow = self._dis.calc(before, after, None)  # type: ignore[call-overload]
        return np.asarray(flow * (np.divide(self.size, self.working_size).astype(np.float32)), np.float32)


def fastest(flow: NDArray[np.float32]) -> float:
    """Mean of the largest 5 % of the magnitudes, as VBench takes it."""
    magnitude = np.hypot(flow[..., 0], flow[..., 1]).ravel()
    count = max(1, int(0.05 * magnitude.size))
    return float(np.partition(magnitude, magnitude.size - count)[-count:].mean(dtype=np.float64))


def working_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(W, H) of the same shape, the short side at most `short_side`, and at least 16, which DIS needs."""
    shrink = max(min(1.0, short_side / min(size)), 16 / min(size))
    return round(size[0] * shrink), round(size[1] * shrink)


def windowed_variance(values: Curve, window: int = 8) -> Curve:
    """Variance of the last `window` values at each, or of as many as there are; NaN counts as absent."""
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    views = np.lib.stride_tricks.sliding_window_view(padded, window)
    present = np.isfinite(views)
    count = np.maximum(present.sum(1), 1)
    filled = np.where(present, views, 0.0)
    mean = filled.sum(1) / count
    return np.asarray(np.where(present, (views - mean[:, None]) ** 2, 0.0).sum(1) / count, np.float64)


def spikes(values: Curve, fps: float, ratio: float, floor: float) -> NDArray[np.bool_]:
    """Where a value is `ratio` times the median of the second around it and `floor` above; NaN never is."""
    usual = rolling_quantile(np.nan_to_num(values), max(3, round(fps)) | 1, 0.5)
    return np.asarray(np.nan_to_num(values) > np.maximum(ratio * usual, usual + floor), np.bool_)


def rolling_quantile(values: Curve, window: int, quantile: float) -> Curve:
    """Quantile of the `window` values around each, the ends repeated."""
    padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(padded, window)
    return np.asarray(np.quantile(views, quantile, axis=1), np.float64)
