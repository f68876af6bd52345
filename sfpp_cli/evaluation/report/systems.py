"""The table of systems, and paired differences between every two of them, as the page shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sfpp_cli.evaluation.compare import FEW
from sfpp_cli.evaluation.report.drawing import color_class
from sfpp_cli.evaluation.report.labels import (
    DASH,
    label,
    number,
    ordered,
    places,
    plural,
    signed,
    verdict_names,
    verdict_title,
)


@dataclass(frozen=True)
class Column:
    """The head of a system's column."""

    style: str
    name: str
    about: str


@dataclass(frozen=True)
class Whisker:
    """A mean and its interval, as x coordinates on a scale that the systems of a row share."""

    style: str
    mean: str
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Cell:
    """What a table says of one system."""

    text: str
    small: str = ""
    whisker: Whisker | None = None


@dataclass(frozen=True)
class Row:
    """A verdict or metric, and a cell for each system."""

    title: str
    unit: str
    cells: list[Cell]


@dataclass(frozen=True)
class SystemsTable:
    """All that is said of the systems one by one; `further` rows are folded away."""

    columns: list[Column]
    verdicts: list[Row]
    means: list[Row]
    further: list[Row]
    caption: str


@dataclass(frozen=True)
class Change:
    """The paired difference of one metric. `zero`: whether zero is inside or outside of its interval."""

    title: str
    unit: str
    mean: str
    interval: str
    zero: str
    count: int


@dataclass(frozen=True)
class Pair:
    """The paired differences between two systems; `further` ones are folded away."""

    name: str
    unfolded: bool
    caption: str
    main: list[Change]
    further: list[Change]


def systems_table(compared: Mapping[str, Any], colors: Mapping[str, int]) -> SystemsTable | None:
    """Verdicts and means of every system (of `compare`'s result), or None where there is no system."""
    systems = compared["systems"]
    if not systems:
        return None
    columns = [
        Column(
            style=color_class(colors[name]),
            name=name,
            about=f"{plural(entry['videos'], 'video')}, {plural(entry['prompts'], 'prompt')}",
        )
        for name, entry in systems.items()
    ]
    metrics = ordered({name for entry in systems.values() for name in entry["metrics"]})
    return SystemsTable(
        columns=columns,
        verdicts=[_tallies(name, systems) for name in verdict_names(list(systems.values()))],
        means=[_means(name, systems, colors) for name in metrics if not label(name).minor],
        further=[_means(name, systems, colors) for name in metrics if label(name).minor],
        caption=_caption(compared),
    )


def _caption(compared: Mapping[str, Any]) -> str:
    systems = compared["systems"].values()
    clusters = [entry["clusters"] for system in systems for entry in system["metrics"].values()]
    few = ""
    if any(1 < count < FEW for count in clusters):
        few = f" Below {FEW} prompts such intervals are narrower than they should be."
    return (
        f"Mean over videos, with its {100 * compared['level']:g} % interval ({compared['method']}; "
        f"{compared['resamples']:,} resamples, seed {compared['seed']}).{few} "
        "Onsets are medians over the videos that fired."
    )


def _tallies(verdict: str, systems: Mapping[str, Any]) -> Row:
    """How many videos of each system fired."""
    cells = []
    for entry in systems.values():
        tally = entry["verdicts"].get(verdict)
        if not tally:
            cells.append(Cell(DASH))
            continue
        onset = tally["median_onset_seconds"]
        when = f"onset {onset:.1f} s" if onset is not None else ""
        cells.append(Cell(f"{tally['fired']} of {tally['videos']}", when))
    return Row(verdict_title(verdict), "", cells)


def _means(metric: str, systems: Mapping[str, Any], colors: Mapping[str, int]) -> Row:
    """A metric's mean and interval for each system, all with the same decimals."""
    entries = {name: system["metrics"].get(metric) for name, system in systems.items()}
    ends = [end for entry in entries.values() if entry for end in _ends(entry)]
    decimals = places(ends)
    cells = []
    for name, entry in entries.items():
        if entry is None:
            cells.append(Cell(DASH))
            continue
        small = low_to_high(entry, decimals)
        if entry["count"] < systems[name]["videos"]:
            small += f", {entry['count']} of {systems[name]['videos']}"
        whisker = _whisker(entry, min(ends), max(ends), colors[name]) if len(systems) > 1 else None
        cells.append(Cell(number(entry["mean"], decimals), small, whisker))
    known = label(metric)
    return Row(known.title, known.unit, cells)


def _ends(entry: Mapping[str, Any]) -> list[float]:
    """The numbers that a mean is shown with."""
    return [end for end in (entry["mean"], entry["low"], entry["high"]) if end is not None]


def _whisker(entry: Mapping[str, Any], low: float, high: float, color: int) -> Whisker | None:
    """None where all systems agree, so that there is no scale."""
    if not high > low:
        return None

    def x(value: float) -> str:
        return f"{2 + 96 * (value - low) / (high - low):.1f}"

    style = color_class(color)
    if entry["low"] is None:
        return Whisker(style, x(entry["mean"]))
    return Whisker(style, x(entry["mean"]), x(entry["low"]), x(entry["high"]))


def paired_differences(compared: Mapping[str, Any]) -> list[Pair]:
    """The differences between every two systems; the first pair is unfolded."""
    pairs: list[Pair] = []
    for pair in compared["pairs"]:
        few = ", with so few prompts more often" if pair["prompts"] < FEW else ""
        caption = (
            f"Mean paired difference over {plural(pair['prompts'], 'common prompt')}, "
            f"same seed where both have it. Of {len(pair['metrics'])} such intervals, chance alone leaves "
            f"zero outside about one in {round(1 / (1 - compared['level']))}{few}."
        )
        changes = {name: _change(name, pair["metrics"][name]) for name in ordered(pair["metrics"])}
        pairs.append(
            Pair(
                name=f"{pair['second']} minus {pair['first']}",
                unfolded=not pairs,
                caption=caption,
                main=[change for name, change in changes.items() if not label(name).minor],
                further=[change for name, change in changes.items() if label(name).minor],
            )
        )
    return pairs


def _change(metric: str, change: Mapping[str, Any]) -> Change:
    decimals = places(_ends(change))
    if change["low"] is None:
        zero = DASH
    elif change["low"] <= 0 <= change["high"]:
        zero = "inside"
    else:
        zero = "outside"
    known = label(metric)
    return Change(
        title=known.title,
        unit=known.unit,
        mean=signed(change["mean"], decimals),
        interval=low_to_high(change, decimals, signed),
        zero=zero,
        count=change["count"],
    )


def low_to_high(entry: Mapping[str, Any], decimals: int, form: Callable[[float, int], str] = number) -> str:
    """An interval in words."""
    if entry["low"] is None:
        return "no interval"
    return f"{form(entry['low'], decimals)} to {form(entry['high'], decimals)}"
