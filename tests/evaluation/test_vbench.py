"""Layouts for VBench and VBench-Long: names, links, prompts and commands, as the tools take them."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.vbench import DIMENSIONS, lay_out


def make(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    return [folder / name for name in names]


def options(command: str) -> dict[str, list[str]]:
    """A command line as argparse would group it."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(command)[2:]:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            current = found.setdefault(name, [value] if equals else [])
        else:
            current.append(word)
    return found


def test_names_are_what_the_tools_can_take_apart(tmp_path: Path) -> None:
    names = ["a_red_circle_7.mp4", "Ünder Score_.MP4", "clip-Scene-3.mp4", "a.mp4.mp4"]
    lay_out(make(tmp_path / "in", *names), tmp_path / "out")
    placed = sorted(os.listdir(tmp_path / "out" / "videos"))
    assert placed == ["a-mp4-0.mp4", "a-red-circle-7-0.mp4", "clip-scene-3-0.mp4", "under-score-0.mp4"]
    for name in placed:
        stem = name.removesuffix(".mp4")
        assert f"{stem}_003.mp4".split("_")[0] == stem  # how clips find their video
        assert re.search(r"-\d+$", stem)  # how clips are reused
        assert name.split(".mp4")[0] == stem  # how their folder is called
        assert stem.split("-Scene")[0] == stem
    sources = json.loads((tmp_path / "out" / "sources.json").read_text())
    assert {name: Path(path).name for name, path in sources.items()} == {
        "a-red-circle-7-0.mp4": names[0],
        "under-score-0.mp4": names[1],
        "clip-scene-3-0.mp4": names[2],
        "a-mp4-0.mp4": names[3],
    }


def test_prompts_and_commands(tmp_path: Path) -> None:
    out = tmp_path / "out of the way"
    commands = lay_out(make(tmp_path / "in", "a.mp4", "b.mp4"), out, ['says "hello"', "second"])
    prompts = json.loads((out / "prompts.json").read_text())
    assert prompts == {"a-0.mp4": 'says "hello"', "b-0.mp4": "second"}
    assert prompts.keys() == set(os.listdir(out / "videos"))

    short, long = commands
    assert shlex.split(short)[:2] == ["python", "evaluate.py"]
    assert options(short) == {
        "--videos_path": [str(out / "videos")],
        "--output_path": [str(out / "vbench")],
        "--mode": ["custom_input"],
        "--prompt_file": [str(out / "prompts.json")],
        "--dimension": [*DIMENSIONS, "overall_consistency"],
    }
    assert shlex.split(long)[:2] == ["python", "vbench2_beta_long/eval_long.py"]
    assert options(long) == {
        "--videos_path": [str(out / "videos")],
        "--output_path": [str(out / "vbench-long")],
        "--full_json_dir": ["vbench/VBench_full_info.json"],
        "--mode": ["long_custom_input"],
        "--dev_flag": [],
        "--dimension": [*DIMENSIONS],
    }
    script = (out / "run.sh").read_text()
    assert script.startswith("#!/bin/sh\n")
    assert all(f"\n{command}\n" in script for command in commands)


def test_without_all_prompts_the_text_dimension_is_left_out_and_said(tmp_path: Path) -> None:
    videos = make(tmp_path / "in", *(f"{letter}.mp4" for letter in "abcde"))
    lay_out(videos, tmp_path / "out", ["p"] * 5)
    short, note, _long = lay_out(videos, tmp_path / "out", ["p", None, None, " ", None])
    assert (
        note
        == "# overall_consistency is left out, for there is no prompt of b-0.mp4, c-0.mp4, d-0.mp4 and 1 more"
    )
    assert "--prompt_file" not in short
    assert "overall_consistency" not in short
    assert not (tmp_path / "out" / "prompts.json").exists()


def test_videos_are_linked_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make(tmp_path / "in", "a.mp4", "b.mp4")
    alias = tmp_path / "in" / "c.mp4"
    alias.symlink_to(second)
    lay_out([first, alias], tmp_path / "linked")
    linked = tmp_path / "linked" / "videos"
    assert (linked / "a-0.mp4").samefile(first)
    assert (linked / "c-0.mp4").samefile(second)
    assert not (linked / "c-0.mp4").is_symlink()

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    lay_out([first], tmp_path / "copied")
    copied = tmp_path / "copied" / "videos" / "a-0.mp4"
    assert not copied.samefile(first)
    assert copied.read_bytes() == first.read_bytes()
    assert os.listdir(copied.parent) == ["a-0.mp4"]
    lay_out([first], tmp_path / "copied")  # the same content again


def test_laying_out_twice_changes_nothing_even_after_the_tools_ran(tmp_path: Path) -> None:
    videos = make(tmp_path / "in", "a.mp4", "b.mp4")
    commands = lay_out(videos, tmp_path / "out", ["p", "q"])
    (tmp_path / "out" / "videos" / "split_clip" / "a-0").mkdir(parents=True)
    assert lay_out(videos, tmp_path / "out", ["p", "q"]) == commands


@pytest.mark.parametrize("change", ["another", "fewer", "more", "altered", "file"])
def test_other_videos_in_the_folder_are_refused(tmp_path: Path, change: str) -> None:
    a, b, c = make(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4")
    lay_out([a, b], tmp_path / "out")
    place = tmp_path / "out" / "videos"
    wanted = {"another": [a, c], "fewer": [a], "more": [a, b, c]}.get(change, [a, b])
    if change == "altered":
        (place / "a-0.mp4").unlink()
        (place / "a-0.mp4").write_text("something else")
    if change == "file":
        (place / "notes.txt").write_text("x")
    if change == "more":
        (place / "split_clip").mkdir()
    before = sorted(place.iterdir())
    with pytest.raises(UserError, match=r"holds .* already, which would be measured too"):
        lay_out(wanted, tmp_path / "out")
    assert sorted(place.iterdir()) == before


def test_an_interrupted_layout_is_completed(tmp_path: Path) -> None:
    videos = make(tmp_path / "in", "a.mp4", "b.mp4")
    lay_out(videos[:1], tmp_path / "out")
    lay_out(videos, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out" / "videos")) == ["a-0.mp4", "b-0.mp4"]


def test_problems_are_named_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    first, gif = make(tmp_path / "in", "a_b.mp4", "c.gif")
    (second,) = make(tmp_path / "more", "A b.mp4")
    with pytest.raises(UserError) as stopped:
        lay_out([first, gif, second, tmp_path / "absent.mp4"], tmp_path / "out")
    said = str(stopped.value)
    for part in (
        "c.gif is not .mp4",
        f"{second} and {first} would both be called a-b-0.mp4",
        "absent.mp4 is not a file",
    ):
        assert part in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_paths_that_would_mislead_the_tools(tmp_path: Path) -> None:
    videos = make(tmp_path / "in", "a.mp4")
    with pytest.raises(UserError, match="takes 'split_clip' in a path for a folder of its own"):
        lay_out(videos, tmp_path / "my_split_clips")
    with pytest.raises(UserError, match="no videos"):
        lay_out([], tmp_path / "out")
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be filled"):
        lay_out(videos, blocked)
    with pytest.raises(ValueError, match="1 videos, but 2 prompts"):
        lay_out(videos, tmp_path / "out", ["p", "q"])


def test_long_names_stay_distinct(tmp_path: Path) -> None:
    stem = "a very long prompt about nothing in particular " * 3
    lay_out(make(tmp_path / "in", f"{stem}1.mp4", f"{stem}2.mp4"), tmp_path / "out")
    assert len(os.listdir(tmp_path / "out" / "videos")) == 2
