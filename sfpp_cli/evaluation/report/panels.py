"""The panels of drift, with what is written around and on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sfpp_cli.evaluation.compare import Video, finite
from sfpp_cli.evaluation.report.drawing import svg
from sfpp_cli.evaluation.report.drift import Drift
from sfpp_cli.evaluation.report.labels import label
from sfpp_cli.evaluation.report.markup import ARROW, VERDICTS, fired_verdicts, html, swatch, verdict_title


def drift_section(
    panels: Sequence[Drift],
    systems: Mapping[str, Sequence[Video]],
    marks: Mapping[str, list[tuple[float, str]]],
) -> str:
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
    figures = "".join(
        panel_figure(panel, marks.get(panel.name, []), names=len(systems) > 1) for panel in panels
    )
    return f'<p class="note">{said} <a href="drift.png">As one picture</a>.</p><div class="panels">{figures}</div>'


def panel_figure(panel: Drift, marks: Sequence[tuple[float, str]], names: bool) -> str:
    known = label(panel.name)
    ends = []
    for name, (first, last) in panel.ends.items():
        who = (
            f"{swatch(panel.systems[name].color)}<span>{html(name)}</span>"
            if names
            else "<span>first and last seconds</span>"
        )
        ends.append(f"<li>{who}<b>{first} {ARROW} {last}</b></li>")
    return (
        f'<figure class="panel"><figcaption><b>{html(known.title)}</b><small>{html(known.unit)}</small></figcaption>'
        f'{svg(panel, marks)}<ul class="ends">{"".join(ends)}</ul></figure>'
    )


def onset_marks(video: Video) -> dict[str, list[tuple[float, str]]]:
    """For each curve the onsets that are marked on it, in order of time."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name, verdict in fired_verdicts(video).items():
        onset = finite(verdict.get("onset_seconds"))
        for curve in VERDICTS.get(name, ("", ()))[1] if onset is not None else ():
            found.setdefault(curve, []).append((onset or 0.0, verdict_title(name).lower()))
    return {curve: sorted(marks) for curve, marks in found.items()}
