"""Drift over time: what a panel shows of one curve.

For every system the mean over its videos and the band that holds the middle 80 % of them, against the grey
band of the reference: where 90 % of all values of the first seconds lie. A curve that leaves the grey has
drifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.compare import Video
from sfpp_cli.evaluation.report.labels import DISTANCE, LABELS, label, number, places

Array = NDArray[np.float64]

BINS = 160
"""Most points of a drawn curve."""
SPREAD = (10, 90)
"""Percentiles of the videos at one time: the band around a mean."""
USUAL = (5, 95)
"""Percentiles of the values of the first seconds: the grey band of the reference."""


@dataclass(frozen=True)
class Band:
    """One system on one panel: `videos` of it have the curve, `first` and `last` are the means over them of
    their first and last reference seconds, `color` is the system's number among all.

    Arrays have a value for each point, NaN where no video has one; `low` to `high` hold the middle videos.
    """

    mean: Array
    low: Array
    high: Array
    videos: int
    first: float
    last: float
    color: int


@dataclass(frozen=True)
class Drift:
    """A panel: one curve, at points `seconds`, of all systems that have it, with the grey band `usual` (low,
    high) of the first `reference` seconds, which are a third of a short video. A curve over distances in time
    has neither."""

    name: str
    seconds: Array
    systems: dict[str, Band]
    usual: tuple[float, float] | None = None
    reference: float | None = None
    descriptor: str = ""
    """What is compared, where the curve does not say it."""

    @property
    def longest(self) -> float:
        """The axis of time ends here, in seconds."""
        return float(self.seconds[-1] + self.seconds[0])

    @property
    def ends(self) -> dict[str, tuple[str, str]]:
        """First and last figure of every system, as people read them."""
        decimals = places([end for band in self.systems.values() for end in (band.first, band.last)])
        bands = self.systems.items()
        return {name: (number(band.first, decimals), number(band.last, decimals)) for name, band in bands}

    @property
    def limits(self) -> tuple[float, float]:
        """The axis of values: from zero where nothing is negative, so that a small drift looks small."""
        drawn = [part for band in self.systems.values() for part in (band.low, band.high, band.mean)]
        values = np.concatenate([self.usual or (), *drawn])
        low = float(np.nanmin(values))
        high = max(float(np.nanmax(values)), label(self.name).top)
        if low >= 0:
            return 0.0, 1.05 * high or 1.0
        margin = 0.05 * (high - low)
        return low - margin, high + margin or 1.0


def drifts(
    systems: Mapping[str, Sequence[Video]],
    reference: float,
    *,
    names: Sequence[str] = (),
    bins: int = BINS,
    color: int = 0,
    usual: Mapping[str, Any] | None = None,
) -> list[Drift]:
    """A panel for each curve that the systems' videos have (or for those of `names`), the known ones first.
    All share an axis of time, as long as the longest video. `reference` is in seconds, `bins` is how many
    points a curve has at most, and systems are numbered from `color` on. `usual` has the grey bands of curves
    that are held against other videos than their own beginning."""
    everything = [video for videos in systems.values() for video in videos]
    curves = {name: None for video in everything for name in video.get("curves") or {}}
    order = [name for name in LABELS if name in curves] + [name for name in curves if name not in LABELS]
    longest = max((float(video.get("seconds") or 0) for video in everything), default=0.0)
    panels = []
    for name in order:
        if names and name not in names:
            continue
        samples = {
            system: [curve for video in videos if (curve := _samples(video, name)) is not None]
            for system, videos in systems.items()
        }
        found = [curve for members in samples.values() for curve in members]
        if not found:
            continue
        end = max(longest, *(float(seconds[-1]) for seconds, _ in found), 1e-3)
        points = max(2, min(bins, max(len(seconds) for seconds, _ in found)))
        centres = (np.arange(points) + 0.5) * end / points
        bands = {
            system: _band(members, centres, reference, color + place)
            for place, (system, members) in enumerate(samples.items())
            if members
        }
        early = np.concatenate([_end(curve, reference) for curve in found])
        low, high = (usual or {}).get(name) or np.percentile(early, USUAL)
        panels.append(Drift(name, centres, bands, (float(low), float(high)), min(reference, end / 3)))
    return panels


def distances(systems: Mapping[str, Sequence[Video]]) -> list[Drift]:
    """A panel of how alike two moments are that lie so many seconds apart, for each thing that they are
    compared by: a plain descriptor, a network. Comparing neighbours cannot see slow drift (VBench #206)."""
    bands: dict[str, dict[str, list[tuple[Array, Array]]]] = {}
    for system, videos in systems.items():
        for video in videos:
            for holder in (video, video.get("models") or {}):
                curve = holder.get(DISTANCE) or {}
                samples = _finite(curve)
                if samples is not None:
                    kinds = bands.setdefault(str(curve.get("descriptor") or ""), {})
                    kinds.setdefault(system, []).append(samples)
    panels = []
    order = list(systems)
    for descriptor, members in bands.items():
        found = [curve for curves in members.values() for curve in curves]
        end = max(1e-3, *(float(seconds[-1]) for seconds, _ in found))
        points = max(2, min(BINS, max(len(seconds) for seconds, _ in found)))
        centres = (np.arange(points) + 0.5) * end / points
        drawn = {name: _band(curves, centres, 0.0, order.index(name)) for name, curves in members.items()}
        panels.append(Drift(DISTANCE, centres, drawn, descriptor=descriptor))
    return panels


def _samples(video: Video, name: str) -> tuple[Array, Array] | None:
    """Seconds and finite values of a curve, or None without any."""
    return _finite((video.get("curves") or {}).get(name) or {})


def _finite(curve: Mapping[str, Any]) -> tuple[Array, Array] | None:
    """The same of a curve as results have it. Nulls are left out."""
    seconds = np.array(curve.get("seconds") or [], dtype=np.float64)  # null becomes NaN
    values = np.array(curve.get("values") or [], dtype=np.float64)
    count = min(len(seconds), len(values))
    known = np.isfinite(seconds[:count]) & np.isfinite(values[:count])
    return (seconds[:count][known], values[:count][known]) if known.any() else None


def _band(curves: Sequence[tuple[Array, Array]], centres: Array, reference: float, color: int) -> Band:
    stack = np.stack([_on_grid(seconds, values, centres) for seconds, values in curves])
    there = ~np.isnan(stack).all(0)  # numpy warns of the mean of nothing
    mean, low, high = (np.full(len(centres), np.nan) for _ in range(3))
    mean[there] = np.nanmean(stack[:, there], 0)
    low[there], high[there] = np.nanpercentile(stack[:, there], SPREAD, axis=0)
    first, last = ([float(_end(curve, reference, late).mean()) for curve in curves] for late in (False, True))
    return Band(mean, low, high, len(curves), float(np.mean(first)), float(np.mean(last)), color)


def _end(curve: tuple[Array, Array], reference: float, late: bool = False) -> Array:
    """The values of the first (or last) `reference` seconds, at least one; in a short video, of a third."""
    seconds, values = curve
    span = min(reference, seconds[-1] / 3)
    if late:
        return np.asarray(values[seconds >= seconds[-1] - span])
    chosen = values[seconds < span]
    return chosen if chosen.size else values[:1]


def _on_grid(seconds: Array, values: Array, centres: Array) -> Array:
    """The mean of the values around each centre, a straight line between sparse ones, NaN outside them."""
    width = 2 * centres[0]
    place = np.clip((seconds / width).astype(int), 0, len(centres) - 1)
    count = np.bincount(place, minlength=len(centres))
    filled = count > 0
    means = np.bincount(place, values, minlength=len(centres))[filled] / count[filled]
    return np.interp(centres, centres[filled], means, left=np.nan, right=np.nan)
