"""Does a video repeat itself? NoRepeat as RIFLEx defines it, and self-similarity over all frames, which a
long video needs.

NoRepeat compares whole pictures at one offset, which is known only when a window of frames has been compared
to the first. Until then, and for as long as the offset is, frames rest in a temporary file. Self-similarity
compares every frame to every other within reach; it works on miniatures of 16 x 16 RGB cells, 768 bytes a
frame (2.9 MB for four minutes), a band of the matrix of differences at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.video import Frames

NOREPEAT_THRESHOLD = 100.0
"""L2 distance of two pictures at 832 x 480, RGB in 0..1: RIFLEx, appendix D."""
SIDE = 16
"""Cells on a side of a miniature."""
Miniatures = NDArray[np.float32]
"""[T, 768], around their mean."""
Limits = NDArray[np.float32]
"""[T]: squared distances below which two pictures are the same."""
_ROWS = 64
"""Frames in a band."""


def distance(a: Frames, b: Frames) -> float:
    """L2 distance of two frames [H, W, 3] as RIFLEx takes it, RGB in 0..1."""
    return float(cv2.norm(a, b, cv2.NORM_L2)) / 255


def offsets(frames: int, fps: float, parameters: Parameters) -> tuple[int, int] | None:
    """Shortest and longest offset looked for, in frames; None if the video is too short for any."""
    shortest = min(parameters.repeat_min_frames, frames // 4)
    longest = min(frames // 2, round(parameters.repeat_max_seconds * fps))
    return (shortest, longest) if 1 <= shortest < longest else None


def norepeat_window(frames: int, fps: float, parameters: Parameters) -> tuple[int, int] | None:
    """P and n: given ones, or those that span `offsets`. None unless T > P + n, as NoRepeat asks."""
    position = parameters.norepeat_position
    halfwidth = parameters.norepeat_halfwidth
    if position is None or halfwidth is None:
        span = offsets(frames, fps, parameters)
        if span is None:
            return None
        shortest, longest = span
        halfwidth = (longest - shortest) // 2
        position = shortest + halfwidth
    return (position, halfwidth) if frames > position + halfwidth and position - halfwidth >= 1 else None


def best_offset(to_first: Sequence[float], position: int, halfwidth: int) -> int:
    """NoRepeat's step 1: which frame in [P - n, P + n] is nearest to the first; `to_first` are distances."""
    low = position - halfwidth
    high = min(position + halfwidth, len(to_first) - 1)
    return low + int(np.argmin(to_first[low : high + 1]))


class NoRepeatMeter:
    """NoRepeat of a stream, with the window [P - n, P + n] given. Frames of the last P + n are kept in a file
    that vanishes with `close`."""

    def __init__(self, position: int, halfwidth: int) -> None:
        self.position = position
        self.halfwidth = halfwidth
        self.offset: int | None = None
        """o*, once the window has passed."""
        self._kept = position + halfwidth + 1
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        self._to_first: list[float] = []
        self._first: Frames | None = None
        self._total = 0.0
        self._pairs = 0

    def update(self, frame: Frames) -> None:
        """The next frame [H, W, 3]."""
        self._first = frame if self._first is None else self._first
        index = len(self._to_first)
        self._to_first.append(distance(self._first, frame))
        self._file.seek(index % self._kept * frame.nbytes)
        self._file.write(frame.tobytes())
        if self.offset is not None:
            self._add(self._at(index - self.offset), frame)
        elif index == self.position + self.halfwidth:
            self.offset = best_offset(self._to_first, self.position, self.halfwidth)
            for later in range(self.offset, index + 1):
                self._add(self._at(later - self.offset), self._at(later))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def mean(self) -> float:
        """Step 2: the mean distance of pairs (x_i, x_{i + o*})."""
        return self._total / max(self._pairs, 1)

    def _add(self, before: Frames, after: Frames) -> None:
        self._total += distance(before, after)
        self._pairs += 1

    def _at(self, index: int) -> Frames:
        assert self._first is not None
        self._file.seek(index % self._kept * self._first.nbytes)
        content = self._file.read(self._first.nbytes)
        return np.frombuffer(content, np.uint8).reshape(self._first.shape)


def norepeat_threshold(size: tuple[int, int]) -> float:
    """RIFLEx's 100, scaled to pictures of (W, H): the same RMS difference, 0.0914, at every size."""
    return NOREPEAT_THRESHOLD * sqrt(size[0] * size[1] / (832 * 480))


def rms(value: float, size: tuple[int, int]) -> float:
    """An L2 distance as root mean square difference of a channel, 0..1."""
    return value / sqrt(3 * size[0] * size[1])


def from_rms(value: float, size: tuple[int, int]) -> float:
    """The L2 distance of two pictures of (W, H) that differ by this root mean square."""
    return value * sqrt(3 * size[0] * size[1])


def miniature(frame: Frames) -> Frames:
    """The frame's 16 x 16 cell means, uint8 [768]."""
    return np.asarray(cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8).ravel()


def similarity_by_distance(miniatures: Frames, fps: float, points: int = 24) -> dict[str, Any]:
    """How alike two moments are, by the time between them: `seconds`, evenly spaced up to two thirds of the
    video, and `values`, the mean correlation of all miniatures that far apart, -1..1 (VBench issue 206).

    What stays the same all the time (the mean picture) is part of both, so a held scene is near 1 throughout;
    a video that drifts falls the further apart its moments are.
    """
    pictures = miniatures.astype(np.float32)
    pictures -= pictures.mean(1, keepdims=True)
    pictures /= np.maximum(np.linalg.norm(pictures, axis=1, keepdims=True), 1e-6)
    count = len(pictures)
    lags = sorted({round(lag) for lag in np.linspace(0, 2 * count / 3, points + 1)} & set(range(1, count)))
    values = [float(np.einsum("ij,ij->i", pictures[lag:], pictures[:-lag]).mean()) for lag in lags]
    return {"descriptor": "colour layout", "seconds": [lag / fps for lag in lags], "values": values}


@dataclass(frozen=True)
class Similarity:
    """How well a video matches itself at its best offset.

    `rms`: root mean square difference of the miniatures at the offset, 0..1. `share`: how much of the
    compared, moving time is the same there. `repeats` [T]: whether a frame is the same as the one `period`
    before it, within a moving stretch; the period is the offset or, where that holds several rounds of a
    shorter loop, an equal part of it.
    """

    offset: int
    period: int
    rms: float
    share: float
    repeats: NDArray[np.bool_]


def self_similarity(miniatures: Frames, fps: float, parameters: Parameters) -> Similarity | None:
    """The offset at which most frames of uint8 [T, 768] are the same; if none are, the least difference."""
    span = offsets(len(miniatures), fps, parameters)
    if span is None:
        return None
    shortest, longest = span
    centred = miniatures.astype(np.float32)
    centred -= miniatures.mean(0, dtype=np.float64).astype(np.float32)
    centred /= 255
    alike = _alike_below(centred, fps, parameters)
    matches, squares = _scan(centred, alike, shortest, longest)
    pairs = len(centred) - np.arange(shortest, longest + 1)
    offset = shortest + int(np.lexsort((squares / pairs, -matches))[0])  # most matches, then least difference
    rows, limits = _at(centred, alike, offset)
    share = _share(rows, limits)
    period = _period(centred, alike, offset, share, round(fps))
    squared, limit = _at(centred, alike, period)
    return Similarity(
        offset=offset,
        period=period,
        rms=sqrt(float(rows.mean()) / centred.shape[1]),
        share=share,
        repeats=np.concatenate([np.zeros(period, np.bool_), squared < limit]),
    )


def _at(centred: Miniatures, alike: Limits, offset: int) -> tuple[NDArray[np.float64], Limits]:
    """Squared distances at one offset, and below what they count as the same, each [T - offset]."""
    squared = _squared_distances(centred, offset)
    return squared, np.minimum(alike[offset:], alike[:-offset])


def _squared_distances(centred: Miniatures, lag: int) -> NDArray[np.float64]:
    """From each picture to the one `lag` before, [T - lag]; a band at a time, to keep memory small."""
    squares = np.zeros(len(centred) - lag)
    for start in range(0, len(squares), _ROWS):
        stop = min(start + _ROWS, len(squares))
        squares[start:stop] = ((centred[start + lag : stop + lag] - centred[start:stop]) ** 2).sum(1)
    return squares


def _share(squared: NDArray[np.float64], limit: Limits) -> float:
    return float((squared < limit).sum() / max(int((limit > 0).sum()), 1))


def _period(centred: Miniatures, alike: Limits, offset: int, share: float, shortest: int) -> int:
    """The shortest equal part of `offset`, of a second or more, at which as much is the same."""
    for rounds in range(offset // max(shortest, 1), 1, -1):
        part = round(offset / rounds)
        if share > 0 and _share(*_at(centred, alike, part)) > 0.9 * share:
            return part
    return offset


def _alike_below(centred: Miniatures, fps: float, parameters: Parameters) -> Limits:
    """Squared distance [T] below which another picture is the same as this one; 0 where nothing moves.
    Measured against what changes a quarter, a half and a whole second before and after."""
    count, cells = centred.shape
    total = np.zeros(count)
    pairs = np.zeros(count)
    for lag in {min(max(1, round(fps * part)), count - 1) for part in (0.25, 0.5, 1.0)}:
        changed = np.sqrt(_squared_distances(centred, lag))
        for side in (slice(lag, None), slice(None, -lag)):
            total[side] += changed
            pairs[side] += 1
    activity = total / np.maximum(pairs, 1)
    moving = activity > parameters.repeat_activity * sqrt(cells)
    coded = np.minimum(parameters.repeat_coded * sqrt(cells), parameters.repeat_coded_ratio * activity)
    limit = np.maximum(parameters.repeat_ratio * activity, coded)
    return np.where(moving, limit**2, 0.0).astype(np.float32)


def _scan(
    centred: Miniatures, alike: Limits, low: int, high: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every offset from `low` to `high`: how many frames are the same, the sum of squared distances. One
    band of rows of the matrix of distances at a time."""
    span = high - low + 1
    count = len(centred)
    matches = np.zeros(span, np.int64)
    squares = np.zeros(span)
    norms = np.einsum("ij,ij->i", centred, centred)
    for start in range(0, count - low, _ROWS):
        rows = slice(start, min(start + _ROWS, count - low))
        size = rows.stop - start
        others = slice(start + low, min(rows.stop + high, count))
        width = size + span
        square = np.full((size, width), np.inf, np.float32)
        there = others.stop - others.start
        square[:, :there] = norms[rows, None] + norms[others] - 2 * centred[rows] @ centred[others].T
        limits = np.zeros(width, np.float32)
        limits[:there] = alike[others]
        # row i shifted left by i, without a copy: each column is an offset, infinite beyond the last frame
        step = square.strides
        diagonal = np.lib.stride_tricks.as_strided(
            square, (size, span), (step[0] + step[1], step[1]), writeable=False
        )
        limit = np.minimum(np.lib.stride_tricks.sliding_window_view(limits, span)[:size], alike[rows, None])
        matches += (diagonal < limit).sum(0)
        squares += np.where(np.isfinite(diagonal), diagonal, 0).sum(0, dtype=np.float64)
    return matches, squares
