"""Panels of drift as pictures: as SVG that takes its colours from the page, and all of them as one PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont, get_font

from sfpp_cli.evaluation.report.drift import Drift
from sfpp_cli.evaluation.report.labels import label, printable
from sfpp_cli.figures import COLORS, GRID, INK, figure_of, style_axes, write_png

Marks = Sequence[tuple[float, str]]
"""Seconds and what begins there."""

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 26
_LINE = 12
"""Height of a line of text, in the picture's units."""


def svg(panel: Drift, marks: Marks = (), scenes: Sequence[float] = ()) -> Markup:
    """A panel as an `<svg>` element. Faults that begin are `marks`, drawn as upright lines with their names;
    so are the seconds at which new `scenes` begin, with their numbers from 2 on. The page's style sheet
    colours it by classes: `grid`, `usual`, `s0` to `s5`, `mark` and others."""
    bottom, top = panel.limits
    end = panel.longest
    head = _TOP + _LINE * len(marks)

    def x(second: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * min(max(second / end, 0), 1)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - head) * (value - bottom) / (top - bottom)

    right = WIDTH - _RIGHT
    floor = HEIGHT - _BOTTOM
    parts = []
    if panel.usual:
        below, above = map(y, panel.usual)
        size = f'width="{right - _LEFT:.1f}" height="{max(below - above, 1.0):.1f}"'
        parts.append(f'<rect class="usual" x="{_LEFT:.1f}" y="{above:.1f}" {size}/>')
    for value in ticks(bottom, top):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    for place, second in enumerate(ticks(0, end, 5)):
        text = f"{second:g}" if place else f"{second:g} s"
        parts.append(f'<text x="{x(second):.1f}" y="{floor + 16}" text-anchor="middle">{text}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{right}"/>')
    if panel.reference is not None:
        parts.append(f'<path class="until" d="M{x(panel.reference):.1f} {head}V{floor}"/>')
    for number, second in enumerate(scenes, start=2):
        parts.append(f'<path class="scene" d="M{x(second):.1f} {head}V{floor}"/>')
        parts.append(f'<text class="scene" x="{x(second) + 3:.1f}" y="{floor - 4}">{number}</text>')
    for band in panel.systems.values():
        style = color_class(band.color)
        seconds = [x(second) for second in panel.seconds]
        if band.videos > 1:
            edge = [y(v) for v in [*band.low, *reversed(band.high)]]
            parts.append(f'<path class="band {style}" d="{_line([*seconds, *reversed(seconds)], edge)}Z"/>')
        parts.append(f'<path class="line {style}" d="{_line(seconds, [y(v) for v in band.mean])}"/>')
    for row, (second, text) in enumerate(marks):
        parts += _mark(x(second), _TOP + _LINE * row + 4, floor, text)
    described = escape(printable(describe(panel, marks, scenes)))
    head_tag = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described}">'
    return Markup(f"{head_tag}{''.join(parts)}</svg>")


def color_class(color: int) -> str:
    """The style sheet's classes for a system of this number; beyond the number of colours, dashed."""
    dashed = color // len(COLORS) % 2
    return f"s{color % len(COLORS)}" + (" dashed" if dashed else "")


def describe(panel: Drift, marks: Marks = (), scenes: Sequence[float] = ()) -> str:
    """The panel in words, for those who do not see it."""
    known = label(panel.name)
    unit = f" ({known.unit})" if known.unit else ""
    start = f"{known.title}{unit} over {panel.longest:.0f} seconds"
    ends = [f"{name}: {first} at first, {last} at the end" for name, (first, last) in panel.ends.items()]
    onsets = [f"{text} from second {second:.1f}" for second, text in marks]
    borders = [f"scene {number} from second {second:.1f}" for number, second in enumerate(scenes, start=2)]
    return ". ".join([start, *ends, *borders, *onsets]) + "."


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """At most `most` + 1 round numbers within a range."""
    exact = (high - low) / most
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= exact * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def _mark(x: float, top: float, floor: float, text: str) -> list[str]:
    """An upright line with its words on the side that has room."""
    side, anchor = (-4, "end") if x > WIDTH / 2 else (4, "start")
    place = f'x="{x + side:.1f}" y="{top + 4:.1f}" text-anchor="{anchor}"'
    return [
        f'<path class="mark" d="M{x:.1f} {top - 4:.1f}V{floor}"/>',
        f'<text class="mark" {place}>{escape(printable(text))}</text>',
    ]


def _line(xs: Sequence[float], ys: Sequence[float]) -> str:
    """A path through the points; NaN points are left out (they are at the ends only)."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True) if not math.isnan(y))


def write_panels(panels: Sequence[Drift], path: Path) -> None:
    """All panels as one PNG picture."""
    figure, rows, columns = figure_of(len(panels))
    for place, panel in enumerate(panels, start=1):
        _draw(figure.add_subplot(rows, columns, place), panel)
    names = {name: band.color for panel in panels for name, band in panel.systems.items()}
    if len(names) > 1:
        lines = [figure.axes[0].plot([], [], **_style(color))[0] for color in names.values()]
        labels = [f" {name}" for name in _drawable(names)]  # one that starts with "_" would be left out
        legend = figure.legend(
            lines, labels, loc="outside upper left", ncols=min(len(names), columns), fontsize=9, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    write_png(figure, path)


def _drawable(names: Iterable[str]) -> list[str]:
    """The names of systems; A, B ... after their order for those in a script that the font lacks."""
    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()
    return [
        name if all(ord(letter) in glyphs for letter in name) else chr(ord("A") + place % 26)
        for place, name in enumerate(names)
    ]


def _style(color: int) -> dict[str, Any]:
    return {
        "color": COLORS[color % len(COLORS)],
        "linestyle": "--" if color // len(COLORS) % 2 else "-",
        "linewidth": 1.5,
    }


def _draw(axes: Axes, panel: Drift) -> None:
    if panel.usual:
        axes.axhspan(*panel.usual, color=GRID, linewidth=0)
    if panel.reference is not None:
        axes.axvline(panel.reference, color=INK, linewidth=0.6, linestyle=":")
    for band in panel.systems.values():
        style = _style(band.color)
        if band.videos > 1:
            axes.fill_between(
                panel.seconds, band.low, band.high, color=style["color"], alpha=0.15, linewidth=0
            )
        axes.plot(panel.seconds, band.mean, **style)
    axes.set_xlim(0, panel.longest)
    axes.set_ylim(*panel.limits)
    known = label(panel.name)
    style_axes(axes, known.title, "seconds" if panel.usual else "seconds apart", known.unit)
