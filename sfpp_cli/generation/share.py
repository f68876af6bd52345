"""One batch, any number of processes: each makes the next video that nobody owns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Self

from sfpp_cli.errors import InUse, UserError
from sfpp_cli.files import sweep
from sfpp_cli.generation.job import Job, find_finished
from sfpp_cli.generation.outputs import refuse_existing
from sfpp_cli.generation.requests import GenerateOptions
from sfpp_cli.progress import Progress
from sfpp_cli.video.writer import check_encoder

PATIENCE = 1.0
"""Seconds in which another process that only looked lets go of a lock."""
PAUSE = 0.5
"""Seconds between two looks at what others make."""


class Share:
    """This process's part of some jobs. As a context manager it gives up at the end what it owns.

    A job is owned until the next one is, so whoever comes later finds an owner as long as somebody works on
    these jobs. What such a process finishes counts as done; what was there before is done with `resume`, else
    refused, or replaced with `overwrite`. A job whose owner dies is taken over where it stands.
    """

    def __init__(
        self, jobs: Sequence[Job], options: GenerateOptions, progress: Progress, *, wait: bool
    ) -> None:
        """UserError for files in the way and, unless owners are to be waited for, if all jobs have one."""
        self.done: dict[Job, dict[str, Any]] = {}
        """Descriptions of what is finished, by whomever."""
        self._jobs = jobs
        self._options = options
        self._progress = progress
        self._wait = wait
        self._held = ExitStack()
        for request in {(job.request.out.suffix, job.request.fps): job.request for job in jobs}.values():
            check_encoder(request.out, (request.width, request.height), request.fps)
        for folder in dict.fromkeys(job.folder.parent for job in jobs):
            sweep(folder)
        if options.resume:
            self._find_finished()
        self._in_use = [job for job in self.left if job.in_use()]
        # What has this stamp when its turn comes was made by nobody who shares the work.
        count_all = bool(self._in_use) and not options.overwrite
        self._before = {} if count_all else {job: _stamp(job) for job in self.left}
        self._refuse(job for job in self.left if job not in self._in_use and not self._made_by_others(job))
        idle = (job for job in self.left if job not in self._in_use and job.interrupted())
        self._stale = set() if options.resume else set(idle)
        self.current = self._take()
        """The job that is owned."""

    @property
    def left(self) -> list[Job]:
        """What is not finished."""
        return [job for job in self._jobs if job not in self.done]

    def run(self, make: Callable[[Job], dict[str, Any]]) -> list[dict[str, Any]]:
        """Make what others do not, wait for them, and return the descriptions of all, in their order."""
        while self.left:
            if self.current is not None:
                self.done[self.current] = make(self.current)
                self.current = self._take()
                continue
            self._progress.say(f"waiting for other processes, which make {len(self.left)} of the videos")
            while self.left and self.current is None:
                time.sleep(PAUSE)
                self.current = self._take()
        return [self.done[job] for job in self._jobs]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._held.close()

    def _find_finished(self) -> None:
        self.done = find_finished(self._jobs)
        for job, found in self.done.items():
            self._progress.say(f"{found['path']} is finished already")
            if job.interrupted():  # killed after the last step but before it had cleaned up
                with suppress(InUse), job.owned():
                    job.discard()

    def _take(self) -> Job | None:
        """Own the first job that nobody owns, and only then let go of the last one."""
        for job in self.left:
            taken = ExitStack()
            try:
                taken.enter_context(job.owned(0 if self._wait else PATIENCE))
            except InUse:
                if self._wait:
                    continue
                raise
            if self._made_by_others(job):
                self.done[job] = job.finished() or {}
                with taken:
                    job.discard()  # of one that was killed before it had cleaned up
                continue
            with taken:
                self._refuse([job], begun=True)
                if job in self._stale:
                    job.discard()
                    self._stale.remove(job)
                self._held.close()
                self._held = taken.pop_all()
            return job
        self._held.close()
        return None

    def _made_by_others(self, job: Job) -> bool:
        return job.finished() is not None and _stamp(job) != self._before.get(job)

    def _refuse(self, jobs: Iterable[Job], begun: bool = False) -> None:
        """Never replace a file unasked. What was begun may have its name already."""
        if self._options.overwrite:
            return
        begun = begun or self._options.resume or bool(self._in_use)
        jobs = [job for job in jobs if not (begun and job.interrupted())]
        for job in jobs:
            if self._options.resume and job.outdated():
                raise UserError(
                    f"{job.path} is this very video, but made with other versions of "
                    f"{', '.join(job.description['versions'])}: use --overwrite to make it again"
                )
        refuse_existing([job.request for job in jobs], self._options)


def _stamp(job: Job) -> tuple[int, int] | None:
    """What changes when the file that says a video is finished is written again."""
    try:
        status = os.stat(job.sidecar)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
