"""The evaluation as one page that needs nothing but itself, `report.html`, with `results.json` and
`drift.png`.

The page loads no script, no font and nothing from a network, and its content security policy forbids it to.
Style sheet and curves are inline, film strips are data URIs; only the videos are files of their own, played
by relative links. Whatever comes from outside (prompts, paths, names) is escaped by the template.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.compare import Video, compare, group
from sfpp_cli.evaluation.json_text import json_text, plain
from sfpp_cli.evaluation.report.drawing import write_panels
from sfpp_cli.evaluation.report.drift import drifts
from sfpp_cli.evaluation.report.filmstrip import filmstrip
from sfpp_cli.evaluation.report.labels import plural, printable
from sfpp_cli.evaluation.report.videos import Pictures
from sfpp_cli.evaluation.report.view import Page, page_of, reference_of
from sfpp_cli.files import atomic_write
from sfpp_cli.video import Frames


def write_report(
    result: Mapping[str, Any], out: Path, filmstrips: Mapping[str, Sequence[Frames]] | None = None
) -> Path:
    """Write `report.html`, `results.json` and, where there are curves, `drift.png` into the folder `out`.

    `result` has the schema `sfpp-evaluation/1`; `results.json` is the same with `comparison` (schema
    `sfpp-comparison/1`) added, and null for what is no finite number. The film strips' frames are decoded
    from the videos, unless `filmstrips` has those of a path: [H, W, 3], evenly spaced, first and last
    included. A video that cannot be decoded any more is shown without pictures. Each file appears only when
    it is whole.

    Returns the page's path. UserError where `out` cannot be written.
    """
    videos: list[Video] = list(result.get("videos") or [])
    systems = group(videos)
    compared = compare(systems)
    atomic_write(out / "results.json", json_text(plain({**result, "comparison": compared})) + "\n")
    panels = drifts(systems, reference_of(result))
    if panels:
        write_panels(panels, out / "drift.png")
    given = filmstrips or {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # ffmpeg does the work
        pictures = list(pool.map(lambda video: _pictures(video, given.get(str(video.get("path")))), videos))
    page = page_of(result, systems, compared, panels, pictures, out)
    atomic_write(out / "report.html", _render(page).encode("utf-8", "replace"))
    return out / "report.html"


def _pictures(video: Video, given: Sequence[Frames] | None) -> Pictures:
    try:
        return filmstrip(video, given)
    except UserError as error:
        return str(error)


def _render(page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("sfpp_cli.evaluation.report"),
        autoescape=True,
        finalize=_without_controls,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plural"] = plural
    return environment.get_template("report.html.j2").render(vars(page))


def _without_controls(value: object) -> object:
    """Runs on every value before it is escaped. Markup is our own, and clean."""
    return value if isinstance(value, Markup) else printable(str(value))
