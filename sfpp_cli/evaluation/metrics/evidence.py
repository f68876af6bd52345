"""What verdicts are reached from, and how a finding is put."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.borders import Changes, Jump, find_changes, find_cuts
from sfpp_cli.evaluation.metrics.grey import grey_shift
from sfpp_cli.evaluation.metrics.motion import Curve, Curves
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.repetition import Similarity, self_similarity
from sfpp_cli.evaluation.metrics.stability import reference_frames, smooth
from sfpp_cli.video import Frames

Mask = NDArray[np.bool_]
_KNEE_POINTS = 200
"""A longer curve is thinned out to so many points before its knee is looked for, which takes their square."""
_KNEE_STEEPER = 2.0
"""By so much a curve has to be steeper after its knee."""


@dataclass(frozen=True)
class Seen:
    """What one pass over a video leaves: curves [T], miniatures uint8 [T, 768], mean flow vectors [T, 2] in
    pixels, (W, H)."""

    curves: dict[str, Curve]
    miniatures: Frames
    shift: Curve
    size: tuple[int, int]
    fps: float


@dataclass(frozen=True)
class Finding:
    """A verdict before it is put into words.

    `severity` [T]: the measure over its threshold, so 1 where it is reached; local stability comes from it.
    `onset`: a frame, or None where the verdict is silent. `numbers` go into the result.
    """

    severity: Curve
    onset: int | None
    sentence: str
    numbers: dict[str, Any]

    def entry(self, fps: float) -> dict[str, Any]:
        """As a result has it."""
        seconds = None if self.onset is None else round(self.onset / fps, 3)
        fired = seconds is not None
        sentence = f"{self.sentence}, from {seconds:.1f} s on." if fired else None
        return {"fired": fired, "onset_seconds": seconds, "sentence": sentence, **self.numbers}


@dataclass(frozen=True)
class Evidence:
    """What was seen; sudden changes; self-similarity, None if the video is too short; the seconds at which a
    new scene is announced."""

    seen: Seen
    changes: Changes
    similarity: Similarity | None
    parameters: Parameters
    scenes: tuple[float, ...] = ()

    @classmethod
    def of(cls, seen: Seen, parameters: Parameters, scenes: Sequence[float] = ()) -> Evidence:
        """The evidence in what was seen."""
        changes = find_changes(seen.miniatures, seen.curves, seen.shift, seen.size, seen.fps, parameters)
        similarity = self_similarity(seen.miniatures, seen.fps, parameters)
        return cls(seen, changes, similarity, parameters, tuple(scenes))

    @property
    def curves(self) -> Curves:
        return self.seen.curves

    @property
    def fps(self) -> float:
        return self.seen.fps

    @property
    def frames(self) -> int:
        return len(self.curves["luma"])

    @property
    def reference(self) -> slice:
        return slice(0, reference_frames(self.frames, self.fps, self.parameters.reference_seconds))

    @property
    def second(self) -> int:
        return max(1, round(self.fps))

    @cached_property
    def cuts(self) -> list[Jump]:
        """Where another scene begins, announced or not."""
        return find_cuts(self.curves, self.seen.miniatures, self.fps, self.parameters)

    @cached_property
    def same_view(self) -> Mask:
        """Where [T] the picture shows what it showed in the beginning, by the layout of light and dark,
        whatever became of its brightness and colours."""
        luma = self.cells[..., 0].astype(np.float64)
        first = luma[self.reference].mean(0)
        luma -= luma.mean(1, keepdims=True)
        first -= first.mean()
        norm = np.linalg.norm(luma, axis=1) * np.linalg.norm(first)
        alike = luma @ first / np.maximum(norm, 1e-6)
        return np.asarray(smooth(alike, self.second) > self.parameters.same_view)

    @cached_property
    def cells(self) -> NDArray[np.float32]:
        """The miniatures in CIELAB, [T, 256, 3]."""
        cells = np.empty((self.frames, self.seen.miniatures.shape[1] // 3, 3), np.float32)
        for index, picture in enumerate(self.seen.miniatures):
            colors = picture.reshape(1, -1, 3).astype(np.float32) / 255
            cells[index] = cv2.cvtColor(colors, cv2.COLOR_RGB2Lab)[0]
        return cells

    @cached_property
    def colour_spread(self) -> Curve:
        """How far colours are from their picture's mean colour beyond what lightness explains, in CIELAB
        units of a and b [T].

        A cast shifts light colours more than dark ones and so pulls them apart; more or less saturation
        stretches what is left, too.
        """
        spreads = []
        for picture in self.cells:
            light, *colours = (picture - picture.mean(0)).T
            variance = light @ light / len(light)
            rest = [axis - light * (light @ axis / len(light) / (variance + 1)) for axis in colours]
            spreads.append(np.sqrt(np.square(rest).mean(1).sum()))
        return np.array(spreads, np.float64)

    @cached_property
    def grey_shift(self) -> tuple[Curve, Curve]:
        """How far grey has gone in CIELAB's a and b [T, 2], and by how much [256] that counts in each cell.
        Means something where the view is the same."""
        return grey_shift(self.cells, self.cells[self.reference].mean(0, np.float64))

    def scene_steps(self, values: Curve) -> Curve:
        """What cuts added to a curve [T]: another scene's look is no drift."""
        half = max(1, self.second // 2)
        steps = np.zeros(self.frames)
        for cut in self.cuts:
            before = values[max(0, cut.start - half) : cut.start]
            after = values[cut.end - 1 : cut.end - 1 + half]
            steps[cut.start :] += float(np.nanmean(after) - np.nanmean(before))
        return steps

    def departure(self, values: Curve) -> Curve:
        """How far a curve [T] has gone from its mean in the reference, cuts taken out, over a second."""
        level = smooth(values - self.scene_steps(values), self.second)
        return np.asarray(level - float(np.mean(level[self.reference])), np.float64)

    def gathered(self, name: str) -> Curve:
        """The sum of the steps up to each frame, from the reference's mean on."""
        total = np.cumsum(self.curves[name])
        return np.asarray(total - total[self.reference].mean(), np.float64)


def drift(evidence: Evidence, severity: Curve, sentence: str, sustain: float, **numbers: Any) -> Finding:
    """A finding whose severity stays at 1 or above for `sustain` seconds; it began at the knee before."""
    parameters = evidence.parameters
    length = round(sustain * evidence.fps)
    first = first_run(severity >= 1, length)
    if first is not None:
        back = round(parameters.knee_seconds * evidence.fps)
        first = min(first, knee(severity[: first + length], parameters.calm, back))
    return Finding(severity, first, sentence, numbers)


def knee(curve: Curve, calm: float, back: int) -> int:
    """The frame at which a curve [T] begins to rise to its end: where two lines meet that fit it best, by
    least squares.

    It is looked for from `back` frames before the last value below `calm` on, so that what a scene did on its
    own long ago does not bend the first line. A curve without a knee has risen since it was calm.
    """
    quiet = np.flatnonzero(curve < calm)
    last = int(quiet[-1]) + 1 if quiet.size else 0
    start = max(0, last - back)
    step = max(1, (len(curve) - start) // _KNEE_POINTS)
    part = curve[start::step]
    times = np.arange(len(part), dtype=np.float64)
    best = (np.inf, last)
    for place in range(1, len(part)):
        away = times - place
        lines = np.stack([np.ones_like(away), np.minimum(away, 0), np.maximum(away, 0)], axis=1)
        fit = np.linalg.lstsq(lines, part, rcond=None)[0]
        error = float(((lines @ fit - part) ** 2).sum())
        if error < best[0]:
            best = (error, start + step * place if fit[2] > _KNEE_STEEPER * fit[1] else last)
    return best[1]


def first_run(mask: Mask, length: int) -> int | None:
    """Where the first unbroken run of at least `length` begins."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    for start, end in edges.reshape(-1, 2):
        if end - start >= max(1, length):
            return int(start)
    return None
