"""The panels of drift as the page shows them: drawing, title, first and last values, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sfpp_cli.evaluation.compare import Video, finite
from sfpp_cli.evaluation.report.drawing import color_class, svg
from sfpp_cli.evaluation.report.drift import Drift
from sfpp_cli.evaluation.report.labels import VERDICTS, fired_verdicts, label, verdict_title

ARROW = "\N{RIGHTWARDS ARROW}"
Marks = Mapping[str, Sequence[tuple[float, str]]]
"""For each curve, the seconds that are marked on it and what begins there."""


@dataclass(frozen=True)
class End:
    """A line below a panel."""

    name: str
    """Whose values."""
    style: str
    """Classes of the swatch before the name; empty for none."""
    values: str
    """The first and the last."""


@dataclass(frozen=True)
class PanelFigure:
    """A panel with its words."""

    title: str
    unit: str
    drawing: Markup
    ends: list[End]


def panel_figures(panels: Sequence[Drift], marks: Marks, *, named: bool) -> list[PanelFigure]:
    """The panels for the page. `named`: the lines below say which system they are about."""
    return [_figure(panel, marks.get(panel.name, ()), named) for panel in panels]


def _figure(panel: Drift, marks: Sequence[tuple[float, str]], named: bool) -> PanelFigure:
    known = label(panel.name)
    ends = [
        End(
            name=name if named else "first and last seconds",
            style=color_class(panel.systems[name].color) if named else "",
            values=f"{first} {ARROW} {last}",
        )
        for name, (first, last) in panel.ends.items()
    ]
    drawing = Markup(svg(panel, marks))  # `svg` escapes what it is given
    return PanelFigure(known.title, known.unit, drawing, ends)


def drift_note(panels: Sequence[Drift], systems: Mapping[str, Sequence[Video]]) -> str:
    """How to read the panels."""
    if not panels:
        return ""
    lengths = [float(video.get("seconds") or 0) for videos in systems.values() for video in videos]
    several = any(band.videos > 1 for panel in panels for band in panel.systems.values())
    span = f"{panels[0].reference:.3g} s"
    said = f"Grey: where 90 % of the values of the first {span} lie"
    said += " (all systems together)." if len(systems) > 1 else "."
    if several:
        said += " Line: mean over a system's videos; band: the middle 80 % of them."
    if max(lengths) - min(lengths) > 0.5:
        said += f" From {min(lengths):.0f} s on, shorter videos have ended and the mean is over the rest."
    return f"{said} Below each: the mean of the first and of the last {span}."


def onset_marks(video: Video) -> dict[str, list[tuple[float, str]]]:
    """For each curve the onsets of verdicts that are marked on it, in order of time."""
    marks: dict[str, list[tuple[float, str]]] = {}
    for name, verdict in fired_verdicts(video).items():
        onset = finite(verdict.get("onset_seconds"))
        if onset is None or name not in VERDICTS:
            continue
        _, curves = VERDICTS[name]
        for curve in curves:
            marks.setdefault(curve, []).append((onset, verdict_title(name).lower()))
    return {curve: sorted(entries) for curve, entries in marks.items()}
