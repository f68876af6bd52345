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
