"""The signatures of failure, each with the second at which it starts and the numbers it was decided by.

All are judged against the video's own beginning. None can know intent: a fade that a prompt asks for is a
drift to these rules, and motion that returns exactly, such as a wheel with a whole number of frames to a
turn, is a loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.borders import Jump
from sfpp_cli.evaluation.metrics.drifts import drifts
from sfpp_cli.evaluation.metrics.evidence import Evidence, Finding, Mask, Seen, first_run
from sfpp_cli.evaluation.metrics.motion import Curve, rolling_quantile
from sfpp_cli.evaluation.metrics.stability import smooth
from sfpp_cli.evaluation.metrics.subject import subject

__all__ = ["NAMES", "Evidence", "Seen", "find", "local_stability", "verdicts"]
NAMES = (
    "over_exposure",
    "darkening",
    "blank",
    "over_saturation",
    "desaturation",
    "colour_cast",
    "blur",
    "noise",
    "stagnation",
    "repetition",
    "flicker",
    "scene_change",
    "subject_lost",
)


def find(evidence: Evidence) -> dict[str, Finding]:
    """A finding for each of `NAMES`."""
    repetition, repeated = _repetition(evidence)
    flicker, flickering = _flicker(evidence)
    blank, plain = _blank(evidence)
    look = drifts(evidence)
    found = look | {
        "blank": blank,
        "stagnation": _stagnation(evidence),
        "repetition": repetition,
        "flicker": flicker,
        "scene_change": _scene_change(evidence, repeated, flickering | plain),
        "subject_lost": subject(evidence, look),
    }
    return {name: found[name] for name in NAMES}


def verdicts(found: dict[str, Finding], fps: float) -> dict[str, dict[str, Any]]:
    """One entry for each finding: `fired`, `onset_seconds` and `sentence` (null unless fired), `measure`,
    `threshold`, and further numbers."""
    return {name: finding.entry(fps) for name, finding in found.items()}


def local_stability(found: dict[str, Finding]) -> Curve:
    """0..100 [T]: 100 while every measure is below half of its threshold, 50 where one reaches it, 0 at one
    and a half times the threshold: 100 x (1.5 - s), s the largest severity. Not Visual Stability: that name
    belongs to the judgement of a video LLM (Self-Forcing++, section 3.4)."""
    worst = np.max([finding.severity for finding in found.values()], axis=0)
    return np.asarray(100 * np.clip(1.5 - worst, 0, 1), np.float64)


def _blank(evidence: Evidence) -> tuple[Finding, Mask]:
    """There is no picture: one shade of black, grey, white or any other colour, in the beginning or later.
    And which frames [T] are so, however briefly."""
    parameters = evidence.parameters
    limit = parameters.blank_contrast
    contrast = evidence.curves["contrast"]
    plain = (contrast < limit) & (evidence.colour_spread < parameters.blank_colours)
    shortest = min(round(parameters.blank_seconds * evidence.fps), evidence.frames)
    onset = first_run(plain, shortest)
    severity = np.zeros(evidence.frames)
    if onset is not None:
        severity[onset:] = np.where(plain, 2 - contrast / limit, 0)[onset:]
    numbers = {
        "measure": float(contrast.min()),
        "threshold": limit,
        "blank_seconds": float(plain.sum() / evidence.fps),
        "seconds_threshold": parameters.blank_seconds,
    }
    shade = _shade(float(evidence.curves["luma"][onset or 0]), float(evidence.curves["chroma"][onset or 0]))
    return Finding(severity, onset, f"The picture is blank, plain {shade}", numbers), plain


def _shade(luma: float, chroma: float) -> str:
    """A word for a picture of one shade."""
    if luma < 0.08:
        return "black"
    if chroma > 10:
        return "colour"
    return "white" if luma > 0.92 else "grey"


def _stagnation(evidence: Evidence) -> Finding:
    """Motion dies: the fastest 5 % have lost the reference's pace, or never moved. Judged only where
    something can be seen.

    The pace of a second is its third quartile: the pop of a key frame does not lift it, pictures shown twice
    do not lower it.
    """
    parameters = evidence.parameters
    flow = evidence.curves["flow_top5"]
    filled = np.where(np.isfinite(flow), flow, np.nan_to_num(flow[1:2]).sum())  # the first frame has no flow
    own = filled * evidence.fps / min(evidence.seen.size)
    pace = rolling_quantile(own, evidence.second, 0.75)
    usual = float(np.median(pace[evidence.reference]))
    contrast = smooth(evidence.curves["contrast"], evidence.second)
    visible = contrast > parameters.stagnation_contrast * float(np.mean(contrast[evidence.reference]))
    limit = parameters.still_speed
    if usual >= limit:
        limit = min(parameters.stagnation_ratio * usual, parameters.stagnation_speed)
    dead = _with_still_ends(pace < limit, own < limit, evidence.second // 2) & visible
    shortest = min(round(parameters.stagnation_seconds * evidence.fps), evidence.frames)
    onset = first_run(dead, shortest)
    severity = np.zeros(evidence.frames)
    if onset is not None:
        severity[dead] = (2 - np.where(pace < limit, pace, own) / limit)[dead]
        severity[:onset] = 0
    lowest = float(pace[visible].min()) if visible.any() else None
    numbers = {
        "measure": lowest,
        "threshold": float(limit),
        "reference_speed": usual,
        "lowest_speed": lowest,
        "ratio_threshold": parameters.stagnation_ratio,
        "still_seconds": float(dead.sum() / evidence.fps),
    }
    return Finding(severity, onset, "Motion died: hardly anything moves any more", numbers)


def _with_still_ends(dead: Mask, still: Mask, most: int) -> Mask:
    """The runs of `dead` [T], each with up to `most` frames that are `still` right before and after it: a
    second that is half at rest has its pace yet."""
    grown = dead.copy()
    for _ in range(most):
        grown[1:] |= grown[:-1] & still[1:]
        grown[:-1] |= grown[1:] & still[:-1]
    return grown


def _repetition(evidence: Evidence) -> tuple[Finding, Mask]:
    """A loop: for some seconds nearly every moving frame is the same as the one a period earlier. And which
    frames [T] the loop consists of, the first round included."""
    similarity = evidence.similarity
    parameters = evidence.parameters
    nothing = np.zeros(evidence.frames)
    numbers: dict[str, Any] = {"measure": 0.0, "threshold": parameters.repeat_seconds}
    if similarity is None:
        numbers |= {"period_seconds": None, "repeated_seconds": 0.0}
        return Finding(nothing, None, "", numbers), nothing > 0
    steady = similarity.repeats & (smooth(similarity.repeats.astype(np.float64), evidence.second) > 0.7)
    repeated = float(steady.sum() / evidence.fps)
    period = similarity.period / evidence.fps
    fired = repeated >= parameters.repeat_seconds
    numbers |= {
        "measure": repeated,
        "period_seconds": period,
        "repeated_seconds": repeated,
        "seconds_threshold": parameters.repeat_seconds,
        "share": similarity.share,
    }
    onset = int(np.flatnonzero(steady)[0]) if fired else None
    severity = np.where(steady & fired, 1.0 + similarity.share / 2, 0.0)
    first_round = np.concatenate([steady[similarity.period :], np.zeros(similarity.period, np.bool_)])
    finding = Finding(severity, onset, f"The same {period:.1f} s come again and again", numbers)
    return finding, (steady | first_round) & fired


def _flicker(evidence: Evidence) -> tuple[Finding, Mask]:
    """Jumps at border after border: many sudden changes in a row without a pause, in a steady beat of
    whatever period. And which frames [T] are part of it."""
    parameters = evidence.parameters
    changes = evidence.changes
    starts = np.array([jump.start for jump in changes.jumps], np.int64)
    places = np.union1d(starts, np.flatnonzero(changes.reversing)).astype(np.int64)
    pauses = np.flatnonzero(np.diff(places) > parameters.flicker_pause_seconds * evidence.fps)
    rows = np.split(places, pauses + 1)
    long = [
        row
        for row in rows
        if row.size >= parameters.flicker_events
        and _has_a_beat(row, parameters.flicker_events, parameters.flicker_beat)
    ]
    flickering = np.zeros(evidence.frames, np.bool_)
    for row in long:
        flickering[row[0] : row[-1] + 1] = True
    size = float(np.median(changes.picture[np.concatenate(long)])) if long else 0.0
    most = max(row.size for row in rows)
    numbers = {
        "measure": most,
        "threshold": parameters.flicker_events,
        "sudden_changes": places.size,
        "most_in_a_row": most,
        "period_frames": float(np.median(np.concatenate([np.diff(row) for row in long]))) if long else None,
    }
    severity = np.where(flickering, 1.0 + min(0.5, size / parameters.flicker_strong), 0.0)
    onset = int(long[0][0]) if long else None
    return Finding(severity, onset, "The picture jumps again and again in a steady beat", numbers), flickering


def _has_a_beat(places: NDArray[np.int64], events: int, share: float) -> bool:
    """Whether enough of the events fall on beats of one period, and most of these beats have one: a hand's
    jerks and passing objects come at odd times."""
    for start in range(len(places) - 1):
        for period in {int(gap) for gap in places[start + 1 : start + 3] - places[start]}:
            beats = np.arange(places[start], places[-1] + 1, period)
            off = np.abs(places[None] - beats[:, None]).min(1)
            hits = off <= max(1, period // 12) if period > 3 else off == 0
            if hits.sum() >= events and hits.mean() > share:
                return True
    return False


def _scene_change(evidence: Evidence, repeated: Mask, other: Mask) -> Finding:
    """Cuts that were not announced, and are not the seam of a loop; nor do they lead to a frame of `other`,
    that flickers or is blank."""
    parameters = evidence.parameters
    near = parameters.border_seconds
    scenes = list(evidence.scenes)
    cuts: list[Jump] = []
    for cut in evidence.cuts:
        meant = any(abs(cut.start / evidence.fps - second) <= near for second in scenes)
        seam = repeated[cut.end - 1 : cut.end + evidence.second].mean() > 0.5
        if not meant and not seam and not other[cut.start]:
            cuts.append(cut)
    severity = np.zeros(evidence.frames)
    for cut in cuts:
        severity[cut.start : cut.start + round(parameters.cut_felt_seconds * evidence.fps)] = 1.0 + cut.size
    largest = max((cut.size for cut in cuts), default=0.0)
    numbers = {
        "measure": largest,
        "threshold": parameters.cut_picture,
        "cuts_seconds": [round(cut.start / evidence.fps, 3) for cut in cuts],
        "announced_seconds": scenes,
        "largest_change": largest,
    }
    return Finding(severity, cuts[0].start if cuts else None, "Another scene begins", numbers)
