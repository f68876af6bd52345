"""Slow: that one command goes the whole road of the landscape's models, and repeats no stage that is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sfpp_cli.models.bundle import Bundle

ROAD = Path(__file__).parents[2] / "examples" / "landscape" / "all.py"
STUDENTS = ("ode", "self-forcing", "self-forcing-pp")


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
