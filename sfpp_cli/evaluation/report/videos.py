"""The videos one by one: film strip, verdicts, player, curves and numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.compare import Video, finite, group
from sfpp_cli.evaluation.report.drift import Drift, drifts
from sfpp_cli.evaluation.report.filmstrip import filmstrip
from sfpp_cli.evaluation.report.labels import label
from sfpp_cli.evaluation.report.markup import (
    DOT,
    fired_verdicts,
    html,
    listing,
    ordered,
    plural,
    scroll_box,
    verdict_names,
    verdict_title,
    written,
)
from sfpp_cli.evaluation.report.panels import onset_marks, panel_figure
from sfpp_cli.video.ffmpeg import Frames

OPEN = 6
"""Up to so many videos show all they have unfolded."""


CURVES = ("luma", "sharpness", "flow_mean")
"""What is drawn for every single video, with the seconds at which its verdicts fired."""
PLAYABLE = (".mp4", ".m4v", ".mov", ".webm", ".ogv")
"""What browsers play. Other files get a link."""


def video_cards(
    videos: Sequence[Video],
    strips: Sequence[tuple[str, str]],
    colors: Mapping[str, int],
    reference: float,
    out: Path,
) -> str:
    if not videos:
        return "<p>No video could be measured.</p>"
    systems = {id(video): name for name, members in group(videos).items() for video in members}
    shown = []
    for place, (video, strip) in enumerate(zip(videos, strips, strict=True), start=1):
        name = systems[id(video)]
        panels = (
            drifts({name: [video]}, reference, names=CURVES, bins=80, color=colors[name])
            if len(videos) > 1
            else []
        )
        shown.append(
            _video(
                place,
                video,
                strip,
                panels,
                html(name) if video.get("system") else "",
                out,
                len(videos) <= OPEN,
            )
        )
    fired = sum(bool(fired_verdicts(video)) for video in videos)
    choice = ""
    if 0 < fired < len(videos):
        choice = f'<p class="choice"><label><input type="checkbox" id="only"> Only the {fired} with a fired signature</label></p>'
    return f'<div class="videos">{choice}{"".join(shown)}</div>'


def _video(
    place: int,
    video: Video,
    strip: tuple[str, str],
    panels: Sequence[Drift],
    system: str,
    out: Path,
    unfolded: bool,
) -> str:
    path = Path(str(video.get("path", "")))
    about = [system, f"seed {html(video['seed'])}" if video.get("seed") is not None else "", _format(video)]
    marks = onset_marks(video)
    curves = "".join(panel_figure(panel, marks.get(panel.name, []), names=False) for panel in panels)
    prompt = f'<p class="prompt" dir="auto">{html(video["prompt"])}</p>' if video.get("prompt") else ""
    main, more = _numbers(video)
    state = "fired" if fired_verdicts(video) else "silent"
    return (
        f'<article class="video {state}" id="video-{place}" aria-labelledby="name-{place}">'
        f'<h3 id="name-{place}">{html(path.name)}</h3><p class="about">{f" {DOT} ".join(filter(None, about))}</p>'
        f"{prompt}{strip[0]}{_chips(video)}<details{' open' if unfolded else ''}><summary>Player, curves and numbers</summary>"
        f'<div class="pair"><div>{_player(video, path, out, place, strip[1])}</div>{main}</div>'
        f"{f'<div class=panels>{curves}</div>' if curves else ''}{more}</details></article>"
    )


def _format(video: Video) -> str:
    parts = [
        f"{video['seconds']:.1f} s" if video.get("seconds") is not None else "",
        f"{video['width']}\N{MULTIPLICATION SIGN}{video['height']}" if video.get("width") else "",
        f"{video['fps']:g} fps" if video.get("fps") else "",
        plural(video["frames"], "frame") if video.get("frames") else "",
    ]
    return f" {DOT} ".join(filter(None, parts))


def _player(video: Video, path: Path, out: Path, place: int, poster: str) -> str:
    """A player, or a link, or a sentence that says why there is neither."""
    if path.is_dir():
        return f'<p class="note">A directory of frames, which no player shows: {html(path)}</p>'
    if not path.is_file():
        return f'<p class="note">The file was gone when this page was written: {html(path)}</p>'
    relative = os.path.relpath(path, out)
    href = quote(os.fsencode(Path(relative).as_posix()))
    away = ""
    if relative.startswith(".."):
        away = f'<p class="note">The file lies outside this folder ({html(relative)}); the link holds while both stay in place.</p>'
    if path.suffix.lower() not in PLAYABLE:
        return f'<p><a href="{href}">Open {html(path.name)}</a></p>{away}'
    size = (
        f' width="{int(video["width"])}" height="{int(video["height"])}"'
        if video.get("width") and video.get("height")
        else ""
    )
    look = f'{size} poster="{poster}"' if poster else size
    return f'<video controls preload="none" src="{href}"{look} aria-label="Video {place}: {html(path.name)}"></video>{away}'


def _chips(video: Video) -> str:
    chips = []
    for name in verdict_names([video]):
        verdict = video["verdicts"][name]
        style, state = ("fired", _at(verdict) or " fired") if verdict.get("fired") else ("silent", " silent")
        chips.append(f'<li class="{style}">{html(verdict_title(name))}<b>{html(state)}</b></li>')
    return f'<ul class="chips" aria-label="Failure signatures">{"".join(chips)}</ul>' if chips else ""


def _at(verdict: Mapping[str, Any]) -> str:
    onset = finite(verdict.get("onset_seconds"))
    return f" from {onset:.1f} s" if onset is not None else ""


def _numbers(video: Video) -> tuple[str, str]:
    """Its metrics, and folded away the minor ones with what each verdict says beyond fired or not."""
    metrics = video.get("metrics") or {}
    titles = {
        minor: [name for name in ordered(metrics) if label(name).minor == minor] for minor in (False, True)
    }
    main, minor = (
        listing({label(name).title: written(metrics[name]) for name in titles[part]})
        for part in (False, True)
    )
    rows = []
    for name in verdict_names([video]):
        rest = {
            key: value
            for key, value in video["verdicts"][name].items()
            if key not in ("fired", "onset_seconds")
        }
        said = ", ".join(f"{html(key.replace('_', ' '))} {written(value)}" for key, value in rest.items())
        rows.append(
            f'<tr><th scope="row">{html(verdict_title(name))}</th><td class="words">{said}</td></tr>'
            if rest
            else ""
        )
    evidence = scroll_box("What the verdicts rest on", f"<table>{''.join(rows)}</table>") if any(rows) else ""
    folded = (
        f"<details><summary>More numbers, and what the verdicts rest on</summary>{minor}{evidence}</details>"
    )
    return main, folded if minor or evidence else ""


def strip_and_poster(video: Video, given: Sequence[Frames] | None) -> tuple[str, str]:
    """The film strip, or a sentence that says why there is none; and the first picture, for the player to show before it plays."""
    try:
        stills = filmstrip(video, given)
    except UserError as error:
        return f'<p class="note">No pictures: {html(error)}</p>', ""
    shown = []
    for still in stills:
        image = f'<img src="{still.source}" alt="Frame at {still.seconds:.1f} s" width="{still.width}" height="{still.height}">'
        shown.append(f"<li>{image}<span>{still.percent} %</span> {still.seconds:.1f} s</li>")
    if not shown:
        return "", ""
    return f'<ol class="strip" aria-label="Frames from the first to the last">{"".join(shown)}</ol>', stills[
        0
    ].source
