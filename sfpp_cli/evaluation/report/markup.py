"""What every section of the page is made of: escaped text, numbers, names, lists, boxes that scroll."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from sfpp_cli.evaluation.compare import Video
from sfpp_cli.evaluation.json_text import plain
from sfpp_cli.evaluation.report.labels import LABELS, label, number
from sfpp_cli.figures import COLORS

VERDICTS = {
    "over_exposure": ("Over-exposure", ("luma",)),
    "darkening": ("Darkening", ("luma",)),
    "stagnation": ("Stagnation", ("flow_mean",)),
    "repetition": ("Repetition", ()),
    "flicker": ("Flicker", ("luma", "flow_mean")),
    "scene_change": ("Scene change", ("flow_mean", "luma")),
}


ARROW, DOT, DASH = "\N{RIGHTWARDS ARROW}", "\N{MIDDLE DOT}", "\N{EN DASH}"


def listing(facts: Mapping[str, str]) -> str:
    """Names and values, the values as HTML."""
    shown = "".join(f"<div><dt>{html(name)}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="numbers">{shown}</dl>' if shown else ""


def html(value: object) -> str:
    """Text as HTML, in attributes too; control characters, which HTML forbids, become U+FFFD."""
    return escape(
        re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", str(value)), quote=True
    )


def written(value: object) -> str:
    """Any JSON as HTML, a number to about three digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return DASH
    if isinstance(value, float | np.floating):
        return number(float(value))
    return html(value if isinstance(value, str | int) else json.dumps(plain(value), ensure_ascii=False))


def fired_verdicts(video: Video) -> dict[str, Mapping[str, Any]]:
    return {
        name: video["verdicts"][name]
        for name in verdict_names([video])
        if video["verdicts"][name].get("fired")
    }


def verdict_names(holders: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the verdicts that any of them has, the known ones first."""
    names = {name: None for holder in holders for name in holder.get("verdicts") or {}}
    return [name for name in VERDICTS if name in names] + [name for name in names if name not in VERDICTS]


def verdict_title(name: str) -> str:
    return VERDICTS[name][0] if name in VERDICTS else label(name).title


def ordered(metrics: Iterable[str]) -> list[str]:
    """Known metrics in the order of their labels, others behind by name."""
    places = {name: place for place, name in enumerate(LABELS)}
    return sorted(metrics, key=lambda name: (places.get(name, len(places)), name))


def row_head(metric: str) -> str:
    known = label(metric)
    return f'<th scope="row">{html(known.title)}{f"<small>{html(known.unit)}</small>" if known.unit else ""}</th>'


def signed(value: float, decimals: int) -> str:
    return ("+" if round(value, decimals) > 0 else "") + number(value, decimals)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def color_class(color: int) -> str:
    return f"s{color % len(COLORS)}" + (" dashed" if color // len(COLORS) % 2 else "")


def swatch(color: int) -> str:
    return f'<i class="swatch {color_class(color)}" aria-hidden="true"></i>'


def scroll_box(name: str, content: str) -> str:
    """A box that scrolls sideways by itself, also by keyboard, so that the page never does."""
    return f'<div class="scroll" role="region" aria-label="{html(name)}" tabindex="0">{content}</div>'
