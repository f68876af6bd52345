"""Slow: that one command makes the embedded model from nothing, and goes on where it was broken off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfpp_cli.models.bundle import Bundle

SCRIPT = Path(__file__).parents[2] / "examples" / "toyworld" / "all.sh"


@pytest.mark.slow
def test_one_command_makes_a_bundle_that_generates(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = ["bash", str(SCRIPT), str(tmp_path)]
    subprocess.run(run, check=True, env={**os.environ, "QUICK": "1", "PATH": path})
    made = tmp_path / "toyworld"
    assert {folder.name for folder in (made / "students").iterdir()} == {"ode", "self-forcing"}
    assert Bundle(str(made)).teacher is not None
    video = tmp_path / "video.mp4"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "sfpp_cli",
            "generate",
            "--model",
            str(made),
            "--seconds",
            "2",
            "-o",
            str(video),
        ],
        check=True,
    )
    assert video.stat().st_size > 0
    minutes = (tmp_path / "minutes.txt").read_text()
    assert [line.split(" took ")[0] for line in minutes.splitlines()] == [
        *(
            "VAE",
            "latents",
            "layout",
            "teacher",
            "teacher-bundle",
            "ODE",
            "bundle",
            "self-forcing",
            "self-forcing-pp",
            "weights",
        )
    ]
    subprocess.run(run, check=True, env={**os.environ, "QUICK": "1", "PATH": path})
    assert (tmp_path / "minutes.txt").read_text() == minutes, "nothing is made twice"
