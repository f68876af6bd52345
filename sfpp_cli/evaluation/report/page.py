"""The evaluation as one page that needs nothing but itself: `report.html`, and beside it `results.json` and `drift.png`.

The page loads no script, no font and nothing from a network, and its content security policy forbids it to. Style sheet and curves
are inline, film strips are data URIs; only the videos are files of their own, played by relative links. Whatever comes from outside
(prompts, paths, names) passes through `html` on its way into the page.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

from sfpp_cli.evaluation.compare import Video, compare, finite, group
from sfpp_cli.evaluation.json_text import json_text, plain
from sfpp_cli.evaluation.report.drawing import write_panels
from sfpp_cli.evaluation.report.drift import Drift, drifts
from sfpp_cli.evaluation.report.labels import places
from sfpp_cli.evaluation.report.markup import (
    DASH,
    DOT,
    fired_verdicts,
    html,
    listing,
    plural,
    scroll_box,
    signed,
    verdict_names,
    verdict_title,
)
from sfpp_cli.evaluation.report.panels import drift_section, onset_marks
from sfpp_cli.evaluation.report.systems import low_to_high, means_table, paired_differences
from sfpp_cli.evaluation.report.videos import strip_and_poster, video_cards
from sfpp_cli.video.ffmpeg import Frames, atomic_write

REFERENCE = 5.0
"""Seconds that a video is measured against, where the result's parameters do not say."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src 'self' file:"


def write_report(
    result: Mapping[str, Any], out: Path, filmstrips: Mapping[str, Sequence[Frames]] | None = None
) -> Path:
    """Write `report.html`, `results.json` and (where there are curves) `drift.png` into the folder `out`; returns the page's path.

    `result` has the schema `sfpp-evaluation/1`; `results.json` is the same with `comparison` (schema `sfpp-comparison/1`) added,
    and null for what is no finite number. Each file is written under a hidden name and renamed. The film strips' frames are
    decoded from the videos, unless `filmstrips` has those of a path: [H, W, 3], evenly spaced, first and last included. A video
    that cannot be decoded any more is shown without pictures. UserError where `out` cannot be written.
    """
    videos: list[Video] = list(result.get("videos") or [])
    systems = group(videos)
    compared = compare(systems)
    atomic_write(out / "results.json", json_text(plain({**result, "comparison": compared})) + "\n")
    panels = drifts(systems, _reference(result))
    if panels:
        write_panels(panels, out / "drift.png")
    given = filmstrips or {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # the work is ffmpeg's
        strips = list(
            pool.map(lambda video: strip_and_poster(video, given.get(str(video.get("path")))), videos)
        )
    page = _page(result, systems, compared, panels, strips, out)
    atomic_write(out / "report.html", page.encode("utf-8", "replace"))
    return out / "report.html"


# --- the page ---------------------------------------------------------------------------------------------------------------


def _page(
    result: Mapping[str, Any],
    systems: Mapping[str, Sequence[Video]],
    compared: Mapping[str, Any],
    panels: Sequence[Drift],
    strips: Sequence[tuple[str, str]],
    out: Path,
) -> str:
    videos: list[Video] = list(result.get("videos") or [])
    colors = {name: place for place, name in enumerate(systems)}
    sections = [
        ("systems", "Systems", means_table(compared, colors) + "".join(paired_differences(compared))),
        (
            "drift",
            "Drift over time",
            drift_section(panels, systems, onset_marks(videos[0]) if len(videos) == 1 else {}),
        ),
        ("videos", "Videos", video_cards(videos, strips, colors, _reference(result), out)),
        ("problems", "Failed and skipped", _problems(result)),
        ("reproduce", "To reproduce", _reproduce(result, bool(panels))),
    ]
    title = _title(videos, systems)
    style = (
        resources.files("sfpp_cli").joinpath("evaluation", "report", "report.css").read_text(encoding="utf-8")
    )
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{heading}</h2>{content}</section>\n'
        for name, heading, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{html(title)} {DOT} sfpp evaluation</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header><p class="eyebrow">sfpp evaluation</p><h1>{html(title)}</h1><p class="lead">{html(_lead(result, compared))}</p>
<nav aria-label="Sections">{links}</nav></header>
<main id="main">
{body}</main>
</body>
</html>
"""


def _title(videos: Sequence[Video], systems: Mapping[str, Sequence[Video]]) -> str:
    if not videos:
        return "No video measured"
    counted = plural(len(videos), "video")
    named = [name for name in systems if any(video.get("system") for video in systems[name])]
    if len(systems) == 1:
        return f"{counted} of {named[0]}" if named else counted
    return f"{counted} of {plural(len(systems), 'system')}"


def _lead(result: Mapping[str, Any], compared: Mapping[str, Any]) -> str:
    """What was found, in two or three sentences."""
    videos: list[Video] = list(result.get("videos") or [])
    judged = [video for video in videos if video.get("verdicts")]
    said = []
    if judged:
        silent = sum(not fired_verdicts(video) for video in judged)
        whole = {0: "Every video shows a failure signature", len(judged): "No failure signature fired"}
        share = f"No failure signature in {silent} of {plural(len(judged), 'video')}"
        said.append(
            (whole.get(silent, share) if len(judged) > 1 or silent else "A failure signature fired") + "."
        )
        tallies = [
            _said(name, [system["verdicts"].get(name) for system in compared["systems"].values()])
            for name in verdict_names(videos)
        ]
        if any(tallies):
            said.append(f"Fired: {', '.join(filter(None, tallies))}.")
    for pair in compared["pairs"][:1]:
        change = pair["metrics"].get("local_stability")
        if change and change["low"] is not None:
            decimals = places([change["low"], change["high"]])
            said.append(
                f"Local stability, {pair['second']} minus {pair['first']}: {signed(change['mean'], decimals)} "
                f"({low_to_high(change, decimals, signed)}) over {plural(pair['prompts'], 'common prompt')}."
            )
    if result.get("failed"):
        said.append(f"{plural(len(result['failed']), 'input')} could not be measured.")
    return " ".join(said) or "Nothing was judged."


def _said(verdict: str, tallies: Iterable[Mapping[str, Any] | None]) -> str:
    fired = sum(tally["fired"] for tally in tallies if tally)
    return f"{verdict_title(verdict).lower()} in {fired}" if fired else ""


# --- problems and origins ---------------------------------------------------------------------------------------------------


def _problems(result: Mapping[str, Any]) -> str:
    failed = "".join(f"<li>{_failure(entry)}</li>" for entry in result.get("failed") or [])
    skipped = "".join(f"<li>{html(line)}</li>" for line in result.get("skipped") or [])
    return (
        f"<h3>Inputs that could not be measured</h3>{f'<ul>{failed}</ul>' if failed else '<p>None.</p>'}"
        f"<h3>Metrics left out</h3>{f'<ul>{skipped}</ul>' if skipped else '<p>None.</p>'}"
    )


def _failure(entry: Mapping[str, Any]) -> str:
    """What went wrong, and the path where the error does not begin with it."""
    path, error = str(entry.get("path")), str(entry.get("error"))
    return f"<b>{html(path)}</b>{html(error.removeprefix(path) if error.startswith(path) else f': {error}')}"


def _reproduce(result: Mapping[str, Any], drawn: bool) -> str:
    command = result.get("command")
    line = command if isinstance(command, str) else shlex.join(map(str, command)) if command else ""
    ran = f'<pre tabindex="0" aria-label="Command line">{html(line)}</pre>' if line else ""
    rows = []
    for place, video in enumerate(result.get("videos") or [], start=1):
        seed, prompt, system = (
            DASH if video.get(key) is None else html(video[key]) for key in ("seed", "prompt", "system")
        )
        path = f'<a href="#video-{place}">{html(video.get("path"))}</a>'
        words = f'<td class="words">{system}</td><td>{seed}</td><td class="words" dir="auto">{prompt}</td>'
        rows.append(f'<tr><th scope="row">{path}</th>{words}</tr>')
    head = "".join(f'<th scope="col">{text}</th>' for text in ("File", "System", "Seed", "Prompt"))
    prompts = f'<table class="prompts"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    folded = f"<details><summary>Prompts and seeds of {plural(len(rows), 'video')}</summary>{scroll_box('Prompts', prompts)}</details>"
    schema = html(result.get("schema", "no schema"))
    files = '<a href="results.json">results.json</a>' + (
        ' and <a href="drift.png">drift.png</a>' if drawn else ""
    )
    return (
        f'{ran}<p class="note">All numbers, with curves and values per clip: {files} ({schema}).</p>'
        f"{_facts('version', result.get('versions'))}{_facts('parameter', result.get('parameters'))}"
        f"{folded if rows else ''}"
    )


def _facts(title: str, facts: Mapping[str, Any] | None) -> str:
    """Exactly, as JSON has them."""
    shown = {
        key: html(value if isinstance(value, str) else json.dumps(plain(value)))
        for key, value in (facts or {}).items()
    }
    return (
        f"<details><summary>{plural(len(shown), title)}</summary>{listing(shown)}</details>"
        if shown
        else f"<p>No {title}s given.</p>"
    )


def _reference(result: Mapping[str, Any]) -> float:
    return finite((result.get("parameters") or {}).get("reference_seconds")) or REFERENCE
