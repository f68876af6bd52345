"""Which device and precision to use, and what it has left."""

from __future__ import annotations

import gc
import platform
import re
import resource
from contextlib import suppress
from pathlib import Path

import torch

from sfpp_cli.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str | None, local_rank: int = 0, *, absent_too: bool = False) -> torch.device:
    """The device by name; by default this rank's GPU if there are any.

    What is asked for and absent is an error: nothing falls back to the CPU in silence. `absent_too` is for
    plans, which may be made for a GPU that another machine has.
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
            f"--device {name}: no CUDA device is available here; use --device cpu, "
            "or install a CUDA build of torch"
        )
    if device.index is None:
        device = torch.device("cuda", local_rank)
    if device.index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices")
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The precision by name; by default bfloat16 on CUDA, float32 elsewhere."""
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UserError(f"unknown dtype '{name}': it takes {', '.join(DTYPES)}")
    return DTYPES[name]


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return peak_megabytes(device)


def peak_megabytes(device: torch.device) -> float:
    """The most memory that was ever in use: the GPU's since `release_memory`, or this process's resident one.

    Linux is asked for the high-water mark, since a new process's `ru_maxrss` begins at that of its parent.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError):
        if mark := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(mark[1]) * 1024 / 1e6
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
