"""Ctrl-C and SIGTERM from a command's first moment on. Needs next to nothing, since it is loaded first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

STARTING = "interrupted before it began: nothing was changed, and the same command starts again"
UNFINISHED = "interrupted: what is finished is kept, what is not is gone, and the same command starts again"
AT_ONCE = (
    "interrupted twice: stopped at once; the next run of this command clears up, and goes on with --resume"
)
ECHO = 0.1
"""Seconds in which a second signal is the same one: launchers pass on what the terminal has sent to all."""
HOLD = 0.05
"""Seconds between two looks whether an import is over."""
AGAIN = 0.5
"""Seconds after which an interrupt that is nowhere under way is taken for lost."""

_has_timer = hasattr(signal, "setitimer")  # Windows has none
at_stake: set[Path] = set()
"""Locks that this process holds: with none, it may end wherever it is."""
_first: float | None = None
_signal = signal.SIGINT


@contextmanager
def handled() -> Iterator[None]:
    """The first signal in the block is a KeyboardInterrupt, the second ends the process at once.

    In the middle of an import the interrupt would damage modules, and be taken for their own failure. So
    there the process ends directly or, if it holds locks, is interrupted when the import is over.

    Python drops what is raised in a destructor or a callback of C, such as the end of a generator that nobody
    reads on, and libraries may catch everything. So an interrupt that is lost is raised again, until it is
    under way or the block ends.
    """
    before = {}
    shown = sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if _is_minded(number)]
        before = {number: signal.signal(number, _handle) for number in numbers}
        sys.unraisablehook = partial(_dropped, shown)
    try:
        yield
    finally:
        answered()
        sys.unraisablehook = shown
        for number, handler in before.items():
            signal.signal(number, handler)


def seen() -> bool:
    """Whether a signal has come."""
    return _first is not None


def answered() -> None:
    """For whoever catches the KeyboardInterrupt and goes on: it is not raised again."""
    if seen() and _has_timer:
        signal.setitimer(signal.ITIMER_REAL, 0)


def exit_code() -> int:
    """As shells count: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _signal


def leave(code: int) -> NoReturn:
    """End with this very code. Left to itself, Python may take the signal's own where a KeyboardInterrupt has
    passed through the `exec` of a text, though it was caught; and threads might not survive a slow end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_minded(number: signal.Signals) -> bool:
    """Not where the parent has it ignored, as `nohup` and a shell's background do."""
    return signal.getsignal(number) is not signal.SIG_IGN


def _handle(number: int, frame: FrameType | None) -> None:
    global _first, _signal
    now = time.monotonic()
    if _first is not None:
        if now - _first > ECHO:
            _end(AT_ONCE)
        return
    _first = now
    _signal = signal.Signals(number)
    if _is_importing(frame) and not at_stake:
        _end(STARTING)
    _interrupt(number, frame)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise it, unless an import is to end first or it is under way already."""
    waits = _is_importing(frame) and _has_timer
    _look_again(HOLD if waits else AGAIN)
    if not (waits or _is_under_way()):
        raise KeyboardInterrupt


def _look_again(seconds: float) -> None:
    if _has_timer:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _dropped(shown: Callable[[sys.UnraisableHookArgs], object], lost: sys.UnraisableHookArgs) -> None:
    """Hears of exceptions that Python drops: an interrupt comes again, others are shown."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        _look_again(HOLD)
    else:
        shown(lost)


def _is_under_way() -> bool:
    """Whether the interrupt, or what a library made of it, is being handled somewhere below this frame."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end(line: str) -> NoReturn:
    """Say a line and be gone, wherever the process is."""
    os.write(2, f"error: {line}\n".encode())
    leave(exit_code())
