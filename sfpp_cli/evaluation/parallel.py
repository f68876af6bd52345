"""Several videos at once, in processes of their own, with a cache.

What cannot be measured is reported, and the others still are.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.metrics.measure import measure, versions
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.scenes import borders_of, scenes_of
from sfpp_cli.evaluation.source import digest, sidecar
from sfpp_cli.files import atomic_write
from sfpp_cli.progress import Progress

SCHEMA = "sfpp-evaluation/1"

Outcome = dict[str, Any] | str
"""What `measure` returned, or the line that says why it could not measure."""
Timed = tuple[Outcome, dict[str, float]]
"""And how many seconds each part of it took."""
Job = tuple[Path, Parameters, tuple[float, ...]]
"""What `measure` is given."""


def evaluate(
    paths: Sequence[str | Path],
    *,
    parameters: Parameters | None = None,
    prompts: Sequence[str | None] | None = None,
    scenes: Sequence[float] = (),
    workers: int | None = 1,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure videos. results.schema.json describes the result; its `videos` and `failed` are in the order of
    `paths`.

    Prompt, seed and system come from the JSON that `sfpp generate` writes beside a video; `prompts`, one
    for each path, and `scenes`, the seconds at which another scene is meant to begin in every video, fill in
    where that does not say. `workers` processes share the work (None: one a core, but no more than videos);
    if that is one, the work is done in this process. Several start the script anew, so its work has to stand
    under `if __name__ == "__main__":` then. `cache` is a folder that keeps results by content, parameters and
    versions. `progress` is told of a stage with a unit for each video, and in detail what took how long.
    ValueError if `prompts` are not as many as `paths`.
    """
    if prompts is not None and len(prompts) != len(paths):
        raise ValueError(f"{len(prompts)} prompts for {len(paths)} videos")
    files = [Path(path) for path in paths]
    parameters = parameters or Parameters()
    beside = [sidecar(file, progress) for file in files]
    announced = [scenes_of(known, scenes) for known in beside]
    jobs = [(file, parameters, borders_of(parts)) for file, parts in zip(files, announced, strict=True)]
    outcomes = _measure_all(jobs, workers, cache, progress)
    videos: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    given = prompts or [None] * len(files)
    for file, prompt, known, parts, outcome in zip(files, given, beside, announced, outcomes, strict=True):
        if isinstance(outcome, str):
            failed.append({"path": str(file), "error": outcome})
        else:
            origin = {"path": str(file), "prompt": known.get("prompt", prompt), "seed": known.get("seed")}
            # a result from the cache may be that of a copy, with another path
            videos.append(origin | {"system": known.get("model"), "scenes": parts} | outcome | origin)
    return {
        "schema": SCHEMA,
        "versions": versions(),
        "parameters": json.loads(json.dumps(asdict(parameters))),  # as a reader of the JSON sees them
        "videos": videos,
        "failed": failed,
    }


def _measure_all(
    jobs: Sequence[Job],
    workers: int | None,
    cache: Path | None,
    progress: Progress | None,
) -> list[Outcome]:
    """The outcome of every job: from the cache where it is known, else measured."""
    entries, outcomes = _known(jobs, cache)
    missing = {index: job for index, job in enumerate(jobs) if index not in outcomes}
    count = min(workers or os.cpu_count() or 1, len(missing))
    if count > 1:
        measuring = _in_pool(missing, count)
    else:
        measuring = ((index, _timed(job)) for index, job in missing.items())
    stage = progress.stage("measuring", len(jobs)) if progress and jobs else nullcontext()
    spent: Counter[str] = Counter()
    with stage as advance:
        for index, (outcome, seconds) in measuring:
            outcomes[index] = outcome
            spent.update(seconds)
            if isinstance(outcome, dict) and index in entries:
                try:
                    atomic_write(entries[index], json.dumps(outcome))
                except UserError as error:  # the cache is a convenience
                    entries = {}
                    if progress:
                        progress.warn(f"results are not kept for the next time: {error}")
            if advance:
                advance(len(outcomes), {})
    if progress and spent:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.most_common())
        progress.detail(f"{len(missing)} of {len(jobs)} videos measured anew; seconds: {parts}")
    return [outcomes[index] for index in range(len(jobs))]


def _known(jobs: Sequence[Job], cache: Path | None) -> tuple[dict[int, Path], dict[int, Outcome]]:
    """By the places of jobs: where the cache keeps an outcome, and those that need no measuring."""
    entries: dict[int, Path] = {}
    outcomes: dict[int, Outcome] = {}
    if cache is None:
        return entries, outcomes
    for index, job in enumerate(jobs):
        try:
            entries[index] = cache / f"{_key(job)}.json"
        except UserError as error:
            outcomes[index] = str(error)
            continue
        with suppress(OSError, ValueError):
            known = json.loads(entries[index].read_text())
            if isinstance(known, dict):
                outcomes[index] = known
    return entries, outcomes


def _key(job: Job) -> str:
    file, parameters, borders = job
    identity = [digest(file), parameters.key(), borders, versions()]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _timed(job: Job) -> Timed:
    seconds: dict[str, float] = {}
    try:
        return measure(*job, seconds), seconds
    except UserError as error:
        return str(error), seconds


def _in_pool(jobs: Mapping[int, Job], count: int) -> Iterator[tuple[int, Timed]]:
    """In worker processes, as they finish."""
    pool = worker_pool(count)
    with pool:
        try:
            with single_threaded():
                futures = {pool.submit(_timed, job): index for index, job in jobs.items()}
            for future in as_completed(futures):
                index = futures[future]
                try:
                    timed = future.result()
                except BrokenProcessPool:
                    remedy = "a process was killed, perhaps for want of memory; try fewer with --workers"
                    timed = (f"{jobs[index][0]} was not measured: {remedy}", {})
                yield index, timed
        except BaseException:  # Ctrl-C, or whoever takes the outcomes has failed
            # without waiting for the videos that are being measured; from Python 3.14 on, `terminate_workers`
            processes = list(pool._processes.values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that start fresh, since a fork would inherit locks that other threads of this process hold.

    They ignore Ctrl-C, which reaches them too: this process ends them.
    """
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )


@contextmanager
def single_threaded() -> Iterator[None]:
    """Processes that start in the block compute on one thread each. There is a worker for every core already,
    and numpy's own threads would take turns on them, or wait at full speed. OpenCV is told by `measure`."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    before = {name: os.environ.get(name) for name in one}
    os.environ.update(one)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
