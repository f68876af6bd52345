"""The six signatures of failure (method.md, section 7), each with the second at which it starts and the
numbers it was decided by.

All are judged against the video's own beginning. None can know intent: a fade that a prompt asks for is a
drift to these rules, and motion that returns exactly, such as a wheel with a whole number of frames to a
turn, is a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.borders import Changes, Jump
from sfpp_cli.evaluation.metrics.motion import Curve, Curves, rolling_quantile
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.repetition import Similarity
from sfpp_cli.evaluation.metrics.stability import drift_to_white_and_black, reference_frames, smooth

NAMES = ("over_exposure", "darkening", "stagnation", "repetition", "flicker", "scene_change")
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """What verdicts are reached from: curves [T]; None for `similarity` if the video is too short; (W, H);
    the seconds at which a new scene is announced."""

    curves: Curves
    changes: Changes
    similarity: Similarity | None
    size: tuple[int, int]
    fps: float
    parameters: Parameters
    scenes: Sequence[float] = ()

    @property
    def frames(self) -> int:
        return len(self.curves["luma"])

    @property
    def reference(self) -> slice:
        return slice(0, reference_frames(self.frames, self.fps, self.parameters.reference_seconds))

    @property
    def second(self) -> int:
        return max(1, round(self.fps))


def verdicts(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """One entry for each of `NAMES`: `fired`, `onset_seconds` (null unless fired), and numbers."""
    repetition, repeated = _repetition(evidence)
    flicker, flickering = _flicker(evidence)
    cuts = _cuts(evidence, repeated, flickering)
    surprises = [cut for cut in cuts if not _announced(evidence, cut)]
    return {
        "over_exposure": _exposure(evidence, cuts, white=True),
        "darkening": _exposure(evidence, cuts, white=False),
        "stagnation": _stagnation(evidence),
        "repetition": repetition,
        "flicker": flicker,
        "scene_change": _verdict(
            evidence,
            surprises[0].start if surprises else None,
            cuts_seconds=[round(cut.start / evidence.fps, 3) for cut in surprises],
            largest_change=max((cut.size for cut in surprises), default=0.0),
            threshold=evidence.parameters.cut_picture,
        ),
    }


def _verdict(evidence: Evidence, onset: int | None, **numbers: Any) -> dict[str, Any]:
    return {
        "fired": onset is not None,
        "onset_seconds": None if onset is None else round(onset / evidence.fps, 3),
        **numbers,
    }


def _exposure(evidence: Evidence, cuts: list[Jump], *, white: bool) -> dict[str, Any]:
    """Drift to white (or black): mean luma has gone far there, or much of the picture has lost its detail."""
    parameters = evidence.parameters
    curves = evidence.curves
    lost = smooth(curves["clipped" if white else "crushed"], evidence.second)
    base = float(np.mean(curves["luma"][evidence.reference]))
    luma = smooth(curves["luma"], evidence.second)
    to_white, to_black = drift_to_white_and_black(luma, base + _steps(evidence, cuts))
    gone = to_white if white else to_black
    risen = lost - float(np.mean(lost[evidence.reference]))
    bad = (gone > parameters.exposure_way) | (risen > parameters.exposure_clipped)
    first = _first_run(bad, round(parameters.exposure_sustain_seconds * evidence.fps))
    if first is not None:
        calm = (gone < parameters.exposure_calm) & (risen < parameters.exposure_clipped / 5)
        first = int(np.flatnonzero(calm[:first])[-1]) + 1 if calm[:first].any() else 0
    return _verdict(
        evidence,
        first,
        reference_luma=base,
        largest_way=float(gone.max()),
        way_threshold=parameters.exposure_way,
        largest_rise=float(risen.max()),
        rise_threshold=parameters.exposure_clipped,
    )


def _steps(evidence: Evidence, cuts: list[Jump]) -> Curve:
    """What hard cuts added to mean luma [T]: another scene's brightness is no drift."""
    luma = evidence.curves["luma"]
    half = max(1, evidence.second // 2)
    steps = np.zeros(evidence.frames)
    for cut in cuts:
        before = luma[max(0, cut.start - half) : cut.start]
        after = luma[cut.end - 1 : cut.end - 1 + half]
        steps[cut.start :] += float(after.mean() - before.mean())
    return steps


def _stagnation(evidence: Evidence) -> dict[str, Any]:
    """Motion dies: the fastest 5 % have lost the reference's pace, or never moved. Judged only where
    something can be seen.

    The pace of a second is its third quartile: the pop of a key frame does not lift it, pictures shown twice
    do not lower it.
    """
    parameters = evidence.parameters
    flow = evidence.curves["flow_top5"]
    filled = np.where(np.isfinite(flow), flow, np.nan_to_num(flow[1:2]).sum())  # the first frame has no flow
    pace = rolling_quantile(filled, evidence.second, 0.75) * evidence.fps / min(evidence.size)
    usual = float(np.median(pace[evidence.reference]))
    contrast = smooth(evidence.curves["contrast"], evidence.second)
    visible = contrast > parameters.stagnation_contrast * float(np.mean(contrast[evidence.reference]))
    if usual < parameters.still_speed:
        dead = pace < parameters.still_speed
    else:
        dead = pace < min(parameters.stagnation_ratio * usual, parameters.stagnation_speed)
    shortest = min(round(parameters.stagnation_seconds * evidence.fps), evidence.frames)
    return _verdict(
        evidence,
        _first_run(dead & visible, shortest),
        reference_speed=usual,
        lowest_speed=float(pace[visible].min()) if visible.any() else None,
        ratio_threshold=parameters.stagnation_ratio,
        still_seconds=float((dead & visible).sum() / evidence.fps),
    )


def _repetition(evidence: Evidence) -> tuple[dict[str, Any], Mask]:
    """A loop: for some seconds nearly every moving frame is the same as the one a period earlier. And which
    frames [T] the loop consists of, the first round included."""
    similarity = evidence.similarity
    parameters = evidence.parameters
    if similarity is None:
        verdict = _verdict(evidence, None, period_seconds=None, repeated_seconds=0.0)
        return verdict, np.zeros(evidence.frames, np.bool_)
    steady = similarity.repeats & (smooth(similarity.repeats.astype(np.float64), evidence.second) > 0.7)
    repeated = float(steady.sum() / evidence.fps)
    fired = repeated >= parameters.repeat_seconds
    verdict = _verdict(
        evidence,
        int(np.flatnonzero(steady)[0]) if fired else None,
        period_seconds=similarity.period / evidence.fps,
        repeated_seconds=repeated,
        seconds_threshold=parameters.repeat_seconds,
        share=similarity.share,
    )
    first_round = np.concatenate([steady[similarity.period :], np.zeros(similarity.period, np.bool_)])
    return verdict, (steady | first_round) & fired


def _flicker(evidence: Evidence) -> tuple[dict[str, Any], Mask]:
    """Jumps at border after border: many sudden changes in a row without a pause, of whatever period. And
    which frames [T] are part of it."""
    parameters = evidence.parameters
    changes = evidence.changes
    starts = np.array([jump.start for jump in changes.jumps], np.int64)
    places = np.union1d(starts, np.flatnonzero(changes.reversing))
    pauses = np.flatnonzero(np.diff(places) > parameters.flicker_pause_seconds * evidence.fps)
    rows = np.split(places, pauses + 1)
    long = [row for row in rows if row.size >= parameters.flicker_events]
    flickering = np.zeros(evidence.frames, np.bool_)
    for row in long:
        flickering[row[0] : row[-1] + 1] = True
    verdict = _verdict(
        evidence,
        int(long[0][0]) if long else None,
        sudden_changes=places.size,
        most_in_a_row=max(row.size for row in rows),
        threshold=parameters.flicker_events,
        period_frames=float(np.median(np.concatenate([np.diff(row) for row in long]))) if long else None,
    )
    return verdict, flickering


def _cuts(evidence: Evidence, repeated: Mask, flickering: Mask) -> list[Jump]:
    """Jumps of most of the picture that stand alone and are not the seam of a loop."""
    parameters = evidence.parameters
    jumps = [jump for jump in evidence.changes.jumps if jump.size >= parameters.cut_picture]
    alone = parameters.cut_alone_seconds * evidence.fps
    scene = parameters.cut_scene_seconds * evidence.fps
    starts = np.array([jump.start for jump in jumps])
    return [
        jump
        for jump in jumps
        if scene <= jump.start <= evidence.frames - scene
        and int((np.abs(starts - jump.start) < alone).sum()) == 1
        and not flickering[jump.start]
        and not repeated[jump.end - 1 : jump.end + evidence.second].mean() > 0.5
    ]


def _announced(evidence: Evidence, cut: Jump) -> bool:
    """Whether a scene is meant to begin there."""
    near = evidence.parameters.border_seconds
    return any(abs(cut.start / evidence.fps - second) <= near for second in evidence.scenes)


def _first_run(mask: Mask, length: int) -> int | None:
    """Where the first unbroken run of at least `length` begins."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    for start, end in edges.reshape(-1, 2):
        if end - start >= max(1, length):
            return int(start)
    return None
