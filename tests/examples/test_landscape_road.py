"""Does one command go the whole road of the landscape's models, and repeat no stage that is done?"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfpp_cli.data.trajectories import write_shard
from sfpp_cli.models.bundle import Bundle

ROAD = Path(__file__).parents[2] / "examples" / "landscape" / "all.py"
STUDENTS = ("ode", "self-forcing", "self-forcing-pp")


def test_the_balloon_weighs_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROAD.parent)
    encode_world = importlib.import_module("encode_world")
    scenes, starts = encode_world.drawn(0, 3, torch.device("cpu"))
    share = encode_world.balloon_share(scenes, starts, (64, 112), (8, 14))
    assert share.shape == (3, 21, 1, 8, 14)
    assert (share.amin(), share.amax()) == (0, 1)
    box = scenes.truth(starts, encode_world.FRAMES, (64, 112)).box
    for latent, frames in ((0, slice(0, 1)), (1, slice(1, 5)), (20, slice(77, 81))):
        low = box[:, frames, :2].amin(1) / 8
        high = box[:, frames, 2:].amax(1) / 8
        for i in range(3):
            row, column = share[i, latent, 0].nonzero().unbind(1)
            assert (column >= low[i, 0].floor()).all()
            assert (column <= high[i, 0].floor()).all()
            assert (row >= low[i, 1].floor()).all()
            assert (row <= high[i, 1].floor()).all()
            middle = box[i, frames].unflatten(1, (2, 2)).mean(1)[0] / 8
            assert share[i, latent, 0, int(middle[1]), int(middle[0])] > 0.9


def test_trajectories_are_taken_however_few_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROAD.parent)
    first, second = torch.rand(2, 3, 5, 4, 2, 2, 2)
    write_shard(tmp_path, 0, first, ["a", "b", "c"], {"guidance": 2.0})
    write_shard(tmp_path, 3, second, ["d", "e", "f"], {"guidance": 2.0})
    pairs = importlib.import_module("train_students").OnDevice(tmp_path, torch.device("cpu"))
    drawn = dict(reversed(pairs.draw(torch.Generator().manual_seed(seed))) for seed in range(40))
    assert drawn.keys() == set("abcdef")
    assert torch.equal(drawn["e"], second[1].half().float())


@pytest.mark.slow
def test_one_command_goes_the_whole_road(tmp_path: Path) -> None:
    work = tmp_path / "out-work"
    command = [sys.executable, str(ROAD), "--out", str(tmp_path / "out"), "--device", "cpu", "--quick"]
    subprocess.run([*command, "--minutes", "5"], check=True)
    assert {folder.name for folder in (work / "students").iterdir()} == set(STUDENTS)
    log = (work / "log.txt").read_text()
    assert "FAILED" not in log, log
    assert "skipped" not in log, log
    for name in STUDENTS:
        assert Bundle(str(work / f"model-{name}")).settings.fps == 16
    video = tmp_path / "video.mp4"
    model = ["--model", str(work / "model-self-forcing-pp"), "--seconds", "2", "-o", str(video)]
    subprocess.run([sys.executable, "-m", "sfpp_cli", "generate", *model], check=True)
    assert video.stat().st_size > 0

    subprocess.run([*command, "--minutes", "1"], check=True)
    again = (work / "log.txt").read_text().removeprefix(log)
    assert again.count("done earlier") == log.count(": done after"), again


@pytest.mark.slow
def test_a_stage_goes_on_from_weights_that_another_machine_has_sent(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--quick", "--minutes", "1.5", "--first", "vae", "--last", "vae"]
    sent, out = tmp_path / "sent", tmp_path / "out"
    subprocess.run([sys.executable, str(ROAD), "--out", str(sent), *words], check=True)
    going_on = [*words, "--restore", str(sent), "--again", "vae"]
    subprocess.run([sys.executable, str(ROAD), "--out", str(out), *going_on], check=True)
    log = (tmp_path / "out-work" / "log.txt").read_text()
    assert "goes on from the weights of an earlier call" in log
    assert "vae pictures" not in log, "pictures were learned already"
