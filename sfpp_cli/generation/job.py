"""A request in its folder: what is there of it already, and the way from frames to a finished file."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfpp_cli import __version__
from sfpp_cli.data.latent_log import LatentLog
from sfpp_cli.devices import peak_megabytes, used_megabytes
from sfpp_cli.files import atomic_write, remove_leftovers, replacing
from sfpp_cli.generation.generator import Generator, ModelOptions, Piece
from sfpp_cli.generation.pipeline import Pipeline
from sfpp_cli.generation.requests import Request
from sfpp_cli.generation.timing import Timing, rate
from sfpp_cli.models.bundle import Bundle, fingerprint
from sfpp_cli.progress import Progress
from sfpp_cli.video.sheet import SheetSampler, contact_sheet
from sfpp_cli.video.writer import VideoWriter, output_path

SHEET_FRAMES = 24
LIBRARIES = ("torch", "diffusers", "transformers")


def describe_model(bundle: Bundle, options: ModelOptions) -> dict[str, Any]:
    """All of a model and how it runs that decides a video's content. It reads weights: do it once."""
    settings = bundle.settings
    sampler = options.sampler(settings)
    noise = {"context_noise": sampler.context_noise, "context_noise_on": sampler.context_noise_on}
    first = {"first_steps": sampler.first_steps}
    decoder = options.decoder_device or options.device
    return {
        "chunk": settings.chunk,
        "shift": settings.shift,
        "steps": settings.steps,
        "horizon": settings.horizon,
        "context": sampler.context,
        "sink": sampler.sink,
        # Most have none of what is in brackets, and keep the keys of before.
        **(noise if sampler.context_noise else {}),
        **(first if sampler.first_steps else {}),
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": options.device.type,
        **({"decoder_device": decoder.type} if decoder.type != options.device.type else {}),
        "tile": options.tile,
        "compile": options.compile,
        "model": bundle.name,
        "weights": fingerprint(bundle),
    }


class Job:
    """One request, made by one model. Needs no weights: what is finished is found before any are loaded."""

    def __init__(self, request: Request, model: dict[str, Any]) -> None:
        """`model` is what `describe_model` says."""
        self.request = request
        self.description = {
            **{name: value for name, value in asdict(request).items() if name != "out"},
            **model,
            "format": request.out.suffix,
            "versions": {"sfpp": __version__, **{name: version(name) for name in LIBRARIES}},
        }
        """All that decides the video's content; equal descriptions give equal files."""

    @cached_property
    def key(self) -> str:
        """A digest of the description: what tells a finished or interrupted video apart from any other."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Where latents are kept until the video is finished."""
        return self.request.out.parent / f".sfpp-{self.key[:16]}"

    def finished(self) -> Path | None:
        """A complete video of this very request in its folder, under whatever name."""
        for sidecar in self.request.out.parent.glob("*.json"):
            try:
                content = json.loads(sidecar.read_text())
                video = sidecar.parent / str(content["video"])
                if content["key"] == self.key and video.exists():
                    return video
            except (ValueError, KeyError, TypeError, OSError):
                continue
        return None

    def interrupted(self) -> bool:
        """Whether this very request was begun and not finished; what has its name is then its own."""
        return self.folder.exists()

    def discard(self) -> None:
        """Forget an interrupted attempt."""
        if self.interrupted():
            shutil.rmtree(self.folder)

    def run(
        self, generator: Generator, progress: Progress, *, sheet: bool = False, save_latents: bool = False
    ) -> dict[str, Any]:
        """Make the video from where its latents end; returns what is written beside it, and its path."""
        request = self.request
        log = LatentLog(self.folder, generator.chunk_shape(request), self.description)
        resumed = len(log)
        timing = Timing()
        sampler = SheetSampler(request.frames, SHEET_FRAMES)
        self._write(generator, log, sampler, timing, progress)
        content = {
            "video": output_path(request.out).name,
            "key": self.key,
            **self.description,
            "seconds": request.frames / request.fps,
            "resumed_at_chunk": resumed,
            "speed": timing.figures(request.frames),
            "memory_mb": round(median(timing.megabytes)),
            "peak_memory_mb": round(peak_megabytes(generator.device)),
            "machine": f"{platform.machine()}, {generator.threads(request)} threads, {generator.device}",
        }
        if save_latents:
            self._save_latents(log, generator.compression.latent_frames(request.frames))
        if sheet:
            contact_sheet(sampler.frames, sampler.times(request.fps), request.out.with_suffix(".sheet.png"))
        # The file beside the video says that all is there, so it comes last, and the log goes after it.
        atomic_write(request.out.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
        log.remove()
        return {**content, "path": str(output_path(request.out))}

    def _write(
        self, generator: Generator, log: LatentLog, sampler: SheetSampler, timing: Timing, progress: Progress
    ) -> None:
        """Stream the frames into the file, which gets its name when the last one is in."""
        began = time.perf_counter()
        request = self.request
        metadata = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in self.description.items()
        }
        remove_leftovers(output_path(request.out))
        title = shorten(request.prompt, 40, placeholder="...")
        with (
            VideoWriter(request.out, (request.width, request.height), request.fps, metadata) as writer,
            progress.stage(title, generator.chunks(request)) as advance,
            generator.pipeline(request) as stages,
        ):
            for piece in self._pieces(generator, log, timing, stages):
                frames = piece.frames()[: request.frames - writer.frames]
                writer.write(frames)
                sampler.write(frames)
                if piece.is_last:
                    timing.vae.add(piece.made.seconds, generator.chunk_frames(piece.chunk))
                timing.arrived(time.perf_counter() - began, used_megabytes(generator.device))
                figures = {
                    "video": f"{writer.frames / request.fps:.1f} s",
                    "fps": f"{rate(writer.frames, timing.total):g}",
                    "memory": f"{timing.megabytes[-1] / 1e3:.2f} GB",
                }
                advance(piece.chunk + piece.is_last, figures)

    def _pieces(
        self, generator: Generator, log: LatentLog, timing: Timing, stages: Pipeline
    ) -> Iterator[Piece]:
        """Frames of the chunks in the log, then of new ones, each logged before it is decoded."""
        done = len(log)
        new = generator.latents(self.request, log.chunks(done), done, stages)
        made = stages.ahead(generator.made(new))

        def logged() -> Iterator[Tensor]:
            yield from log.chunks(done)
            for index, chunk in enumerate(made, start=done):
                latents = chunk.cpu()
                log.append(latents)
                timing.loop.add(chunk.seconds, generator.chunk_frames(index))
                yield latents

        return stages.ahead(generator.decoded(logged()))

    def _save_latents(self, log: LatentLog, count: int) -> None:
        """The video's `count` latent frames [F, C, h, w] beside it."""
        latents = torch.cat(list(log.chunks()), dim=1)[0, :count]
        with replacing(self.request.out.with_suffix(".safetensors")) as part:
            save_file({"latents": latents.contiguous()}, part)
