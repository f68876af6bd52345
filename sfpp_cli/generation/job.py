"""A request in its folder: what is there of it already, and the way from frames to a finished file."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property
from importlib.metadata import version
from itertools import islice
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
from sfpp_cli.errors import InUse
from sfpp_cli.files import atomic_write, lock_of, owned, remove, replacing, sweep
from sfpp_cli.generation.generator import Generator, Piece
from sfpp_cli.generation.model_options import ModelOptions
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
    loras = {"loras": [lora.described() for lora in options.loras]}
    sink = {"sink_positions": sampler.sink_positions}
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
        **(loras if options.loras else {}),
        **(sink if sampler.sink and sampler.sink_positions != "absolute" else {}),
        **({"decoder": options.decoder.described()} if options.decoder else {}),
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": options.device.type,
        **({"decoder_device": decoder.type} if decoder.type != options.device.type else {}),
        "tile": options.tile,
        "compile": options.compile,
        **({"attention": options.attention} if options.attention else {}),
        **({"quantize": options.quantize} if options.quantize else {}),
        **({"split": options.split.world} if options.split else {}),
        "model": bundle.name,
        "weights": fingerprint(bundle),
    }


class Job:
    """One request, made by one model. Needs no weights: what is finished is found before any are loaded."""

    def __init__(self, request: Request, model: dict[str, Any], copy: int = 0) -> None:
        """`model` is what `describe_model` says; `copy` is how many equal requests come before it."""
        self.request = request
        self.copy = copy
        self.description = {
            **request.described(),
            **model,
            "format": request.out.suffix,
            "versions": {"sfpp": __version__, **{name: version(name) for name in LIBRARIES}},
        }
        """All that decides the video's content, and how the model was called; equal ones give equal files."""

    @cached_property
    def key(self) -> str:
        """A digest of the description: what tells a finished or interrupted video apart from any other.

        The weights are in it, so their name is not.
        """
        return _digest(self.description, besides=("model",))

    @property
    def folder(self) -> Path:
        """Where latents are kept until the video is finished."""
        number = f"-{self.copy + 1}" if self.copy else ""
        return self.request.out.parent / f".sfpp-{self.key[:16]}{number}"

    @property
    def path(self) -> str:
        """What the video will be called."""
        return str(output_path(self.request.out))

    @property
    def sidecar(self) -> Path:
        """The file beside the video, which says that it is finished."""
        return self.request.out.with_suffix(".json")

    @contextmanager
    def owned(self, patience: float = 0.0) -> Iterator[None]:
        """Be the only process that makes this request, and the only one that writes files of its name."""
        with ExitStack() as stack:
            for lock in (self.folder.with_suffix(".lock"), lock_of(self.request.out.with_suffix(".sfpp"))):
                stack.enter_context(owned(lock, output_path(self.request.out), patience))
            yield

    def in_use(self) -> bool:
        """Whether another process owns it now."""
        try:
            # Most of a batch is neither begun nor owned, and costs a look.
            with self.owned() if self.folder.with_suffix(".lock").exists() else nullcontext():
                return False
        except InUse:
            return True

    def finished(self) -> dict[str, Any] | None:
        """What is written beside the finished video of this very request, and its path, if it is there."""
        found = _read_sidecar(self.sidecar)
        return found if found is not None and found["key"] == self.key else None

    def outdated(self) -> bool:
        """Whether the video that has its name differs in nothing but the libraries that made it."""
        found = _read_sidecar(self.sidecar) or {}
        other = {name: found.get(name) for name in self.description}
        besides = ("model", "versions")
        return found.get("key") != self.key and _digest(other, besides) == _digest(self.description, besides)

    def interrupted(self) -> bool:
        """Whether this very request was begun and not finished; what has its name is then its own."""
        return self.folder.exists()

    def discard(self) -> None:
        """Forget an interrupted attempt."""
        remove(self.folder)

    def run(
        self, generator: Generator, progress: Progress, *, sheet: bool = False, save_latents: bool = False
    ) -> dict[str, Any]:
        """Make the video from where its latents end; returns what is written beside it, and its path."""
        request = self.request
        about = {"out": request.out.stem, **self.description}
        log = LatentLog(self.folder, generator.chunk_shape(request), about)
        if log.lost:
            progress.warn(f"{log.file} is damaged from chunk {len(log) + 1} on, which is made again")
        resumed = len(log)
        if request.start and resumed < request.start.chunks:
            for chunk in islice(generator.given(request), resumed, None):
                log.append(chunk)
        timing = Timing()
        sampler = SheetSampler(request.frames, SHEET_FRAMES)
        warm_up = generator.warm_up(request)
        if warm_up:
            progress.say(f"compiled in {warm_up:.1f} s")
        self._write(generator, log, sampler, timing, progress)
        content = {
            "video": output_path(request.out).name,
            "key": self.key,
            **self.description,
            "seconds": request.frames / request.fps,
            "resumed_at_chunk": resumed,
            "speed": timing.figures(request.frames) | {"warm_up_s": round(warm_up, 3)},
            "attention_kernel": generator.attention_kernel(request),
            "memory_mb": round(median(timing.megabytes)),
            "peak_memory_mb": round(peak_megabytes(generator.device)),
            "machine": f"{platform.machine()}, {generator.threads(request)} threads, {generator.device}",
        }
        if save_latents:
            self._save_latents(
                log, generator.timeline(request.cuts).latent_frames(request.hidden + request.frames)
            )
        if sheet:
            contact_sheet(sampler.frames, sampler.times(request.fps), request.out.with_suffix(".sheet.png"))
        # The file beside the video says that all is there, so it comes last, and the log goes after it.
        atomic_write(self.sidecar, json.dumps(content, indent=2) + "\n")
        log.remove()
        self._remove_leftovers()
        return {**content, "path": self.path}

    def _remove_leftovers(self) -> None:
        """What dead processes left of other videos of this name, whatever their request and format."""
        sweep(self.folder.parent)
        for folder in self.folder.parent.glob(".sfpp-*/"):
            about = folder / "request.json"
            with suppress(InUse, OSError, ValueError, KeyError, TypeError):
                # Without that file it is of one that was killed before it had written anything.
                if not about.exists() or json.loads(about.read_text())["out"] == self.request.out.stem:
                    with owned(folder.with_suffix(".lock"), folder):
                        remove(folder)

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
        timeline = generator.timeline(request.cuts)
        title = shorten(request.prompt, 40, placeholder="...")
        with (
            VideoWriter(request.out, (request.width, request.height), request.fps, metadata) as writer,
            progress.stage(title, generator.chunks(request)) as advance,
            generator.pipeline(request) as stages,
        ):
            there = len(log)
            advance(there, {})
            for piece in self._pieces(generator, log, timing, stages):
                if piece.is_last:
                    timing.vae.add(piece.made.seconds, timeline.chunk_frames(piece.chunk))
                frames = piece.frames()
                if not len(frames):  # all hidden
                    continue
                writer.write(frames)
                sampler.write(frames)
                timing.arrived(time.perf_counter() - began, used_megabytes(generator.device))
                figures = {
                    "video": f"{writer.frames / request.fps:.1f} s",
                    "fps": f"{rate(writer.frames, timing.total):g}",
                    "memory": f"{timing.megabytes[-1] / 1e3:.2f} GB",
                }
                advance(max(there, piece.chunk + piece.is_last), figures)

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
                timing.loop.add(chunk.seconds, generator.timeline(self.request.cuts).chunk_frames(index))
                yield latents

        return stages.ahead(generator.decoded(self.request, logged(), self.request.cuts))

    def _save_latents(self, log: LatentLog, count: int) -> None:
        """The video's `count` latent frames [F, C, h, w] beside it.

        Those that its last chunk has beyond it are the "rest", so that the video can go on exactly.
        """
        whole = torch.cat(list(log.chunks()), dim=1)[0]
        tensors = {"latents": whole[:count].contiguous()}
        if count < len(whole):
            tensors["rest"] = whole[count:].contiguous()
        with replacing(self.request.out.with_suffix(".safetensors")) as part:
            save_file(tensors, part)


def jobs_of(requests: Iterable[Request], model: dict[str, Any]) -> list[Job]:
    """The jobs of a batch, in which a request may stand more than once."""
    jobs = [Job(request, model) for request in requests]
    seen: Counter[Path] = Counter()
    for job in jobs:
        folder = job.folder
        job.copy = seen[folder]
        seen[folder] += 1
    return jobs


def find_finished(jobs: Sequence[Job]) -> dict[Job, dict[str, Any]]:
    """Finished videos of these very requests in their folders: under their own name, else under any other.

    A video stands for one job, so that equal requests give as many files. Every folder is read once.
    """
    videos: dict[tuple[Path, str], list[dict[str, Any]]] = {}
    for folder in dict.fromkeys(job.sidecar.parent for job in jobs):
        for sidecar in sorted(folder.glob("*.json")):
            if found := _read_sidecar(sidecar):
                videos.setdefault((folder, found["key"]), []).append(found)
    finished: dict[Job, dict[str, Any]] = {}
    for any_name in (False, True):
        for job in jobs:
            same = videos.get((job.sidecar.parent, job.key), [])
            fitting = (found for found in same if any_name or found["path"] == job.path)
            if job not in finished and (found := next(fitting, None)):
                finished[job] = found
                same.remove(found)
    return finished


def _read_sidecar(path: Path) -> dict[str, Any] | None:
    """The description of a finished video, and its path; None where there is none, or a stranger's file."""
    try:
        content = json.loads(path.read_text())
        video = path.parent / str(content["video"])
        return {**content, "path": str(video)} if isinstance(content["key"], str) and video.exists() else None
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return None


def _digest(description: Mapping[str, Any], besides: Sequence[str]) -> str:
    counted = {name: value for name, value in description.items() if name not in besides}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()
