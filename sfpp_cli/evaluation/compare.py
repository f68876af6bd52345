"""Systems side by side: means with bootstrap intervals, and paired differences where prompts match.

The unit that is resampled is the prompt, not the video: several seeds of one prompt resemble each other, and
counting them as independent would make every interval too narrow. Videos whose prompt is unknown count as one
prompt each.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
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
    paired: bool
    """False where no prompt is in common: then it is the difference of the two means, each of which is
    resampled by itself, and `count` are the values of both."""


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
    sums, sizes = _by_cluster(data, labels)
    means = _resampled(sums, sizes, resamples, seed) if len(sums) > 1 else None
    return _summary(float(data.mean()), means, level, int(data.size), len(sums))


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
    - `systems[name]`: `videos` and `prompts` (counts; only known prompts), `metrics[metric]` (a `Summary`),
      and `verdicts[verdict]` with `fired` of `videos` and `median_onset_seconds` (null where none fired or
      none has an onset);
    - `pairs[i]`: `first`, `second`, `prompts` (in common), and `metrics[metric]` (a `Difference`, second
      minus first), of prompts in common where there are any.

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
            {"first": first, "second": second, **pair_of(systems[first], systems[second])}
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


def _summary(
    mean: float, means: NDArray[np.float64] | None, level: float, count: int, clusters: int
) -> Summary:
    """With the percentiles of the resampled `means`, if there are any."""
    low = high = note = None
    if means is not None:
        tail = (1 - level) / 2
        low, high = (float(end) for end in np.quantile(means, [tail, 1 - tail]))
    if clusters == 1:
        note = "one value, so no interval" if count == 1 else "one prompt, so no interval"
    elif clusters < FEW:
        note = f"only {clusters} clusters: the interval is narrower than its level promises"
    return Summary(mean=mean, low=low, high=high, count=count, clusters=clusters, note=note)


def _by_cluster(
    values: Sequence[float] | NDArray[np.float64], labels: Iterable[Hashable]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The sum and the size of each cluster."""
    numbers: dict[Hashable, int] = {}
    member = np.array([numbers.setdefault(label, len(numbers)) for label in labels])
    return np.bincount(member, values), np.bincount(member)


def _resampled(sums: NDArray[Any], sizes: NDArray[Any], resamples: int, seed: int) -> NDArray[np.float64]:
    """The means of `resamples` draws of clusters, given each cluster's sum and size."""
    count = len(sums)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _AT_ONCE // count)
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, count, (min(rows, resamples - start), count))
        means[start : start + rows] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return means


def _system(videos: Sequence[Video]) -> dict[str, Any]:
    metrics = {}
    for metric in _names(videos, "metrics"):
        values, clusters = _values(videos, metric)
        if values:
            metrics[metric] = summarise(values, clusters)
    prompts = {video.get("prompt") for video in videos} - {None}
    verdicts = {name: tally(videos, name) for name in verdict_names(videos)}
    return {"videos": len(videos), "prompts": len(prompts), "metrics": metrics, "verdicts": verdicts}


def _values(videos: Sequence[Video], metric: str) -> tuple[list[float], list[Hashable]]:
    """What is known of a metric, and the cluster of each value: its prompt, or itself."""
    values = []
    clusters: list[Hashable] = []
    for place, video in enumerate(videos):
        value = _value(video, metric)
        if value is not None:
            values.append(value)
            clusters.append((place,) if video.get("prompt") is None else video["prompt"])
    return values, clusters


def verdict_names(videos: Sequence[Video]) -> list[str]:
    """Names of the verdicts that any of them has."""
    return _names(videos, "verdicts")


def tally(videos: Sequence[Video], verdict: str) -> dict[str, Any]:
    """In how many videos a verdict `fired`, of how many, and its `median_onset_seconds`."""
    given = [video["verdicts"][verdict] for video in videos if verdict in (video.get("verdicts") or {})]
    fired = [entry for entry in given if entry.get("fired")]
    onsets = [onset for entry in fired if (onset := finite(entry.get("onset_seconds"))) is not None]
    return {
        "fired": len(fired),
        "videos": len(given),
        "median_onset_seconds": float(np.median(onsets)) if onsets else None,
    }


def pair_of(first: Sequence[Video], second: Sequence[Video]) -> dict[str, Any]:
    """Two systems compared: `prompts` in common, and of each metric the `Difference`, second minus first."""
    common = {video.get("prompt") for video in first} & {video.get("prompt") for video in second} - {None}
    metrics: dict[str, Difference] = {}
    for metric in _names(first, "metrics"):
        pairs = differences(first, second, metric)
        if pairs:
            prompts, changes, same_seed = zip(*pairs, strict=True)
            summary = summarise(changes, prompts)
            metrics[metric] = Difference(**summary, same_seed=sum(same_seed), paired=True)
        elif not common and (change := _unpaired(first, second, metric)):
            metrics[metric] = change
    return {"prompts": len(common), "metrics": metrics}


def _unpaired(first: Sequence[Video], second: Sequence[Video], metric: str) -> Difference | None:
    """The difference of two means over different prompts, where both are known."""
    known = [_values(videos, metric) for videos in (first, second)]
    if not all(values for values, _ in known):
        return None
    before, after = (_by_cluster(*side) for side in known)
    clusters = min(len(before[0]), len(after[0]))
    means = None
    if clusters > 1:
        means = _resampled(*after, RESAMPLES, SEED + 1) - _resampled(*before, RESAMPLES, SEED)
    mean_before, mean_after = (fmean(values) for values, _ in known)
    count = sum(len(values) for values, _ in known)
    summary = _summary(mean_after - mean_before, means, LEVEL, count, clusters)
    return Difference(**summary, same_seed=0, paired=False)


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
