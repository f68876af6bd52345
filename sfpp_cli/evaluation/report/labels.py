"""How names and numbers read: titles, units, digits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfpp_cli.evaluation.compare import Video, finite
from sfpp_cli.evaluation.json_text import plain

DASH = "\N{EN DASH}"
"""Stands where there is no value."""


@dataclass(frozen=True)
class Label:
    """How a metric or curve is presented."""

    title: str
    unit: str = ""
    """The unit, or whatever else keeps the number from being misread."""
    top: float = 0.0
    """An axis reaches at least this value, so that a negligible curve looks negligible."""
    minor: bool = False
    """Shown folded away, since a curve or another number says it better."""


DISTANCE = "similarity_by_distance"
"""A curve over the distance between two moments, not over time."""
_FLOW = "pixels a frame"
_BORDERS = "change there to change inside, if the video is made in Self-Forcing's chunks"
LABELS = {
    "local_stability": Label("Local stability", "0 to 100; not the paper's Visual Stability"),
    "visual_stability": Label("Visual Stability", "judged by a video LLM, 0 to 100"),
    "luma": Label("Luma", "mean, 0 to 1", minor=True),
    "luma_drift": Label("Luma, drift", "end minus beginning"),
    "clipped": Label("Clipped highlights", "share of pixels", top=0.05, minor=True),
    "clipped_drift": Label("Clipped highlights, drift", "end minus beginning"),
    "crushed": Label("Crushed shadows", "share of pixels", top=0.05, minor=True),
    "crushed_drift": Label("Crushed shadows, drift", "end minus beginning"),
    "contrast": Label("Contrast", "standard deviation of luma", minor=True),
    "contrast_drift": Label("Contrast, drift", "end minus beginning", minor=True),
    "saturation": Label("Saturation", "mean, 0 to 1", minor=True),
    "saturation_drift": Label("Saturation, drift", "end minus beginning"),
    "chroma": Label("Chroma", "mean, CIELAB", minor=True),
    "chroma_drift": Label("Chroma, drift", "end minus beginning"),
    "saturation_change": Label("Saturation, change", "octaves against the beginning"),
    "cast": Label("Colour cast", "CIELAB units against the beginning"),
    "saturation_change_drift": Label("Saturation, change, drift", "end minus beginning", minor=True),
    "cast_drift": Label("Colour cast, drift", "end minus beginning", minor=True),
    "detail": Label("Detail", "fine against coarse, 0 to 1", minor=True),
    "detail_drift": Label("Detail, drift", "end minus beginning"),
    "noise": Label("Noise", "levels of 255", minor=True),
    "noise_drift": Label("Noise, drift", "end minus beginning"),
    "sharpness": Label("Sharpness", "variance of the Laplacian", minor=True),
    "sharpness_drift": Label("Sharpness, drift", "end minus beginning"),
    "flow_mean": Label("Motion", f"mean flow, {_FLOW}"),
    "flow_mean_drift": Label("Motion, drift", f"end minus beginning, {_FLOW}"),
    "flow_top5": Label("Motion, fastest 5 %", f"flow, {_FLOW}", minor=True),
    "flow_variance": Label("Motion, variance", "of the mean flow in 8 frames", minor=True),
    "flow_variance_max": Label("Motion, largest variance", "of the mean flow in 8 frames"),
    "flow_spikes": Label("Motion spikes", "count"),
    "picture_change": Label("Picture change", "RMS from frame to frame"),
    "dynamic_degree_dis": Label(
        "Dynamic degree (DIS)", "share of clips; VBench's rule on DIS flow, not on RAFT's"
    ),
    "dynamic_degree_dis_whole": Label("Dynamic degree (DIS), whole video", minor=True),
    "dynamic_degree_raft": Label(
        "Dynamic degree (RAFT)", "share of clips; VBench's rule on the flow of torchvision's RAFT"
    ),
    "norepeat": Label("NoRepeat", "RIFLEx, 0 or 100"),
    "norepeat_distance": Label("NoRepeat, distance", "RIFLEx's d", minor=True),
    "norepeat_rms": Label("NoRepeat, distance as RMS", "0 to 1", minor=True),
    "norepeat_offset": Label("NoRepeat, offset", "frames", minor=True),
    "norepeat_position": Label("NoRepeat, P", "frames", minor=True),
    "norepeat_halfwidth": Label("NoRepeat, n", "frames", minor=True),
    "norepeat_threshold": Label("NoRepeat, threshold", "on d, for this size", minor=True),
    "self_similarity_seconds": Label("Most self-similar offset", "seconds", minor=True),
    "self_similarity_rms": Label("Difference at that offset", "RMS", minor=True),
    "self_similarity_share": Label("Repeated at that offset", "share of frames", minor=True),
    "border_luma_ratio": Label("Chunk borders, luma", _BORDERS, minor=True),
    "border_flow_ratio": Label("Chunk borders, flow", _BORDERS, minor=True),
    "border_picture_ratio": Label("Chunk borders, picture", _BORDERS, minor=True),
    DISTANCE: Label("Likeness by distance in time", "cosine of two moments so far apart"),
}
"""What is known, in the order of panels and rows. Any other name follows, in its own words."""


def label(name: str) -> Label:
    """How a curve or metric is presented."""
    words = name.replace("_", " ").strip() or name
    return LABELS.get(name) or Label(words[:1].upper() + words[1:])


def ordered(metrics: Iterable[str], *, minor: bool) -> list[str]:
    """The minor metrics or the others: known ones in the order of `LABELS`, then the rest by name."""
    places = {name: place for place, name in enumerate(LABELS)}
    chosen = [name for name in metrics if label(name).minor == minor]
    return sorted(chosen, key=lambda name: (places.get(name, len(places)), name))


@dataclass(frozen=True)
class Fault:
    """How a verdict is presented."""

    title: str
    curves: tuple[str, ...] = ()
    """The curves on which its onset is marked."""
    sudden: bool = False
    """From one frame to the next."""


FAULTS = {
    "over_exposure": Fault("Over-exposure", ("luma",)),
    "darkening": Fault("Darkening", ("luma",)),
    "blank": Fault("Blank picture", ("luma", "contrast")),
    "over_saturation": Fault("Over-saturation", ("saturation_change", "chroma")),
    "desaturation": Fault("Desaturation", ("saturation_change", "chroma")),
    "colour_cast": Fault("Colour cast", ("cast",)),
    "blur": Fault("Blur", ("detail",)),
    "noise": Fault("Noise", ("noise",)),
    "stagnation": Fault("Stagnation", ("flow_mean",)),
    "repetition": Fault("Repetition"),
    "flicker": Fault("Flicker", ("luma", "flow_mean"), sudden=True),
    "scene_change": Fault("Scene change", ("luma", "flow_mean"), sudden=True),
    "subject_lost": Fault("Subject lost"),
}
"""What is known of verdicts, in the order of columns. Any other follows, in its own words."""


def fault(name: str) -> Fault:
    """How a verdict is presented."""
    return FAULTS.get(name) or Fault(label(name).title)


def faults_of(holders: Iterable[Mapping[str, Any]], *, fired: bool = False) -> list[str]:
    """Names of the verdicts that any of them has (with `fired`: in which it fired), the known ones first."""
    there = {
        name: None
        for holder in holders
        for name, verdict in (holder.get("verdicts") or {}).items()
        if verdict.get("fired") or not fired
    }
    return [name for name in FAULTS if name in there] + [name for name in there if name not in FAULTS]


def seen_faults(tallies: Mapping[str, Any]) -> dict[str, Any]:
    """Of a baseline's verdicts, those that fired in any video, now or before."""
    return {
        name: tally for name, tally in tallies.items() if tally["now"]["fired"] or tally["before"]["fired"]
    }


def onset_of(verdict: Mapping[str, Any]) -> float | None:
    """The second since when, if it fired and that is known."""
    return finite(verdict.get("onset_seconds")) if verdict.get("fired") else None


def first_fault(video: Video) -> tuple[str | None, float | None]:
    """The fault that a video shows first and since when; None, None where nothing fired."""
    fired = [(onset_of(video["verdicts"][name]), name) for name in faults_of([video], fired=True)]
    known = [(onset, name) for onset, name in fired if onset is not None]
    if known:
        onset, name = min(known, key=lambda entry: entry[0])
        return name, onset
    return (fired[0][1], None) if fired else (None, None)


def verdict_state(verdict: Mapping[str, Any]) -> str:
    """`silent`, `fired`, or `from 1.2 s`."""
    onset = onset_of(verdict)
    if onset is not None:
        return f"from {onset:.1f} s"
    return "fired" if verdict.get("fired") else "silent"


def places(values: Sequence[float]) -> int:
    """Decimals that show three digits of the largest value (100.0 counts as three); none if all are whole."""
    known = [value for value in values if math.isfinite(value)]
    largest = max(map(abs, known), default=0.0)
    if not largest or all(value == int(value) for value in known):
        return 0
    return min(6, max(0, 3 - math.ceil(math.log10(largest))))


def number(value: float, decimals: int | None = None) -> str:
    """A number with `decimals` decimals, by default with three significant digits."""
    if not math.isfinite(value):
        return DASH
    if not value:
        return "0"
    if decimals is None and 0 < abs(value) < 1e-5:
        return f"{value:.1e}".replace("-", "\N{MINUS SIGN}")
    decimals = places([value]) if decimals is None else decimals
    # adding 0.0 turns a rounded "-0.0" into "0.0"
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float, decimals: int) -> str:
    """The same with a plus sign before what is positive."""
    sign = "+" if round(value, decimals) > 0 else ""
    return sign + number(value, decimals)


def ends(metric: str, holders: Iterable[Mapping[str, Any]]) -> list[float]:
    """The means of a metric that systems or pairs have, and the ends of their intervals."""
    known = [holder["metrics"][metric] for holder in holders if metric in holder["metrics"]]
    return [end for entry in known for end in (entry["mean"], entry["low"], entry["high"]) if end is not None]


def interval(entry: Mapping[str, Any], decimals: int, *, signs: bool = False) -> str:
    if entry["low"] is None:
        return "no interval"
    form = signed if signs else number
    return f"{form(entry['low'], decimals)} to {form(entry['high'], decimals)}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def plural(count: int, noun: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def written(value: object) -> str:
    """Any JSON value as people read it, a number with three significant digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return DASH
    if isinstance(value, float | np.floating):
        return number(float(value))
    return str(value) if isinstance(value, str | int) else json.dumps(plain(value), ensure_ascii=False)


def printable(text: str) -> str:
    """The text without control characters, which HTML and SVG forbid."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)
