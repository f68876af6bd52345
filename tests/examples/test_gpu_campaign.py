"""Slow: the GPU campaign at toy sizes on the CPU, so that a changed name is found without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "gpu_campaign.py"
SECTIONS = {"machine", "tests", "parity", "product", "warm_student", "warm_decoder"} | {
    *("student", "compiled", "decoder", "attention", "end_to_end", "training")
}


@pytest.mark.slow
def test_every_section_runs_at_toy_sizes(tmp_path: Path) -> None:
    options = ["--tiny", "--device", "cpu", "--threads", "1", "--budget", "3000", "--out", str(tmp_path)]
    subprocess.run([sys.executable, str(SCRIPT), *options], check=True, stdout=subprocess.DEVNULL)
    results = json.loads((tmp_path / "results.json").read_text())
    sections = {name: results[name] for name in results if name not in ("options", "seconds")}
    assert sections.keys() == SECTIONS
    for name, section in sections.items():
        assert "done_s" in section, f"{name}: {section}"
        failed = {
            key: value for key, value in section.items() if isinstance(value, dict) and "where" in value
        }
        assert not failed, f"{name}: {failed}"
