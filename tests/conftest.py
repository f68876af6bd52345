"""What all tests share. One thread: toy sizes gain nothing from more, and on busy cores more are many times slower."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The suite is about the CPU, whatever the machine has, unless it is asked to be about the GPU: SFPP_TEST_GPU=1 pytest -m gpu
if not os.environ.get("SFPP_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

from sfpp_cli import app

torch.set_num_threads(1)

Sfpp = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sfpp(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Sfpp:
    """Run the command line in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sfpp", *arguments])
        with pytest.raises(SystemExit) as stopped:
            app.main()
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    return run
