"""Tables, curves and filmstrips out of measured rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from study import ENDS, WINDOW

from sfpp_cli.evaluation.compare import Summary, differences, summarise
from sfpp_cli.evaluation.metrics.verdicts import NAMES
from sfpp_cli.figures import COLORS, GRID, INK
from sfpp_cli.video.reader import probe, read_frames
from sfpp_cli.video.sheet import contact_sheet

Rows = Sequence[Mapping[str, Any]]
Systems = Mapping[str, Rows]
"""Measured rows by the name under which they are shown."""


@dataclass(frozen=True)
class Column:
    """A measure as it is shown."""

    name: str
    title: str
    percent: bool = True


COLUMNS = (
    Column("good", "in the world"),
    Column("palette", "captioned palette"),
    Column("balloon", "captioned balloon"),
    Column("direction", "captioned direction"),
    Column("over", "too light"),
    Column("under", "too dark"),
    Column("grey", "grey"),
    Column("hue_out", "tinted"),
    Column("lost", "balloon lost"),
    Column("broken", "broken"),
    Column("doubled", "doubled"),
    Column("ridge_missing", "ridge missing"),
    Column("stopped", "pan stopped"),
    Column("repeated", "terrain repeated"),
    Column("speed_ratio", "speed, world = 1", percent=False),
    Column("flow_mean", "flow, pixels/frame", percent=False),
)
COMPARED = ("good", "palette", "balloon", "over", "under", "grey", "stopped", "speed_ratio")
"""What is told of differences."""
CURVES = ("good", "balloon", "over", "grey", "stopped", "speed_ratio")
DASHES = ("-", "--", "-.", ":")
FIRST = ENDS[0]
"""Second at which the first window ends, to which later ones are held."""
STRIP = 5
"""Pictures of a filmstrip, from the first frame to the last."""


def interval(rows: Rows, metric: str) -> Summary | None:
    """Mean and 95 % interval, prompts resampled with all their seeds; None where nothing was measured."""
    known = [
        (row["metrics"][metric], row["prompt"]) for row in rows if row["metrics"].get(metric) is not None
    ]
    return summarise([value for value, _ in known], [prompt for _, prompt in known]) if known else None


def shown(summary: Mapping[str, Any] | None, *, percent: bool, sign: bool = False, digits: int = 2) -> str:
    """`92 (89 to 95)`, in percent or with `digits` decimals."""
    if summary is None:
        return "-"
    scale, form = (100, ".0f") if percent else (1, f".{digits}f")
    mean, low, high = (
        None if summary[key] is None else scale * summary[key] for key in ("mean", "low", "high")
    )
    start = f"{mean:+{form}}" if sign else f"{mean:{form}}"
    return start if low is None else f"{start} ({low:{form}} to {high:{form}})"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def table(systems: Systems, end: int, names: Sequence[str] | None = None, *, sign: bool = False) -> str:
    """Every system in the five seconds that end at second `end`, as Markdown."""
    columns = [column for column in COLUMNS if names is None or column.name in names]
    head = ["system", *(f"{column.title}{', %' if column.percent else ''}" for column in columns)]
    lines = [
        [
            name,
            *(
                shown(interval(rows, f"{column.name}@{end}"), percent=column.percent, sign=sign)
                for column in columns
            ),
        ]
        for name, rows in systems.items()
    ]
    return markdown(head, lines)


def drifted(systems: Systems, end: int) -> dict[str, list[dict[str, Any]]]:
    """Rows whose measures at `end` are those less the same video's first five seconds'."""
    return {
        name: [
            {**row, "metrics": {f"{m}@{end}": change(row["metrics"], m, end) for m in COMPARED}}
            for row in rows
        ]
        for name, rows in systems.items()
    }


def change(metrics: Mapping[str, float | None], name: str, end: int) -> float | None:
    first, last = metrics.get(f"{name}@{FIRST}"), metrics.get(f"{name}@{end}")
    return None if first is None or last is None else last - first


def differences_table(systems: Systems, reference: str, end: int) -> str:
    """Every other system less the reference, prompt by prompt and seed by seed. An asterisk: the interval
    leaves out zero."""
    columns = [column for column in COLUMNS if column.name in COMPARED]
    head = [f"less {reference}", *(f"{column.title}{', %' if column.percent else ''}" for column in columns)]
    lines = []
    for name, rows in systems.items():
        if name != reference:
            cells = []
            for column in columns:
                found = differences(systems[reference], rows, f"{column.name}@{end}")
                summary = (
                    summarise([change for _, change, _ in found], [prompt for prompt, _, _ in found])
                    if found
                    else None
                )
                clear = (
                    summary is not None
                    and summary["low"] is not None
                    and not summary["low"] <= 0 <= summary["high"]
                )
                cells.append(shown(summary, percent=column.percent, sign=True) + (" *" if clear else ""))
            lines.append([name, *cells])
    return markdown(head, lines)


def seeds_table(runs: Mapping[str, Sequence[Rows]], ends: Sequence[int]) -> str:
    """'In the world' over training seeds: mean (lowest to highest) of what each came to, at `ends`."""
    lines = []
    for name, seeds in runs.items():
        cells = []
        for end in ends:
            found = [interval(rows, f"good@{end}") for rows in seeds]
            means = [100 * summary["mean"] for summary in found if summary is not None]
            cells.append(f"{np.mean(means):.0f} ({min(means):.0f} to {max(means):.0f})" if means else "-")
        lines.append([name, str(len(seeds)), *cells])
    return markdown(["in the world, %", "training seeds", *(f"to {end} s" for end in ends)], lines)


def verdicts_table(systems: Systems) -> str:
    """The share of videos in which each verdict fired, and the local stability."""
    measured = {metric for rows in systems.values() for row in rows for metric in row["metrics"]}
    verdicts = [name for name in NAMES if f"fired_{name}" in measured]  # older rows have fewer
    head = [
        "system",
        "seconds",
        *(f"{name.replace('_', ' ')}, %" for name in verdicts),
        "local stability, 0..100",
    ]
    lines = []
    for name, rows in systems.items():
        fired = [shown(interval(rows, f"fired_{verdict}"), percent=True) for verdict in verdicts]
        seconds = str(min(len(row["curves"]["flow"]) for row in rows))
        lines.append([name, seconds, *fired, shown(interval(rows, "local_stability"), percent=False)])
    return markdown(head, lines)


def draw_curves(systems: Systems, path: Path) -> None:
    """Means with 95 % bands over the windows' ends, a panel a measure."""
    figure = Figure(figsize=(12, 6), dpi=110, layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).flat
    titles = {column.name: column.title for column in COLUMNS}
    for panel, metric in zip(panels, CURVES, strict=True):
        for place, (name, rows) in enumerate(systems.items()):
            points = [(end, found) for end in ENDS if (found := interval(rows, f"{metric}@{end}"))]
            ends, color = [end for end, _ in points], COLORS[place % len(COLORS)]
            low, high = (
                [math.nan if found[side] is None else found[side] for _, found in points]
                for side in ("low", "high")
            )
            style = DASHES[place // len(COLORS) % len(DASHES)]
            panel.plot(
                ends,
                [found["mean"] for _, found in points],
                style,
                color=color,
                marker="o",
                markersize=3,
                label=name,
            )
            panel.fill_between(ends, low, high, color=color, alpha=0.12, linewidth=0)
        decorate(panel, titles[metric])
    panels = figure.axes
    for panel in panels[3:]:
        panel.set_xlabel("end of the 5 s window, seconds", color=INK)
    panels[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_claim(systems: Systems, path: Path) -> None:
    """The share in the world as videos go on, on one panel, each line named at its end."""
    figure = Figure(figsize=(8, 3.6), dpi=120, layout="constrained")
    panel = figure.subplots()
    for place, (name, rows) in enumerate(systems.items()):
        points = [(end, found) for end in ENDS if (found := interval(rows, f"good@{end}"))]
        ends, means = [end for end, _ in points], [100 * found["mean"] for _, found in points]
        low, high = (
            [math.nan if found[side] is None else 100 * found[side] for _, found in points]
            for side in ("low", "high")
        )
        panel.plot(ends, means, color=COLORS[place], linewidth=2)
        panel.fill_between(ends, low, high, color=COLORS[place], alpha=0.15, linewidth=0)
        panel.annotate(f" {name}", (ends[-1], means[-1]), color=COLORS[place], va="center")
    panel.axvline(WINDOW, color=INK, linewidth=0.8, linestyle=":")
    panel.annotate(" all that the teacher knows", (WINDOW, 2), color=INK, fontsize=8)
    panel.set_ylim(0, 100)
    panel.set_xlabel("second of the video", color=INK)
    decorate(panel, "frames that are still in the world, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_flow(systems: Systems, path: Path) -> None:
    """Optical flow second by second: mean with 95 % band."""
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    panel = figure.subplots()
    for place, (name, rows) in enumerate(systems.items()):
        seconds = range(min(len(row["curves"]["flow"]) for row in rows))
        found = [
            summarise([row["curves"]["flow"][second] for row in rows], [row["prompt"] for row in rows])
            for second in seconds
        ]
        low, high = (
            [math.nan if point[side] is None else point[side] for point in found] for side in ("low", "high")
        )
        panel.plot(
            seconds,
            [point["mean"] for point in found],
            DASHES[place // len(COLORS)],
            color=COLORS[place],
            label=name,
        )
        panel.fill_between(seconds, low, high, color=COLORS[place], alpha=0.12, linewidth=0)
    decorate(panel, "optical flow, pixels a frame")
    panel.set_xlabel("second", color=INK)
    panel.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def decorate(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=10, color=INK, loc="left")
    panel.grid(color=GRID, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=INK, labelsize=8)


def draw_filmstrips(videos: Sequence[Path], path: Path) -> None:
    """A row a video: its frames at 0, 25, 50, 75 and 100 %."""
    pictures, times = [], []
    for video in videos:
        info = probe(video)
        places = np.linspace(0, info.frames - 1, STRIP).round().astype(int)
        wanted = dict.fromkeys(places.tolist())
        for index, frame in enumerate(read_frames(video)):
            if index in wanted:
                wanted[index] = frame
        pictures += [wanted[place] for place in places.tolist()]
        times += [place / info.fps for place in places.tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, times, path, columns=STRIP, tile=168)
