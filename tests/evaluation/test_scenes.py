"""Announced scenes: read from what is beside a video, and a change there is no fault."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation import evaluate
from sfpp_cli.evaluation.scenes import borders_of, clip_prompts, parse_scenes, scene_means, scenes_of
from sfpp_cli.video.writer import VideoWriter

FPS = 8


def test_scenes_come_from_the_json_beside_a_video_or_from_seconds() -> None:
    named = {
        "scenes": [{"at": 4, "prompt": "b", "how": "cut", "more": 1}, {"at": 0, "prompt": "a"}, "odd", {}]
    }
    scenes = scenes_of(named, (9.0,))
    assert scenes == [{"at": 0.0, "prompt": "a", "how": None}, {"at": 4.0, "prompt": "b", "how": "cut"}]
    assert borders_of(scenes) == (4.0,)
    assert [scene["at"] for scene in scenes_of({}, (9.0,))] == [0.0, 9.0]
    assert scenes_of({"scenes": [{"at": 0, "prompt": "a", "how": "cut"}]}) == scenes_of({}) == []


def test_clips_belong_to_the_scene_of_their_middle() -> None:
    clips = [{"start_seconds": at, "end_seconds": at + 2} for at in (0, 2, 4, 5)]
    scenes = [
        {"at": 0.0, "prompt": "a"},
        {"at": 3.5, "prompt": None},
        {"at": 5.0, "prompt": "c"},
        {"at": 6.9, "prompt": "d"},
    ]
    video = {"prompt": "whole", "scenes": scenes, "clips": clips}
    assert clip_prompts(video) == ["a", "a", "c", "c"]
    assert scene_means(video, [1.0, 2.0, None, 7.0]) == [1.5, None, 7.0, None]
    assert clip_prompts(video | {"scenes": scenes[:2]}) == ["a", "a", "whole", "whole"]
    assert clip_prompts(video | {"scenes": []}) == ["whole"] * 4
    assert scene_means(video | {"scenes": []}, [1.0, 2.0, 3.0, None]) == [2.0]


def test_seconds_on_the_command_line() -> None:
    assert parse_scenes("40, 20") == (20.0, 40.0)
    for text in ("", "a", "0", "nan", "5,,6"):
        with pytest.raises(UserError, match="as in 20,40"):
            parse_scenes(text)


def two_scenes(path: Path) -> Path:
    """Four seconds of one calm ground, four of another."""
    rng = np.random.default_rng(0)
    grounds = rng.uniform(0, 255, (2, 6, 8, 3)).repeat(8, 1).repeat(8, 2)
    with VideoWriter(path, (64, 48), FPS) as writer:
        for number in range(8 * FPS):
            picture = grounds[number // (4 * FPS)].copy()
            picture[20:28, number % 40 : number % 40 + 8] = 255
            writer.write(picture.round().astype(np.uint8)[None])
    return path


def test_an_announced_change_is_no_fault(tmp_path: Path) -> None:
    path = two_scenes(tmp_path / "two.mp4")
    cache = tmp_path / "cache"
    [plain] = evaluate([path], cache=cache)["videos"]
    assert plain["verdicts"]["scene_change"]["fired"]
    assert plain["verdicts"]["scene_change"]["onset_seconds"] == pytest.approx(4, abs=0.2)
    [told] = evaluate([path], cache=cache, scenes=(4.5,))["videos"]
    assert not told["verdicts"]["scene_change"]["fired"]
    [elsewhere] = evaluate([path], cache=cache, scenes=(6.0,))["videos"]
    assert elsewhere["verdicts"]["scene_change"]["fired"]
    scenes = [{"at": 0.0, "prompt": "a", "how": None}, {"at": 4.0, "prompt": "b", "how": "recache"}]
    (tmp_path / "two.json").write_text(json.dumps({"video": "two.mp4", "scenes": scenes}))
    [read] = evaluate([path], cache=cache)["videos"]
    assert read["scenes"] == scenes
    assert not read["verdicts"]["scene_change"]["fired"]
