"""From flags to requests: lengths, sizes, names, and what is refused; no weights are read."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from embedded import is_example, picture_size

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.core.geometry import Timeline
from sfpp_cli.errors import UserError
from sfpp_cli.generation.outputs import check_outputs
from sfpp_cli.generation.requests import GenerateOptions, parse_seeds, plan
from sfpp_cli.models.layout import Layout

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model() -> Layout:
    """16 frames a second."""
    return Layout(DEFAULT_MODEL)


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, sfpp_cli.generation.requests; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, 160),
        ({"seconds": 1.5}, 24),
        ({"seconds": 1e-9}, 1),
        ({"frames": 7}, 7),
        ({"seconds": 2.0, "fps": 8}, 16),
    ],
)
def test_lengths(model: Layout, options: dict[str, Any], frames: int) -> None:
    (request,) = plan(GenerateOptions(prompt=PROMPT, **options), model)
    assert request.frames == frames


def test_without_a_flag_it_is_the_models_example(model: Layout) -> None:
    (request,) = plan(GenerateOptions(), model)
    assert (request.prompt, request.seed) == (model.settings.prompt, 0)
    assert (request.width, request.height, request.fps) == (*picture_size(), 16)
    assert is_example(request.out.stem)
    assert request.out.suffix == ".mp4"


def test_every_prompt_meets_every_seed_unless_its_line_has_one(model: Layout, tmp_path: Path) -> None:
    lines = [{"prompt": "a", "seconds": 1}, {"prompt": "b", "seed": 5, "out": "x/b.gif"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = GenerateOptions(prompts=tmp_path / "p.jsonl", seeds="1,3", frames=4, out_dir=Path("v"))
    requests = plan(options, model)
    assert [(r.prompt, r.seed, r.frames) for r in requests] == [("a", 1, 16), ("a", 3, 16), ("b", 5, 4)]
    assert [str(r.out) for r in requests] == ["v/1-a-1.mp4", "v/2-a-3.mp4", "v/x/b.gif"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "\udcff"}, "not UTF-8"),
        ({"prompts": Path("p.txt")}, "exclude each other"),
        ({"seconds": 1.0, "frames": 3}, "give one of them"),
        ({"seconds": 0.0}, "--seconds 0: it takes a length above 0"),
        ({"seconds": float("nan")}, "--seconds nan"),
        ({"seconds": float("inf")}, "--seconds inf"),
        ({"frames": 0}, "--frames 0: it takes from 1 to"),
        ({"fps": 0.0}, "--fps 0"),
        ({"fps": 241.0}, "from 0.01 to 240"),
        ({"fps": float("nan")}, "--fps nan"),
        ({"size": "big"}, "write it as WIDTHxHEIGHT, such as "),
        ({"size": "0x64"}, "multiple of 16"),
        ({"size": "70x90"}, "the nearest is 64x96"),
        ({"seeds": "5-2"}, "--seeds 5-2"),
        ({"seeds": "1,x"}, "--seeds 1,x"),
        ({"seeds": "1-3", "out": Path("v.mp4")}, "3 were asked for: use --out-dir"),
        ({"out": Path("v.mp4"), "out_dir": Path("v")}, "give one of them"),
        ({"out": Path("v.avi")}, "unknown kind of video '.avi'"),
    ],
)
def test_what_cannot_be_is_refused(model: Layout, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(GenerateOptions(**{"prompt": PROMPT, **options}), model)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_that_fits(model: Layout) -> None:
    (request,) = plan(GenerateOptions(prompt=PROMPT, size="96X48"), model)
    assert (request.width, request.height) == (96, 48)


def test_videos_may_not_share_what_lies_beside_them(model: Layout, tmp_path: Path) -> None:
    (request,) = plan(GenerateOptions(prompt=PROMPT, out=tmp_path / "a.mp4"), model)
    check_outputs([request, replace(request, out=tmp_path / "b.mp4")], GenerateOptions())
    with pytest.raises(UserError, match=r"a\.mp4 and .*a\.gif share a name"):
        check_outputs([request, replace(request, out=tmp_path / "a.gif")], GenerateOptions())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.mp4", "a.mp4/b.mp4"),
        ("a.mp4", "a.json/b.mp4"),
        ("a.png", "a/b.mp4"),
        ("a.mp4", "a.sheet.png/c/b.gif"),
    ],
)
def test_a_video_may_not_lie_in_a_file_of_another(
    first: str, second: str, model: Layout, tmp_path: Path
) -> None:
    (request,) = plan(GenerateOptions(prompt=PROMPT, out=tmp_path / first), model)
    other = replace(request, out=tmp_path / second)
    for requests in ([request, other], [other, request]):
        with pytest.raises(UserError, match=r"is a file of another video"):
            check_outputs(requests, GenerateOptions(sheet=True))


def test_a_folder_that_cannot_be_written_is_refused(model: Layout, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (request,) = plan(GenerateOptions(prompt=PROMPT, out=tmp_path / "file" / "a.mp4"), model)
    with pytest.raises(UserError, match=r"cannot write to .*file \(Not a directory\)"):
        check_outputs([request], GenerateOptions())


def test_a_folder_is_not_made_before_it_is_needed(model: Layout, tmp_path: Path) -> None:
    (request,) = plan(GenerateOptions(prompt=PROMPT, out=tmp_path / "new" / "a.mp4"), model)
    check_outputs([request], GenerateOptions())
    assert list(tmp_path.iterdir()) == []


def test_parse_seeds() -> None:
    assert parse_seeds("0,3,8-11,3") == [0, 3, 8, 9, 10, 11]


def scenes(model: Layout, then: list[str], **options: Any) -> list[tuple[int, float, str, str]]:
    (request,) = plan(GenerateOptions(prompt=PROMPT, then=then, **options), model)
    return [(scene.chunk, scene.at, scene.prompt, scene.how) for scene in request.scenes]


def test_a_scene_begins_at_the_next_chunk_and_says_so(model: Layout) -> None:
    """Chunks of 3 latent frames begin at video frames 0, 9, 21, 33 ..."""
    assert scenes(model, [f"{9 / 16}: b", "1.4s:  c d"]) == [
        (1, 9 / 16, "b", "recache"),
        (3, 33 / 16, "c d", "recache"),
    ]
    (request,) = plan(GenerateOptions(prompt=PROMPT, then=["0.5625: b", "1.4: c"]), model)
    assert request.said() == ["a prompt changes between two chunks: at 2.06 s, not 1.4 s"]
    assert request.described()["scenes"] == [
        {"at": 0.0, "prompt": PROMPT, "how": None},
        {"at": 9 / 16, "prompt": "b", "how": "recache"},
        {"at": 33 / 16, "prompt": "c", "how": "recache"},
    ]


def test_after_a_cut_chunks_begin_as_a_video_begins(model: Layout) -> None:
    """The first latent frame is one picture again: 0, 9, 21 | 30, 42."""
    assert scenes(model, ["1.3: b", "1.8: c"], how="cut") == [
        (2, 21 / 16, "b", "cut"),
        (3, 30 / 16, "c", "cut"),
    ]
    timeline = Timeline(model.compression, 3, cuts=(2, 3))
    assert [timeline.frames_before(index) for index in range(6)] == [0, 9, 21, 30, 39, 51]
    assert [timeline.chunks(frames) for frames in (1, 9, 10, 30, 31, 39, 40)] == [1, 1, 2, 3, 4, 4, 5]
    assert [timeline.latent_frames(frames) for frames in (9, 21, 22, 26, 31, 35)] == [3, 6, 7, 8, 10, 11]


def test_scenes_of_a_file(model: Layout, tmp_path: Path) -> None:
    lines = [
        {"scenes": [{"prompt": "a", "seconds": 3}, {"prompt": "b", "at": 3, "how": "switch"}], "seconds": 7},
        {"scenes": [{"prompt": "a"}, {"prompt": "b", "at": 2, "seconds": 3}]},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = plan(GenerateOptions(prompts=tmp_path / "p.jsonl"), model)
    assert (first.prompts, first.frames, first.scenes[0].how) == (["a", "b"], 112, "switch")
    assert (second.frames, second.scenes[0].how) == (80, "recache")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"then": ["b"]}, "--then 'b': write it as"),
        ({"then": ["x: b"]}, "write it as"),
        ({"then": ["3:"]}, "write it as"),
        ({"then": ["0: b"]}, "begins at 0 s, not after the one before it"),
        ({"then": ["3: b", "2: c"]}, "begins at 2 s, not after the one before it"),
        ({"then": ["3: b", "3.1: c"]}, "begins in the same chunk as the one before it"),
        ({"then": ["10: b"]}, "has no chunk before the video's end \\(10 s\\)"),
        ({"then": ["9.9: b"]}, "has no chunk before the video's end \\(10 s\\)"),
        ({"then": ["3: b"], "how": "fade"}, "--how fade: it takes switch, recache, cut"),
        ({"how": "cut"}, "give --then too"),
        ({"then": ["3: b"], "prompts": Path("p.jsonl"), "prompt": None}, "put 'scenes' into a .jsonl file"),
    ],
)
def test_scenes_that_cannot_be(model: Layout, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        plan(GenerateOptions(**{"prompt": PROMPT} | options), model)
    assert "\n" not in str(caught.value)
