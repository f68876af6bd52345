"""What machine this is, and what its ceilings are."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.measuring import Result, Section, error_of, rate
from gpu.networks import sizes
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.models.vae import to_uint8

PACKAGES = (
    *("torch", "triton", "transformers", "diffusers", "accelerate", "huggingface_hub", "safetensors", "peft"),
    *("numpy", "ftfy", "imageio-ffmpeg", "opencv-python-headless", "nvidia-cudnn-cu13"),
    *("flash-attn", "flash-attn-3", "flash-attn-4", "xformers", "sageattention", "torchao"),
)
GPU_FACTS = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.max.mem,power.limit"
BF16 = torch.bfloat16


def machine(s: Section) -> None:
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()}"
    s.put("python", f"{platform.python_version()}, {platform.machine()}, {cores}")
    s.attempt("cpu", lambda: first_match(r"model name\s*: (.*)", Path("/proc/cpuinfo")))
    s.attempt("ram_kb", lambda: first_match(r"MemTotal:\s*(\d+)", Path("/proc/meminfo")))
    s.put("packages", installed(PACKAGES))
    cudnn = torch.backends.cudnn.version()
    s.put("torch", {"version": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn})
    s.attempt("ffmpeg", ffmpeg_version)
    if s.cuda:
        s.attempt("nvidia-smi", lambda: nvidia_smi(GPU_FACTS))
        p = torch.cuda.get_device_properties(0)
        memory = round(p.total_memory / 1e9, 1)
        facts = {"name": p.name, "sm": p.multi_processor_count, "gb": memory, "cc": f"{p.major}.{p.minor}"}
        s.put("gpu", facts)
        s.attempt("sdpa_priority", lambda: [int(i) for i in torch._C._get_sdp_priority_order()])
        matmul = torch.backends.cuda.matmul.allow_tf32
        s.put("tf32", {"matmul": matmul, "cudnn": torch.backends.cudnn.allow_tf32})
    copies(s)
    multiplications(s)
    transfers(s)


def first_match(pattern: str, path: Path) -> str | None:
    match = re.search(pattern, path.read_text())
    return match[1] if match else None


def installed(names: tuple[str, ...]) -> dict[str, str]:
    versions = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def nvidia_smi(facts: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={facts}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()


def ffmpeg_version() -> str:
    program = imageio_ffmpeg.get_ffmpeg_exe()
    done = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=20)
    return f"{done.stdout.splitlines()[0]} ({program})"


def copies(s: Section) -> None:
    n = 1 << (16 if s.tiny else 29)
    source = torch.randn(n, device=s.device, dtype=BF16)
    target = torch.empty_like(source)

    def copy() -> Result:
        result = s.timed(lambda: target.copy_(source))
        return {**result, "GB/s": round(4 * n / max(result["ms"], 1e-4) / 1e6)}

    s.attempt("copy", copy)


def multiplications(s: Section) -> None:
    """The project's matrix products, against a large square one."""
    z = sizes(s.tiny)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=s.device, dtype=BF16) * 0.05

    side = 64 if s.tiny else 8192
    x = random(side, side)
    w = random(side, side)
    s.attempt(f"gemm {side}^3 bf16", lambda: rate(s.timed(lambda: x @ w), 2 * side**3))
    shapes = {
        "q,k,v or o": (z.dim, z.dim),
        "qkv in one": (3 * z.dim, z.dim),
        "ffn up": (z.ffn, z.dim),
        "ffn down": (z.dim, z.ffn),
    }
    rows = 3 * z.tokens
    for name, (out, inner) in shapes.items():
        linear(s, f"gemm teacher {name}", random(21 * z.tokens, inner), random(out, inner), random(out))
        operands = (random(rows, inner), random(out, inner), random(out))
        linear(s, f"gemm chunk {name}", *operands)
        if s.cuda:
            eighths(s, f"gemm chunk {name}", *operands)
    gelu(s, random(rows, z.dim), random(z.ffn, z.dim), random(z.ffn))
    s.free()


def linear(s: Section, title: str, x: Tensor, w: Tensor, bias: Tensor) -> None:
    flop = 2 * x.numel() * len(w)
    shape = f"[{len(x)},{x.shape[1]}]x[{len(w)}]"
    s.attempt(f"{title} bf16 {shape}", lambda: rate(s.timed(lambda: F.linear(x, w, bias)), flop))


def eighths(s: Section, title: str, x: Tensor, w: Tensor, bias: Tensor) -> None:
    """The same product in fp8, with a scale a tensor and with one a row."""
    flop = 2 * x.numel() * len(w)
    x8 = x.to(torch.float8_e4m3fn)
    w8 = w.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=s.device)
    of_rows = torch.ones(len(x), 1, device=s.device)
    of_columns = torch.ones(1, len(w), device=s.device)

    def tensorwise() -> Tensor:
        scales = {"scale_a": one, "scale_b": one}
        return torch._scaled_mm(x8, w8, **scales, bias=bias, out_dtype=BF16, use_fast_accum=True)

    def rowwise() -> Tensor:
        scales = {"scale_a": of_rows, "scale_b": of_columns}
        return torch._scaled_mm(x8, w8, **scales, out_dtype=BF16, use_fast_accum=True)

    s.attempt(f"{title} fp8 tensorwise", lambda: rate(s.timed(tensorwise), flop))
    s.attempt(f"{title} fp8 rowwise", lambda: rate(s.timed(rowwise), flop))


def gelu(s: Section, x: Tensor, w: Tensor, bias: Tensor) -> None:
    flop = 2 * x.numel() * len(w)

    def separate() -> Tensor:
        return F.gelu(F.linear(x, w, bias), approximate="tanh")

    def fused() -> Tensor:
        return torch._addmm_activation(bias, x, w.t(), use_gelu=True)

    s.attempt("ffn up + gelu, two kernels", lambda: rate(s.timed(separate), flop))
    s.attempt("ffn up + gelu in the epilogue", lambda: rate(s.timed(fused), flop))
    if s.cuda:  # whose epilogue is the tanh form; a CPU's is not
        exact = F.gelu(F.linear(x.float(), w.float(), bias.float()), approximate="tanh")
        s.attempt("gelu epilogue's error", lambda: error_of(fused(), exact))


def transfers(s: Section) -> None:
    """Twelve frames to main memory, as it is done and as it could be; noise; an optimiser's moments."""
    z = sizes(s.tiny)
    width, height = z.pixels
    frames = torch.randn(1, 12, 3, height, width, device=s.device, dtype=BF16).clamp(-1, 1)

    def as_it_is() -> np.ndarray:
        return to_uint8(frames)[0].cpu().numpy()

    s.attempt("to_uint8 of 12 frames", lambda: s.timed(lambda: to_uint8(frames)))
    s.attempt("12 frames to main memory, as it is", lambda: s.wall(as_it_is))
    if s.cuda:
        pinned = torch.empty(12, height, width, 3, dtype=torch.uint8, pin_memory=True)
        moments = torch.empty(1 << 28, device=s.device)
        host = moments.cpu()
        s.attempt(
            "12 frames into pinned memory",
            lambda: s.wall(lambda: pinned.copy_(to_uint8(frames)[0], non_blocking=True)),
        )
        s.attempt("1.07 GB to pageable memory", lambda: s.wall(lambda: moments.cpu()))
        s.attempt("1.07 GB from pageable memory", lambda: s.wall(lambda: host.to(s.device)))
    noise = VideoNoise([0], (3, 16, *z.latent), s.device)
    like = torch.empty((), device=s.device)
    s.attempt("noise of a chunk, drawn on the CPU and moved", lambda: s.wall(lambda: noise.draw(0, 0, like)))
