"""Work in forked processes, which need not import anything again: killed, signalled, short of something."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sfpp_cli import app

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Forked:
    """A process at work. What it says should not be long: it waits in pipes of 64 kB."""

    pid: int
    out: IO[bytes]
    err: IO[bytes]

    @classmethod
    def start(cls, work: Callable[[], object]) -> Forked:
        pipes = [os.pipe(), os.pipe()]  # no files: limits on their size do not concern what is said
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for number, (_, ours) in enumerate(pipes, start=1):
                os.dup2(ours, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            code: object = 1
            try:
                work()
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                with suppress(OSError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(int(str(code)))
        for _, theirs in pipes:
            os.close(theirs)
        return cls(pid, *(os.fdopen(ours, "rb") for ours, _ in pipes))

    def end(self) -> tuple[int, str, str]:
        """Wait: exit code (below 0: killed by that signal), stdout, stderr."""
        texts = []
        for file in (self.out, self.err):
            texts.append(file.read().decode())
            file.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), texts[0], texts[1]


def command(*arguments: str, before: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """The command line as work; `before` sets something up in its process."""

    def work() -> None:
        before()
        sys.argv = ["sfpp", *arguments]
        app.main()

    return work


def kill_at_touch(touch: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is killed just before its change of a file number `touch`, from 0.

    Answers whether it came to that; if not, it must have ended well. Counted is what Python itself does:
    files opened for writing, renamed or deleted, folders made or deleted.
    """

    def watched() -> None:
        sys.addaudithook(_Killer(touch))
        work()

    code, _, err = Forked.start(watched).end()
    assert code in (0, -signal.SIGKILL), err
    return code != 0


class _Killer:
    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            written = any(letter in str(mode) for letter in "wax+") if mode else int(str(flags)) & WRITING
            if not written or Path("/dev") in Path(os.fsdecode(str(path))).parents:
                return
        elif event not in CHANGES:
            return
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
