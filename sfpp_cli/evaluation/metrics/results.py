"""From curves [T] to the figures of a result: numbers, shortened curves, clips. `results.schema.json`
lists them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.borders import border_frames, border_ratio
from sfpp_cli.evaluation.metrics.motion import Curve, Curves, clip_ranges, spikes
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.stability import reference_frames

EXPOSURE = ("luma", "clipped", "crushed", "contrast", "saturation", "sharpness")
LOOK = ("chroma", "saturation_change", "cast", "detail", "noise")
MEANS = (*EXPOSURE, *LOOK, "flow_mean", "flow_top5", "flow_variance")
"""Curves whose means are metrics, of the video and of each clip."""
CURVES = (*MEANS, "local_stability", "picture_change")
"""Curves that a result holds."""


def changes_since_reference(curves: Curves, fps: float, parameters: Parameters) -> dict[str, float | None]:
    """`luma_drift` etc.: the mean of the last seconds minus that of the reference, of the same length."""
    count = reference_frames(len(curves["luma"]), fps, parameters.reference_seconds)
    return {
        f"{name}_drift": _difference(mean(curves[name][-count:]), mean(curves[name][:count]))
        for name in (*EXPOSURE, *LOOK, "flow_mean")
    }


def spike_metrics(
    curves: Curves, size: tuple[int, int], fps: float, parameters: Parameters
) -> dict[str, Any]:
    """The largest windowed variance of the flow, and how many spikes it has."""
    where = spikes(curves["flow_mean"], fps, parameters.flow_spike, min(size) / 256)
    return {"flow_variance_max": float(np.max(curves["flow_variance"])), "flow_spikes": int(where.sum())}


def border_metrics(curves: Curves, parameters: Parameters) -> dict[str, float | None]:
    """Changes at chunk borders over changes inside chunks, of luma, flow and picture."""
    luma = np.abs(np.diff(curves["luma"], prepend=curves["luma"][:1]))
    borders = border_frames(len(luma), parameters.chunk_first, parameters.chunk_period)
    steps = {"luma": luma, "flow": np.nan_to_num(curves["flow_mean"]), "picture": curves["picture_change"]}
    return {f"border_{name}_ratio": border_ratio(step, borders) for name, step in steps.items()}


def clips(curves: Curves, fps: float, dynamic: list[bool], parameters: Parameters) -> list[dict[str, Any]]:
    """VBench-Long's clips: where each begins and ends, its means, and whether it is dynamic."""
    ranges = clip_ranges(len(curves["luma"]), fps, parameters.clip_seconds)
    return [
        {
            "start_frame": start,
            "end_frame": end,
            "start_seconds": start / fps,
            "end_seconds": end / fps,
            **{name: mean(curves[name][start:end]) for name in (*MEANS, "local_stability")},
            "dynamic_degree_dis": int(moves),
        }
        for (start, end), moves in zip(ranges, dynamic, strict=True)
    ]


def shorten(values: Curve, fps: float, points: int) -> dict[str, list[float | None]]:
    """A curve of at most `points` points: the means of equal stretches, and the middle second of each."""
    edges = np.linspace(0, len(values), min(points, len(values)) + 1).round().astype(int)
    stretches = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    return {
        "seconds": [(start + end - 1) / 2 / fps for start, end in stretches],
        "values": [mean(values[start:end]) for start, end in stretches],
    }


def mean(values: NDArray[np.float64]) -> float | None:
    """The mean of what is finite; None if nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
