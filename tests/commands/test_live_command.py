"""`sfpp live` as a shell meets it: bad input in one line, Ctrl-C a usual end."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

import pytest
from conftest import Sfpp
from killed import Forked, command

pytest_plugins = ["tiny_bundle"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--token", "short"), "--token"),
        (("--host", "203.0.113.7"), "choose another --port or --host"),
        (("--size", "65x64"), "--size"),
        (("--offload", "all"), "--offload"),
        (("  ",), "the prompt is empty"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    sfpp: Sfpp, tiny_bundle: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = sfpp("live", "--model", str(tiny_bundle), "--port", "0", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "loading" not in err


def test_it_serves_until_ctrl_c(tiny_bundle: Path) -> None:
    process = Forked.start(command("live", "--model", str(tiny_bundle), "--port", "0"))
    line = next(line for line in process.err if b"open http://" in line)
    with urllib.request.urlopen(line.decode().split()[1], timeout=60) as response:
        assert b"sfpp live" in response.read()
    os.kill(process.pid, signal.SIGINT)
    code, _, rest = process.end()
    assert (code, rest.strip()) == (0, "")
