"""The videos one by one, as the page shows them: film strip, verdicts, player, curves and numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sfpp_cli.evaluation.compare import Video, finite, group
from sfpp_cli.evaluation.report.drift import drifts
from sfpp_cli.evaluation.report.filmstrip import Still
from sfpp_cli.evaluation.report.labels import (
    DASH,
    fired_verdicts,
    label,
    ordered,
    plural,
    verdict_names,
    verdict_title,
    written,
)
from sfpp_cli.evaluation.report.panels import PanelFigure, onset_marks, panel_figures

OPEN = 6
"""With more videos than this, what is shown of each is folded away."""
CURVES = ("luma", "sharpness", "flow_mean")
"""What is drawn for every single video, with the seconds at which its verdicts fired."""
BINS = 80
"""Most points of such a curve."""
PLAYABLE = (".mp4", ".m4v", ".mov", ".webm", ".ogv")
"""What browsers play. Other files get a link."""
SEPARATOR = " \N{MIDDLE DOT} "

Pictures = list[Still] | str
"""A film strip, or the line that says why there is none."""


@dataclass(frozen=True)
class Chip:
    """A verdict in short."""

    title: str
    state: str
    fired: bool


@dataclass(frozen=True)
class Player:
    """A player (`plays`), a link, or only a note that says why there is neither. `size`: (width, height)."""

    href: str = ""
    plays: bool = False
    note: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class VideoCard:
    """All that the page shows of one video."""

    number: int
    path: str
    name: str
    about: str
    prompt: str
    stills: list[Still]
    no_pictures: str
    verdicts: list[Chip]
    fired: bool
    unfolded: bool
    player: Player
    panels: list[PanelFigure]
    metrics: dict[str, str]
    minor: dict[str, str]
    """Metrics that are folded away."""
    evidence: dict[str, str]
    """What each verdict says beyond fired or not."""
    origin: dict[str, str]
    """`system`, `seed` and `prompt`."""


def video_cards(
    videos: Sequence[Video],
    pictures: Sequence[Pictures],
    colors: Mapping[str, int],
    reference: float,
    out: Path,
) -> list[VideoCard]:
    """A card for each video, in order. `colors` numbers the systems, `reference` is in seconds.

    `out` is the page's folder, which links are relative to.
    """
    systems = {id(video): name for name, members in group(videos).items() for video in members}
    cards = []
    for place, (video, shown) in enumerate(zip(videos, pictures, strict=True), start=1):
        figures: list[PanelFigure] = []
        if len(videos) > 1:  # of a single video the page has the very same panels already
            name = systems[id(video)]
            panels = drifts({name: [video]}, reference, names=CURVES, bins=BINS, color=colors[name])
            figures = panel_figures(panels, onset_marks(video), named=False)
        cards.append(_card(place, video, shown, figures, out, unfolded=len(videos) <= OPEN))
    return cards


def _card(
    place: int, video: Video, pictures: Pictures, panels: list[PanelFigure], out: Path, *, unfolded: bool
) -> VideoCard:
    path = Path(str(video.get("path", "")))
    metrics = video.get("metrics") or {}
    names = ordered(metrics)
    return VideoCard(
        number=place,
        path=str(video.get("path")),
        name=path.name,
        about=_about(video),
        prompt=str(video.get("prompt") or ""),
        stills=[] if isinstance(pictures, str) else pictures,
        no_pictures=pictures if isinstance(pictures, str) else "",
        verdicts=[_chip(name, video["verdicts"][name]) for name in verdict_names([video])],
        fired=bool(fired_verdicts(video)),
        unfolded=unfolded,
        player=_player(video, path, out),
        panels=panels,
        metrics={label(name).title: written(metrics[name]) for name in names if not label(name).minor},
        minor={label(name).title: written(metrics[name]) for name in names if label(name).minor},
        evidence=_evidence(video),
        origin={
            key: DASH if video.get(key) is None else str(video[key]) for key in ("system", "seed", "prompt")
        },
    )


def _about(video: Video) -> str:
    """System, seed, length, size, rate: what is known of them."""
    parts = [
        str(video["system"]) if video.get("system") else "",
        f"seed {video['seed']}" if video.get("seed") is not None else "",
        f"{video['seconds']:.1f} s" if video.get("seconds") is not None else "",
        f"{video['width']}\N{MULTIPLICATION SIGN}{video['height']}" if video.get("width") else "",
        f"{video['fps']:g} fps" if video.get("fps") else "",
        plural(video["frames"], "frame") if video.get("frames") else "",
    ]
    return SEPARATOR.join(filter(None, parts))


def _player(video: Video, path: Path, out: Path) -> Player:
    if path.is_dir():
        return Player(note=f"A directory of frames, which no player shows: {path}")
    if not path.is_file():
        return Player(note=f"The file was gone when this page was written: {path}")
    relative = os.path.relpath(path, out)
    note = ""
    if relative.startswith(".."):
        note = f"The file lies outside this folder ({relative}); the link holds while both stay in place."
    size = None
    if video.get("width") and video.get("height"):
        size = (int(video["width"]), int(video["height"]))
    href = quote(os.fsencode(Path(relative).as_posix()))
    return Player(href, path.suffix.lower() in PLAYABLE, note, size)


def _chip(name: str, verdict: Mapping[str, Any]) -> Chip:
    if not verdict.get("fired"):
        return Chip(verdict_title(name), "silent", fired=False)
    onset = finite(verdict.get("onset_seconds"))
    return Chip(verdict_title(name), "fired" if onset is None else f"from {onset:.1f} s", fired=True)


def _evidence(video: Video) -> dict[str, str]:
    """The numbers that each verdict rests on, for those that have any."""
    evidence = {}
    for name in verdict_names([video]):
        numbers = {
            key: value
            for key, value in video["verdicts"][name].items()
            if key not in ("fired", "onset_seconds")
        }
        if numbers:
            said = (f"{key.replace('_', ' ')} {written(value)}" for key, value in numbers.items())
            evidence[verdict_title(name)] = ", ".join(said)
    return evidence
