"""The 1.3B student's passes: eager, then compiled and as CUDA graphs."""

from __future__ import annotations

import statistics
import threading
import time
from functools import partial

import torch
import torch._dynamo as dynamo
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.machine import nvidia_smi
from gpu.measuring import Result, Section, error_of, rate
from gpu.networks import compile_blocks, full_cache, fused_blocks, make_network, sampler, sizes
from gpu.profiling import kernels
from sfpp_cli.core.cache import KVCache
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.student import CausalWanModel


class Passes:
    """A student with random weights in bfloat16, and all that one needs to time its passes."""

    def __init__(self, s: Section) -> None:
        self.s = s
        self.z = sizes(s.tiny)
        self.student: CausalWanModel = make_network(CausalWanModel, self.z.config, torch.bfloat16, s.device)
        self.text = torch.randn(1, self.z.text, self.z.text_dim, device=s.device, dtype=torch.bfloat16)
        self.x = torch.randn(1, 3, 16, *self.z.latent, device=s.device)
        self.t = torch.full((1,), 625.0, device=s.device)
        self.caches: dict[tuple[int, int], KVCache] = {}

    def cache(self, context: int = 21, frame: int = 60) -> KVCache:
        """A full ring; one at a time, since each has 6 GB."""
        if (context, frame) not in self.caches:
            self.caches.clear()
            self.s.free()
            self.caches[context, frame] = full_cache(self.student, self.text, self.z.latent, context, frame)
        return self.caches[context, frame]

    def one(self) -> None:
        """One denoising pass amid a video."""
        self.student(self.x, self.t, self.cache())

    def denoise(self, context: int = 21, frame: int = 60, n: int = 8) -> Result:
        cache = self.cache(context, frame)
        seen = min(context, frame + 3)
        result = self.s.timed(lambda: self.student(self.x, self.t, cache), n=n)
        return rate(result, self.z.flop(3, seen))

    def context_pass(self, context: int = 21, frame: int = 60, n: int = 5) -> Result:
        cache = self.cache(context, frame)

        def one() -> None:
            self.student.cache_clean(self.x, cache)
            cache.frame = frame

        return self.s.timed(one, n=n)

    def chunk(self, context: int = 21, n: int = 6) -> Result:
        """Four denoising passes and the context pass, and what that makes of frames a second."""
        denoise = self.denoise(context, n=n)
        last = self.context_pass(context, n=max(2, n // 2))
        ms = 4 * denoise["ms"] + last["ms"]
        return {
            "denoise_ms": denoise["ms"],
            "context_ms": last["ms"],
            "chunk_ms": round(ms, 2),
            "loop_fps": round(12e3 / ms, 2),
            "TFLOP/s": denoise["TFLOP/s"],
            "first_ms": denoise["first_ms"],
        }

    def loop(self, chunks: int = 8) -> Result:
        """The product's rollout with its noise, from a full ring on: what `loop` means to a user."""
        noise = VideoNoise([0], tuple(self.x.shape[1:]), self.s.device)
        cache = self.cache()
        times = []
        began = time.perf_counter()
        latents = noise.chunks(0, chunks)
        for _ in sampler().rollout(self.student, latents, self.text, noise.draw, cache=cache):
            self.s.sync()
            times.append(time.perf_counter() - began)
            began = time.perf_counter()
        cache.frame = 60
        ms = statistics.median(times[2:]) * 1e3
        return {"chunk_ms": round(ms, 2), "loop_fps": round(12e3 / ms, 2)}

    def launch_bound(self) -> Result:
        """The same number of kernels, each too small to take time: what Python and launches cost."""
        small = full_cache(self.student, self.text, (4, 4), 21, 60)
        x = torch.randn(1, 3, 16, 4, 4, device=self.s.device)
        return self.s.timed(lambda: self.student(x, self.t, small), n=8)


@torch.no_grad()
def student(s: Section) -> None:
    """Passes, windows, attention backends, fused blocks, the product's loop, kernels."""
    s.reset_peak()
    p = Passes(s)
    s.put("parameters_M", round(sum(q.numel() for q in p.student.parameters()) / 1e6, 1))
    s.attempt("eager as it is, window 21", p.chunk)
    s.put("peak_gb", s.peak_gb())
    s.attempt("product's loop", p.loop)
    for name, backend in (("flash2", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        s.attempt(f"attention by {name}", partial(under, backend, p))
    title = "student, one denoising pass, eager"
    s.attempt("kernels of the eager pass", lambda: kernels(s, f"{title}, as it is", p.one))
    s.attempt("launch-bound pass (tiny latents)", p.launch_bound)
    if s.cuda:
        s.attempt("clock, power, temperature under load", lambda: under_load(p), need=8)
    fused_blocks(p.student)
    s.attempt("one qkv GEMM, gelu in the epilogue", lambda: p.chunk(n=5))
    s.attempt("kernels of the fused pass", lambda: kernels(s, f"{title}, fused", p.one))
    s.attempt("first chunk of a video (sees 3 frames)", lambda: p.denoise(21, 0))
    s.attempt("window 9", lambda: p.chunk(9, n=4))
    s.attempt("window 12", lambda: p.chunk(12, n=4))


def under(backend: SDPBackend, p: Passes) -> Result:
    with sdpa_kernel([backend, SDPBackend.MATH]):
        return p.chunk(n=4)


def under_load(p: Passes) -> Result:
    """What nvidia-smi says while passes run."""
    seen: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.6):
            seen.append(nvidia_smi("clocks.sm,power.draw,temperature.gpu"))

    thread = threading.Thread(target=ask)
    thread.start()
    began = time.time()
    while time.time() - began < 3:
        p.one()
        p.s.sync()
    over.set()
    thread.join()
    return {"seen": seen}


@torch.no_grad()
def warm_student(s: Section) -> None:
    """Fill the compiler's cache for `compiled`, with the same graphs and shapes."""
    for fused in (True, False):
        p = Passes(s)
        if fused:
            fused_blocks(p.student)
        compile_blocks(p.student)
        title = f"compiled, {'fused' if fused else 'as it is'}"
        s.attempt(title, partial(p.chunk, n=1), need=20)


@torch.no_grad()
def compiled(s: Section) -> None:
    """The same compiled, and as CUDA graphs."""
    compiled_as_it_is(s)
    forget_compiled(s)
    fused_and_compiled(s)
    forget_compiled(s)
    if s.cuda:
        s.attempt("reduce-overhead (a CUDA graph a compiled part)", lambda: reduce_overhead(s), need=45)


def forget_compiled(s: Section) -> None:
    dynamo.reset()
    counters.clear()
    s.free()


def compiled_as_it_is(s: Section) -> None:
    p = Passes(s)
    compile_blocks(p.student)
    s.attempt("compiled as it is, window 21", lambda: {**p.chunk(), **graphs()}, need=25)
    s.attempt("product's loop, compiled as it is", p.loop)


def fused_and_compiled(s: Section) -> None:
    p = Passes(s)
    fused_blocks(p.student)
    compile_blocks(p.student)
    s.attempt("fused and compiled, window 21", lambda: {**p.chunk(), **graphs()}, need=20)
    title = "student, one denoising pass, fused and compiled"
    s.attempt("kernels compiled", lambda: kernels(s, title, p.one))
    s.attempt("product's loop, fused and compiled", p.loop)
    s.attempt("first chunk of a video (sees 3 frames)", lambda: p.denoise(21, 0))
    if s.cuda:
        s.attempt("one CUDA graph of a compiled pass", lambda: graphed(p), need=5)
    s.attempt("window 9", lambda: p.chunk(9, n=4), need=5)
    s.attempt("window 12", lambda: p.chunk(12, n=4), need=5)
    # Other shapes: what came after it would be compiled for any shape.
    s.attempt("launch-bound pass (tiny latents)", p.launch_bound, need=20)


def graphs() -> Result:
    return {"graphs": counters["stats"].get("unique_graphs"), "breaks": dict(counters["graph_break"])}


def graphed(p: Passes) -> Result:
    """A whole pass as one CUDA graph: its slot in the ring and its rotation are constants of the graph."""
    cache = p.cache()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            eager = p.student(p.x, p.t, cache)
    torch.cuda.current_stream().wait_stream(side)
    eager = eager.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = p.student(p.x, p.t, cache)
    result = rate(p.s.timed(graph.replay, n=8), p.z.flop(3, 21))
    return {**result, "error": error_of(out, eager)["relative"]}


def reduce_overhead(s: Section) -> Result:
    p = Passes(s)
    fused_blocks(p.student)
    compile_blocks(p.student, mode="reduce-overhead")
    cache = p.cache()

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        p.student(p.x, p.t, cache)

    return rate(s.timed(step, n=6, warm=4), p.z.flop(3, 21))
