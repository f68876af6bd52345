"""Is what the video began with still there? A subject stands out from the picture's rim by its colour."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.evidence import Evidence, Finding, first_run
from sfpp_cli.evaluation.metrics.repetition import SIDE
from sfpp_cli.evaluation.metrics.stability import smooth

Cells = NDArray[np.float32]


def subject(evidence: Evidence, look: Sequence[Finding]) -> Finding:
    """The subject is lost when, over the same rim, hardly a cell stands out any more as in the beginning.

    Cells of the 16 x 16 miniatures stand out that differ from every cell of the picture's rim. A video has a
    subject if at least `subject_share` of its cells do so through nearly all of the reference. One that
    leaves over the rim, a camera that turns away and a cut are no loss: there the rim changes. Nor is it
    judged where a drift of the `look` has gone far.
    """
    parameters = evidence.parameters
    cells = _lab(evidence)
    rim = _rim()
    out = _standing_out(cells, rim, parameters.subject_distance)
    share = out.mean(1)
    reference = share[evidence.reference]
    usual = float(np.median(reference))
    numbers = {"threshold": parameters.subject_left, "reference_share": usual}
    here = np.ones(evidence.frames)
    if usual < parameters.subject_share or float(np.quantile(reference, 0.1)) < usual / 3:
        return Finding(np.zeros(evidence.frames), None, "", {"measure": None, **numbers})
    here = smooth(np.minimum(share / usual, 1.0), evidence.second)
    first_rim = cells[evidence.reference][:, rim].mean(0)
    same_rim = np.median(np.linalg.norm(cells[:, rim] - first_rim, axis=2), axis=1) < parameters.subject_rim
    drifted = np.max([finding.severity for finding in look], axis=0) > parameters.exposed
    gone = (here < parameters.subject_left) & same_rim & ~drifted
    onset = first_run(gone, round(parameters.subject_seconds * evidence.fps))
    if onset is not None and _left_over_rim(
        cells, rim, out, onset, evidence.second, parameters.subject_distance
    ):
        onset = None
    severity = np.zeros(evidence.frames)
    if onset is not None:
        severity[onset:] = ((1 - here) / (1 - parameters.subject_left))[onset:]
    measure = float(here[same_rim].min()) if same_rim.any() else None
    sentence = "What stood out in the beginning is gone, while its surroundings are still there"
    return Finding(severity, onset, sentence, {"measure": measure, **numbers})


def _lab(evidence: Evidence) -> Cells:
    """The miniatures in CIELAB, [T, 256, 3]."""
    colors = evidence.seen.miniatures.reshape(evidence.frames, SIDE * SIDE, 3).astype(np.float32) / 255
    return np.asarray(cv2.cvtColor(colors, cv2.COLOR_RGB2Lab), np.float32)


def _rim() -> NDArray[np.bool_]:
    """Which of the 256 cells are at the edge of the picture."""
    rim = np.ones((SIDE, SIDE), np.bool_)
    rim[1:-1, 1:-1] = False
    return rim.ravel()


def _standing_out(cells: Cells, rim: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
    """Which cells [T, 256] differ from every cell of their picture's rim by more than `distance`."""
    out = np.zeros(cells.shape[:2], np.bool_)
    for index, picture in enumerate(cells):
        squares = ((picture[:, None] - picture[rim][None]) ** 2).sum(2)
        out[index] = squares.min(1) > distance**2
    return out


def _left_over_rim(
    cells: Cells, rim: NDArray[np.bool_], out: NDArray[np.bool_], onset: int, second: int, distance: float
) -> bool:
    """Whether the subject's colours were on the rim in the second before it was gone."""
    before = slice(max(0, onset - 2 * second), onset + 1)
    subject = cells[:onset][out[:onset]]
    if not len(subject):
        return False
    color = np.median(subject, axis=0)
    near = np.linalg.norm(cells[before][:, rim] - color, axis=2) < distance / 2
    usual = np.linalg.norm(cells[: max(1, onset // 3)][:, rim] - color, axis=2) < distance / 2
    return bool(near.sum(1).max() > usual.sum(1).max() + 2)
