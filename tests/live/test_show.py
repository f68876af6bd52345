"""What is shown is what the student makes, no further ahead than it is watched, whatever viewers do."""

from __future__ import annotations

import io
import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from waiting import until

from sfpp_cli.core.rollout import Change
from sfpp_cli.errors import UserError
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.requests import Request
from sfpp_cli.live.show import AHEAD, KEPT, Piece, Show, _jpeg
from sfpp_cli.video.growing import whole_part
from sfpp_cli.video.reader import read_frames

pytest_plugins = ["live_show"]

PROMPT = "a red circle"


def seconds(show: Show) -> float:
    return float(show.status().get("seconds", 0))


def collected(show: Show, pieces: dict[int, Piece]) -> int:
    """How many pieces of all that came so far are kept in `pieces`."""
    pieces |= {piece.number: piece for piece in show.after(max(pieces, default=0))}
    return len(pieces)


def test_pictures_are_those_of_the_student_and_a_change_is_followed(
    show: Show, generator: Generator, offered: Request
) -> None:
    pieces: dict[int, Piece] = {}
    show.start("a  red\ncircle", seed=5)
    until(lambda: collected(show, pieces) >= 2)
    show.change("a blue square", "recache")
    until(lambda: collected(show, pieces) and len(show.status()["scenes"]) == 2)
    later = show.status()["scenes"][1]
    until(lambda: collected(show, pieces) and seconds(show) > later["at"] + 2)
    show.stop()
    until(lambda: show.status()["state"] == "ended")
    collected(show, pieces)
    assert [scene["prompt"] for scene in show.status()["scenes"]] == [PROMPT, "a blue square"]

    index = next(
        i for i in itertools.count() if generator.timeline().frames_before(i) / offered.fps >= later["at"]
    )
    change = Change(generator.text(["a blue square"]), "recache")
    request = replace(offered, seed=5, frames=sum(len(piece.pictures) for piece in pieces.values()))
    frames = generator.frames(request, changes=lambda chunk: change if chunk == index else None)
    expected = [_jpeg(frame) for some in frames for frame in some]
    shown = [picture for number in sorted(pieces) for picture in pieces[number].pictures]
    assert shown == expected
    assert [pieces[number].first for number in sorted(pieces)] == [
        sum(len(pieces[before].pictures) for before in sorted(pieces) if before < number)
        for number in sorted(pieces)
    ]
    picture = np.asarray(Image.open(io.BytesIO(shown[0])))
    assert picture.shape == (offered.height, offered.width, 3)


def test_it_stays_a_little_ahead_of_who_watches_and_pauses(show: Show, generator: Generator) -> None:
    chunk = generator.timeline().chunk_frames(1)
    began = time.monotonic()
    show.start(PROMPT, seed=0)
    until(lambda: seconds(show) > 0)
    time.sleep(1.5)
    rate = show.offered.fps
    most = (time.monotonic() - began) * rate + (AHEAD + 1) * chunk
    assert seconds(show) * rate <= most
    show.pause(True)
    assert show.status()["state"] == "paused"
    for _ in range(4):  # what was begun is finished
        held = seconds(show)
        time.sleep(1.5 * chunk / rate)  # another chunk would have been due
        if seconds(show) == held:
            break
    assert seconds(show) == held
    show.pause(False)
    until(lambda: seconds(show) > held)
    assert len(show.pieces) <= KEPT
    assert show.status()["fps"] > 0


def test_what_was_made_can_be_taken_away_at_any_time(show: Show) -> None:
    with pytest.raises(UserError, match="nothing has been made"):
        show.file()
    show.start(PROMPT, seed=0)
    until(lambda: seconds(show) > 3)
    part = show.file().read_bytes()[: whole_part(show.file())]
    show.stop()
    until(lambda: show.status()["state"] == "ended")
    whole = show.file().read_bytes()
    assert whole_part(show.file()) == len(whole)
    for name, data in {"part": part, "whole": whole}.items():
        copied = show.file().with_name(f"{name}.mp4")
        copied.write_bytes(data)
        frames = sum(1 for _ in read_frames(copied))
        assert frames >= show.offered.fps, name
    assert frames == round(seconds(show) * show.offered.fps)


def test_one_video_at_a_time(show: Show) -> None:
    for call in (lambda: show.change(PROMPT, "cut"), lambda: show.pause(True), show.stop):
        with pytest.raises(UserError, match="no video is being made"):
            call()
    show.start(PROMPT, seed=0)
    with pytest.raises(UserError, match="stop it first"):
        show.start(PROMPT, seed=1)
    with pytest.raises(UserError, match="prompt is empty"):
        show.change(" \n", "cut")
    until(lambda: seconds(show) > 0)
    first = show.file()
    show.stop()
    until(lambda: show.status()["state"] == "ended")
    show.start(PROMPT, seed=1)
    until(lambda: seconds(show) > 0)
    assert not first.exists(), "only the newest video takes room"
    show.close()
    with pytest.raises(UserError, match="ending"):
        show.start(PROMPT, seed=2)


def test_a_failure_is_told_and_another_video_can_begin(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("the GPU is on fire. Details follow")

    with monkeypatch.context() as patch:
        patch.setattr(show.generator, "frames", broken)
        show.start(PROMPT, seed=0)
        until(lambda: show.status()["state"] == "failed")
    assert show.status()["failure"] == "the GPU is on fire"
    show.start(PROMPT, seed=0)
    until(lambda: seconds(show) > 0)
