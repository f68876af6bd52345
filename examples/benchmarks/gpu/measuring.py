"""A section of the campaign: its device, its clock, its results on disk as soon as there are any."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

START = time.time()

Result = dict[str, Any]


class OutOfTime(BaseException):
    """The section's time is over; what is measured stands."""


class Section:
    """What a section is given: options, a device, a clock that runs out, and a place for results."""

    def __init__(self, name: str, folder: Path, limit: float, options: argparse.Namespace) -> None:
        self.name = name
        self.folder = folder
        self.options = options
        self.tiny = options.tiny
        self.device = torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.ends = time.time() + limit
        self.data: Result = {}

    def left(self) -> float:
        """Seconds until the section's time is over."""
        return self.ends - time.time()

    def put(self, key: str, value: object) -> None:
        """Keep a result: whatever happens afterwards, it is on disk."""
        self.data[key] = value
        part = self.folder / f"{self.name}.json.part"
        part.write_text(json.dumps(self.data, default=str))
        os.replace(part, self.folder / f"{self.name}.json")
        text = json.dumps(value, default=str)
        shown = text if len(text) < 900 else text[:900] + " ..."
        print(f"[{time.time() - START:6.1f}s {self.name}] {key}: {shown}", flush=True)

    def attempt(self, key: str, make: Callable[[], Any], need: float = 3.0) -> Any:
        """Measure one thing; an error is its result. Skipped with less than `need` seconds left."""
        if self.options.match and not re.search(self.options.match, key):
            return None
        if self.left() < need:
            self.put(key, {"skipped": f"{self.left():.0f} s left, {need:.0f} wanted"})
            return None
        began = time.time()
        try:
            value = make()
        except Exception as error:
            calls = traceback.extract_tb(error.__traceback__)[-6:]
            failure = {
                "error": f"{type(error).__name__}: {str(error)[:600]}",
                "where": [f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls],
                "s": round(time.time() - began, 1),
            }
            self.put(key, failure)
            with contextlib.suppress(Exception):  # a spoilt CUDA context cannot even do that
                self.free()
            return None
        if value is not None:
            self.put(key, value)
        return value

    def sync(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back memory that nothing refers to."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def peak_gb(self) -> float:
        """Most memory in use since `reset_peak`; 0 on a CPU."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.cuda else 0.0

    def reset_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def timed(self, make: Callable[[], object], n: int = 10, warm: int = 2) -> Result:
        """Median and least milliseconds of a call, by CUDA events or the clock.

        `first_ms` is the very first call with all that it builds.
        """
        began = time.perf_counter()
        make()
        self.sync()
        first = (time.perf_counter() - began) * 1e3
        for _ in range(warm):
            make()
        self.sync()
        times = self._by_events(make, n) if self.cuda else [self._by_clock(make) for _ in range(n)]
        return {
            "ms": round(statistics.median(times), 4),
            "least_ms": round(min(times), 4),
            "first_ms": round(first, 1),
        }

    def wall(self, make: Callable[[], object], n: int = 5) -> Result:
        """Median milliseconds of a call until all its work is done, main memory included."""
        make()
        return {"ms": round(statistics.median(self._by_clock(make) for _ in range(n)), 2)}

    def _by_events(self, make: Callable[[], object], n: int) -> list[float]:
        events = []
        for _ in range(n):
            before = torch.cuda.Event(enable_timing=True)
            after = torch.cuda.Event(enable_timing=True)
            before.record()
            make()
            after.record()
            events.append((before, after))
        self.sync()
        return [before.elapsed_time(after) for before, after in events]

    def _by_clock(self, make: Callable[[], object]) -> float:
        self.sync()
        began = time.perf_counter()
        make()
        self.sync()
        return (time.perf_counter() - began) * 1e3


def rate(result: Result, flop: float) -> Result:
    """A time, and the rate that so many operations make of it."""
    return {**result, "TFLOP/s": round(flop / max(result["ms"], 1e-4) / 1e9, 1)}


def error_of(ours: Tensor, reference: Tensor) -> Result:
    """||ours - reference|| / ||reference||, and the largest difference."""
    a = ours.detach().double().cpu()
    b = reference.detach().double().cpu()
    return {
        "relative": float((a - b).norm() / b.norm().clamp(min=1e-30)),
        "largest": float((a - b).abs().max()),
        "finite": bool(a.isfinite().all()),
    }
