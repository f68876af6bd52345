"""Drift over time as pictures: one panel a curve, as SVG that takes its colours from the page, and as one PNG; film strips.

A panel shows, for every system, the mean over its videos and the band that holds the middle 80 % of them, against the grey band of
the reference: where 90 % of all values of the first seconds lie. A curve that leaves the grey has drifted.
"""

from __future__ import annotations

import io
import math
import warnings
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from sfpp_cli.evaluation.compare import Video
from sfpp_cli.plot import COLORS, COLUMNS, DPI, GRID, INK, PANEL
from sfpp_cli.video import Frames, SheetSampler, atomic_write, read_frames

Array = NDArray[np.float64]

BINS = 160
"""Most points of a drawn curve."""
SPREAD, USUAL = (10, 90), (5, 95)
"""Percentiles: of the videos at one time, for the band around a mean; of the first seconds' values, for the reference."""


@dataclass(frozen=True)
class Label:
    """How people read a name: a title, and the unit or what else keeps it from being misread. An axis reaches at least `top`.

    `minor` metrics are shown folded away: those that a curve or another number tells better.
    """

    title: str
    unit: str = ""
    top: float = 0.0
    minor: bool = False


_FLOW = "pixels a frame"
LABELS = {
    "local_stability": Label("Local stability", "0 to 100; not the paper's Visual Stability"),
    "visual_stability": Label("Visual Stability", "judged by a video LLM, 0 to 100"),
    "luma": Label("Luma", "mean, 0 to 1", minor=True),
    "luma_drift": Label("Luma, drift", "end minus beginning"),
    "clipped": Label("Clipped highlights", "share of pixels", top=0.05, minor=True),
    "clipped_drift": Label("Clipped highlights, drift", "end minus beginning"),
    "crushed": Label("Crushed shadows", "share of pixels", top=0.05, minor=True),
    "crushed_drift": Label("Crushed shadows, drift", "end minus beginning"),
    "contrast": Label("Contrast", "standard deviation of luma", minor=True),
    "contrast_drift": Label("Contrast, drift", "end minus beginning", minor=True),
    "saturation": Label("Saturation", "mean, 0 to 1", minor=True),
    "saturation_drift": Label("Saturation, drift", "end minus beginning"),
    "sharpness": Label("Sharpness", "variance of the Laplacian", minor=True),
    "sharpness_drift": Label("Sharpness, drift", "end minus beginning"),
    "flow_mean": Label("Motion", f"mean flow, {_FLOW}"),
    "flow_mean_drift": Label("Motion, drift", f"end minus beginning, {_FLOW}"),
    "flow_top5": Label("Motion, fastest 5 %", f"flow, {_FLOW}", minor=True),
    "flow_variance": Label("Motion, variance", "of the mean flow in 8 frames", minor=True),
    "flow_variance_max": Label("Motion, largest variance", "of the mean flow in 8 frames"),
    "flow_spikes": Label("Motion spikes", "count"),
    "picture_change": Label("Picture change", "RMS from frame to frame"),
    "dynamic_degree_dis": Label("Dynamic degree (DIS)", "share of clips; VBench's rule on DIS flow, not on RAFT's"),
    "dynamic_degree_dis_whole": Label("Dynamic degree (DIS), whole video", minor=True),
    "norepeat": Label("NoRepeat", "RIFLEx, 0 or 100"),
    "norepeat_distance": Label("NoRepeat, distance", "RIFLEx's d", minor=True),
    "norepeat_rms": Label("NoRepeat, distance as RMS", "0 to 1", minor=True),
    "norepeat_offset": Label("NoRepeat, offset", "frames", minor=True),
    "norepeat_position": Label("NoRepeat, P", "frames", minor=True),
    "norepeat_halfwidth": Label("NoRepeat, n", "frames", minor=True),
    "norepeat_threshold": Label("NoRepeat, threshold", "on d, for this size", minor=True),
    "self_similarity_seconds": Label("Most self-similar offset", "seconds", minor=True),
    "self_similarity_rms": Label("Difference at that offset", "RMS", minor=True),
    "self_similarity_share": Label("Repeated at that offset", "share of frames", minor=True),
    "border_luma_ratio": Label("Chunk borders, luma", "change at borders to change inside", minor=True),
    "border_flow_ratio": Label("Chunk borders, flow", "change at borders to change inside", minor=True),
    "border_picture_ratio": Label("Chunk borders, picture", "change at borders to change inside"),
}
"""What is known, in the order of panels and rows. Any other name follows, in its own words."""


def label(name: str) -> Label:
    """How a curve or metric is shown."""
    words = name.replace("_", " ").strip() or name
    return LABELS.get(name) or Label(words[:1].upper() + words[1:])


@dataclass(frozen=True)
class Band:
    """One system on one panel: per point the mean and the middle of its videos (NaN where none has a value).

    `first` and `last` are the mean over videos of what each shows in its first and last reference seconds. `color` numbers the
    system.
    """

    mean: Array
    low: Array
    high: Array
    videos: int
    first: float
    last: float
    color: int


@dataclass(frozen=True)
class Drift:
    """A panel: the curve's name, the points' seconds, a band for each system that has the curve, the grey band's low and high.

    `reference` seconds at the beginning are what the rest is held against; of a video shorter than three times this, a third.
    """

    name: str
    seconds: Array
    systems: dict[str, Band]
    usual: tuple[float, float]
    reference: float

    @property
    def longest(self) -> float:
        """The axis of time ends here, in seconds."""
        return float(self.seconds[-1] + self.seconds[0])

    @property
    def ends(self) -> dict[str, tuple[str, str]]:
        """First and last figure of every system, as people read them."""
        decimals = places([end for band in self.systems.values() for end in (band.first, band.last)])
        return {name: (number(band.first, decimals), number(band.last, decimals)) for name, band in self.systems.items()}

    @property
    def limits(self) -> tuple[float, float]:
        """The axis of values: from zero where nothing is negative, so that a small drift looks small."""
        values = np.concatenate(
            [self.usual, *(part for band in self.systems.values() for part in (band.low, band.high, band.mean))]
        )
        low, high = float(np.nanmin(values)), max(float(np.nanmax(values)), label(self.name).top)
        return (0.0, 1.05 * high or 1.0) if low >= 0 else (low - 0.05 * (high - low), high + 0.05 * (high - low) or 1.0)


def drifts(
    systems: Mapping[str, Sequence[Video]], reference: float, *, names: Sequence[str] = (), bins: int = BINS, color: int = 0
) -> list[Drift]:
    """A panel for each curve that the systems' videos have (or for those of `names`), the known ones first.

    All share an axis of time, as long as the longest video; `reference` is in seconds; systems are coloured from `color` on.
    """
    everything = [video for videos in systems.values() for video in videos]
    curves = {name: None for video in everything for name in video.get("curves") or {}}
    order = [name for name in LABELS if name in curves] + [name for name in curves if name not in LABELS]
    longest = max((float(video.get("seconds") or 0) for video in everything), default=0.0)
    panels = (_drift(systems, name, reference, longest, bins, color) for name in order if not names or name in names)
    return [panel for panel in panels if panel is not None]


def write_png(panels: Sequence[Drift], path: Path) -> None:
    """All panels in one picture, by matplotlib's Agg without pyplot and its state."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), dpi=DPI, layout="constrained")
    for place, panel in enumerate(panels, start=1):
        _draw(figure.add_subplot(rows, columns, place), panel)
    names = {name: band.color for panel in panels for name, band in panel.systems.items()}
    if len(names) > 1:
        lines = [figure.axes[0].plot([], [], **_style(color))[0] for color in names.values()]
        labels = [f" {name}" for name in names]  # a name that starts with "_" would be left out
        legend = figure.legend(lines, labels, loc="outside upper left", ncols=min(len(names), columns), fontsize=9, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a system's name may be in a script that the font lacks
        figure.savefig(picture, format="png", dpi=DPI)
    atomic_write(path, picture.getvalue())


# --- from curves to panels --------------------------------------------------------------------------------------------------


def _drift(
    systems: Mapping[str, Sequence[Video]], name: str, reference: float, longest: float, bins: int, color: int
) -> Drift | None:
    """None where no video has a finite value of this curve."""
    samples = {
        system: [curve for video in videos if (curve := _samples(video, name)) is not None] for system, videos in systems.items()
    }
    curves = [curve for members in samples.values() for curve in members]
    if not curves:
        return None
    longest = max(longest, *(float(seconds[-1]) for seconds, _ in curves), 1e-3)
    bins = max(2, min(bins, max(len(seconds) for seconds, _ in curves)))
    centres = (np.arange(bins) + 0.5) * longest / bins
    bands = {
        system: _band(members, centres, reference, color + place)
        for place, (system, members) in enumerate(samples.items())
        if members
    }
    early = np.concatenate([_end(curve, reference) for curve in curves])
    low, high = np.percentile(early, USUAL)
    return Drift(name, centres, bands, (float(low), float(high)), min(reference, longest / 3))


def _samples(video: Video, name: str) -> tuple[Array, Array] | None:
    """Seconds and finite values of a curve, or None without any. Nulls are left out."""
    curve: Mapping[str, Any] = (video.get("curves") or {}).get(name) or {}
    seconds = np.array(curve.get("seconds") or [], dtype=np.float64)  # null becomes NaN
    values = np.array(curve.get("values") or [], dtype=np.float64)
    count = min(len(seconds), len(values))
    known = np.isfinite(seconds[:count]) & np.isfinite(values[:count])
    return (seconds[:count][known], values[:count][known]) if known.any() else None


def _band(curves: Sequence[tuple[Array, Array]], centres: Array, reference: float, color: int) -> Band:
    stack = np.stack([_on_grid(seconds, values, centres) for seconds, values in curves])
    there = ~np.isnan(stack).all(0)  # numpy warns of the mean of nothing
    mean, low, high = (np.full(len(centres), np.nan) for _ in range(3))
    mean[there] = np.nanmean(stack[:, there], 0)
    low[there], high[there] = np.nanpercentile(stack[:, there], SPREAD, axis=0)
    first, last = ([float(_end(curve, reference, late).mean()) for curve in curves] for late in (False, True))
    return Band(mean, low, high, len(curves), float(np.mean(first)), float(np.mean(last)), color)


def _end(curve: tuple[Array, Array], reference: float, late: bool = False) -> Array:
    """The values of the first (or last) `reference` seconds, of a third in a short video; at least one value."""
    seconds, values = curve
    span = min(reference, seconds[-1] / 3)
    chosen = values[seconds >= seconds[-1] - span] if late else values[seconds < span]
    return chosen if chosen.size else values[:1]


def _on_grid(seconds: Array, values: Array, centres: Array) -> Array:
    """The mean of the values around each centre; between values that lie further apart, a straight line; NaN outside them all."""
    width = 2 * centres[0]
    place = np.clip((seconds / width).astype(int), 0, len(centres) - 1)
    count = np.bincount(place, minlength=len(centres))
    filled = count > 0
    means = np.bincount(place, values, minlength=len(centres))[filled] / count[filled]
    return np.interp(centres, centres[filled], means, left=np.nan, right=np.nan)


# --- SVG --------------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 26
_LINE = 12
"""Height of a line of text, in the picture's units."""


def svg(panel: Drift, marks: Sequence[tuple[float, str]] = ()) -> str:
    """A panel as an `<svg>` element; the page's style sheet colours it (classes `grid`, `usual`, `s0`..`s5`, `mark`, ...).

    `marks` are seconds with what begins there, drawn as upright lines.
    """
    (bottom, top), end = panel.limits, panel.longest
    head = _TOP + _LINE * len(marks)

    def x(second: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * min(max(second / end, 0), 1)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - head) * (value - bottom) / (top - bottom)

    right, floor = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = [_rect("usual", _LEFT, y(panel.usual[1]), right, y(panel.usual[0]))]
    for value in ticks(bottom, top):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    for place, second in enumerate(ticks(0, end, 5)):
        unit = "" if place else " s"
        parts.append(f'<text x="{x(second):.1f}" y="{floor + 16}" text-anchor="middle">{second:g}{unit}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{right}"/>')
    parts.append(f'<path class="until" d="M{x(panel.reference):.1f} {head}V{floor}"/>')
    for band in panel.systems.values():
        style = f"s{band.color % len(COLORS)}" + (" dashed" if band.color // len(COLORS) % 2 else "")
        seconds = [x(second) for second in panel.seconds]
        if band.videos > 1:
            parts.append(f'<path class="band {style}" d="{_area(seconds, [y(v) for v in band.low], [y(v) for v in band.high])}"/>')
        parts.append(f'<path class="line {style}" d="{_line(seconds, [y(v) for v in band.mean])}"/>')
    for row, (second, text) in enumerate(marks):
        parts += _mark(x(second), _TOP + _LINE * row + 4, floor, text)
    described = escape(describe(panel, marks), quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described}">{"".join(parts)}</svg>'


def describe(panel: Drift, marks: Sequence[tuple[float, str]] = ()) -> str:
    """The panel in words, for those who do not see it."""
    known = label(panel.name)
    start = f"{known.title}{f' ({known.unit})' if known.unit else ''} over {panel.longest:.0f} seconds"
    ends = [f"{name}: {first} at first, {last} at the end" for name, (first, last) in panel.ends.items()]
    onsets = [f"{text} from second {second:.1f}" for second, text in marks]
    return ". ".join([start, *ends, *onsets]) + "."


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """At most `most` + 1 round numbers within a range."""
    exact = (high - low) / most
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= exact * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def places(values: Sequence[float]) -> int:
    """Decimals that show three digits of the largest of them (100.0 counts as three); none where all are whole."""
    known = [value for value in values if math.isfinite(value)]
    largest = max(map(abs, known), default=0.0)
    if not largest or all(value == int(value) for value in known):
        return 0
    return min(6, max(0, 3 - math.ceil(math.log10(largest))))


def number(value: float, decimals: int | None = None) -> str:
    """A figure for people: so many decimals, or three digits that count."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    if not value:
        return "0"
    if decimals is None and 0 < abs(value) < 1e-5:
        return f"{value:.1e}".replace("-", "\N{MINUS SIGN}")
    decimals = places([value]) if decimals is None else decimals
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _rect(style: str, left: float, top: float, right: float, bottom: float) -> str:
    height = max(bottom - top, 1.0)
    return f'<rect class="{style}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{height:.1f}"/>'


def _mark(x: float, top: float, floor: float, text: str) -> list[str]:
    """An upright line with its words on the side that has room."""
    side, anchor = (-4, "end") if x > WIDTH / 2 else (4, "start")
    return [
        f'<path class="mark" d="M{x:.1f} {top - 4:.1f}V{floor}"/>',
        f'<text class="mark" x="{x + side:.1f}" y="{top + 4:.1f}" text-anchor="{anchor}">{escape(text)}</text>',
    ]


def _line(xs: Sequence[float], ys: Sequence[float]) -> str:
    """A path through the points; NaN points are left out (they are at the ends only)."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True) if not math.isnan(y))


def _area(xs: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> str:
    return _line([*xs, *reversed(xs)], [*lows, *reversed(highs)]) + "Z"


# --- PNG --------------------------------------------------------------------------------------------------------------------


def _style(color: int) -> dict[str, Any]:
    return {
        "color": COLORS[color % len(COLORS)],
        "linestyle": "--" if color // len(COLORS) % 2 else "-",
        "linewidth": 1.5,
    }


def _draw(axes: Axes, panel: Drift) -> None:
    axes.axhspan(*panel.usual, color=GRID, linewidth=0)
    axes.axvline(panel.reference, color=INK, linewidth=0.6, linestyle=":")
    for band in panel.systems.values():
        style = _style(band.color)
        if band.videos > 1:
            axes.fill_between(panel.seconds, band.low, band.high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(panel.seconds, band.mean, **style)
    axes.set_xlim(0, panel.longest)
    axes.set_ylim(*panel.limits)
    known = label(panel.name)
    axes.set_title(known.title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel("seconds", fontsize=9, color=INK)
    axes.set_ylabel(known.unit, fontsize=8, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


# --- film strips ------------------------------------------------------------------------------------------------------------

STRIP, THUMB, QUALITY = 5, 192, 82
"""Pictures of a film strip; pixels of the longer side at most; JPEG's quality."""


@dataclass(frozen=True)
class Still:
    """A picture of a film strip: how far into the video, its size in pixels, and itself as a data URI."""

    percent: int
    seconds: float
    width: int
    height: int
    source: str


def filmstrip(video: Video, frames: Sequence[Frames] | None = None) -> list[Still]:
    """A video's frames at 0, 25, 50, 75 and 100 %; decoded from its path unless `frames` has them. UserError if that fails."""
    sampler = SheetSampler(int(video.get("frames") or 0), STRIP)
    if frames is None:
        frames = _sampled(sampler, Path(str(video.get("path"))))
    times = [index / float(video.get("fps") or 1) for index in sampler.indices]
    return [
        _still(frame, 100 * place // max(len(times) - 1, 1), time)
        for place, (frame, time) in enumerate(zip(frames, times, strict=False))
    ]


def _sampled(sampler: SheetSampler, path: Path) -> Sequence[Frames]:
    """The sampler's frames, and no more decoding than it takes to find them."""
    if sampler.indices:
        for frame in read_frames(path):
            sampler.write(frame[None])
            if len(sampler.frames) == len(sampler.indices):
                break
    return sampler.frames


def _still(frame: Frames, percent: int, seconds: float) -> Still:
    image = Image.fromarray(frame)
    image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=QUALITY)
    return Still(percent, seconds, *image.size, f"data:image/jpeg;base64,{b64encode(encoded.getvalue()).decode()}")
