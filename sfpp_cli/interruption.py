"""Ctrl-C and SIGTERM from a command's first moment on. Needs next to nothing, since it is loaded first."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

STARTING = "interrupted before it began: nothing was changed, and the same command starts again"
UNFINISHED = "interrupted: what is finished is kept, what is not is gone, and the same command starts again"
AT_ONCE = (
    "interrupted twice: stopped at once; the next run of this command clears up, and goes on with --resume"
)
DEAF = (
    "interrupted amid work that cannot be: stopped at once; the next run of this command clears up, and goes "
    "on with --resume"
)
ECHO = 0.1
"""Seconds in which a second signal is the same one: launchers pass on what the terminal has sent to all."""
HOLD = 0.05
"""Seconds between two looks whether an import is over, or the main thread has heard."""
AGAIN = 0.5
"""Seconds after which an interrupt that is nowhere under way is taken for lost."""
PATIENCE = 20.0
"""Seconds in which Python has to hear of a first signal. It does not while a library computes or waits for
other ranks, which may take half an hour."""
IMPATIENCE = 1.0
"""The same for a second signal."""

_HEARD = b"\0"
_has_timer = hasattr(signal, "setitimer")  # Windows has none
at_stake: set[Path] = set()
"""Locks that this process holds: with none, it may end wherever it is."""
_first: float | None = None
_wake: int | None = None
"""Where the system tells a thread of signals."""
_signal = signal.SIGINT


@contextmanager
def handled() -> Iterator[None]:
    """The first signal in the block is a KeyboardInterrupt, the second ends the process at once.

    In the middle of an import the interrupt would damage modules, and be taken for their own failure. So
    there the process ends directly or, if it holds locks, is interrupted when the import is over.

    Python drops what is raised in a destructor or a callback of C, such as the end of a generator that nobody
    reads on, and libraries may catch everything. So an interrupt that is lost is raised again, until it is
    under way or the block ends. Where no interrupt comes through at all, a thread ends the process.
    """
    before = {}
    watched: AbstractContextManager[None] = nullcontext()
    shown = sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        if _wake is None and _has_timer:
            watched = _watched()
        numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if _is_minded(number)]
        before = {number: signal.signal(number, _handle) for number in numbers}
        sys.unraisablehook = partial(_dropped, shown)
    try:
        with watched:
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


def heard() -> None:
    """For handlers of signals: Python has run one."""
    if _wake is not None:
        os.write(_wake, _HEARD)


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
    heard()
    if _first is not None:
        if now - _first > ECHO:
            _end(AT_ONCE)
        return
    _first = now
    _signal = signal.Signals(number)
    if _is_importing(frame) and not at_stake:
        _end(STARTING)
    _interrupt(number, frame)


@contextmanager
def _watched() -> Iterator[None]:
    """Have a thread told of signals by the system itself, for as long as the block runs."""
    global _wake
    ours, _wake = os.pipe()
    os.set_blocking(_wake, False)
    before = signal.set_wakeup_fd(_wake, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(ours,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(_wake)  # the watcher reads the end, and goes
        _wake = None
        watcher.join()


def _watch(told: int) -> None:
    """End the process if the main thread does not hear in time of a signal whose number comes here.

    A system call that blocks hears nothing of a signal that came just before it, or to another thread: a
    second one, sent to the main thread itself, wakes it.
    """
    global _signal
    count = 0
    last = 0.0
    is_heard = True
    main = threading.main_thread().ident
    assert main is not None
    while True:
        patience = None if is_heard else PATIENCE if count == 1 else IMPATIENCE
        # The second look lets the main thread go first, where it has kept all others waiting.
        if not any(select.select([told], [], [], wait)[0] for wait in (patience, ECHO)):
            _end(DEAF if count == 1 else AT_ONCE)
        number = os.read(told, 1)
        if not number:
            os.close(told)
            return
        if number == _HEARD:
            is_heard = True
        elif number[0] in (signal.SIGINT, signal.SIGTERM):
            now = time.monotonic()
            is_echo = now - last <= ECHO
            count += not is_echo
            last = now
            is_heard = False
            _signal = signal.Signals(number[0])
            if not (is_echo or select.select([told], [], [], HOLD)[0]):
                signal.pthread_kill(main, number[0])


def _forget() -> None:
    """In a forked process, whose signals do not concern this one."""
    global _wake
    if _wake is not None:
        signal.set_wakeup_fd(-1)
        os.close(_wake)
        _wake = None


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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
