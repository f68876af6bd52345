"""The report in a real browser: at two widths, in the dark, in print, by keyboard, without its script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser

from sfpp_cli.evaluation.report import write_report
from sfpp_cli.evaluation.report.labels import FAULTS
from sfpp_cli.video.writer import VideoWriter

pytestmark = pytest.mark.browser

FPS, FRAMES, SIZE = 8, 96, (160, 96)
SYSTEMS = ("ode", "self-forcing", "self-forcing-plus-plus")


def verdicts(fired: dict[str, float]) -> dict[str, Any]:
    return {name: {"fired": name in fired, "onset_seconds": fired.get(name)} for name in FAULTS}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three systems of three videos; the first fails in most ways, the second once."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    ground = rng.uniform(30, 190, (12, 20, 3)).repeat(8, 0).repeat(8, 1)
    seconds = [(index + 0.5) / 4 for index in range(48)]
    videos = []
    for place, system in enumerate(SYSTEMS):
        for number in range(3):
            path = folder / f"{system}-{number}.mp4"
            worse = np.maximum(np.arange(FRAMES) - 40, 0) * (2 - place) / FRAMES
            with VideoWriter(path, SIZE, FPS) as writer:
                for frame in range(FRAMES):
                    picture = np.clip(ground * (1 + worse[frame]), 0, 255)
                    picture[30:60, frame : frame + 30] = (250, 60, 40)
                    writer.write(picture.round().astype(np.uint8)[None])
            names = (
                list(FAULTS)[: 8 - number]
                if place == 0
                else ["darkening"]
                if (place, number) == (1, 1)
                else []
            )
            score = (60.0, 93.0, 98.5)[place] + number / 3
            drift = [0.4 + 0.02 * max(second - 5, 0) * (2 - place) for second in seconds]
            likeness = [1 - 0.05 * second * (2 - place) / 2 for second in seconds]
            videos.append(
                {
                    "path": str(path),
                    "prompt": f"a red square sliding over wall number {number}, in one long take",
                    "seed": 0,
                    "system": system,
                    "fps": FPS,
                    "frames": FRAMES,
                    "width": SIZE[0],
                    "height": SIZE[1],
                    "seconds": FRAMES / FPS,
                    "scenes": [{"at": at, "prompt": f"part {at}", "how": "recache"} for at in (0.0, 6.0)],
                    "metrics": {
                        "local_stability": score,
                        "flow_mean": 1.0,
                        "luma_drift": 0.1,
                        "clipped_drift": 0.000077,
                    },
                    "curves": {
                        "local_stability": {"seconds": seconds, "values": [score] * 48},
                        "luma": {"seconds": seconds, "values": drift},
                    },
                    "similarity_by_distance": {
                        "descriptor": "colour layout",
                        "seconds": seconds,
                        "values": likeness,
                    },
                    "verdicts": verdicts({name: 5.0 + at for at, name in enumerate(names)}),
                }
            )
    parameters = {"reference_seconds": 3.0}
    result = {"schema": "sfpp-evaluation/1", "parameters": parameters, "versions": {}, "videos": videos}
    return write_report(result, folder)


OVERFLOWING = """
[...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !element.closest(".scroll, svg");
}).map(element => element.outerHTML.slice(0, 120))
"""
BROKEN = """
[...document.querySelectorAll(".video .numbers dd")].filter(element => {
  const content = document.createRange();
  content.selectNodeContents(element);
  return content.getClientRects().length > 1;
}).map(element => element.textContent)
"""
ROWS = """[...document.querySelectorAll("table.sortable tbody tr")].map(row => row.cells[0].dataset.key)"""


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, False), (390, True)])
def test_nothing_is_wider_than_the_screen(
    browser: Browser, report: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    tab = browser.open(report.as_uri(), width, 844 if width < 600 else 900, dark=dark)
    assert tab.run("innerWidth") == width
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(OVERFLOWING) == []
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(19, 20, 23)" if dark else "rgb(251, 251, 249)")
    answer = tab.run("document.querySelector('.rank').getBoundingClientRect().top")
    assert answer < tab.run("innerHeight"), "the best system is seen without scrolling"
    if width < 600:
        for name in ("sortable", "systems", "stacked:not(.systems)"):
            table = f"document.querySelector('table.{name}')"
            assert tab.run(f"{table}.scrollWidth <= {table}.parentElement.clientWidth"), name
        table = "document.querySelector('table.sortable')"
        assert tab.run(f"getComputedStyle({table}.querySelector('td.silent')).display") == "none"
    assert tab.errors == []
    for whole in (False, True):
        picture = tab.picture(tmp_path / f"{width}-{whole}.png", whole=whole)
        assert picture.stat().st_size > 10_000
    tab.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert tab.run(OVERFLOWING) == []
    assert tab.run(BROKEN) == [], "no number goes on in a second line"
    tab.close()


def test_the_table_is_sorted_by_keyboard(browser: Browser, report: Path) -> None:
    tab = browser.open(report.as_uri())
    worst = tab.run(ROWS)
    assert worst[0] == "ode-0.mp4"
    for _ in range(60):
        tab.press("Tab")
        if tab.run("document.activeElement.textContent") == "Stability":
            break
    tab.press("Enter")
    assert tab.run("document.querySelector('[aria-sort]').textContent") == "Stability"
    assert tab.run(ROWS) == [f"{system}-{number}.mp4" for system in SYSTEMS for number in range(3)]
    tab.press("Space")
    assert tab.run("document.querySelector('[aria-sort]').ariaSort") == "descending"
    assert tab.run(ROWS)[0] == "self-forcing-plus-plus-2.mp4"
    tab.run(
        "[...document.querySelectorAll('.sortable button')].find(b => b.textContent == 'Darkening').click()"
    )
    fired = tab.run(ROWS)[:4]
    assert fired[0] == "self-forcing-1.mp4"
    assert {name[:3] for name in fired[1:]} == {"ode"}, "what is empty comes last"
    assert tab.errors == []
    tab.close()


def test_without_its_script_and_in_print_all_is_there(browser: Browser, report: Path, tmp_path: Path) -> None:
    bare = browser.open(report.as_uri(), 794, script=False)  # as wide as A4
    assert bare.run("document.querySelectorAll('.sortable button').length") == 0
    words = bare.run("document.body.innerText")
    for needed in (
        "Best: self-forcing-plus-plus",
        "Fails: ode from 5.0\N{NO-BREAK SPACE}s",
        "3 of 3 videos with a fault",
    ):
        assert needed in words
    assert len(bare.run(ROWS)) == 9
    bare.look(dark=True, media="print")
    assert bare.run("document.documentElement.scrollWidth") <= 794
    assert bare.run("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 249)"
    assert bare.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    paper = bare.call("Page.printToPDF", printBackground=True)["data"]
    assert len(paper) > 10_000
    bare.close()
