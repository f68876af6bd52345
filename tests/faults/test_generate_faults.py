"""`sfpp generate` under faults of the machine: no case of any kind goes wrong.

A part of the campaign that `python tests/faults/generate.py` runs in whole.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["tiny_bundle"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "every"),
    [
        ("kills", 15),
        ("restarts", 31),
        ("pairs", 5),
        ("full_disks", 5),
        ("damage", 3),
        ("signals", 7),
        ("modes", 2),
    ],
)
def test_nothing_goes_wrong(tiny_bundle: Path, kind: str, every: int) -> None:
    driver = Path(__file__).with_name("generate.py")
    command = [sys.executable, str(driver), "--model", str(tiny_bundle), "--every", str(every), kind]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert answer.startswith(f"{kind}: 0 of "), answer
