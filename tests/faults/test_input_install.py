"""Installations: no home, no writable cache, another account, no compiler, no `resource`."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Forked

from sfpp_cli import devices
from sfpp_cli.errors import UserError

pytest_plugins = ["film"]

ROOT = Path(__file__).parents[2]


def python(code: str, folder: Path, *before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own, with nothing in its environment but what is given."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [*before, sys.executable, "-c", code],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_needs_no_home_and_no_cache(tmp_path: Path) -> None:
    code = "import sfpp_cli, sfpp_cli.app, sys; print('torch' in sys.modules, sfpp_cli.__version__)"
    for home in ({}, {"HOME": "/proc/nope"}, {"HOME": "/proc/nope", "XDG_CACHE_HOME": "/proc/nope"}):
        done = python(code, tmp_path, **home)
        assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "False", "")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can be another account")
@pytest.mark.skipif(
    not all(folder.stat().st_mode & 1 for file in (os.__file__, __file__) for folder in Path(file).parents),
    reason="other accounts cannot read this Python",
)
def test_any_account_can_generate_and_measure(tmp_path: Path) -> None:
    """One without an entry among the users, a home, or a cache, as in `docker run --user 12345`."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    code = (
        "import os, sys; os.setgid(12345); os.setuid(12345)\n"
        "from sfpp_cli.app import main\n"
        "for words in ('generate --frames 5 -o v.mp4', 'evaluate v.mp4', 'weights list'):\n"
        "    sys.argv = ['sfpp', *words.split()]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, (words, end.code)\n"
    )
    done = python(code, tmp_path, PATH=os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    assert "v.mp4" in done.stdout


@pytest.mark.parametrize("variable", ["CXX", None])
def test_compiling_without_a_compiler_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    if variable:
        monkeypatch.setenv(variable, "no-such-compiler")
    with pytest.raises(UserError, match="--compile needs the compiler"):
        devices.require_compiler(torch.device("cpu"))


def test_compiling_for_cuda_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs triton"):
        devices.require_compiler(torch.device("cuda"))
    devices.require_compiler(torch.device("cpu"))


def test_a_system_without_resource() -> None:
    """Windows has no such module: nothing imports it before it is used, and memory is then unknown."""

    def measure() -> None:
        sys.modules["resource"] = None  # type: ignore[assignment]
        windows: Any = importlib.reload(devices)
        windows.platform.system = lambda: "Windows"
        windows.Path = lambda *_: open("/nowhere")  # noqa: SIM115
        cpu = torch.device("cpu")
        sys.stdout.write(f"{windows.used_megabytes(cpu)} {windows.peak_megabytes(cpu)}")

    code, out, err = Forked.start(measure).end()
    assert (code, out) == (0, "0.0 0.0"), err


def test_a_script_of_two_lines_measures_two_videos(tmp_path: Path, film: Path) -> None:
    """Without `if __name__ == "__main__"`, since it starts no processes."""
    (tmp_path / "script.py").write_text(
        "from sfpp_cli.evaluation import evaluate\n"
        f"found = evaluate([{str(film)!r}, {str(film)!r}])\n"
        "print(len(found['videos']), found['failed'])\n"
    )
    code = "import runpy; runpy.run_path('script.py', run_name='__main__')"
    done = python(code, tmp_path, PATH=os.environ["PATH"])
    assert (done.stdout, done.stderr) == ("2 []\n", "")
