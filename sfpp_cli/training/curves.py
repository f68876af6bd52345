"""A run's curves as one picture of small panels. Imports matplotlib, hence slowly."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sfpp_cli.errors import UserError
from sfpp_cli.figures import COLORS, figure_of, style_axes, write_png


@dataclass(frozen=True)
class Family:
    """Figures that share a panel: those whose whole name matches `pattern`."""

    title: str
    unit: str
    pattern: str
    log: bool = False
    """Logarithmic axis, unless a value is 0 or less."""


FAMILIES = (
    Family("Losses", "", r"(.*_)?loss", log=True),
    Family("Gradient norms", "", r"(.*_)?grad_norm", log=True),
    Family("Learning rates", "", r"(.*_)?lr"),
    Family("Student-to-critic loss ratio", "", "ratio"),
    Family("Time", "seconds", r".*_s"),
    Family("Memory", "MB", r".*_mb"),
    Family("Preview: picture", "0 to 1", r"preview_(?!motion).*"),
    Family("Preview: motion", "luma change a frame", "preview_motion"),
)
"""In the order of their panels. A figure of no family gets a panel of its own, after these."""
COUNTED = ("step", "samples")
"""What only counts is not drawn."""
MOST = 60
"""Figures in a picture."""
LARGEST = 1e15
"""Steps and values beyond it are damage, or not finite; axes could not number them."""

WINDOW = 101
"""Values that a running median is taken of; fewer in a short run, a twentieth of it."""
FEW = 40
"""Up to this many values are marked one by one."""

Series = tuple[list[float], list[float]]
"""Steps and values; a figure may be missing at some steps."""


def plot_run(run: Path) -> Path:
    """Draw `run/metrics.jsonl` (a JSON object on every line) as `run/curves.png`.

    UserError without a metrics file, or without a whole line of figures in it. What comes after the last
    line break is still being written, and ignored.
    """
    series = read_series(run / "metrics.jsonl")
    panels = _panels(list(series))
    figure, rows, columns = figure_of(len(panels))
    shared: Axes | None = None
    for place, (family, names) in enumerate(panels, start=1):
        shared = figure.add_subplot(rows, columns, place, sharex=shared)
        _draw(shared, family, {name: series[name] for name in names})
    path = run / "curves.png"
    write_png(figure, path)
    return path


def read_series(path: Path) -> dict[str, Series]:
    """Every finite figure of a metrics file over its steps, by name, in the order of first appearance."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name the folder of a run") from None
    series: dict[str, Series] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            step = float(record["step"])
            if not 0 <= step <= LARGEST:
                raise ValueError(f"step {step:g}")
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            cause = f"no record of a step ({error!r})"
            raise UserError(f"{path}, line {number}: {cause}; remove the line") from None
        for name, value in record.items():
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if numeric and abs(value) <= LARGEST and name not in COUNTED:
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    if len(series) > MOST:
        raise UserError(f"{path} holds {len(series)} figures, and at most {MOST} can be drawn: remove some")
    if not series:
        raise UserError(f"{path} holds no whole line of figures: wait for the run's first step")
    return series


def running_median(values: list[float]) -> list[float]:
    """The median around each value, of a twentieth of all: `WINDOW` at most, fewer towards the ends."""
    half = min(WINDOW, len(values) // 20) // 2
    return [median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _panels(names: list[str]) -> list[tuple[Family, list[str]]]:
    """Families with their figures, then a family of its own for each figure that belongs to none."""
    panels = []
    for family in FAMILIES:
        members = [name for name in names if re.fullmatch(family.pattern, name)]
        if members:
            panels.append((family, members))
            names = [name for name in names if name not in members]
    return panels + [(Family(_words(name), "", re.escape(name)), [name]) for name in names]


def _draw(axes: Axes, family: Family, series: dict[str, Series]) -> None:
    """One panel: every series as a faint line, its running median over it."""
    for index, (name, (steps, values)) in enumerate(series.items()):
        color = COLORS[index % len(COLORS)]
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        (line,) = axes.plot(steps, running_median(values), color=color, linewidth=1.5, label=_words(name))
        if len(values) <= FEW:
            line.set(marker="o", markersize=3)
    everything = [value for _, values in series.values() for value in values]
    if family.log and min(everything) > 0:
        axes.set_yscale("log")
    elif min(everything) >= 0:
        axes.set_ylim(0, 1.05 * max(everything) or 1)
    style_axes(axes, family.title, "step", family.unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)


def _words(name: str) -> str:
    """`preview_luma` -> `luma`, `critic_grad_norm` -> `critic grad norm`."""
    return name.removeprefix("preview_").replace("_", " ")
