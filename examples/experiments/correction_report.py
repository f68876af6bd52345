"""The tables and the figure of `correction.py`, from the rows. Intervals: 95 %, prompts resampled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faults import DRIFTS, FAULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import markdown, shown

from sfpp_cli.evaluation.compare import Summary, summarise
from sfpp_cli.figures import COLORS, DPI, GRID, INK
from sfpp_cli.files import atomic_write

Row = Mapping[str, Any]
Watched = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
"""{student: {past: gauges, a row a prompt}}."""

CRITICS = {"clean": "critic of a faultless student", "followed": "critic that followed the fault"}
GAUGES = {
    "to white": ("luma", "astray"),
    "to black": ("luma", "astray"),
    "desaturation": ("saturation", "astray"),
    "tint": ("tint", "astray"),
    "frozen stretch": ("speed", "broken"),
    "motion glitch": ("speed", "broken"),
}
"""What a fault should show in, behind a past that has it."""


def write_report(
    out: Path,
    rows: Sequence[Row],
    survived: Mapping[str, Row],
    watched: Watched,
    minutes: Mapping[str, float],
) -> None:
    """`out`/correction.json, table.md and correction.png."""
    result = {
        "schema": "sfpp-correction/1",
        "gradient": list(gradient(rows)),
        "teacher": list(teacher(rows)),
        "survivals": survived,
        "training": list(training(watched)),
        "minutes": {"total": sum(minutes.values()), **minutes},
    }
    atomic_write(out / "correction.json", json.dumps(result, indent=2) + "\n")
    atomic_write(out / "table.md", "\n".join(tables(result)) + "\n")
    draw(result, out / "correction.png")


def gradient(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """For every fault and strength, the cosine and the shares of both critics, and what to make of them."""
    for fault in FAULTS:
        for strength in sorted({row["strength"] for row in rows}):
            chosen = [row for row in rows if row["fault"] == fault and row["strength"] == strength]
            if chosen:
                found: dict[str, Any] = {"fault": fault, "strength": strength}
                for critic in CRITICS:
                    found[f"{critic}_cosine"] = summarise(
                        [row[f"{critic}_cosine"] for row in chosen], prompts(chosen)
                    )
                    found[f"{critic}_share"] = pooled(chosen, f"{critic}_share")
                    found[f"{critic}_idle"] = pooled(chosen, f"{critic}_idle")
                    found[f"{critic}_verdict"] = verdict(found[f"{critic}_share"])
                yield found


def teacher(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """For every fault at its greatest strength and every noise level, the share undone by the teacher."""
    strongest = max(row["strength"] for row in rows)
    names = {name for row in rows for name in row if name.startswith("teacher_")}
    for fault in FAULTS:
        for name in sorted(names, key=lambda name: float(name.split("_")[1])):
            chosen = [
                row for row in rows if (row["fault"], row["strength"]) == (fault, strongest) and name in row
            ]
            if chosen:
                yield {"fault": fault, "timestep": float(name.split("_")[1]), "share": pooled(chosen, name)}


def training(watched: Watched) -> Iterator[dict[str, Any]]:
    """For every fault and gauge, the gap that a faulty past opens to the clean continuation, and the share of
    it undone.

    Intervals of shares take the mean gap before training as known.
    """
    for fault, gauges in GAUGES.items():
        for gauge in gauges if fault in watched else ():
            goal = np.array([row[gauge] for row in watched["before"]["clean"]])
            gaps = {
                student: np.array([row[gauge] for row in watched[student][fault]]) - goal
                for student in ("before", "control", fault)
            }
            before = gaps["before"]
            found: dict[str, Any] = {
                "fault": fault,
                "gauge": gauge,
                "clean": summarise(goal),
                "gap": summarise(before),
            }
            for name, student in (("control", "control"), ("trained", fault)):
                found[f"{name}_gap"] = summarise(gaps[student])
                if clear(found["gap"]):
                    found[f"{name}_undone"] = summarise((before - gaps[student]) / before.mean())
            found["verdict"] = verdict(found["trained_undone"]) if clear(found["gap"]) else "no gap to undo"
            yield found


def prompts(rows: Sequence[Row]) -> list[int]:
    return [row["prompt"] for row in rows]


def pooled(rows: Sequence[Row], name: str) -> Summary:
    """The mean share, each weighted by the size of its fault: a nearly invisible one is mostly noise."""
    sizes = np.array([row["size"] for row in rows])
    return summarise(np.array([row[name] for row in rows]) * sizes / sizes.mean(), prompts(rows))


def clear(summary: Summary) -> bool:
    """Whether the interval leaves zero out."""
    return summary["low"] is not None and summary["high"] is not None and summary["low"] * summary["high"] > 0


def verdict(share: Summary) -> str:
    if not clear(share):
        return "no direction"
    return "undoes" if share["mean"] > 0 else "wrong way"


def tables(result: Mapping[str, Any]) -> Iterator[str]:
    """Markdown."""
    yield (
        "One DMD step: cosine of the step with the way back, share of the fault undone, "
        "the same share on the clean window\n"
    )
    columns = [f"{kind}: {what}" for kind in CRITICS for what in ("cos", "undone", "idle", "verdict")]
    lines = []
    for row in result["gradient"]:
        cells = [row["fault"], f"{row['strength']:g}"]
        for kind in CRITICS:
            cells += [shown(row[f"{kind}_{what}"], percent=False) for what in ("cosine", "share", "idle")]
            cells.append(row[f"{kind}_verdict"])
        lines.append(cells)
    yield markdown(["fault", "strength", *columns], lines)
    yield "\nThe teacher alone, full strength: share of the fault undone in its prediction, by timestep\n"
    levels = sorted({row["timestep"] for row in result["teacher"]})
    lines = [
        [fault, *(shown(row["share"], percent=False) for row in result["teacher"] if row["fault"] == fault)]
        for fault in dict.fromkeys(row["fault"] for row in result["teacher"])
    ]
    yield markdown(["fault", *(f"{level:.0f}" for level in levels)], lines)
    yield (
        "\nWhat the VAE leaves of full drifts: change of the window's mean, "
        "in the pixels and decoded from its latents\n"
    )
    kinds = [(gauge, kind) for gauge in ("luma", "saturation") for kind in ("injected", "encoded")]
    lines = [[fault, *(change(result["survivals"], fault, *each) for each in kinds)] for fault in DRIFTS]
    yield markdown(["fault", "luma injected", "luma left", "saturation injected", "saturation left"], lines)
    if result["training"]:
        yield from training_table(result["training"])


def training_table(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "\nOne training (one seed): gap to the clean continuation after a faulty past, "
        "and the share of it undone\n"
    )
    lines = []
    for row in rows:
        gaps = [shown(row[what], percent=False, digits=3) for what in ("gap", "control_gap", "trained_gap")]
        undone = [shown(row.get(f"{who}_undone"), percent=False) for who in ("control", "trained")]
        clean = f"{row['clean']['mean']:.3f}"
        lines.append([row["fault"], row["gauge"], clean, *gaps, *undone, row["verdict"]])
    gaps = ["gap before", "gap, control", "gap, trained"]
    yield markdown(["fault", "gauge", "clean", *gaps, "undone, control", "undone", "verdict"], lines)


def change(survived: Mapping[str, Row], fault: str, gauge: str, kind: str) -> str:
    name = f"{gauge} {kind}"
    return f"{survived[fault][name] - survived['clean'][name]:+.3f}"


def draw(result: Mapping[str, Any], path: Path) -> None:
    figure = Figure(figsize=(13, 5.4), dpi=DPI, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for color, (critic, name) in zip(COLORS, CRITICS.items(), strict=False):
        offset = 0.12 if critic == "followed" else -0.12
        strengths = sorted({row["strength"] for row in result["gradient"]})
        for marker, strength in zip("ovs^Dp", reversed(strengths), strict=False):
            chosen = [row for row in result["gradient"] if row["strength"] == strength]
            places = [
                FAULTS.index(row["fault"]) + offset + 0.08 * strengths.index(strength) - 0.04 * len(strengths)
                for row in chosen
            ]
            points(
                left,
                places,
                [row[f"{critic}_share"] for row in chosen],
                color,
                marker,
                f"{name}, {strength:g}",
            )
    faults_down(left, FAULTS, "One DMD step", "share of the fault undone")
    for color, fault in zip(COLORS, FAULTS, strict=False):
        chosen = [row for row in result["teacher"] if row["fault"] == fault]
        undone = [row["share"]["mean"] for row in chosen]
        middle.plot([row["timestep"] for row in chosen], undone, "o-", color=color, label=fault, markersize=4)
    middle.set(title="The teacher alone", xlabel="timestep (1000: noise)", ylabel="share of the fault undone")
    names = [f"{row['fault']}:\n{row['gauge']}" for row in result["training"]]
    for color, (who, name) in zip(
        COLORS[2:], (("control", "control"), ("trained", "trained on the fault")), strict=False
    ):
        chosen = [
            (place, row[f"{who}_undone"])
            for place, row in enumerate(result["training"])
            if f"{who}_undone" in row
        ]
        offset = 0.12 if who == "trained" else -0.12
        points(
            right, [place + offset for place, _ in chosen], [share for _, share in chosen], color, "o", name
        )
    faults_down(right, names, "One training", "share of the gap undone")
    for axes in (left, middle, right):
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.title.set_color(INK)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.savefig(path)


def points(
    axes: Axes,
    places: Sequence[float],
    found: Sequence[Mapping[str, Any]],
    color: str,
    marker: str,
    name: str,
) -> None:
    """Means with their intervals, a row each."""
    means = [summary["mean"] for summary in found]
    ends = [[0.0 if s[end] is None else abs(s[end] - s["mean"]) for s in found] for end in ("low", "high")]
    axes.errorbar(means, places, xerr=ends, fmt=marker, color=color, label=name, markersize=5, linewidth=1.2)


def faults_down(axes: Axes, names: Sequence[str], title: str, unit: str) -> None:
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
