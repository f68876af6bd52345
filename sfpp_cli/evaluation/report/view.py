"""What the report's page shows, made ready for its template: numbers as text, sentences, drawings.

Nothing here is HTML but the drawings; the template escapes all the rest.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfpp_cli.evaluation.compare import Video, finite
from sfpp_cli.evaluation.json_text import plain
from sfpp_cli.evaluation.report.drift import Drift
from sfpp_cli.evaluation.report.labels import (
    fired_verdicts,
    places,
    plural,
    signed,
    verdict_names,
    verdict_title,
)
from sfpp_cli.evaluation.report.panels import PanelFigure, drift_note, onset_marks, panel_figures
from sfpp_cli.evaluation.report.systems import (
    Pair,
    SystemsTable,
    low_to_high,
    paired_differences,
    systems_table,
)
from sfpp_cli.evaluation.report.videos import Pictures, VideoCard, video_cards

REFERENCE = 5.0
"""Seconds that a video is measured against, where the result's parameters do not say."""


@dataclass(frozen=True)
class Page:
    """The variables of `templates/report.html.j2`."""

    title: str
    lead: str
    systems: SystemsTable | None
    pairs: list[Pair]
    panels: list[PanelFigure]
    drift_note: str
    videos: list[VideoCard]
    failed: list[tuple[str, str]]
    """Paths, and what went wrong, worded to be read after the path."""
    skipped: list[str]
    command: str
    schema: str
    versions: dict[str, str]
    parameters: dict[str, str]


def page_of(
    result: Mapping[str, Any],
    systems: Mapping[str, Sequence[Video]],
    compared: Mapping[str, Any],
    panels: Sequence[Drift],
    pictures: Sequence[Pictures],
    out: Path,
) -> Page:
    """The page of a result (schema `sfpp-evaluation/1`), its videos by system, and the systems compared.

    `pictures` are the film strips of the result's videos; `out` is the folder that the page will lie in.
    """
    videos: list[Video] = list(result.get("videos") or [])
    colors = {name: place for place, name in enumerate(systems)}
    marks = onset_marks(videos[0]) if len(videos) == 1 else {}
    return Page(
        title=_title(videos, systems),
        lead=_lead(result, compared),
        systems=systems_table(compared, colors),
        pairs=paired_differences(compared),
        panels=panel_figures(panels, marks, named=len(systems) > 1),
        drift_note=drift_note(panels, systems),
        videos=video_cards(videos, pictures, colors, reference_of(result), out),
        failed=[_failure(entry) for entry in result.get("failed") or []],
        skipped=[str(line) for line in result.get("skipped") or []],
        command=_command(result.get("command")),
        schema=str(result.get("schema", "no schema")),
        versions=_exact(result.get("versions")),
        parameters=_exact(result.get("parameters")),
    )


def reference_of(result: Mapping[str, Any]) -> float:
    """How many seconds at the beginning everything later is held against."""
    return finite((result.get("parameters") or {}).get("reference_seconds")) or REFERENCE


def _title(videos: Sequence[Video], systems: Mapping[str, Sequence[Video]]) -> str:
    if not videos:
        return "No video measured"
    counted = plural(len(videos), "video")
    if len(systems) > 1:
        return f"{counted} of {plural(len(systems), 'system')}"
    [name] = systems
    return f"{counted} of {name}" if any(video.get("system") for video in videos) else counted


def _lead(result: Mapping[str, Any], compared: Mapping[str, Any]) -> str:
    """What was found, in two or three sentences."""
    videos: list[Video] = list(result.get("videos") or [])
    said = [_verdicts_in_short(videos, compared), *map(_first_difference, compared["pairs"][:1])]
    if result.get("failed"):
        said.append(f"{plural(len(result['failed']), 'input')} could not be measured.")
    return " ".join(filter(None, said)) or "Nothing was judged."


def _verdicts_in_short(videos: Sequence[Video], compared: Mapping[str, Any]) -> str:
    """In how many videos no verdict fired, and in how many each did."""
    judged = [video for video in videos if video.get("verdicts")]
    if not judged:
        return ""
    silent = sum(not fired_verdicts(video) for video in judged)
    if silent == len(judged):
        said = "No failure signature fired."
    elif silent:
        said = f"No failure signature in {silent} of {plural(len(judged), 'video')}."
    elif len(judged) > 1:
        said = "Every video shows a failure signature."
    else:
        said = "A failure signature fired."
    systems = compared["systems"].values()
    tallies = [
        _fired(name, [system["verdicts"].get(name) for system in systems]) for name in verdict_names(videos)
    ]
    if any(tallies):
        said += f" Fired: {', '.join(filter(None, tallies))}."
    return said


def _fired(verdict: str, tallies: Iterable[Mapping[str, Any] | None]) -> str:
    count = sum(tally["fired"] for tally in tallies if tally)
    return f"{verdict_title(verdict).lower()} in {count}" if count else ""


def _first_difference(pair: Mapping[str, Any]) -> str:
    """The paired difference in local stability, where it has an interval."""
    change = pair["metrics"].get("local_stability")
    if not change or change["low"] is None:
        return ""
    decimals = places([change["low"], change["high"]])
    return (
        f"Local stability, {pair['second']} minus {pair['first']}: {signed(change['mean'], decimals)} "
        f"({low_to_high(change, decimals, signed)}) over {plural(pair['prompts'], 'common prompt')}."
    )


def _failure(entry: Mapping[str, Any]) -> tuple[str, str]:
    """The path, and the error without the path that most errors begin with."""
    path = str(entry.get("path"))
    error = str(entry.get("error"))
    return path, error.removeprefix(path) if error.startswith(path) else f": {error}"


def _command(command: object) -> str:
    """The command line, given as text or as a list of words."""
    if isinstance(command, list | tuple):
        return shlex.join(map(str, command))
    return command if isinstance(command, str) else ""


def _exact(facts: Mapping[str, Any] | None) -> dict[str, str]:
    """Names and values as JSON has them, text without quotes."""
    return {
        key: value if isinstance(value, str) else json.dumps(plain(value))
        for key, value in (facts or {}).items()
    }
