"""What is told of memory, in the same unit whoever is asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WHILE_HELD = """
import torch
from sfpp_cli.devices import peak_megabytes, used_megabytes
cpu = torch.device("cpu")
held = torch.ones(10**8)
print(used_megabytes(cpu), peak_megabytes(cpu), sep="\\n")
del held
print(used_megabytes(cpu), peak_megabytes(cpu), sep="\\n")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the system tells the peak alone")
def test_the_peak_is_what_was_used_when_most_was() -> None:
    own = b"x" * 10**9  # what started a process must not count as its peak
    done = subprocess.run([sys.executable, "-c", _WHILE_HELD], check=True, capture_output=True, text=True)
    del own
    used, peak, used_later, peak_later = map(float, done.stdout.split())
    assert used == pytest.approx(peak, rel=0.01)
    assert used - used_later == pytest.approx(400, rel=0.02), "10^8 float32"
    assert peak_later == pytest.approx(peak, rel=0.001)
