"""A section in a process of its own: a crash, a hang or a spoilt CUDA context ends it and nothing else."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from gpu.measuring import OutOfTime, Section

Run = Callable[[Section], None]


def run_section(run: Run, section: Section) -> None:
    """In the child: never raises, and stops itself when its time is over."""

    def stop(*_: object) -> None:
        raise OutOfTime

    began = time.time()
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, section.left()))
    try:
        if section.options.threads:
            torch.set_num_threads(section.options.threads)
        run(section)
        section.put("done_s", round(time.time() - began, 1))
    except OutOfTime:
        section.put("out of time after", f"{time.time() - began:.0f} s")
    except BaseException as error:
        what = f"{type(error).__name__}: {error}"[:800]
        section.put("failed", {"error": what, "trace": traceback.format_exc()[-3000:]})


class Child:
    """A section that runs, in a process group of its own: a fork, or with `spawn` a new process."""

    def __init__(self, name: str, run: Run, folder: Path, limit: float, options: argparse.Namespace) -> None:
        self.name = name
        self.limit = limit
        self.began = time.time()
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        sys.stdout.flush()
        if options.spawn:
            arguments = ["--section", name, "--work", str(folder), "--limit", str(limit)]
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, sys.argv[0], *options.passed, *arguments],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.pid = self.process.pid
            return
        self.pid = os.fork()
        if self.pid == 0:
            self._be_the_child(run, Section(name, folder, limit, options))

    def _be_the_child(self, run: Run, section: Section) -> None:
        os.setsid()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        with contextlib.suppress(BaseException):
            run_section(run, section)
        sys.stdout.flush()
        os._exit(0)

    def over(self) -> bool:
        if self.process is not None:
            return self.process.poll() is not None
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def wait(self, grace: float) -> None:
        """Until it is over, or its time is and `grace` seconds more; then it is ended."""
        while not self.over():
            if time.time() - self.began > self.limit + grace:
                print(f"--- {self.name} did not stop in time; it is ended", flush=True)
                self._kill()
                time.sleep(0.5)
                self.over()
                break
            time.sleep(0.05)
        self._kill()  # what it may have left running (compile workers)
        print(f"\n##### {self.name}: {time.time() - self.began:.1f} s")
        print(self.log.read_text(errors="replace")[-20000:], flush=True)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
