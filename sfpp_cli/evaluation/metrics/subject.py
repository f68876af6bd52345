"""Is what the video began with still there? A subject stands out from the picture's rim by its colour."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.evidence import Evidence, Finding, Mask, first_run
from sfpp_cli.evaluation.metrics.motion import Curve
from sfpp_cli.evaluation.metrics.repetition import SIDE
from sfpp_cli.evaluation.metrics.stability import smooth

Cells = NDArray[np.float32]
RIM = np.pad(np.zeros((SIDE - 2, SIDE - 2), np.bool_), 1, constant_values=True).ravel()
"""Which of the 256 cells are at the edge of the picture."""
_HUE = 30.0
"""Degrees in CIELAB's plane of a and b, between which colours are shades of one hue."""
_GREY = 10.0
"""CIELAB units of chroma up to which a colour has no hue to speak of."""


def subject(evidence: Evidence, look: Mapping[str, Finding]) -> Finding:
    """A subject is lost when hardly a cell of its colour stands out any more and the rim is what it was when
    most of them last did.

    Cells of the 16 x 16 miniatures stand out that differ from every cell of the picture's rim. The colours
    that do so through the whole reference are subjects, each alone and all of them as one. One that leaves
    over the rim, a camera that turns away and a cut are no loss: there the rim changes meanwhile. Nor is one
    that comes back by half, that is covered by what stands out instead, or whose colour is still there and
    only stands out no more. Nor is it judged where a drift of the `look` has gone far.
    """
    parameters = evidence.parameters
    rim = evidence.cells[:, RIM]
    out = _standing_out(evidence.cells, rim, parameters.subject_distance)
    rim_change = np.median(np.linalg.norm(rim - rim[evidence.reference].mean(0), axis=2), axis=1)
    drifted = _drifted(evidence, look, rim_change)
    held = (rim_change < parameters.subject_rim) & ~drifted
    severity = np.zeros(evidence.frames)
    measure: float | None = None
    first: int | None = None
    for alike in _candidates(evidence, out):
        left = _left(evidence, (alike & out).mean(1))
        if left is None:
            continue
        least = float(left[held].min()) if held.any() else 1.0
        measure = least if measure is None else min(measure, least)
        onset = _loss(evidence, left, alike, out, drifted)
        if onset is None:
            continue
        measure = min(measure, float(left[onset:].min()))
        lost = (1 - left[onset:]) / (1 - parameters.subject_left)
        severity[onset:] = np.maximum(severity[onset:], lost)
        first = onset if first is None else min(first, onset)
    sentence = "What stood out in the beginning is gone, while its surroundings are still there"
    return Finding(severity, first, sentence, {"measure": measure, "threshold": parameters.subject_left})


def _left(evidence: Evidence, share: Curve) -> Curve | None:
    """How much is left [T], 0..1 over a second, of the share of cells that a colour usually has in the
    beginning; None for a colour of too few cells there, or one that comes and goes."""
    parameters = evidence.parameters
    first = share[evidence.reference]
    usual = float(np.median(first))
    steady = float(np.quantile(first, 0.1)) >= parameters.subject_steady * usual
    if usual < parameters.subject_share or not steady:
        return None
    return smooth(np.minimum(share / usual, 1.0), evidence.second)


def _loss(evidence: Evidence, left: Curve, alike: Mask, out: Mask, drifted: Mask) -> int | None:
    """The frame from which a colour is lost for good; None where it is there, left over the rim or is
    hidden, or the camera turned away."""
    parameters = evidence.parameters
    there = np.flatnonzero(left > 2 * parameters.subject_left)
    last = int(there[-1]) if there.size else 0  # what comes back was hidden
    gone = (left < parameters.subject_left) & ~drifted
    gone[:last] = False
    onset = first_run(gone, round(parameters.subject_seconds * evidence.fps))
    if onset is None or _on_rim(alike[:, RIM], onset, evidence.second):
        return None
    if _turned(evidence.cells[:, RIM], last, onset, evidence.second) >= parameters.subject_rim:
        return None
    return None if _hidden(evidence, alike, out, onset) else onset


def _turned(rim: Cells, last: int, onset: int, second: int) -> float:
    """By how much the median cell of the rim [T, 60, 3] differs between `last`, when most of the subject was
    there, and the half second after it is gone, in CIELAB units."""
    half = max(1, second // 2)
    before = rim[max(0, last - half) : last + 1].mean(0)
    after = rim[onset : onset + half].mean(0)
    return float(np.median(np.linalg.norm(after - before, axis=1)))


def _hidden(evidence: Evidence, alike: Mask, out: Mask, onset: int) -> bool:
    """Whether the cells of a colour [T, 256], some of which stood `out`, are still there at the onset, or
    other cells stand out in their place."""
    after = slice(onset, onset + evidence.second)
    colour = alike.mean(1)
    others = (out & ~alike).mean(1)
    usual, usual_colour, usual_others = (
        float(np.median(share[evidence.reference])) for share in ((alike & out).mean(1), colour, others)
    )
    still_there = colour[after].mean() > usual_colour - usual / 2
    covered = others[after].mean() > usual_others + usual
    return bool(still_there or covered)


def _drifted(evidence: Evidence, look: Mapping[str, Finding], rim_change: Curve) -> Mask:
    """Where [T] the look has gone too far. A colour that goes shifts the mean colour, which is no cast where
    the rim keeps its own."""
    parameters = evidence.parameters
    severities = {name: finding.severity for name, finding in look.items()}
    severities["colour_cast"] = np.where(
        rim_change < parameters.subject_rim / 2, 0, severities["colour_cast"]
    )
    return np.asarray(np.max(list(severities.values()), axis=0) > parameters.exposed)


def _candidates(evidence: Evidence, out: Mask) -> list[Mask]:
    """Which cells [T, 256] are of a colour that stands `out` in the beginning: for each such colour, for
    those of one hue, and for all of them, since a shaded thing before something as bright has several."""
    distance = evidence.parameters.subject_distance
    reference = evidence.reference
    colors = _colors(evidence.cells[reference][out[reference]], distance)
    if not colors:
        return []
    alike = [
        np.stack([np.linalg.norm(picture - color, axis=1) < distance for picture in evidence.cells])
        for color in colors
    ]
    places = range(len(colors))
    groups = dict.fromkeys([*((place,) for place in places), *_shades(np.array(colors)), tuple(places)])
    return [np.any([alike[place] for place in group], axis=0) for group in groups]


def _shades(colors: Cells) -> list[tuple[int, ...]]:
    """For each of the colours [N, 3] that is not grey the places of those of its hue: what one thing has in
    light and in shade."""
    hues = np.degrees(np.arctan2(colors[:, 2], colors[:, 1]))
    coloured = np.hypot(colors[:, 1], colors[:, 2]) > _GREY
    apart = np.abs((hues[:, None] - hues + 180) % 360 - 180)
    near = (apart < _HUE) & coloured
    return [tuple(np.flatnonzero(row).tolist()) for row in near[coloured]]


def _colors(cells: Cells, distance: float, most: int = 3) -> list[Cells]:
    """The colours that most of the cells [N, 3] have, each with the cells around it taken out."""
    colors: list[Cells] = []
    left = cells[:: max(1, len(cells) // 600)]
    while len(left) > 3 and len(colors) < most:
        near = np.linalg.norm(left[:, None] - left[None], axis=2) < distance
        center = np.median(left[near[int(np.argmax(near.sum(1)))]], axis=0)
        colors.append(np.asarray(center, np.float32))
        left = left[np.linalg.norm(left - center, axis=1) >= distance]
    return colors


def _standing_out(cells: Cells, rim: Cells, distance: float) -> Mask:
    """Which cells [T, 256] differ from every cell of their picture's rim [T, 60] by more than `distance`."""
    out = np.zeros(cells.shape[:2], np.bool_)
    for index, (picture, around) in enumerate(zip(cells, rim, strict=True)):
        squares = ((picture[:, None] - around[None]) ** 2).sum(2)
        out[index] = squares.min(1) > distance**2
    return out


def _on_rim(alike: Mask, onset: int, second: int) -> bool:
    """Whether a colour, where it is on the rim [T, 60], was there in the two seconds before it was gone, and
    not in the beginning."""
    before = alike[max(0, onset - 2 * second) : onset + 1].sum(1).max()
    usual = alike[: max(1, onset // 3)].sum(1).max()
    return bool(before > usual + 2)
