"""A video of random weights through the product's own generator, then with everything overlapped."""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import sfpp_cli.generation.job
from gpu.decoder import half
from gpu.machine import ffmpeg_version
from gpu.measuring import Result, Section
from gpu.networks import compile_blocks, fused_blocks, lean_decoder, make_vae, sampler
from gpu.student import Passes
from sfpp_cli.core.geometry import Compression
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.job import Job
from sfpp_cli.generation.requests import Request
from sfpp_cli.models.vae import StreamingDecoder, channels_last, compile_decoder, to_uint8
from sfpp_cli.progress import Silent
from sfpp_cli.video import Frames
from sfpp_cli.video.writer import VideoWriter

FPS = 16.0


class NullWriter:
    """A VideoWriter that writes nothing, for a machine without ffmpeg."""

    def __init__(self, *_: object) -> None:
        self.frames = 0

    def write(self, frames: Frames) -> None:
        self.frames += len(frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


@torch.no_grad()
def end_to_end(s: Section) -> None:
    writer: Any = VideoWriter
    try:
        ffmpeg_version()
    except Exception as error:  # the rest is worth measuring without it
        s.put("ffmpeg", f"missing ({error}): frames are thrown away")
        writer = NullWriter
    with (
        tempfile.TemporaryDirectory(prefix="sfpp-e2e-") as folder,
        patch.object(sfpp_cli.generation.job, "VideoWriter", writer),
    ):
        videos(s, Videos(s, writer, Path(folder)))


def videos(s: Section, v: Videos) -> None:
    p = v.passes
    vae = channels_last(make_vae(s.tiny, half(s), s.device))
    if s.cuda:
        p.student.compile_blocks()
    s.attempt("product's generator, first video (warm-up)", lambda: v.product(vae), need=15)
    s.attempt("product's generator, second video", lambda: v.product(vae), need=10)
    s.attempt("ffmpeg alone (smooth moving picture)", lambda: v.piped(24 if s.tiny else 240), need=8)
    s.attempt("overlapped, both as they are", lambda: v.overlapped(StreamingDecoder(vae)), need=10)
    s.attempt("first picture, warm", lambda: v.first_picture(vae), need=3)
    lean_decoder(vae)
    torch.backends.cudnn.benchmark = True
    twice = partial(v.twice, lambda: StreamingDecoder(vae))
    s.attempt("overlapped, lean decoder, cudnn.benchmark", twice, need=12)
    if s.tiny:
        return
    torch._dynamo.reset()
    fused_blocks(p.student)
    compile_blocks(p.student)
    compile_decoder(vae)
    s.attempt("overlapped, all mended and compiled", twice, need=25)
    s.attempt("first picture, all mended and compiled", lambda: v.first_picture(vae), need=5)


class Videos:
    """Ways to make a video of random weights."""

    def __init__(self, s: Section, writer: Any, work: Path) -> None:
        self.s = s
        self.writer = writer
        self.work = work
        self.passes = Passes(s)
        self.chunks = 3 if s.tiny else 10
        self.size = self.passes.z.pixels

    def product(self, vae: Any) -> Result:
        """`Job.run`, which is what `sfpp generate` runs."""
        p = self.passes
        generator = Generator(p.student, lambda prompts: p.text, vae, sampler(), Compression(4, 8))
        frames = 12 * (self.chunks - 1) + 9
        width, height = self.size
        request = Request(
            prompt="random weights",
            seed=0,
            frames=frames,
            width=width,
            height=height,
            fps=FPS,
            out=self.work / "product.mp4",
        )
        made = Job(request, {"model": "random"}).run(generator, Silent())
        return {**made["speed"], "memory_mb": made["memory_mb"], "peak_memory_mb": made["peak_memory_mb"]}

    def piped(self, count: int) -> Result:
        """ffmpeg's own pace."""
        width, height = self.size
        rows, columns = np.mgrid[0:height, 0:width]
        moving = [
            128 + 60 * np.sin((columns + 3 * t) / 40) + 40 * np.cos((rows - 2 * t) / 25) for t in range(12)
        ]
        batch = np.stack(moving)[..., None].repeat(3, -1).clip(0, 255).astype(np.uint8)
        began = time.perf_counter()
        with self.writer(self.work / "pipe.mp4", self.size, FPS, {}) as writer:
            for _ in range(count // 12):
                writer.write(batch)
        return {"fps": round(count / (time.perf_counter() - began), 1)}

    def rolled(self, chunks: int) -> Iterator[Tensor]:
        """The latents of a video, from its first chunk on."""
        p = self.passes
        noise = VideoNoise([0], tuple(p.x.shape[1:]), self.s.device)
        cache = p.student.new_cache(p.text, p.z.latent, context=21)
        return sampler().rollout(p.student, noise.chunks(0, chunks), p.text, noise.draw, cache=cache)

    def twice(self, decoder: Any) -> Result:
        """The second time, once all is compiled and chosen."""
        self.overlapped(decoder())
        return self.overlapped(decoder())

    def overlapped(self, decoder: StreamingDecoder) -> Result:
        """The VAE on a stream of its own, pinned buffers, a thread that writes."""
        ready: queue.Queue[Any] = queue.Queue(maxsize=2)
        arrivals: list[float] = []

        def write(writer: Any) -> None:
            while (item := ready.get()) is not None:
                frames, done = item
                if done is not None:
                    done.synchronize()
                arrivals.append(time.perf_counter())
                writer.write(frames.numpy())

        stream = torch.cuda.Stream() if self.s.cuda else None
        began = time.perf_counter()
        with self.writer(self.work / "overlapped.mp4", self.size, FPS, {}) as writer:
            thread = threading.Thread(target=write, args=(writer,))
            thread.start()
            try:
                for x0 in self.rolled(self.chunks):
                    ready.put(decoded(decoder, x0, stream))
            finally:
                ready.put(None)
                thread.join()
        total = time.perf_counter() - began
        return {
            "frames": writer.frames,
            "end_to_end_fps": round(writer.frames / total, 2),
            "first_frame_s": round(arrivals[0] - began, 3),
        }

    def first_picture(self, vae: Any) -> Result:
        """From nothing to the first picture in main memory: four passes, one latent frame decoded."""
        for _ in range(3):
            self.s.sync()
            began = time.perf_counter()
            x0 = next(self.rolled(1))
            self.s.sync()
            rolled = time.perf_counter()
            to_uint8(StreamingDecoder(vae)(x0[:, :1].to(vae.dtype)))[0].cpu()
            over = time.perf_counter()
        return {"rollout_s": round(rolled - began, 4), "first picture_s": round(over - began, 4)}


def decoded(decoder: StreamingDecoder, x0: Tensor, stream: Any) -> tuple[Tensor, Any]:
    """A chunk's frames [T, H, W, 3] in main memory once the event, if there is one, has come."""
    if stream is None:
        return to_uint8(decoder(x0.to(decoder.vae.dtype)))[0], None
    rolled = torch.cuda.Event()
    rolled.record()
    with torch.cuda.stream(stream):
        stream.wait_event(rolled)
        x0.record_stream(stream)
        frames = to_uint8(decoder(x0.to(decoder.vae.dtype)))[0]
        host = torch.empty(frames.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(frames, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
    return host, done
