"""How names and figures read: titles, units, digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """How people read a name: a title, and the unit or what else keeps it from being misread. An axis reaches at least `top`.

    `minor` metrics are shown folded away: those that a curve or another number tells better.
    """

    title: str
    unit: str = ""
    top: float = 0.0
    minor: bool = False


_FLOW = "pixels a frame"
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
    "border_luma_ratio": Label("Chunk borders, luma", "change at borders to change inside", minor=True),
    "border_flow_ratio": Label("Chunk borders, flow", "change at borders to change inside", minor=True),
    "border_picture_ratio": Label("Chunk borders, picture", "change at borders to change inside"),
}
"""What is known, in the order of panels and rows. Any other name follows, in its own words."""


def label(name: str) -> Label:
    """How a curve or metric is shown."""
    words = name.replace("_", " ").strip() or name
    return LABELS.get(name) or Label(words[:1].upper() + words[1:])


def places(values: Sequence[float]) -> int:
    """Decimals that show three digits of the largest of them (100.0 counts as three); none where all are whole."""
    known = [value for value in values if math.isfinite(value)]
    largest = max(map(abs, known), default=0.0)
    if not largest or all(value == int(value) for value in known):
        return 0
    return min(6, max(0, 3 - math.ceil(math.log10(largest))))


def number(value: float, decimals: int | None = None) -> str:
    """A figure for people: so many decimals, or three digits that count."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    if not value:
        return "0"
    if decimals is None and 0 < abs(value) < 1e-5:
        return f"{value:.1e}".replace("-", "\N{MINUS SIGN}")
    decimals = places([value]) if decimals is None else decimals
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")
