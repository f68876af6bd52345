"""The report as a reader, a browser and a script meet it: what it says, never loads, and survives."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.compare import group
from sfpp_cli.evaluation.report import write_report
from sfpp_cli.evaluation.report.drawing import svg, ticks
from sfpp_cli.evaluation.report.drift import drifts
from sfpp_cli.evaluation.report.filmstrip import filmstrip
from sfpp_cli.evaluation.report.labels import number, places
from sfpp_cli.video.writer import VideoWriter

FPS, FRAMES, SIZE = 8, 24, (32, 16)
SECTIONS = ("faults", "drift", "numbers", "videos", "problems", "reproduce")
VOID = {"meta", "link", "img", "input", "br"}
EVIL = "<script>alert('x')</script> \"&amp;\" </style>"


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, its words; every element must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words += data

    def all(self, tag: str, style: str = "") -> list[dict[str, str]]:
        return [
            found
            for name, found in self.elements
            if name == tag and (not style or style in found.get("class", "").split())
        ]


def clip(path: Path, shade: int = 0) -> Path:
    """Twenty-four grey frames that grow brighter."""
    with VideoWriter(path, SIZE, FPS) as writer:
        for index in range(FRAMES):
            writer.write(np.full((1, SIZE[1], SIZE[0], 3), shade + 8 * index, np.uint8))
    return path


def entry(path: Path | str, **more: Any) -> dict[str, Any]:
    seconds = [(index + 0.5) / 2 for index in range(6)]
    return {
        "path": str(path),
        "prompt": "a grey wall",
        "seed": 3,
        "system": None,
        "fps": FPS,
        "frames": FRAMES,
        "width": SIZE[0],
        "height": SIZE[1],
        "seconds": FRAMES / FPS,
        "metrics": {
            "local_stability": 71.25,
            "luma": 0.5,
            "dynamic_degree_dis": 1,
            "unheard_of": 2.5,
            "norepeat": None,
        },
        "curves": {
            "luma": {"seconds": seconds, "values": [0.4, 0.4, 0.5, 0.6, 0.7, 0.8]},
            "flow_mean": {"seconds": seconds, "values": [None, 1.0, 1.0, 1.5, 1.0, 1.0]},
        },
        "clips": [{"start_frame": 0, "end_frame": 16}],
        "verdicts": {
            "over_exposure": {"fired": True, "onset_seconds": 1.25, "largest_way": 0.61},
            "flicker": {"fired": False, "onset_seconds": None, "sudden_changes": 0},
        },
        **more,
    }


def result(*videos: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "schema": "sfpp-evaluation/1",
        "versions": {"sfpp": "0.1.0"},
        "parameters": {"reference_seconds": 1.0, "stability_way": [0.1, 0.6]},
        "videos": list(videos),
        "failed": [],
        "skipped": [],
        **more,
    }


def check(page: Page) -> None:
    """What holds for every report."""
    assert not page.open
    sections = [found["id"] for found in page.all("section")]
    assert sections == [*(["baseline"] if "baseline" in sections else []), *SECTIONS]
    identifiers = [found["id"] for _, found in page.elements if "id" in found]
    assert len(identifiers) == len(set(identifiers))
    targets = [found["href"][1:] for found in page.all("a") if found["href"].startswith("#")]
    assert set(targets) <= set(identifiers)
    assert not re.search(r"https?://|[^:]//[a-z]", page.source, re.IGNORECASE)
    assert page.all("script") == [{}], "one, inline"
    [script] = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [found["content"] for found in page.all("meta") if "http-equiv" in found]
    assert policy.split("; ")[:3] == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    assert not re.search(r"@import|url\(|javascript:", page.source)
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    for name in ("src", "href", "poster"):
        for _, found in page.elements:
            assert re.match(r"data:|#|[^:/]+(/|$)", found.get(name, "#"))
    for found in page.all("svg"):
        assert found.get("aria-hidden") or (found["role"] == "img" and found["aria-label"])
    assert all(found.get("scope") for found in page.all("th"))
    assert all(found["alt"] for found in page.all("img"))
    [language] = page.all("html")
    assert language["lang"] == "en"


def test_one_video_with_everything(tmp_path: Path) -> None:
    out = tmp_path / "report"
    video = clip(tmp_path / "grey wall #1.mp4")
    report = result(
        entry(video), command=["sfpp", "evaluate", "grey wall #1.mp4"], skipped=["clip_score: no CLIP model"]
    )
    path = write_report(report, out)
    assert path == out / "report.html"
    assert sorted(os.listdir(out)) == ["drift.png", "report.html", "results.json"]
    page = Page(path)
    check(page)
    for words in (
        "sfpp evaluation: 1 video \N{MIDDLE DOT} 1 prompt \N{MIDDLE DOT} 3\N{NO-BREAK SPACE}s",
        "Over-exposure from 1.2 s. Local stability 71.2 of 100.",
        "Not found: flicker.",
        "a grey wall",
        "seed 3",
    ):
        assert words in page.words
    for words in (
        "71.2",
        "Unheard of",
        "sfpp evaluate 'grey wall #1.mp4'",
        "[0.1, 0.6]",
        "clip_score: no CLIP model",
    ):
        assert words in page.words
    [player] = page.all("video")
    assert (player["src"], player["preload"]) == ("../grey%20wall%20%231.mp4", "none")
    assert "controls" in player
    assert "outside this folder" in page.words
    pictures = page.all("img")
    assert len(pictures) == 10, "in the answer, and with the video"
    assert all(found["src"].startswith("data:image/jpeg;base64,") for found in pictures)
    assert [found["alt"] for found in pictures[:5]] == [
        "Frame at 0.0 s, first",
        "Frame at 0.2 s, before",
        "Frame at 1.2 s, onset",
        "Frame at 2.0 s, after",
        "Frame at 2.9 s, last",
    ]
    assert page.source.count("over-exposure</text>") == 1
    with Image.open(out / "drift.png") as image:
        assert image.format == "PNG"


def test_results_are_json_with_the_comparison(tmp_path: Path) -> None:
    video = entry("gone.mp4", metrics={"luma": math.nan, "score": np.float32(0.5)})
    write_report(result(video), tmp_path)
    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert found["videos"][0]["metrics"] == {"luma": None, "score": 0.5}
    assert found["comparison"]["systems"]["all videos"]["metrics"]["score"]["mean"] == 0.5
    assert found["schema"] == "sfpp-evaluation/1"


def test_two_systems_are_compared_and_paired(tmp_path: Path) -> None:
    videos = [
        entry(
            f"{system}{index}.mp4",
            system=system,
            prompt=f"p{index}",
            metrics={"local_stability": base + 3.0 * index},
        )
        for system, base in (("old", 50.5), ("new", 60.5))
        for index in range(3)
    ]
    page = Page(write_report(result(*videos), tmp_path))
    check(page)
    for words in (
        "6 videos \N{MIDDLE DOT} 2 systems \N{MIDDLE DOT} 3 prompts",
        "Best: new Fails: old from 1.2\N{NO-BREAK SPACE}s, new from 1.2\N{NO-BREAK SPACE}s",
        "Local stability of new: 63.5 (95 % interval 60.5 to 66.5) of 100; 10 (10 to 10) above old.",
        "3 of 3 videos with a fault, first at 1.2 s (median)",
        "\N{MINUS SIGN}10 against new",
        "53.5",
        "Paired difference: new minus old",
    ):
        assert words in page.words
    assert [found["href"] for found in page.all("a") if found["href"].startswith("#video")][:2] == [
        "#video-5",
        "#video-2",
    ], "of those that fail, the one in the middle"
    assert len(page.all("svg", "whisker")) == 2 + 2
    assert len(page.all("article")) == 6
    assert len(page.all("figure")) == 2 + 6 * 2  # curves of the systems, and of every video


def test_every_system_is_in_the_answer_and_chance_is_called_so(tmp_path: Path) -> None:
    silent = {"flicker": {"fired": False, "onset_seconds": None}}
    scores = {"fine": [90.0, 93.0, 96.0], "level": [91.0, 92.0, 95.0], "bad": [40.0, 60.0, 50.0]}
    videos = [
        entry(
            f"{system}{index}.mp4",
            system=system,
            prompt=f"p{index}",
            metrics={"local_stability": score},
            verdicts=entry("")["verdicts"] if system == "bad" else silent,
        )
        for system, members in scores.items()
        for index, score in enumerate(members)
    ]
    page = Page(write_report(result(*videos), tmp_path))
    check(page)
    for words in (
        "Best: fine and level, too close to call Fails: bad from 1.2\N{NO-BREAK SPACE}s",
        "0.33 (\N{MINUS SIGN}1.00 to 1.00) above level",
        "above bad.",
        "The lead over level could be chance.",
        "No fault in 3 videos",
        "Found in none: flicker.",
    ):
        assert words in page.words
    alike = [entry(f"{name}.mp4", system=name, metrics={"local_stability": 50.0}) for name in "ab"]
    page = Page(write_report(result(*alike), tmp_path))
    assert "No clear best of 2 systems" in page.words
    assert "is not known to be more than chance" in page.words


def test_of_one_system_without_a_fault_its_stability_is_said(tmp_path: Path) -> None:
    scores = (90.0, 93.0, 96.0)
    silent = {"flicker": {"fired": False, "onset_seconds": None}}
    videos = [
        entry(f"{score}.mp4", prompt=str(score), metrics={"local_stability": score}, verdicts=silent)
        for score in scores
    ]
    page = Page(write_report(result(*videos), tmp_path))
    assert "No fault found in 3 videos" in page.words
    assert "Local stability 93 (95 % interval 90 to 96) of 100." in page.words


def test_many_systems_share_colours_by_dashes(tmp_path: Path) -> None:
    videos = [
        entry(f"{index}.mp4", system=f"system {index}", prompt=str(index), curves={}) for index in range(8)
    ]
    videos[7]["curves"] = entry("")["curves"]
    page = Page(write_report(result(*videos), tmp_path))
    check(page)
    assert "8 videos \N{MIDDLE DOT} 8 systems \N{MIDDLE DOT} 8 prompts" in page.words
    assert page.words.count("No prompt in common") == 28
    assert "4 others are below." in page.words
    assert page.all("path", "dashed")
    assert not page.all("path", "band")


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    name = EVIL.replace("/", "\u2215")
    video = entry(
        clip(tmp_path / f"{name}.mp4"),
        prompt=EVIL,
        system=EVIL,
        seed=EVIL,
        metrics={EVIL: 1.5},
        verdicts={EVIL: {"fired": True, "onset_seconds": 1.0, EVIL: EVIL}},
        curves={EVIL: {"seconds": [0.5, 1.5], "values": [1, 2]}},
    )
    bad = result(
        video,
        entry("x.mp4"),
        failed=[{"path": EVIL, "error": EVIL}],
        skipped=[EVIL],
        command=EVIL,
        versions={EVIL: EVIL},
    )
    page = Page(write_report(bad, tmp_path))
    check(page)
    assert page.words.count("<script>alert('x')</script>") >= 10
    assert page.source.count("<style>") == page.source.count("</style>") == 1


def test_names_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    video = entry("\udcff\x00\x1b.mp4", prompt="\ud800 \x07 \u202e", system="_$x^$ \u96e8 \x0b")
    path = write_report(result(video, entry("other.mp4", system="other")), tmp_path)
    page = Page(path)
    check(page)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", page.source)


def test_scenes_are_drawn_and_told(tmp_path: Path) -> None:
    scenes = [
        {"at": 0.0, "prompt": "a wall", "how": None},
        {"at": 1.5, "prompt": EVIL, "how": "recache"},
    ]
    alignment = {"mean": 20.0, "clips": [], "scenes": [24.5, None]}
    video = entry("gone.mp4", scenes=scenes, models={"clip_text_alignment": alignment})
    page = Page(write_report(result(video), tmp_path))
    check(page)
    assert len(page.all("path", "scene")) == 2, "on both curves"
    assert "scene 2 from second 1.5" in page.all("svg")[0]["aria-label"]
    assert "from 0 s, text alignment 24.5 a wall" in page.words
    assert f"from 1.5 s, recache, text alignment \N{EN DASH} {EVIL}" in page.words
    two = Page(write_report(result(video, entry("other.mp4")), tmp_path))
    assert len(two.all("path", "scene")) == 2, "on its own curves; the other has no scenes"


def test_likeness_by_distance_has_an_axis_of_its_own(tmp_path: Path) -> None:
    def curve(end: float, descriptor: str = "colour layout") -> dict[str, Any]:
        return {"descriptor": descriptor, "seconds": [1.0, 2.0, 3.0], "values": [1.0, 0.9, end]}

    videos = [
        entry("a.mp4", system="holds", similarity_by_distance=curve(0.9)),
        entry(
            "b.mp4",
            system="drifts",
            similarity_by_distance=curve(0.2),
            models={"similarity_by_distance": curve(0.4, "some/dino")},
        ),
    ]
    page = Page(write_report(result(*videos), tmp_path))
    check(page)
    panels = [found["aria-label"] for found in page.all("svg") if "aria-label" in found]
    assert "holds: 1.00 at first, 0.900 at the end. drifts: 1.00 at first, 0.200 at the end." in panels[
        2
    ].replace("1.000", "1.00")
    assert "drifts: 1.00" in panels[3].replace("1.000", "1.00")
    assert "so far apart, colour layout" in page.words
    assert "so far apart, some/dino" in page.words
    assert len(page.all("rect", "usual")) == len(page.all("path", "until")) == 2 + 2 * 2


def test_a_baseline_is_told(tmp_path: Path) -> None:
    from sfpp_cli.evaluation.baseline import against, read_baseline

    def at(score: float) -> dict[str, Any]:
        return result(
            *(entry(f"{i}.mp4", prompt=f"p{i}", metrics={"local_stability": score + i}) for i in range(3))
        )

    write_report(at(50.5), tmp_path / "before")
    now = at(60.5)
    now["baseline"] = against(now, read_baseline(tmp_path / "before"))
    page = Page(write_report(now, tmp_path / "now"))
    check(page)
    for words in (
        "Since the baseline",
        "before/results.json",
        "all videos, now minus before",
        "3 of 3",
        f"Local stability since {tmp_path}/before/results.json: all videos +10 (+10 to +10).",
    ):
        assert words in page.words


def test_nothing_but_failures(tmp_path: Path) -> None:
    page = Page(write_report(result(failed=[{"path": "a.mp4", "error": "a.mp4 holds no picture"}]), tmp_path))
    check(page)
    for words in (
        "No video measured",
        "1 input could not be measured",
        "a.mp4 holds no picture",
        "There are no curves",
    ):
        assert words in page.words
    assert sorted(os.listdir(tmp_path)) == ["report.html", "results.json"]
    check(Page(write_report({}, tmp_path)))


def test_bare_videos_and_odd_curves(tmp_path: Path) -> None:
    odd = {
        "empty": {"seconds": [], "values": []},
        "nothing": {"seconds": [0.5], "values": [None]},
        "single": {"seconds": [0.0], "values": [-2.0]},
        "flat": {"seconds": [0.5, 1.5], "values": [0, 0]},
    }
    page = Page(
        write_report(
            result({"path": "bare.mp4"}, entry("odd.mp4", curves=odd, metrics={}, verdicts={})), tmp_path
        )
    )
    check(page)
    assert "2 videos \N{MIDDLE DOT} 1 prompt \N{MIDDLE DOT} 0 to 3\N{NO-BREAK SPACE}s" in page.words
    assert "Nothing was judged." in page.words
    assert [found["aria-label"].split(" over ")[0] for found in page.all("svg")] == ["Single", "Flat"]


def test_where_the_file_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    inside, animation, frames = clip(out / "a:b.webm"), clip(out / "c.gif"), tmp_path / "d"
    clip(tmp_path / "d.png")
    (tmp_path / "broken.mp4").write_text("no video")
    paths = [inside, animation, frames, tmp_path / "broken.mp4", tmp_path / "gone.mp4"]
    page = Page(write_report(result(*map(entry, paths)), out))
    check(page)
    assert [found["src"] for found in page.all("video")] == ["a%3Ab.webm", "../broken.mp4"]
    assert any(found["href"] == "c.gif" for found in page.all("a"))
    assert "A directory of frames" in page.words
    assert "The file was gone" in page.words
    assert page.words.count("No pictures") == 2
    assert len(page.all("ol", "strip")) == 3 + 1, "one of them in the answer, too"
    assert page.words.count("outside this folder") == 1


def test_a_strip_shows_where_a_fault_begins(tmp_path: Path) -> None:
    path = clip(tmp_path / "short.mp4")

    def strip(**verdicts: float | None) -> list[tuple[str, float]]:
        found = {name: {"fired": True, "onset_seconds": onset} for name, onset in verdicts.items()}
        return [(still.words, still.seconds) for still in filmstrip(entry(path, verdicts=found))]

    slow = [("first", 0), ("before", 0.5), ("onset", 1.5), ("after", 2.125), ("last", 2.875)]
    assert strip(noise=2.0, blur=1.5) == slow
    sudden = [("first", 0), ("before", 1.375), ("onset", 1.5), ("after", 2.0), ("last", 2.875)]
    assert strip(flicker=1.5, blur=1.6) == sudden
    assert strip(unheard_of=0.0) == [("onset", 0), ("after", 1.375), ("last", 2.875)]
    even = [("", 0), ("", 0.625), ("", 1.375), ("", 2.125), ("", 2.875)]
    assert strip() == strip(blur=None) == even
    assert len(filmstrip(entry(path, frames=FRAMES + 9, verdicts={}))) == 3, "the others are not there"


def test_only_those_that_fired_can_be_shown(tmp_path: Path) -> None:
    silent = entry("b.mp4", verdicts={"flicker": {"fired": False, "onset_seconds": None}})
    page = Page(write_report(result(entry("a.mp4"), silent), tmp_path))
    assert "1 of 2 videos show a fault" in page.words
    assert "A fault in 1 of 2 videos, first at 1.2 s (median): over-exposure in 1." in page.words
    assert [found["class"] for found in page.all("article")] == ["video fired", "video silent"]
    [choice] = page.all("input")
    assert choice["id"] == "only"
    page = Page(write_report(result(silent), tmp_path))
    assert not page.all("input")
    assert "No fault found" in page.words
    assert "No fault was found in any video." in page.words


def test_the_table_of_videos_begins_with_the_worst(tmp_path: Path) -> None:
    def video(name: str, score: float | None, onset: float | None) -> dict[str, Any]:
        verdicts = {"blur": {"fired": onset is not None, "onset_seconds": onset}}
        return entry(f"{name}.mp4", metrics={"local_stability": score}, verdicts=verdicts)

    page = Page(
        write_report(
            result(
                video("fine", 99.0, None),
                video("bad", 70.0, 2.0),
                video("worst", 9.5, 0.0),
                video("odd", None, None),
            ),
            tmp_path,
        )
    )
    keys = [found["data-key"] for found in page.all("th") if "data-key" in found]
    assert keys == ["worst.mp4", "bad.mp4", "fine.mp4", "odd.mp4"]
    cells = [found["data-key"] for found in page.all("td") if "data-key" in found]
    assert cells == ["9.5", "0.0", "70.0", "2.0", "99.0", "", "", ""]


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(result(), tmp_path / "file" / "report")


def test_curves_of_different_lengths_share_an_axis() -> None:
    short = entry("s.mp4", seconds=2.0, curves={"luma": {"seconds": [0.5, 1.5], "values": [0.0, 0.2]}})
    long = entry(
        "l.mp4",
        seconds=4.0,
        curves={"luma": {"seconds": [0.5, 1.5, 2.5, 3.5], "values": [0.4, 0.4, 0.4, 0.8]}},
    )
    [panel] = drifts(group([short, long]), 1.0)
    band = panel.systems["all videos"]
    assert panel.seconds == pytest.approx([0.5, 1.5, 2.5, 3.5])
    assert band.mean == pytest.approx([0.2, 0.3, 0.4, 0.8])
    assert band.low == pytest.approx([0.04, 0.22, 0.4, 0.8])
    assert (band.first, band.last) == pytest.approx((0.2, 0.4))  # a short video's reference is a third of it
    assert panel.usual == pytest.approx((0.02, 0.38))
    assert panel.longest == 4.0
    picture = svg(panel, [(3.0, "<b>")])
    described = "Luma (mean, 0 to 1) over 4 seconds. all videos: 0.200 at first, 0.400 at the end. &lt;b&gt;"
    assert f'aria-label="{described}' in picture
    assert "<b>" not in picture


def test_long_curves_are_thinned_and_sparse_ones_joined() -> None:
    dense = {"seconds": [i / 16 for i in range(16000)], "values": [float(i) for i in range(16000)]}
    sparse = {"seconds": [0.0, 500.0, 999.0], "values": [0.0, 500.0, 999.0]}
    video = entry("v.mp4", seconds=1000.0, curves={"dense": dense, "sparse": sparse})
    panels = drifts(group([video, entry("w.mp4", seconds=1000.0, curves={"sparse": dense})]), 5.0)
    means = {panel.name: panel.systems["all videos"].mean for panel in panels}
    assert len(means["dense"]) == 160
    assert means["dense"] == pytest.approx(16 * panels[0].seconds, abs=1)
    [joined] = drifts(group([{**video, "curves": {"sparse": sparse, "other": dense}}]), 5.0, names=["sparse"])
    assert joined.systems["all videos"].mean == pytest.approx(joined.seconds, abs=200)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.0, "3"),
        (-0.25, "\u22120.250"),
        (88.64, "88.6"),
        (1234.5, "1,234"),
        (0.00187, "0.00187"),
        (2e-7, "2.0e\u221207"),
    ],
)
def test_numbers_show_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_numbers_of_a_row_share_their_decimals() -> None:
    assert (places([25, 100]), places([0.5, 100.0]), places([0.004, 0.5]), places([]), places([0.0])) == (
        0,
        1,
        3,
        0,
        0,
    )
    assert number(-0.0001, 2) == "0.00"
    assert number(math.nan) == "\u2013"


@pytest.mark.parametrize(("low", "high"), [(0, 1.05), (0, 30), (-0.3, 0.7), (0, 1e-9), (0, 250.0)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert low <= found[0] < found[-1] <= high
