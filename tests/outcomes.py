"""What a user would call a fault in how a command ended, and limits within which it has to end."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Sfpp = Callable[..., tuple[int, str, str]]

OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys: controls but for the end of a line, and marks of direction."""
ADDRESS_SPACE = 6 << 30
"""Bytes that a case may ask for beyond what the process has."""


class Hangs(BaseException):
    """A command that did not end in time; no `except Exception` keeps it."""


@contextmanager
def limits(seconds: int = 60) -> Iterator[None]:
    """Hangs, or MemoryError, instead of a machine that stands still."""
    import resource

    def stop(*_: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    room = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ADDRESS_SPACE, room[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, room)
        signal.signal(signal.SIGALRM, before)


def ends_well(sfpp: Sfpp, *arguments: str) -> bool:
    """Whether a command did what it was asked, rather than refuse it in lines that a person can read.

    AssertionError, or what the command raised, if it did neither.
    """
    with limits():
        code, out, err = sfpp(*arguments)
    assert code in (0, 2), (code, err)
    assert not OBEYED.search(out + err), ascii(out + err)
    assert max(map(len, err.splitlines()), default=0) <= 1100, err[:2000]
    if code == 2:
        assert err.startswith("error: ") or "Usage: " in err or "\nerror: " in err, err
        assert not out, out
    return code == 0
