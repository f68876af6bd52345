"""The evaluation as a page that needs nothing but itself, with its figures as PNG and JSON.

The page loads no font and nothing from a network, and its content security policy forbids it to. Style sheet,
curves and a script that sorts a table are inline (the policy knows the script by its hash, and the page can
be read without it), film strips are data URIs; only the videos are files of their own, played by relative
links. Whatever comes from outside (prompts, paths, names) is escaped by the template.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.compare import Video, compare, finite, group
from sfpp_cli.evaluation.json_text import json_text, plain
from sfpp_cli.evaluation.report import labels
from sfpp_cli.evaluation.report.drawing import color_class, svg, write_panels
from sfpp_cli.evaluation.report.drift import distances, drifts
from sfpp_cli.evaluation.report.filmstrip import filmstrip
from sfpp_cli.evaluation.report.videos import Pictures, video_cards
from sfpp_cli.evaluation.report.view import page_of
from sfpp_cli.files import atomic_write

REFERENCE = 5.0
"""Seconds that a video is measured against, where the result's parameters do not say."""
_FILTERS = (
    *(
        labels.ends,
        labels.interval,
        labels.label,
        labels.number,
        labels.ordered,
        labels.places,
        labels.plural,
    ),
    *(
        labels.fault,
        labels.onset_of,
        labels.seen_faults,
        labels.signed,
        labels.verdict_state,
        labels.written,
        color_class,
        svg,
    ),
)
"""What the template formats values with."""


def write_report(result: Mapping[str, Any], out: Path) -> Path:
    """Write `report.html`, `results.json` and, where there are curves, `drift.png` into the folder `out`.

    `result` has the schema `sfpp-evaluation/1`; `results.json` is the same with `comparison` (schema
    `sfpp-comparison/1`) added, and null for what is no finite number. The film strips' frames are decoded
    from the videos; one that cannot be decoded any more is shown without pictures. Each file appears only
    when it is whole. Returns the page's path. UserError where `out` cannot be written.
    """
    videos: list[Video] = list(result.get("videos") or [])
    systems = group(videos)
    compared = compare(systems)
    atomic_write(out / "results.json", json_text(plain({**result, "comparison": compared})) + "\n")
    reference = finite((result.get("parameters") or {}).get("reference_seconds")) or REFERENCE
    usual = (result.get("reference") or {}).get("usual")
    panels = drifts(systems, reference, usual=usual) + distances(systems)
    if panels:
        write_panels(panels, out / "drift.png")
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # ffmpeg does the work
        pictures = list(pool.map(_pictures, videos))
    cards = video_cards(systems, videos, pictures, (reference, usual), out)
    html = _render(page_of(result, systems, compared, panels, cards))
    atomic_write(out / "report.html", html.encode("utf-8", "replace"))
    return out / "report.html"


def _pictures(video: Video) -> Pictures:
    try:
        return filmstrip(video)
    except UserError as error:
        return str(error)


def _render(page: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("sfpp_cli.evaluation.report"),
        autoescape=True,
        finalize=_without_controls,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in _FILTERS}
    script = environment.get_template("report.js").render()
    digest = b64encode(sha256(script.encode()).digest()).decode()
    known = {"script": Markup(script), "script_hash": f"sha256-{digest}"}
    return environment.get_template("report.html.j2").render({**page, **known})


def _without_controls(value: object) -> object:
    """Runs on every value before it is escaped. Markup is our own, and clean."""
    return value if isinstance(value, Markup) else labels.printable(str(value))
