"""Which device and precision to use, and what it has left."""

from __future__ import annotations

import gc
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from sfpp_cli.errors import UserError

_SMALL_PASS = 1e10
"""Floating-point operations. The embedded model's pass takes 2e8, that of Wan 1.3B 1e13."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(
    name: str | None, local_rank: int = 0, *, absent_too: bool = False, flag: str = "--device"
) -> torch.device:
    """The device by name; by default this rank's GPU if there are any.

    What is asked for and absent is an error, which names the `flag`: nothing falls back to the CPU in
    silence. `absent_too` is for plans, which may be made for a GPU that another machine has.
    """
    if name is None:
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{name}': it takes cpu, cuda or cuda:N")
    if device.type == "cpu" or absent_too:
        return device
    if not torch.cuda.is_available():
        raise UserError(
            f"{flag} {name}: no CUDA device is available here; use {flag} cpu, "
            "or install a CUDA build of torch"
        )
    if device.index is None:
        device = torch.device("cuda", local_rank)
    if device.index >= torch.cuda.device_count():
        raise UserError(f"{flag} {name}: there are only {torch.cuda.device_count()} CUDA devices")
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The precision by name; by default bfloat16 on CUDA, float32 elsewhere."""
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UserError(f"unknown dtype '{name}': it takes {', '.join(DTYPES)}")
    return DTYPES[name]


def total_memory(device: torch.device) -> int | None:
    """Bytes of a device's memory, in use or not; None where nobody says."""
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and hasattr(os, "sysconf"):  # Windows has none
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def threads_for(operations: float) -> int:
    """CPU threads for the operations of a network's pass that takes so many floating-point operations.

    Sharing out the work of a small one costs more than it gains, all the more where others use the cores;
    these are better used for several networks at the same time.
    """
    return 1 if operations < _SMALL_PASS else torch.get_num_threads()


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """In the block, operations of this thread of Python use so many of the CPU's."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile needs and this machine lacks."""
    if device.type == "cuda":
        names = [os.environ.get("CC") or "gcc", "clang"]
    else:
        names = [os.environ.get("CXX") or ("clang++" if platform.system() == "Darwin" else "g++")]
    if not any(map(shutil.which, names)) and platform.system() != "Windows":
        return f"the compiler {names[0]}"
    return "triton" if device.type == "cuda" and find_spec("triton") is None else None


def require_compiler(device: torch.device) -> None:
    """UserError where torch.compile would fail, after the model has been loaded, for want of a compiler."""
    if missing := missing_compiler(device):
        raise UserError(f"--compile needs {missing}, which is not here: install it, or leave that out")


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Moment:
    """A point in a device's work: now, or on CUDA when what its current stream was given so far is done."""

    def __init__(self, device: torch.device) -> None:
        self._time = time.perf_counter()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Until it has come."""
        if self._event is not None:
            self._event.synchronize()

    def since(self, earlier: Moment) -> float:
        """Seconds from an earlier moment of the same device; waits."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        self.wait()
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1e3


class Made:
    """A tensor that a device is making, on its way to the CPU; nobody waits before it is asked for."""

    def __init__(self, tensor: Tensor, began: Moment) -> None:
        """`began` is when the device began with it."""
        self._began = began
        self._ended = Moment(tensor.device)
        self._copy = tensor
        if tensor.is_cuda:
            # Of PyTorch's pool of pinned memory, which gives nothing out again before the copy is done.
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
        self._arrived = Moment(tensor.device)

    @property
    def seconds(self) -> float:
        """How long the device took, the copy not counted; waits."""
        return self._ended.since(self._began)

    def cpu(self) -> Tensor:
        """The tensor; waits."""
        self._arrived.wait()
        return self._copy


def own_stream(device: torch.device) -> AbstractContextManager[object]:
    """On CUDA, work of the block goes to a stream of its own, beside other threads' work."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))


def release_memory(device: torch.device) -> None:
    """Free what nobody needs any more, for a GPU's other users too, and let its peak begin anew."""
    gc.collect()  # accelerate's hooks and the modules they hang on hold each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def used_megabytes(device: torch.device) -> float:
    """Memory in use now: the GPU's, or this process's resident memory (its peak on systems without /proc)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return peak_megabytes(device)


def peak_megabytes(device: torch.device) -> float:
    """The most memory that was ever in use: the GPU's since `release_memory`, or this process's resident one.

    Linux is asked for the high-water mark, since a new process's `ru_maxrss` begins at that of its parent.
    Windows has no such thing: 0.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError):
        if mark := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(mark[1]) * 1024 / 1e6
    if platform.system() == "Windows":
        return 0.0
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
