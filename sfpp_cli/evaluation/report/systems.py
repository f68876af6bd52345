"""The table of systems, and paired differences between every two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sfpp_cli.evaluation.compare import FEW
from sfpp_cli.evaluation.report.labels import label, number, places
from sfpp_cli.evaluation.report.markup import (
    DASH,
    color_class,
    html,
    ordered,
    plural,
    row_head,
    scroll_box,
    signed,
    swatch,
    verdict_names,
    verdict_title,
)


def means_table(compared: Mapping[str, Any], colors: Mapping[str, int]) -> str:
    """The table of means with intervals, a column a system."""
    systems = compared["systems"]
    if not systems:
        return "<p>No video could be measured.</p>"
    head = "".join(
        f'<th scope="col">{swatch(colors[name])}{html(name)}<small>{plural(entry["videos"], "video")}, '
        f"{plural(entry['prompts'], 'prompt')}</small></th>"
        for name, entry in systems.items()
    )
    metrics = ordered({name for entry in systems.values() for name in entry["metrics"]})
    rows = {
        minor: [_means(name, systems, colors) for name in metrics if label(name).minor == minor]
        for minor in (False, True)
    }
    verdicts = [_tallies(name, systems) for name in verdict_names(list(systems.values()))]
    main = _group("Failure signatures fired", verdicts, len(systems)) + _group(
        "Means", rows[False], len(systems)
    )
    start = f'<table class="systems"><thead><tr><td></td>{head}</tr></thead>'
    more = f"{start}{_group('Further means', rows[True], len(systems))}</table>"
    level = f"{100 * compared['level']:g}"
    clusters = [entry["clusters"] for system in systems.values() for entry in system["metrics"].values()]
    few = (
        f" Below {FEW} prompts such intervals are narrower than they should be."
        if any(1 < n < FEW for n in clusters)
        else ""
    )
    caption = (
        f"Mean over videos, with its {level} % interval ({compared['method']}; {compared['resamples']:,} resamples, "
        f"seed {compared['seed']}).{few} Onsets are medians over the videos that fired."
    )
    folded = f"<details><summary>{plural(len(rows[True]), 'further mean')}</summary>{scroll_box('Further means', more)}</details>"
    return (
        scroll_box("Systems", f"{start}{main}</table>")
        + f'<p class="note">{caption}</p>'
        + (folded if rows[True] else "")
    )


def _group(title: str, rows: Sequence[str], columns: int) -> str:
    if not rows:
        return ""
    return f'<tbody><tr class="group"><th scope="rowgroup" colspan="{columns + 1}">{title}</th></tr>{"".join(rows)}</tbody>'


def _tallies(verdict: str, systems: Mapping[str, Any]) -> str:
    cells = []
    for entry in systems.values():
        tally = entry["verdicts"].get(verdict)
        onset = tally and tally["median_onset_seconds"]
        when = f"<small>onset {onset:.1f} s</small>" if onset is not None else ""
        cells.append(f"<td>{tally['fired']} of {tally['videos']}{when}</td>" if tally else f"<td>{DASH}</td>")
    return f'<tr><th scope="row">{html(verdict_title(verdict))}</th>{"".join(cells)}</tr>'


def _means(metric: str, systems: Mapping[str, Any], colors: Mapping[str, int]) -> str:
    entries = {name: entry["metrics"].get(metric) for name, entry in systems.items()}
    ends = [
        x
        for entry in entries.values()
        if entry
        for x in (entry["mean"], entry["low"], entry["high"])
        if x is not None
    ]
    cells, decimals = [], places(ends)
    for name, entry in entries.items():
        if entry is None:
            cells.append(f"<td>{DASH}</td>")
            continue
        interval = low_to_high(entry, decimals)
        partly = (
            f", {entry['count']} of {systems[name]['videos']}"
            if entry["count"] < systems[name]["videos"]
            else ""
        )
        whisker = _whisker(entry, min(ends), max(ends), colors[name]) if len(systems) > 1 else ""
        cells.append(f"<td>{number(entry['mean'], decimals)}<small>{interval}{partly}</small>{whisker}</td>")
    return f"<tr>{row_head(metric)}{''.join(cells)}</tr>"


def _whisker(entry: Mapping[str, Any], low: float, high: float, color: int) -> str:
    """Mean and interval on the scale that a row's systems share."""
    if not high > low:
        return ""

    def x(value: float) -> str:
        return f"{2 + 96 * (value - low) / (high - low):.1f}"

    line = f'<path d="M{x(entry["low"])} 4H{x(entry["high"])}"/>' if entry["low"] is not None else ""
    mean = f'<path class="mean" d="M{x(entry["mean"])} 0V8"/>'
    look = f'class="whisker {color_class(color)}" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true"'
    return f"<svg {look}>{line}{mean}</svg>"


def paired_differences(compared: Mapping[str, Any]) -> list[str]:
    """Paired differences, a folded table for every two systems; the first is unfolded."""
    found = []
    for pair in compared["pairs"]:
        name = f"{html(pair['second'])} minus {html(pair['first'])}"
        if not pair["metrics"]:
            found.append(f"<p>{name}: no prompt in common, so no paired difference.</p>")
            continue
        caption = (
            f"Mean paired difference over {plural(pair['prompts'], 'common prompt')}, same seed where both have it. "
            f"Of {len(pair['metrics'])} such intervals, chance alone leaves zero outside about one in "
            f"{round(1 / (1 - compared['level']))}{', with so few prompts more often' if pair['prompts'] < FEW else ''}."
        )
        main, more = (_changes(pair["metrics"], minor) for minor in (False, True))
        folded = f"<details><summary>Further differences</summary>{more}</details>" if more else ""
        unfolded = "" if found else " open"
        content = f'{main}<p class="note">{caption}</p>{folded}'
        found.append(f"<details{unfolded}><summary>Paired difference: {name}</summary>{content}</details>")
    return found


def _changes(changes: Mapping[str, Mapping[str, Any]], minor: bool) -> str:
    """A table of paired differences."""
    rows = []
    for metric in ordered(changes):
        change = changes[metric]
        if label(metric).minor != minor:
            continue
        decimals = places([x for x in (change["mean"], change["low"], change["high"]) if x is not None])
        sure = change["low"] is not None and not change["low"] <= 0 <= change["high"]
        zero = DASH if change["low"] is None else "<b>outside</b>" if sure else "inside"
        mean = f"{signed(change['mean'], decimals)}<small>{low_to_high(change, decimals, signed)}</small>"
        rows.append(f"<tr>{row_head(metric)}<td>{mean}</td><td>{zero}</td><td>{change['count']}</td></tr>")
    head = "".join(f'<th scope="col">{text}</th>' for text in ("Metric", "Difference", "Zero is", "Pairs"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return scroll_box("Paired differences", table) if rows else ""


def low_to_high(entry: Mapping[str, Any], decimals: int, form: Callable[[float, int], str] = number) -> str:
    """An interval in words."""
    if entry["low"] is None:
        return "no interval"
    return f"{form(entry['low'], decimals)} to {form(entry['high'], decimals)}"
