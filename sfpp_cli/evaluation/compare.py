"""Systems side by side: means with bootstrap intervals, and paired differences where prompts match.

The unit that is resampled is the prompt, not the video: several seeds of one prompt resemble each other, and
counting them as independent would make every interval too narrow. Videos whose prompt is unknown count as one
prompt each.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain, combinations
from statistics import fmean
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

Video = Mapping[str, Any]
"""One entry of `videos` in an evaluation's result."""

LEVEL = 0.95
"""Coverage of every interval."""
RESAMPLES = 10_000
"""Bootstrap samples that make an interval."""
SEED = 0
"""Of the generator that draws them."""
FEW = 10
"""With fewer clusters than this, a percentile interval is noticeably narrower than its level promises."""
_AT_ONCE = 2_000_000
"""Drawn indices held in memory together."""


class Summary(TypedDict):
    """A mean and its interval."""

    mean: float
    low: float | None
    high: float | None
    """Null where there is a single cluster, which says nothing of the spread."""
    count: int
    """How many values."""
    clusters: int
    note: str | None
    """Why the interval is missing or too narrow."""


class Difference(Summary):
    """A mean of paired differences."""

    same_seed: int
    """How many of the `count` are between videos that share the seed as well as the prompt."""


def summarise(
    values: Sequence[float] | NDArray[np.float64],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Summary:
    """The mean of finite `values` and the percentile bootstrap interval of that mean.

    `clusters` labels each value (its prompt); whole clusters are drawn with replacement, and a sample's mean
    is over all values of the clusters drawn. Without labels each value is its own. ValueError where there is
    nothing to average. Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    data = np.asarray(values, dtype=np.float64)
    labels = range(data.size) if clusters is None else clusters
    if data.ndim != 1 or not data.size or not np.isfinite(data).all() or len(labels) != data.size:
        raise ValueError(f"expected finite values, each with a cluster: {data.shape}, {len(labels)} clusters")
    numbers: dict[Hashable, int] = {}
    member = np.array([numbers.setdefault(label, len(numbers)) for label in labels])
    low, high = _interval(np.bincount(member, data), np.bincount(member), level, resamples, seed)
    note = None
    if len(numbers) == 1:
        note = "one value, so no interval" if data.size == 1 else "one prompt, so no interval"
    elif len(numbers) < FEW:
        note = f"only {len(numbers)} clusters: the interval is narrower than its level promises"
    return Summary(
        mean=float(data.mean()), low=low, high=high, count=int(data.size), clusters=len(numbers), note=note
    )


def group(videos: Sequence[Video]) -> dict[str, list[Video]]:
    """Videos by their system, in order of appearance. Those without one are "all videos", or "others" if some
    have one."""
    rest = "others" if any(video.get("system") for video in videos) else "all videos"
    systems: dict[str, list[Video]] = {}
    for video in videos:
        systems.setdefault(str(video.get("system") or rest), []).append(video)
    return systems


def compare(systems: Mapping[str, Sequence[Video]]) -> dict[str, Any]:
    """Every system summarised, and every two of them compared, as JSON with the schema `sfpp-comparison/1`:

    - `level`, `resamples`, `seed`, `method`: what the intervals are;
    - `systems[name]`: `videos` and `prompts` (counts), `metrics[metric]` (a `Summary`), and
      `verdicts[verdict]` with `fired` of `videos` and `median_onset_seconds` (null where none fired or none
      has an onset);
    - `pairs[i]`: `first`, `second`, `prompts` (in common), and `metrics[metric]` (a `Difference`, second
      minus first). A metric without a common prompt is not there.

    A metric is averaged over the videos that have it as a finite number; its `count` tells how many.
    """
    return {
        "schema": "sfpp-comparison/1",
        "method": "percentile bootstrap of the mean, resampling prompts with all their seeds",
        "level": LEVEL,
        "resamples": RESAMPLES,
        "seed": SEED,
        "systems": {name: _system(videos) for name, videos in systems.items()},
        "pairs": [
            {"first": first, "second": second, **_pair(systems[first], systems[second])}
            for first, second in combinations(systems, 2)
        ],
    }


def differences(
    first: Sequence[Video], second: Sequence[Video], metric: str
) -> list[tuple[str, float, bool]]:
    """(prompt, second minus first, whether the seed is the same) wherever both systems measured a prompt. One
    for each seed that both have; where they share none, one between the prompt's means over seeds."""
    before = _by_prompt(first, metric)
    after = _by_prompt(second, metric)
    pairs = []
    for prompt, old in before.items():
        if prompt not in after:
            continue
        new = after[prompt]
        shared = [seed for seed in old if seed is not None and seed in new]
        pairs += [(prompt, fmean(new[seed]) - fmean(old[seed]), True) for seed in shared]
        if not shared:
            change = fmean(chain(*new.values())) - fmean(chain(*old.values()))
            pairs.append((prompt, change, False))
    return pairs


def finite(value: object) -> float | None:
    """A number that can be averaged, else None: JSON's null, text, NaN."""
    if isinstance(value, int | float | np.number) and math.isfinite(value):
        return float(value)
    return None


def _interval(
    sums: NDArray[Any], sizes: NDArray[Any], level: float, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Percentiles of the means of `resamples` draws of clusters, given each cluster's sum and size."""
    count = len(sums)
    if count == 1:
        return None, None
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _AT_ONCE // count)
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, count, (min(rows, resamples - start), count))
        means[start : start + rows] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _system(videos: Sequence[Video]) -> dict[str, Any]:
    prompts = [video.get("prompt") for video in videos]
    # a video without a prompt stands alone
    clusters = [(place,) if prompt is None else prompt for place, prompt in enumerate(prompts)]
    metrics = {}
    for metric in _names(videos, "metrics"):
        values = [_value(video, metric) for video in videos]
        known = [
            (value, cluster) for value, cluster in zip(values, clusters, strict=True) if value is not None
        ]
        if known:
            metrics[metric] = summarise(*zip(*known, strict=True))
    verdicts = {name: _tally(videos, name) for name in _names(videos, "verdicts")}
    return {"videos": len(videos), "prompts": len(set(clusters)), "metrics": metrics, "verdicts": verdicts}


def _tally(videos: Sequence[Video], verdict: str) -> dict[str, Any]:
    given = [video["verdicts"][verdict] for video in videos if verdict in (video.get("verdicts") or {})]
    fired = [entry for entry in given if entry.get("fired")]
    onsets = [onset for entry in fired if (onset := finite(entry.get("onset_seconds"))) is not None]
    return {
        "fired": len(fired),
        "videos": len(given),
        "median_onset_seconds": float(np.median(onsets)) if onsets else None,
    }


def _pair(first: Sequence[Video], second: Sequence[Video]) -> dict[str, Any]:
    metrics: dict[str, Difference] = {}
    for metric in _names(first, "metrics"):
        pairs = differences(first, second, metric)
        if pairs:
            prompts, changes, same_seed = zip(*pairs, strict=True)
            metrics[metric] = Difference(**summarise(changes, prompts), same_seed=sum(same_seed))
    common = {video.get("prompt") for video in first} & {video.get("prompt") for video in second}
    return {"prompts": len(common - {None}), "metrics": metrics}


def _by_prompt(videos: Sequence[Video], metric: str) -> dict[str, dict[Hashable, list[float]]]:
    """A metric's values by prompt, then seed; videos without a prompt are left out."""
    values: dict[str, dict[Hashable, list[float]]] = {}
    for video in videos:
        value = _value(video, metric)
        prompt = video.get("prompt")
        if value is not None and prompt is not None:
            values.setdefault(prompt, {}).setdefault(video.get("seed"), []).append(value)
    return values


def _value(video: Video, metric: str) -> float | None:
    return finite((video.get("metrics") or {}).get(metric))


def _names(videos: Sequence[Video], part: str) -> list[str]:
    return list(dict.fromkeys(name for video in videos for name in video.get(part) or {}))
