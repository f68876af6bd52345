"""Several videos in processes of their own, with a cache; what cannot be measured is reported, the others still are."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.metrics.measure import measure, versions
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.source import Cache, digest, sidecar
from sfpp_cli.progress import Watch

SCHEMA = "sfpp-evaluation/1"
PERCENT = 100
"""Units of progress of one video."""

Outcome = dict[str, Any] | str
"""What `measure` found, or the line that says why it could not."""
Tell = Callable[[int, float], None]
"""(which video, share done) -> None."""


def evaluate(
    paths: Sequence[str | Path],
    *,
    parameters: Parameters | None = None,
    prompts: Sequence[str | None] | None = None,
    workers: int | None = None,
    cache: Path | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Measure videos; the result is described in SCHEMA.md, its `videos` and `failed` are in the order of
    `paths`.

    Prompt, seed and system come from the JSON that `sfpp generate` writes beside a video; `prompts`, one for
    each path, fills what is missing. `workers` processes (default: one a core, as far as there are videos)
    share the work; one works in this process. `cache` is a directory of results by content, parameters and
    versions. `watch` sees one stage of `PERCENT` units a video. ValueError if `prompts` are not as many as
    `paths`.
    """
    if prompts is not None and len(prompts) != len(paths):
        raise ValueError(f"{len(prompts)} prompts for {len(paths)} videos")
    files, chosen = [Path(path) for path in paths], parameters or Parameters()
    found = _measure_all(files, chosen, workers, Cache(cache), watch)
    videos, failed = [], []
    for path, prompt, outcome in zip(files, prompts or [None] * len(files), found, strict=True):
        if isinstance(outcome, str):
            failed.append({"path": str(path), "error": outcome})
        else:
            videos.append(
                {
                    "path": str(path),
                    **_origin(path, prompt),
                    **{k: v for k, v in outcome.items() if k != "path"},
                }
            )
    return {
        "schema": SCHEMA,
        "versions": versions(),
        "parameters": json.loads(json.dumps(asdict(chosen))),
        "videos": videos,
        "failed": failed,
    }


def _origin(path: Path, prompt: str | None) -> dict[str, Any]:
    content = sidecar(path)
    return {
        "prompt": content.get("prompt", prompt),
        "seed": content.get("seed"),
        "system": content.get("model"),
    }


def _measure_all(
    files: Sequence[Path], parameters: Parameters, workers: int | None, cache: Cache, watch: Watch | None
) -> list[Outcome]:
    """The outcome of every file: from the cache where it is known, else from here or from worker processes."""
    keys: dict[int, str] = {}
    found: dict[int, Outcome] = {}
    for index, file in enumerate(files):
        try:
            keys[index] = _key(file, parameters) if cache.directory else ""
        except UserError as error:
            found[index] = str(error)
        if (known := cache.get(keys.get(index, ""))) is not None:
            found[index] = known
    wanted = {index: file for index, file in enumerate(files) if index not in found}
    count = min(workers or os.cpu_count() or 1, len(wanted))
    with _progress(watch, len(files), len(found)) as tell:
        for index, outcome in (_in_pool if count > 1 else _here)(wanted, parameters, count, tell):
            found[index] = outcome
            if isinstance(outcome, dict):
                cache.put(keys[index], outcome)
    return [found[index] for index in range(len(files))]


def _key(file: Path, parameters: Parameters) -> str:
    """Everything a result depends on."""
    return hashlib.sha256(json.dumps([digest(file), parameters.key(), versions()]).encode()).hexdigest()


@contextmanager
def _progress(watch: Watch | None, videos: int, known: int) -> Iterator[Tell]:
    """How work on single videos becomes the progress of all."""
    done = dict.fromkeys(range(-known, 0), PERCENT)
    with (
        watch.stage("measuring", videos * PERCENT)
        if watch and videos
        else nullcontext(lambda units, figures: None) as advance
    ):

        def tell(index: int, share: float) -> None:
            percent = int(share * PERCENT)
            if done.get(index) != percent:
                done[index] = percent
                finished = sum(value == PERCENT for value in done.values())
                advance(sum(done.values()), {"videos": f"{finished}/{videos}"})

        yield tell


def _here(
    wanted: Mapping[int, Path], parameters: Parameters, count: int, tell: Tell
) -> Iterator[tuple[int, Outcome]]:
    """One after the other, in this process."""
    for index, file in wanted.items():
        yield index, _outcome(file, parameters, partial(tell, index))
        tell(index, 1.0)


def _outcome(file: Path, parameters: Parameters, report: Callable[[float], None]) -> Outcome:
    try:
        return measure(file, parameters, report)
    except UserError as error:
        return str(error)


# --- worker processes -----------------------------------------------------------------------------------


class _Stopped(Exception):
    """The parent has given up."""


def _in_pool(
    wanted: Mapping[int, Path], parameters: Parameters, count: int, tell: Tell
) -> Iterator[tuple[int, Outcome]]:
    """In `count` fresh processes (a fork would inherit the threads of whatever else this process does), as they finish."""
    context = multiprocessing.get_context("spawn")
    queue, stop = context.SimpleQueue(), context.Event()
    with ProcessPoolExecutor(count, context, _start_worker, (queue, stop)) as pool:
        pending = {pool.submit(_work, index, file, parameters): index for index, file in wanted.items()}
        try:
            while pending:
                done, _ = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    tell(*queue.get())
                for future in done:
                    index = pending.pop(future)
                    yield index, _result(future, wanted[index])
                    tell(index, 1.0)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: Future[Outcome], file: Path) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return f"{file} was not measured: a process was killed, perhaps for want of memory; try fewer workers"


_messages: SimpleQueue[tuple[int, float]]
_stop: Event


def _start_worker(messages: SimpleQueue[tuple[int, float]], stop: Event) -> None:
    """Ctrl-C is the parent's business."""
    global _messages, _stop
    _messages, _stop = messages, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(index: int, file: Path, parameters: Parameters) -> Outcome:
    told = -1

    def report(share: float) -> None:
        nonlocal told
        if _stop.is_set():
            raise _Stopped
        if int(share * PERCENT) > told:
            told = int(share * PERCENT)
            _messages.put((index, share))

    return _outcome(file, parameters, report)
