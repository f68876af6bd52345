"""Results as a table with a line a video, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

FACTS = ("path", "system", "prompt", "seed", "seconds", "fps", "frames", "width", "height")
"""The first columns; then come the metrics, then two for each verdict."""


def csv_text(videos: Sequence[Mapping[str, Any]]) -> str:
    """The `videos` of a result as CSV (RFC 4180): its columns are `FACTS`, every metric by its name, and of
    each verdict NAME_fired (0 or 1) and NAME_onset_seconds. What is null, or absent, is empty."""
    metrics = {name: None for video in videos for name in video["metrics"]}
    verdicts = {name: None for video in videos for name in video["verdicts"]}
    heads = [f"{name}_{part}" for name in verdicts for part in ("fired", "onset_seconds")]
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow([*FACTS, *metrics, *heads])
    for video in videos:
        row = [video.get(name) for name in FACTS] + [video["metrics"].get(name) for name in metrics]
        for name in verdicts:
            verdict = video["verdicts"].get(name)
            row += [int(verdict["fired"]), verdict["onset_seconds"]] if verdict else [None, None]
        table.writerow(row)
    return text.getvalue()
