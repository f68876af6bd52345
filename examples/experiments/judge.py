"""Claim 8: the verdicts of `sfpp evaluate` held against the world's own truth, on all systems' videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from report import markdown
from study import WINDOW

from sfpp_cli.evaluation.metrics.verdicts import NAMES

TRUTH = {
    "over_exposure": "over",
    "darkening": "under",
    "over_saturation": "vivid",
    "desaturation": "grey",
    "colour_cast": "hue_out",
    "stagnation": "stopped",
    "repetition": "repeated",
    "subject_lost": "lost",
}
"""What the reader has to say for a verdict to be right."""
HALF = 0.5
"""Of the frames of a stretch."""

Row = Mapping[str, Any]


def truly(row: Row, verdict: str) -> bool | None:
    """Whether some stretch of a window's length after the first is so in half of its frames.

    None for a video whose first window is so already, since `sfpp evaluate` holds a video against that.
    """
    curve = np.array(row["curves"][TRUTH[verdict]])
    if len(curve) <= WINDOW:
        return None
    stretches = np.convolve(curve, np.full(WINDOW, 1 / WINDOW), "valid")
    if stretches[0] >= HALF:
        return None
    return bool((stretches[WINDOW:] >= HALF).any())


def table(rows: Iterable[Row]) -> str:
    """Markdown: a line for each verdict, counts of videos."""
    found = list(rows)
    world = [row for row in found if row["system"] == "world"]
    lines = []
    for verdict in (name for name in NAMES if f"fired_{name}" in found[0]["metrics"]):
        key = f"fired_{verdict}"
        alarms = share([row["metrics"][key] for row in world])
        counts = [""] * 5
        if verdict in TRUTH:
            judged = [(truly(row, verdict), bool(row["metrics"][key])) for row in found]
            counts = agreement([(truth, fired) for truth, fired in judged if truth is not None])
        lines.append([verdict.replace("_", " "), *counts, alarms])
    head = [
        "verdict",
        "videos",
        "truly so",
        "fired",
        "precision, %",
        "recall, %",
        "fired on the world's own, %",
    ]
    return markdown(head, lines)


def agreement(judged: Sequence[tuple[bool, bool]]) -> list[str]:
    """Videos, truths, verdicts fired, and the shares of either that are both."""
    true = [fired for truth, fired in judged if truth]
    fired = [truth for truth, fired in judged if fired]
    return [str(len(judged)), str(len(true)), str(len(fired)), share(fired), share(true)]


def share(values: Sequence[float]) -> str:
    return f"{100 * float(np.mean(values)):.0f}" if values else "-"
