"""Ctrl-C and SIGTERM at any moment: one line, 130 or 143."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sfpp_cli

ROOT = str(Path(sfpp_cli.__file__).parent.parent)
ENDS = [
    (signal.SIGINT, 130, False),
    (signal.SIGTERM, 143, True),
    pytest.param(signal.SIGINT, 130, True, marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, 143, False, marks=pytest.mark.slow),
]
LOCK = "from pathlib import Path; from sfpp_cli.files import owned"


def run(script: str, folder: Path, *, signals: tuple[tuple[float, int], ...]) -> tuple[int, str, float]:
    """A process that prints a line when it may be interrupted: (exit code, stderr, seconds to its end)."""
    (folder / "entry.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, "-m", "entry"],  # as `python -m sfpp_cli`
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    for pause, number in signals:
        time.sleep(pause)
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err, time.monotonic() - began


@pytest.mark.parametrize(("number", "code", "swallowed"), ENDS)
def test_while_modules_are_imported(tmp_path: Path, number: int, code: int, swallowed: bool) -> None:
    """Also where a library takes every error for a missing dependency."""
    (tmp_path / "slow.py").write_text("import time\nprint(1, flush=True)\ntime.sleep(30)\n")
    imports = "try: import slow\n    except BaseException: import slow" if swallowed else "import slow"
    script = f"from sfpp_cli import interruption\nwith interruption.handled():\n    {imports}"
    returned, err, seconds = run(script, tmp_path, signals=((0, number),))
    assert (returned, err.count("\n")) == (code, 1)
    assert err.startswith("error: interrupted before it began")
    assert seconds < 10


def test_with_a_lock_the_import_ends_first(tmp_path: Path) -> None:
    """What is owned has to be given up in order, and a half-imported module would get in the way."""
    (tmp_path / "slow.py").write_text("import time\nprint(1, flush=True)\ntime.sleep(0.5)\ndone = True\n")
    script = f"""
from sfpp_cli import interruption
{LOCK}
with interruption.handled():
    try:
        with owned(Path("a.lock"), Path("a")):
            import slow
            while True:
                pass
    except KeyboardInterrupt:
        raise SystemExit(slow.done)
"""
    returned, err, _ = run(script, tmp_path, signals=((0, signal.SIGINT),))
    assert (returned, err) == (1, "")
    assert not (tmp_path / "a.lock").exists()


def test_twice_ends_at_once(tmp_path: Path) -> None:
    script = """
from sfpp_cli import interruption
import time
with interruption.handled():
    try:
        print(1, flush=True)
        time.sleep(30)
    except KeyboardInterrupt:
        time.sleep(30)  # it tidies up
"""
    returned, err, seconds = run(script, tmp_path, signals=((0, signal.SIGINT), (0.3, signal.SIGINT)))
    assert (returned, err.count("\n")) == (130, 1)
    assert "stopped at once" in err
    assert seconds < 10


def test_an_echo_is_no_second_signal(tmp_path: Path) -> None:
    """torchrun passes on what the terminal has sent to all."""
    script = """
import os, signal
from sfpp_cli import interruption
with interruption.handled():
    try:
        print(1, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        raise SystemExit(7)
"""
    assert run(script, tmp_path, signals=())[0] == 7


@pytest.mark.parametrize(("number", "code", "wrapped"), ENDS)
def test_a_command_says_one_line(tmp_path: Path, number: int, code: int, wrapped: bool) -> None:
    script = f"""
import sys, time
from sfpp_cli import app
def command():
    try:
        print(1, flush=True)
        time.sleep(30)
    except KeyboardInterrupt:
        raise {"RuntimeError('a dependency is missing')" if wrapped else ""}
app.app.command()(command)
sys.argv = ["sfpp", "command"]
app.main()
"""
    returned, err, _ = run(script, tmp_path, signals=((0, number),))
    assert (returned, err.count("\n")) == (code, 1), err
    assert err.startswith("error: interrupted: what is finished is kept")


def test_the_code_is_the_commands_own(tmp_path: Path) -> None:
    """Python ends by the signal if the interrupt has passed through an `exec` of text, as in dataclasses."""
    script = """
import sys
from sfpp_cli import __main__, app
def command():
    print(1, flush=True)
    exec("import time; time.sleep(30)")
app.app.command()(command)
sys.argv = ["sfpp", "command"]
__main__.main()
"""
    returned, err, _ = run(script, tmp_path, signals=((0, signal.SIGINT),))
    assert (returned, err.count("\n")) == (130, 1)


def test_what_a_shell_has_ignored_stays_so(tmp_path: Path) -> None:
    script = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from sfpp_cli import interruption
import time
with interruption.handled():
    print(1, flush=True)
    time.sleep(0.5)
"""
    assert run(script, tmp_path, signals=((0, signal.SIGINT),))[0] == 0


LOST = {
    "destructor": """
class Dropping:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
Dropping()
""",
    "end of a generator": """
def dropping():
    try:
        yield
    finally:
        os.kill(os.getpid(), signal.SIGINT)
next(dropping())
""",
    "callback of a weak reference": """
class Thing: pass
thing = Thing()
reference = weakref.ref(thing, lambda dead: os.kill(os.getpid(), signal.SIGINT))
del thing
""",
    "library": """
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:
    pass
""",
    "library amid an error": """
try:
    try:
        raise ValueError
    finally:
        os.kill(os.getpid(), signal.SIGINT)
except BaseException:
    pass
""",
}
"""Where Python or somebody else drops an exception."""


@pytest.mark.parametrize("where", LOST)
def test_an_interrupt_that_is_lost_comes_again(where: str, tmp_path: Path) -> None:
    script = f"""
import os, signal, time, weakref
from sfpp_cli import interruption
print(1, flush=True)
interruption.AGAIN = 0.2
with interruption.handled():
    {LOST[where].strip().replace(chr(10), chr(10) + "    ")}
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        time.sleep(2 * interruption.AGAIN)  # it is under way, and left alone
        raise SystemExit(7)
"""
    returned, err, seconds = run(script, tmp_path, signals=())
    assert (returned, err) == (7, "")
    assert seconds < 20


def test_an_interrupt_that_is_answered_does_not_come_again(tmp_path: Path) -> None:
    script = """
import os, signal, time
from sfpp_cli import interruption
print(1, flush=True)
interruption.AGAIN = 0.2
with interruption.handled():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        interruption.answered()
    time.sleep(2 * interruption.AGAIN)
"""
    assert run(script, tmp_path, signals=())[:2] == (0, "")


def test_a_sleep_ends_whose_signal_another_thread_got(tmp_path: Path) -> None:
    """So does one whose signal came a moment before it: both sleep on, as nothing has interrupted them."""
    script = """
import signal, threading, time
from sfpp_cli import interruption
def tell():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
print(1, flush=True)
with interruption.handled():
    threading.Thread(target=tell).start()
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        raise SystemExit(7)
"""
    returned, err, seconds = run(script, tmp_path, signals=())
    assert (returned, err) == (7, "")
    assert seconds < 10


@pytest.mark.parametrize("signals", [1, 2])
def test_where_python_hears_nothing_the_process_ends(signals: int, tmp_path: Path) -> None:
    """A library that waits for other ranks lets other threads run, but looks for no signals."""
    patience = f"interruption.{'PATIENCE' if signals == 1 else 'IMPATIENCE'} = 0.5"
    script = f"""
import ctypes
from sfpp_cli import interruption
{patience}
mutex = ctypes.create_string_buffer(256)
with interruption.handled():
    print(1, flush=True)
    for _ in range(2):  # nobody unlocks it
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
    returned, err, seconds = run(script, tmp_path, signals=((0.2, signal.SIGTERM),) * signals)
    assert (returned, err.count("\n")) == (143, 1)
    assert ("interrupted twice" in err) == (signals == 2)
    assert seconds < 10


def test_a_block_without_signals_leaves_nothing(tmp_path: Path) -> None:
    script = """
import os, signal, sys, threading, time
from sfpp_cli import interruption
before = os.listdir("/proc/self/fd"), signal.set_wakeup_fd(-1), sys.unraisablehook
for _ in range(3):
    with interruption.handled():
        pass
while threading.active_count() > 1:
    time.sleep(0.01)
assert before == (os.listdir("/proc/self/fd"), signal.set_wakeup_fd(-1), sys.unraisablehook)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    assert run(script, tmp_path, signals=())[:2] == (0, "")


def test_signals_of_a_forked_process_do_not_concern_its_parent(tmp_path: Path) -> None:
    script = """
import os, signal, time
from sfpp_cli import interruption
interruption.PATIENCE = 0.2
print(1, flush=True)
with interruption.handled():
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    time.sleep(0.5)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    time.sleep(1)
"""
    assert run(script, tmp_path, signals=())[0] == 0
