"""The evaluation as one page that needs nothing but itself: `report.html`, and beside it `results.json` and `drift.png`.

The page loads no script, no font and nothing from a network, and its content security policy forbids it to. Style sheet and curves
are inline, film strips are data URIs; only the videos are files of their own, played by relative links. Whatever comes from outside
(prompts, paths, names) passes through `_e` on its way into the page.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.compare import FEW, Video, compare, finite, group
from sfpp_cli.evaluation.figures import LABELS, Drift, drifts, filmstrip, label, number, places, svg, write_png
from sfpp_cli.plot import COLORS
from sfpp_cli.video import Frames, atomic_write

OPEN = 6
"""Up to so many videos show all they have unfolded."""
REFERENCE = 5.0
"""Seconds that a video is measured against, where the result's parameters do not say."""
CURVES = ("luma", "sharpness", "flow_mean")
"""What is drawn for every single video, with the seconds at which its verdicts fired."""
PLAYABLE = (".mp4", ".m4v", ".mov", ".webm", ".ogv")
"""What browsers play. Other files get a link."""

VERDICTS = {
    "over_exposure": ("Over-exposure", ("luma",)),
    "darkening": ("Darkening", ("luma",)),
    "stagnation": ("Stagnation", ("flow_mean",)),
    "repetition": ("Repetition", ()),
    "flicker": ("Flicker", ("luma", "flow_mean")),
    "scene_change": ("Scene change", ("flow_mean", "luma")),
}
"""What people read, and the curves on which its onset is marked."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src 'self' file:"
ARROW, DOT, DASH = "\N{RIGHTWARDS ARROW}", "\N{MIDDLE DOT}", "\N{EN DASH}"


def write_report(result: Mapping[str, Any], out: Path, filmstrips: Mapping[str, Sequence[Frames]] | None = None) -> Path:
    """Write `report.html`, `results.json` and (where there are curves) `drift.png` into the folder `out`; returns the page's path.

    `result` has the schema `sfpp-evaluation/1`; `results.json` is the same with `comparison` (schema `sfpp-comparison/1`) added,
    and null for what is no finite number. Each file is written under a hidden name and renamed. The film strips' frames are
    decoded from the videos, unless `filmstrips` has those of a path: [H, W, 3], evenly spaced, first and last included. A video
    that cannot be decoded any more is shown without pictures. UserError where `out` cannot be written.
    """
    videos: list[Video] = list(result.get("videos") or [])
    systems = group(videos)
    compared = compare(systems)
    atomic_write(out / "results.json", json.dumps(_plain({**result, "comparison": compared}), indent=1, allow_nan=False) + "\n")
    panels = drifts(systems, _reference(result))
    if panels:
        write_png(panels, out / "drift.png")
    given = filmstrips or {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # the work is ffmpeg's
        strips = list(pool.map(lambda video: _strip(video, given.get(str(video.get("path")))), videos))
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
        ("systems", "Systems", _systems(compared, colors) + "".join(_pairs(compared))),
        ("drift", "Drift over time", _drift(panels, systems, _marks(videos[0]) if len(videos) == 1 else {})),
        ("videos", "Videos", _videos(videos, strips, colors, _reference(result), out)),
        ("problems", "Failed and skipped", _problems(result)),
        ("reproduce", "To reproduce", _reproduce(result, bool(panels))),
    ]
    title = _title(videos, systems)
    style = resources.files("sfpp_cli").joinpath("evaluation", "report.css").read_text(encoding="utf-8")
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
<title>{_e(title)} {DOT} sfpp evaluation</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header><p class="eyebrow">sfpp evaluation</p><h1>{_e(title)}</h1><p class="lead">{_e(_lead(result, compared))}</p>
<nav aria-label="Sections">{links}</nav></header>
<main id="main">
{body}</main>
</body>
</html>
"""


def _title(videos: Sequence[Video], systems: Mapping[str, Sequence[Video]]) -> str:
    if not videos:
        return "No video measured"
    counted = _count(len(videos), "video")
    named = [name for name in systems if any(video.get("system") for video in systems[name])]
    if len(systems) == 1:
        return f"{counted} of {named[0]}" if named else counted
    return f"{counted} of {_count(len(systems), 'system')}"


def _lead(result: Mapping[str, Any], compared: Mapping[str, Any]) -> str:
    """What was found, in two or three sentences."""
    videos: list[Video] = list(result.get("videos") or [])
    judged = [video for video in videos if video.get("verdicts")]
    said = []
    if judged:
        silent = sum(not _fired(video) for video in judged)
        whole = {0: "Every video shows a failure signature", len(judged): "No failure signature fired"}
        share = f"No failure signature in {silent} of {_count(len(judged), 'video')}"
        said.append((whole.get(silent, share) if len(judged) > 1 or silent else "A failure signature fired") + ".")
        tallies = [
            _said(name, [system["verdicts"].get(name) for system in compared["systems"].values()]) for name in _verdicts(videos)
        ]
        if any(tallies):
            said.append(f"Fired: {', '.join(filter(None, tallies))}.")
    for pair in compared["pairs"][:1]:
        change = pair["metrics"].get("local_stability")
        if change and change["low"] is not None:
            decimals = places([change["low"], change["high"]])
            said.append(
                f"Local stability, {pair['second']} minus {pair['first']}: {_signed(change['mean'], decimals)} "
                f"({_interval(change, decimals, _signed)}) over {_count(pair['prompts'], 'common prompt')}."
            )
    if result.get("failed"):
        said.append(f"{_count(len(result['failed']), 'input')} could not be measured.")
    return " ".join(said) or "Nothing was judged."


def _said(verdict: str, tallies: Iterable[Mapping[str, Any] | None]) -> str:
    fired = sum(tally["fired"] for tally in tallies if tally)
    return f"{_verdict(verdict).lower()} in {fired}" if fired else ""


# --- systems ----------------------------------------------------------------------------------------------------------------


def _systems(compared: Mapping[str, Any], colors: Mapping[str, int]) -> str:
    """The table of means with intervals, a column a system."""
    systems = compared["systems"]
    if not systems:
        return "<p>No video could be measured.</p>"
    head = "".join(
        f'<th scope="col">{_swatch(colors[name])}{_e(name)}<small>{_count(entry["videos"], "video")}, '
        f"{_count(entry['prompts'], 'prompt')}</small></th>"
        for name, entry in systems.items()
    )
    metrics = _ordered({name for entry in systems.values() for name in entry["metrics"]})
    rows = {minor: [_means(name, systems, colors) for name in metrics if label(name).minor == minor] for minor in (False, True)}
    verdicts = [_tallies(name, systems) for name in _verdicts(list(systems.values()))]
    main = _group("Failure signatures fired", verdicts, len(systems)) + _group("Means", rows[False], len(systems))
    start = f'<table class="systems"><thead><tr><td></td>{head}</tr></thead>'
    more = f"{start}{_group('Further means', rows[True], len(systems))}</table>"
    level = f"{100 * compared['level']:g}"
    clusters = [entry["clusters"] for system in systems.values() for entry in system["metrics"].values()]
    few = f" Below {FEW} prompts such intervals are narrower than they should be." if any(1 < n < FEW for n in clusters) else ""
    caption = (
        f"Mean over videos, with its {level} % interval ({compared['method']}; {compared['resamples']:,} resamples, "
        f"seed {compared['seed']}).{few} Onsets are medians over the videos that fired."
    )
    folded = f"<details><summary>{_count(len(rows[True]), 'further mean')}</summary>{_scroll('Further means', more)}</details>"
    return _scroll("Systems", f"{start}{main}</table>") + f'<p class="note">{caption}</p>' + (folded if rows[True] else "")


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
    return f'<tr><th scope="row">{_e(_verdict(verdict))}</th>{"".join(cells)}</tr>'


def _means(metric: str, systems: Mapping[str, Any], colors: Mapping[str, int]) -> str:
    entries = {name: entry["metrics"].get(metric) for name, entry in systems.items()}
    ends = [x for entry in entries.values() if entry for x in (entry["mean"], entry["low"], entry["high"]) if x is not None]
    cells, decimals = [], places(ends)
    for name, entry in entries.items():
        if entry is None:
            cells.append(f"<td>{DASH}</td>")
            continue
        interval = _interval(entry, decimals)
        partly = f", {entry['count']} of {systems[name]['videos']}" if entry["count"] < systems[name]["videos"] else ""
        whisker = _whisker(entry, min(ends), max(ends), colors[name]) if len(systems) > 1 else ""
        cells.append(f"<td>{number(entry['mean'], decimals)}<small>{interval}{partly}</small>{whisker}</td>")
    return f"<tr>{_row_head(metric)}{''.join(cells)}</tr>"


def _whisker(entry: Mapping[str, Any], low: float, high: float, color: int) -> str:
    """Mean and interval on the scale that a row's systems share."""
    if not high > low:
        return ""

    def x(value: float) -> str:
        return f"{2 + 96 * (value - low) / (high - low):.1f}"

    line = f'<path d="M{x(entry["low"])} 4H{x(entry["high"])}"/>' if entry["low"] is not None else ""
    mean = f'<path class="mean" d="M{x(entry["mean"])} 0V8"/>'
    return (
        f'<svg class="whisker {_color(color)}" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{line}{mean}</svg>'
    )


def _pairs(compared: Mapping[str, Any]) -> list[str]:
    """Paired differences, a folded table for every two systems; the first is unfolded."""
    found = []
    for pair in compared["pairs"]:
        name = f"{_e(pair['second'])} minus {_e(pair['first'])}"
        if not pair["metrics"]:
            found.append(f"<p>{name}: no prompt in common, so no paired difference.</p>")
            continue
        caption = (
            f"Mean paired difference over {_count(pair['prompts'], 'common prompt')}, same seed where both have it. "
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
    for metric in _ordered(changes):
        change = changes[metric]
        if label(metric).minor != minor:
            continue
        decimals = places([x for x in (change["mean"], change["low"], change["high"]) if x is not None])
        sure = change["low"] is not None and not change["low"] <= 0 <= change["high"]
        zero = DASH if change["low"] is None else "<b>outside</b>" if sure else "inside"
        mean = f"{_signed(change['mean'], decimals)}<small>{_interval(change, decimals, _signed)}</small>"
        rows.append(f"<tr>{_row_head(metric)}<td>{mean}</td><td>{zero}</td><td>{change['count']}</td></tr>")
    head = "".join(f'<th scope="col">{text}</th>' for text in ("Metric", "Difference", "Zero is", "Pairs"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return _scroll("Paired differences", table) if rows else ""


def _interval(entry: Mapping[str, Any], decimals: int, form: Callable[[float, int], str] = number) -> str:
    if entry["low"] is None:
        return "no interval"
    return f"{form(entry['low'], decimals)} to {form(entry['high'], decimals)}"


# --- drift ------------------------------------------------------------------------------------------------------------------


def _drift(panels: Sequence[Drift], systems: Mapping[str, Sequence[Video]], marks: Mapping[str, list[tuple[float, str]]]) -> str:
    if not panels:
        return "<p>There are no curves.</p>"
    lengths = [float(video.get("seconds") or 0) for videos in systems.values() for video in videos]
    several = any(band.videos > 1 for panel in panels for band in panel.systems.values())
    span = f"{panels[0].reference:.3g} s"
    said = f"Grey: where 90 % of the values of the first {span} lie"
    said += " (all systems together)." if len(systems) > 1 else "."
    if several:
        said += " Line: mean over a system's videos; band: the middle 80 % of them."
    if max(lengths) - min(lengths) > 0.5:
        said += f" From {min(lengths):.0f} s on, shorter videos have ended and the mean is over the rest."
    said += f" Below each: the mean of the first and of the last {span}."
    figures = "".join(_panel(panel, marks.get(panel.name, []), names=len(systems) > 1) for panel in panels)
    return f'<p class="note">{said} <a href="drift.png">As one picture</a>.</p><div class="panels">{figures}</div>'


def _panel(panel: Drift, marks: Sequence[tuple[float, str]], names: bool) -> str:
    known = label(panel.name)
    ends = []
    for name, (first, last) in panel.ends.items():
        who = f"{_swatch(panel.systems[name].color)}<span>{_e(name)}</span>" if names else "<span>first and last seconds</span>"
        ends.append(f"<li>{who}<b>{first} {ARROW} {last}</b></li>")
    return (
        f'<figure class="panel"><figcaption><b>{_e(known.title)}</b><small>{_e(known.unit)}</small></figcaption>'
        f'{svg(panel, marks)}<ul class="ends">{"".join(ends)}</ul></figure>'
    )


def _marks(video: Video) -> dict[str, list[tuple[float, str]]]:
    """For each curve the onsets that are marked on it, in order of time."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name, verdict in _fired(video).items():
        onset = finite(verdict.get("onset_seconds"))
        for curve in VERDICTS.get(name, ("", ()))[1] if onset is not None else ():
            found.setdefault(curve, []).append((onset or 0.0, _verdict(name).lower()))
    return {curve: sorted(marks) for curve, marks in found.items()}


# --- videos -----------------------------------------------------------------------------------------------------------------


def _videos(
    videos: Sequence[Video], strips: Sequence[tuple[str, str]], colors: Mapping[str, int], reference: float, out: Path
) -> str:
    if not videos:
        return "<p>No video could be measured.</p>"
    systems = {id(video): name for name, members in group(videos).items() for video in members}
    shown = []
    for place, (video, strip) in enumerate(zip(videos, strips, strict=True), start=1):
        name = systems[id(video)]
        panels = drifts({name: [video]}, reference, names=CURVES, bins=80, color=colors[name]) if len(videos) > 1 else []
        shown.append(_video(place, video, strip, panels, _e(name) if video.get("system") else "", out, len(videos) <= OPEN))
    fired = sum(bool(_fired(video)) for video in videos)
    choice = ""
    if 0 < fired < len(videos):
        choice = f'<p class="choice"><label><input type="checkbox" id="only"> Only the {fired} with a fired signature</label></p>'
    return f'<div class="videos">{choice}{"".join(shown)}</div>'


def _video(
    place: int, video: Video, strip: tuple[str, str], panels: Sequence[Drift], system: str, out: Path, unfolded: bool
) -> str:
    path = Path(str(video.get("path", "")))
    about = [system, f"seed {_e(video['seed'])}" if video.get("seed") is not None else "", _format(video)]
    marks = _marks(video)
    curves = "".join(_panel(panel, marks.get(panel.name, []), names=False) for panel in panels)
    prompt = f'<p class="prompt" dir="auto">{_e(video["prompt"])}</p>' if video.get("prompt") else ""
    main, more = _numbers(video)
    return (
        f'<article class="video {"fired" if _fired(video) else "silent"}" id="video-{place}" aria-labelledby="name-{place}">'
        f'<h3 id="name-{place}">{_e(path.name)}</h3><p class="about">{f" {DOT} ".join(filter(None, about))}</p>'
        f"{prompt}{strip[0]}{_chips(video)}<details{' open' if unfolded else ''}><summary>Player, curves and numbers</summary>"
        f'<div class="pair"><div>{_player(video, path, out, place, strip[1])}</div>{main}</div>'
        f"{f'<div class=panels>{curves}</div>' if curves else ''}{more}</details></article>"
    )


def _format(video: Video) -> str:
    parts = [
        f"{video['seconds']:.1f} s" if video.get("seconds") is not None else "",
        f"{video['width']}\N{MULTIPLICATION SIGN}{video['height']}" if video.get("width") else "",
        f"{video['fps']:g} fps" if video.get("fps") else "",
        _count(video["frames"], "frame") if video.get("frames") else "",
    ]
    return f" {DOT} ".join(filter(None, parts))


def _player(video: Video, path: Path, out: Path, place: int, poster: str) -> str:
    """A player, or a link, or a sentence that says why there is neither."""
    if path.is_dir():
        return f'<p class="note">A directory of frames, which no player shows: {_e(path)}</p>'
    if not path.is_file():
        return f'<p class="note">The file was gone when this page was written: {_e(path)}</p>'
    relative = os.path.relpath(path, out)
    href = quote(os.fsencode(Path(relative).as_posix()))
    away = ""
    if relative.startswith(".."):
        away = f'<p class="note">The file lies outside this folder ({_e(relative)}); the link holds while both stay in place.</p>'
    if path.suffix.lower() not in PLAYABLE:
        return f'<p><a href="{href}">Open {_e(path.name)}</a></p>{away}'
    size = f' width="{int(video["width"])}" height="{int(video["height"])}"' if video.get("width") and video.get("height") else ""
    look = f'{size} poster="{poster}"' if poster else size
    return f'<video controls preload="none" src="{href}"{look} aria-label="Video {place}: {_e(path.name)}"></video>{away}'


def _chips(video: Video) -> str:
    chips = []
    for name in _verdicts([video]):
        verdict = video["verdicts"][name]
        style, state = ("fired", _at(verdict) or " fired") if verdict.get("fired") else ("silent", " silent")
        chips.append(f'<li class="{style}">{_e(_verdict(name))}<b>{_e(state)}</b></li>')
    return f'<ul class="chips" aria-label="Failure signatures">{"".join(chips)}</ul>' if chips else ""


def _at(verdict: Mapping[str, Any]) -> str:
    onset = finite(verdict.get("onset_seconds"))
    return f" from {onset:.1f} s" if onset is not None else ""


def _numbers(video: Video) -> tuple[str, str]:
    """Its metrics, and folded away the minor ones with what each verdict says beyond fired or not."""
    metrics = video.get("metrics") or {}
    titles = {minor: [name for name in _ordered(metrics) if label(name).minor == minor] for minor in (False, True)}
    main, minor = (_list({label(name).title: _value(metrics[name]) for name in titles[part]}) for part in (False, True))
    rows = []
    for name in _verdicts([video]):
        rest = {key: value for key, value in video["verdicts"][name].items() if key not in ("fired", "onset_seconds")}
        said = ", ".join(f"{_e(key.replace('_', ' '))} {_value(value)}" for key, value in rest.items())
        rows.append(f'<tr><th scope="row">{_e(_verdict(name))}</th><td class="words">{said}</td></tr>' if rest else "")
    evidence = _scroll("What the verdicts rest on", f"<table>{''.join(rows)}</table>") if any(rows) else ""
    folded = f"<details><summary>More numbers, and what the verdicts rest on</summary>{minor}{evidence}</details>"
    return main, folded if minor or evidence else ""


def _strip(video: Video, given: Sequence[Frames] | None) -> tuple[str, str]:
    """The film strip, or a sentence that says why there is none; and the first picture, for the player to show before it plays."""
    try:
        stills = filmstrip(video, given)
    except UserError as error:
        return f'<p class="note">No pictures: {_e(error)}</p>', ""
    shown = []
    for still in stills:
        image = f'<img src="{still.source}" alt="Frame at {still.seconds:.1f} s" width="{still.width}" height="{still.height}">'
        shown.append(f"<li>{image}<span>{still.percent} %</span> {still.seconds:.1f} s</li>")
    if not shown:
        return "", ""
    return f'<ol class="strip" aria-label="Frames from the first to the last">{"".join(shown)}</ol>', stills[0].source


# --- problems and origins ---------------------------------------------------------------------------------------------------


def _problems(result: Mapping[str, Any]) -> str:
    failed = "".join(f"<li>{_failure(entry)}</li>" for entry in result.get("failed") or [])
    skipped = "".join(f"<li>{_e(line)}</li>" for line in result.get("skipped") or [])
    return (
        f"<h3>Inputs that could not be measured</h3>{f'<ul>{failed}</ul>' if failed else '<p>None.</p>'}"
        f"<h3>Metrics left out</h3>{f'<ul>{skipped}</ul>' if skipped else '<p>None.</p>'}"
    )


def _failure(entry: Mapping[str, Any]) -> str:
    """What went wrong, and the path where the error does not begin with it."""
    path, error = str(entry.get("path")), str(entry.get("error"))
    return f"<b>{_e(path)}</b>{_e(error.removeprefix(path) if error.startswith(path) else f': {error}')}"


def _reproduce(result: Mapping[str, Any], drawn: bool) -> str:
    command = result.get("command")
    line = command if isinstance(command, str) else shlex.join(map(str, command)) if command else ""
    ran = f'<pre tabindex="0" aria-label="Command line">{_e(line)}</pre>' if line else ""
    rows = []
    for place, video in enumerate(result.get("videos") or [], start=1):
        seed, prompt, system = (DASH if video.get(key) is None else _e(video[key]) for key in ("seed", "prompt", "system"))
        path = f'<a href="#video-{place}">{_e(video.get("path"))}</a>'
        words = f'<td class="words">{system}</td><td>{seed}</td><td class="words" dir="auto">{prompt}</td>'
        rows.append(f'<tr><th scope="row">{path}</th>{words}</tr>')
    head = "".join(f'<th scope="col">{text}</th>' for text in ("File", "System", "Seed", "Prompt"))
    prompts = f'<table class="prompts"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    folded = f"<details><summary>Prompts and seeds of {_count(len(rows), 'video')}</summary>{_scroll('Prompts', prompts)}</details>"
    schema = _e(result.get("schema", "no schema"))
    files = '<a href="results.json">results.json</a>' + (' and <a href="drift.png">drift.png</a>' if drawn else "")
    return (
        f'{ran}<p class="note">All numbers, with curves and values per clip: {files} ({schema}).</p>'
        f"{_facts('version', result.get('versions'))}{_facts('parameter', result.get('parameters'))}"
        f"{folded if rows else ''}"
    )


def _facts(title: str, facts: Mapping[str, Any] | None) -> str:
    """Exactly, as JSON has them."""
    shown = {key: _e(value if isinstance(value, str) else json.dumps(_plain(value))) for key, value in (facts or {}).items()}
    return (
        f"<details><summary>{_count(len(shown), title)}</summary>{_list(shown)}</details>"
        if shown
        else f"<p>No {title}s given.</p>"
    )


def _list(facts: Mapping[str, str]) -> str:
    """Names and values, the values as HTML."""
    shown = "".join(f"<div><dt>{_e(name)}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="numbers">{shown}</dl>' if shown else ""


# --- small things -----------------------------------------------------------------------------------------------------------


def _e(value: object) -> str:
    """Text as HTML, in attributes too; control characters, which HTML forbids, become U+FFFD."""
    return escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", str(value)), quote=True)


def _value(value: object) -> str:
    """Any JSON as HTML, a number to about three digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return DASH
    if isinstance(value, float | np.floating):
        return number(float(value))
    return _e(value if isinstance(value, str | int) else json.dumps(_plain(value), ensure_ascii=False))


def _plain(value: Any) -> Any:
    """JSON without NaN, which is not JSON, and without numpy's scalars."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reference(result: Mapping[str, Any]) -> float:
    return finite((result.get("parameters") or {}).get("reference_seconds")) or REFERENCE


def _fired(video: Video) -> dict[str, Mapping[str, Any]]:
    return {name: video["verdicts"][name] for name in _verdicts([video]) if video["verdicts"][name].get("fired")}


def _verdicts(holders: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the verdicts that any of them has, the known ones first."""
    names = {name: None for holder in holders for name in holder.get("verdicts") or {}}
    return [name for name in VERDICTS if name in names] + [name for name in names if name not in VERDICTS]


def _verdict(name: str) -> str:
    return VERDICTS[name][0] if name in VERDICTS else label(name).title


def _ordered(metrics: Iterable[str]) -> list[str]:
    """Known metrics in the order of their labels, others behind by name."""
    places = {name: place for place, name in enumerate(LABELS)}
    return sorted(metrics, key=lambda name: (places.get(name, len(places)), name))


def _row_head(metric: str) -> str:
    known = label(metric)
    return f'<th scope="row">{_e(known.title)}{f"<small>{_e(known.unit)}</small>" if known.unit else ""}</th>'


def _signed(value: float, decimals: int) -> str:
    return ("+" if round(value, decimals) > 0 else "") + number(value, decimals)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _color(color: int) -> str:
    return f"s{color % len(COLORS)}" + (" dashed" if color // len(COLORS) % 2 else "")


def _swatch(color: int) -> str:
    return f'<i class="swatch {_color(color)}" aria-hidden="true"></i>'


def _scroll(name: str, content: str) -> str:
    """A box that scrolls sideways by itself, also by keyboard, so that the page never does."""
    return f'<div class="scroll" role="region" aria-label="{_e(name)}" tabindex="0">{content}</div>'
