"""What all tests share: one thread, since toy sizes gain nothing from more, and no GPU unless asked."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

# Set before torch is loaded, and inherited by the processes that tests start.
if not os.environ.get("SFPP_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"
# Scripts start what is in the background deaf to Ctrl-C; what tests interrupt would go on for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from browser import Browser, find_chromium

from sfpp_cli import app, interruption

Sfpp = Callable[..., tuple[int, str, str]]
TESTS = Path(__file__).parent
EXAMPLES = str(TESTS.parent / "examples")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Python's collector leaves alone what is imported here, which stays: half a million objects.

    Every `sfpp generate` calls it, in this process or in a fork of it, and would look at all of them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not os.environ.get("SFPP_TEST_GPU"):
        pytest.skip("the suite hides GPUs unless asked: SFPP_TEST_GPU=1 pytest -m gpu")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Scripts of two folders may bear one name, as `faults` does: no test finds what another has imported."""
    if item.path.parent != TESTS / "examples":
        return
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(EXAMPLES):
            del sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch  # not above: the process that hands the tests out to others would wait for it

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_signal_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test was sent does not count, and neither in processes that this one forks."""
    monkeypatch.setattr(interruption, "_first", None)


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


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws no picture of a run's figures, which takes seven tenths of a toy run's time."""
    monkeypatch.setattr("sfpp_cli.training.curves.plot_run", lambda run: run / "curves.png")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("there is no Chromium")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as running:
        yield running
