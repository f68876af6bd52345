"""Drift against videos that are known to be good, by hand and through the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Sfpp

from sfpp_cli.evaluation.reference import LOOKS, add_reference
from sfpp_cli.video.writer import VideoWriter


def video(values: list[float | None], prompt: str | None = None) -> dict[str, Any]:
    """A curve with a value a second, against a reference of two seconds."""
    known = [value for value in values if value is not None]
    curve = {"seconds": [second + 0.5 for second in range(len(values))], "values": values}
    return {
        "prompt": prompt,
        "seconds": float(len(values)),
        "reference_seconds": 2.0,
        "metrics": dict.fromkeys(LOOKS, sum(known) / len(known) if known else None),
        "curves": dict.fromkeys(LOOKS, curve),
    }


def test_the_end_is_held_against_the_mean_of_the_same_prompt() -> None:
    good = [video([0.5, 0.7], "fog"), video([0.1, 0.3], "rain")]
    others = [video([0.5, 0.5, 0.9, 0.8], "fog"), video([0.5, 0.5, 0.9, None], "snow"), video([None] * 4)]
    found = add_reference(others, good, "teacher")
    assert others[0]["metrics"]["luma_off_reference"] == pytest.approx(0.85 - 0.6)
    assert others[1]["metrics"]["luma_off_reference"] == pytest.approx(0.9 - 0.4), "no such prompt: all"
    assert others[2]["metrics"]["noise_off_reference"] is None
    assert (found["path"], found["videos"]) == ("teacher", 2)
    assert found["usual"]["chroma"] == pytest.approx(np.percentile([0.1, 0.3, 0.5, 0.7], (5, 95)))
    assert add_reference([], [video([None])], "teacher")["usual"]["luma"] is None


def write(path: Path, level: int) -> None:
    ground = np.random.default_rng(0).integers(-20, 20, (48, 64, 3))
    with VideoWriter(path, (64, 48), 8) as writer:
        writer.write((ground + level).astype(np.uint8).repeat(16, 0).reshape(48, 16, 64, 3).swapaxes(0, 1))


def test_the_command_measures_it_and_says_what_took_how_long(sfpp: Sfpp, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    write(tmp_path / "good/a.mp4", 100)
    write(tmp_path / "b.mp4", 151)
    options = ("--no-cache", "--workers", "1", "--json", "-v", "--out", "out")
    code, out, err = sfpp("evaluate", "b.mp4", "--reference", "good", *options)
    assert code == 0
    [measured] = json.loads(out)["videos"]
    # an encoder moves the mean by a level or two of 255
    assert measured["metrics"]["luma_off_reference"] == pytest.approx(51 / 255, abs=0.02)
    assert measured["metrics"]["luma_drift"] == pytest.approx(0, abs=0.01), "it stays as it began"
    parts = re.findall(r"1 of 1 videos measured anew; seconds: (.*)", err)
    assert len(parts) == 2, "the reference, then the video"
    assert {part.split()[0] for part in parts[1].split(", ")} >= {"decoding", "exposure", "flow", "look"}
    assert re.search(r"^report: \d+\.\d s$", err, re.MULTILINE)
    page = (tmp_path / "out/report.html").read_text()
    assert "of the values of good" in page
    assert "Luma off reference" in page


@pytest.mark.parametrize("name", ["empty", "text.mp4", "absent.mp4"])
def test_a_reference_that_cannot_be_measured_is_refused(sfpp: Sfpp, tmp_path: Path, name: str) -> None:
    write(tmp_path / "b.mp4", 100)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    code, out, err = sfpp("evaluate", "b.mp4", "--reference", name)
    assert (code, out) == (2, "")
    assert f"error: --reference: {name}" in err
