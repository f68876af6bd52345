"""Drift against videos that are known to be good, such as the teacher's short clips of the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from sfpp_cli.evaluation.compare import Video, finite

LOOKS = ("luma", "contrast", "clipped", "crushed", "saturation", "chroma", "detail", "noise")
"""Curves that can be held against another video's: none of them depends on its size or pace."""
USUAL = (5, 95)
"""Percentiles of a curve's values, between which it is usual."""


def add_reference(videos: Sequence[dict[str, Any]], good: Sequence[Video], path: str) -> dict[str, Any]:
    """`reference` of a result, as results.schema.json describes it; to the metrics of `videos` it adds
    `NAME_off_reference`: the mean of a curve in the last reference seconds, minus its mean over the `good`
    videos of the same prompt, or over all of them where none has that prompt."""
    for video in videos:
        alike = [other for other in good if other["prompt"] and other["prompt"] == video["prompt"]]
        for name in LOOKS:
            end = _end(video, name)
            base = _mean(alike or good, name)
            off = None if end is None or base is None else end - base
            video["metrics"][f"{name}_off_reference"] = off
    return {"path": path, "videos": len(good), "usual": {name: _usual(good, name) for name in LOOKS}}


def _end(video: Video, name: str) -> float | None:
    """The mean of a curve in the last seconds, as many as the reference of the video's own beginning has."""
    curve = video["curves"][name]
    since = video["seconds"] - video["reference_seconds"]
    pairs = zip(curve["seconds"], curve["values"], strict=True)
    values = [value for second, value in pairs if second >= since and value is not None]
    return fmean(values) if values else None


def _mean(videos: Sequence[Video], name: str) -> float | None:
    means = [value for video in videos if (value := finite(video["metrics"].get(name))) is not None]
    return fmean(means) if means else None


def _usual(videos: Sequence[Video], name: str) -> list[float] | None:
    """Where 90 % of the values lie, low and high."""
    curves = [video["curves"][name]["values"] for video in videos]
    values = [value for curve in curves for value in curve if value is not None]
    return [float(end) for end in np.percentile(values, USUAL)] if values else None
