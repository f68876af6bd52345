"""Which kernels a call runs, and how long each kind takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from gpu.measuring import Result, Section

KINDS = {
    "compiled (triton)": r"^triton",
    "attention": r"flash|fmha|sdpa|attention|mha",
    "convolution": r"conv|implicit|fprop|xmma.*3d|nchw|nhwc|ndhwc",
    "gemm": r"gemm|cutlass|nvjet|cublas|matmul|s16816|wgmma|splitk",
    "norm": r"norm",
    "copy and cast": r"copy|cast|memcpy|memset|fill|cat",
    "elementwise": r"elementwise|vectorized|reduce|gelu|silu|upsample|pad",
    "other": r"",
}


def kernels(s: Section, title: str, make: Callable[[], object]) -> Result:
    """A table of the twenty dearest kernels, into kernels.txt; answers the shares by kind."""
    make()
    s.sync()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if s.cuda else [])]
    with profile(activities=activities) as profiled:
        make()
        s.sync()
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiled.key_averages():
        if s.cuda and "CUDA" not in str(event.device_type):
            continue
        micro = event.self_device_time_total if s.cuda else event.self_cpu_time_total
        spent[event.key] += micro / 1e3
        calls[event.key] += event.count
    total = sum(spent.values()) or 1.0
    lines = [f"== {title}: {total:.2f} ms in {sum(calls.values())} kernels"]
    for name, ms in spent.most_common(20):
        lines.append(f"{ms:9.3f} ms {ms / total:6.1%} {calls[name]:5d} x  {name[:150]}")
    with (s.folder / "kernels.txt").open("a") as file:
        file.write("\n".join(lines) + "\n\n")
    shares: Counter[str] = Counter()
    for name, ms in spent.items():
        shares[kind(name)] += ms
    by_kind = {which: round(ms, 2) for which, ms in shares.most_common()}
    return {"total_ms": round(total, 2), "kernels": sum(calls.values()), "ms by kind": by_kind}


def kind(name: str) -> str:
    """The first kind whose pattern the kernel's name holds."""
    return next(which for which, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE))
