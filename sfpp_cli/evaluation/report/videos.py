"""The videos one by one, as the page shows them: film strip, verdicts, player, curves and numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sfpp_cli.evaluation.compare import Video
from sfpp_cli.evaluation.report import labels
from sfpp_cli.evaluation.report.drift import Drift, drifts
from sfpp_cli.evaluation.report.filmstrip import Still
from sfpp_cli.evaluation.scenes import borders_of

CURVES = ("local_stability", "luma", "flow_mean")
"""What is drawn for every single video, besides the curves on which its faults are marked."""
BINS = 80
"""Most points of such a curve."""
PLAYABLE = (".mp4", ".m4v", ".mov", ".webm", ".ogv")
"""What browsers play. Other files get a link."""
SEPARATOR = " \N{MIDDLE DOT} "

Pictures = list[Still] | str
"""A film strip, or the line that says why there is none."""


def video_cards(
    systems: Mapping[str, Sequence[Video]],
    videos: Sequence[Video],
    pictures: Sequence[Pictures],
    against: tuple[float, Mapping[str, Any] | None],
    out: Path,
) -> list[dict[str, Any]]:
    """What the page shows of each of `videos`, in order; `systems` has the same videos by system; `against`
    are `reference` and `usual` of their `drifts`; `out` is the page's folder, which links are relative to."""
    reference, usual = against
    owners = {id(video): (name, place) for place, name in enumerate(systems) for video in systems[name]}
    cards = []
    for video, shown in zip(videos, pictures, strict=True):
        panels: list[Drift] = []
        name, color = owners[id(video)]
        if len(videos) > 1:  # of a single video the page has the very same panels already
            names = (*CURVES, *onset_marks(video))
            panels = drifts({name: [video]}, reference, names=names, bins=BINS, color=color, usual=usual)
        cards.append(_card(video, shown, panels, color, out))
    return cards


def _card(video: Video, pictures: Pictures, panels: Sequence[Drift], color: int, out: Path) -> dict[str, Any]:
    path = Path(str(video.get("path", "")))
    metrics = video.get("metrics") or {}
    verdicts = {name: video["verdicts"][name] for name in labels.faults_of([video])}
    fired = labels.faults_of([video], fired=True)
    evidence = {labels.fault(name).title: _evidence(verdict) for name, verdict in verdicts.items()}
    return {
        "video": video,
        "color": color,
        "name": path.name,
        "about": _about(video),
        "stills": [] if isinstance(pictures, str) else pictures,
        "no_pictures": pictures if isinstance(pictures, str) else "",
        "verdicts": verdicts,
        "fired": fired,
        "absent": [labels.fault(name).title.lower() for name in verdicts if name not in fired],
        "scenes": _scenes(video),
        "borders": borders_of(video.get("scenes") or []),
        "player": _player(path, out),
        "panels": panels,
        "marks": onset_marks(video),
        "metrics": _numbers(metrics, minor=False),
        "minor": _numbers(metrics, minor=True),
        "evidence": {title: said for title, said in evidence.items() if said},
    }


def _numbers(metrics: Mapping[str, Any], *, minor: bool) -> dict[str, str]:
    names = labels.ordered(metrics, minor=minor)
    return {labels.label(name).title: labels.written(metrics[name]) for name in names}


def _about(video: Video) -> str:
    parts = [
        str(video["system"]) if video.get("system") else "",
        f"seed {video['seed']}" if video.get("seed") is not None else "",
        f"{video['seconds']:.1f}\N{NO-BREAK SPACE}s" if video.get("seconds") is not None else "",
        f"{video['width']}\N{MULTIPLICATION SIGN}{video['height']}" if video.get("width") else "",
        f"{video['fps']:g}\N{NO-BREAK SPACE}fps" if video.get("fps") else "",
        labels.plural(video["frames"], "frame") if video.get("frames") else "",
    ]
    return SEPARATOR.join(filter(None, parts))


def _player(path: Path, out: Path) -> dict[str, Any]:
    """A player (`plays`) or a link to `href`, and a `note`: why there is neither, or where the file lies."""
    player = {"href": "", "plays": False, "note": ""}
    if path.is_dir():
        return player | {"note": f"A directory of frames, which no player shows: {path}"}
    if not path.is_file():
        return player | {"note": f"The file was gone when this page was written: {path}"}
    relative = os.path.relpath(path, out)
    if relative.startswith(".."):
        player["note"] = (
            f"The file lies outside this folder ({relative}); the link holds while both stay in place."
        )
    href = quote(os.fsencode(Path(relative).as_posix()))
    return player | {"href": href, "plays": path.suffix.lower() in PLAYABLE}


def _evidence(verdict: Mapping[str, Any]) -> str:
    """What was seen, and the numbers that a verdict rests on, where there are any."""
    numbers = {
        key: value for key, value in verdict.items() if key not in ("fired", "onset_seconds", "sentence")
    }
    said = [f"{key.replace('_', ' ')} {labels.written(value)}" for key, value in numbers.items()]
    return " ".join(filter(None, [verdict.get("sentence"), ", ".join(said)]))


def _scenes(video: Video) -> list[dict[str, str]]:
    """Each scene's beginning and how it was led to, its prompt, and how well it follows that by CLIP."""
    scenes = video.get("scenes") or []
    alignment = ((video.get("models") or {}).get("clip_text_alignment") or {}).get("scenes") or []
    return [
        {
            "begins": f"from {scene['at']:g} s" + (f", {scene['how']}" if scene.get("how") else ""),
            "prompt": scene.get("prompt") or "",
            "alignment": labels.written(alignment[place]) if place < len(alignment) else "",
        }
        for place, scene in enumerate(scenes)
    ]


def onset_marks(video: Video) -> dict[str, list[tuple[float, str]]]:
    """For each curve the seconds that are marked on it and what begins there, in order of time."""
    marks: dict[str, list[tuple[float, str]]] = {}
    for name in labels.faults_of([video], fired=True):
        onset = labels.onset_of(video["verdicts"][name])
        if onset is not None:
            fault = labels.fault(name)
            for curve in fault.curves or CURVES[:1]:
                marks.setdefault(curve, []).append((onset, fault.title.lower()))
    return {curve: sorted(entries) for curve, entries in marks.items()}
