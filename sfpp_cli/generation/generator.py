"""From a request to a video file: text, rollout, VAE, ffmpeg, chunk by chunk, resumable at every chunk."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfpp_cli import __version__
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.data.latent_log import LatentLog
from sfpp_cli.devices import peak_megabytes, synchronize, used_megabytes
from sfpp_cli.errors import UserError
from sfpp_cli.files import atomic_write, remove_leftovers
from sfpp_cli.models.bundle import Bundle, Settings, fingerprint
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.models.vae import StreamingDecoder, TiledDecoder, to_uint8
from sfpp_cli.progress import Watch
from sfpp_cli.video import Frames
from sfpp_cli.video.sheet import SheetSampler, contact_sheet
from sfpp_cli.video.writer import VideoWriter, output_path

SHEET_FRAMES = 24
OFFLOAD = ("none", "text", "sequential")


@dataclass(frozen=True)
class Request:
    """One video. All but `out` decides its content."""

    prompt: str
    seed: int
    frames: int
    width: int
    height: int
    fps: float
    out: Path


@dataclass(frozen=True)
class Options:
    """How to run the model: shared by all videos of a batch."""

    dtype: torch.dtype
    context: int
    sink: int
    offload: str = "text"
    """Where the text encoder is once prompts are embedded: "none" stays, "text" freed, "sequential" one layer on the device."""
    tile: int | None = None
    compile: bool = False
    save_latents: bool = False
    sheet: bool = False

    @classmethod
    def of(
        cls, settings: Settings, dtype: torch.dtype, context: int | None, sink: int | None, **rest: Any
    ) -> Options:
        """The model's own context and sink unless others are asked for; checked."""
        options = cls(
            dtype,
            settings.context if context is None else context,
            settings.sink if sink is None else sink,
            **rest,
        )
        if options.sink < 0 or options.context - options.sink < settings.chunk:
            raise UserError(
                f"a context of {options.context} latent frames with {options.sink} sink frames cannot hold a chunk of "
                f"{settings.chunk}: raise --context or lower --sink"
            )
        if options.offload not in OFFLOAD:
            raise UserError(f"--offload {options.offload}: it takes {', '.join(OFFLOAD)}")
        if options.tile is not None and options.tile < 2:
            raise UserError(f"--tile {options.tile}: it takes 2 latent cells or more")
        return options


@dataclass
class Pace:
    """Video frames per second of one stage. The first chunk bears the warm-up (compilation, autotuning), so it does not count."""

    seconds: float = 0.0
    frames: int = 0
    warmup: tuple[float, int] | None = None

    def add(self, seconds: float, frames: int) -> None:
        if self.warmup is None:
            self.warmup = seconds, frames
        else:
            self.seconds, self.frames = self.seconds + seconds, self.frames + frames

    @property
    def fps(self) -> float:
        """The first chunk's own pace if there was no other; 0 if there was none at all."""
        seconds, frames = (self.seconds, self.frames) if self.frames or self.warmup is None else self.warmup
        return _rate(frames, seconds)


@dataclass
class Timing:
    """Where the seconds and the memory of one video went; `total` and `first_frame` include the warm-up."""

    loop: Pace = field(default_factory=Pace)
    vae: Pace = field(default_factory=Pace)
    total: float = 0.0
    first_frame: float = 0.0
    megabytes: deque[float] = field(default_factory=lambda: deque(maxlen=32))
    """In use after each of the last chunks."""

    def figures(self, frames: int) -> dict[str, float]:
        """The four figures people compare, in video frames per second and seconds, for a video of `frames`."""
        return {
            "loop_fps": self.loop.fps,
            "vae_fps": self.vae.fps,
            "end_to_end_fps": _rate(frames, self.total),
            "time_to_first_frame_s": round(self.first_frame, 3),
        }


class Generator:
    """A loaded student, VAE and set of embedded prompts."""

    def __init__(
        self, bundle: Bundle, device: torch.device, options: Options, prompts: Sequence[str], watch: Watch
    ) -> None:
        settings = bundle.settings
        self.bundle, self.settings, self.device, self.options, self.watch = (
            bundle,
            settings,
            device,
            options,
            watch,
        )
        self.student = bundle.load_student(device, options.dtype)
        self.text = self._embed(prompts)
        self.vae = bundle.load_vae(device, options.dtype)
        self.sampler = settings.sampler(context=options.context, sink=options.sink)
        self.weights = fingerprint(bundle)
        if options.compile:
            self.student.compile_blocks()

    def _embed(self, prompts: Sequence[str]) -> EmbeddedPrompts:
        """Embed every distinct prompt once; the encoder, by far the largest part of Wan, is gone before the student runs."""
        encoder = self.bundle.load_text(
            self.device, self.options.dtype, layerwise=self.options.offload == "sequential"
        )
        for prompt in dict.fromkeys(prompts):
            if cut := encoder.cut(prompt):
                self.watch.warn(
                    f"the prompt is longer than {encoder.length} tokens; this part is not seen: '{cut}'"
                )
        self.encoder = encoder if self.options.offload == "none" else None
        return EmbeddedPrompts(encoder, prompts)

    def describe(self, request: Request) -> dict[str, Any]:
        """All that decides a video's content, for its metadata; equal descriptions give equal files."""
        settings = asdict(self.settings)
        kept = {name: settings[name] for name in ("chunk", "shift", "steps", "horizon")}
        return {
            **{name: value for name, value in asdict(request).items() if name != "out"},
            **kept,
            "context": self.options.context,
            "sink": self.options.sink,
            "dtype": str(self.options.dtype).removeprefix("torch."),
            "device": self.device.type,
            "tile": self.options.tile,
            "compile": self.options.compile,
            "model": self.bundle.name,
            "weights": self.weights,
            "format": request.out.suffix,
            "versions": {
                "sfpp": __version__,
                **{name: version(name) for name in ("torch", "diffusers", "transformers")},
            },
        }

    def key(self, request: Request) -> str:
        """A digest of `describe`: what tells a finished or interrupted video apart from any other."""
        return hashlib.sha256(json.dumps(self.describe(request), sort_keys=True).encode()).hexdigest()

    def finished(self, request: Request) -> Path | None:
        """A complete video of this very request in its folder, under whatever name."""
        key = self.key(request)
        for sidecar in request.out.parent.glob("*.json"):
            try:
                content = json.loads(sidecar.read_text())
                video = sidecar.parent / str(content["video"])
                if content["key"] == key and video.exists():
                    return video
            except (ValueError, KeyError, TypeError, OSError):
                continue
        return None

    def log(self, request: Request) -> LatentLog:
        """Where this request's latents are kept until the video is finished."""
        channels = self.student.config.in_channels
        height, width = self.bundle.compression.latent_size(request.width, request.height)
        shape = (1, self.settings.chunk, channels, height, width)
        return LatentLog(self._log_folder(request), shape, self.describe(request))

    def _log_folder(self, request: Request) -> Path:
        return request.out.parent / f".sfpp-{self.key(request)[:16]}"

    def interrupted(self, request: Request) -> bool:
        """Whether this very request was begun and not finished; what stands under its name is then its own."""
        return self._log_folder(request).exists()

    def discard(self, request: Request) -> None:
        """Forget an interrupted attempt at this request."""
        if self.interrupted(request):
            self.log(request).remove()

    @torch.no_grad()
    def generate(self, request: Request) -> dict[str, Any]:
        """Make one video, from where its latents end; returns what is written beside it, and its path."""
        log, timing = self.log(request), Timing()
        resumed = len(log)
        sampler = SheetSampler(request.frames, SHEET_FRAMES)
        self._write(request, log, sampler, timing)
        content = {
            "video": output_path(request.out).name,
            "key": self.key(request),
            **self.describe(request),
            "seconds": request.frames / request.fps,
            "resumed_at_chunk": resumed,
            "speed": timing.figures(request.frames),
            "memory_mb": round(median(timing.megabytes)),
            "peak_memory_mb": round(peak_megabytes(self.device)),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {self.device}",
        }
        if self.options.save_latents:
            latents = torch.cat(list(log.chunks()), dim=1)[
                0, : self.bundle.compression.latent_frames(request.frames)
            ]
            save_file({"latents": latents.contiguous()}, request.out.with_suffix(".safetensors"))
        if self.options.sheet:
            contact_sheet(sampler.frames, sampler.times(request.fps), request.out.with_suffix(".sheet.png"))
        atomic_write(request.out.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
        log.remove()
        return {**content, "path": str(output_path(request.out))}

    def _write(self, request: Request, log: LatentLog, sampler: SheetSampler, timing: Timing) -> None:
        """Stream the frames into the file, which gets its name when the last one is in."""
        began = time.perf_counter()
        metadata = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in self.describe(request).items()
        }
        total = -(-self.bundle.compression.latent_frames(request.frames) // self.settings.chunk)
        remove_leftovers(output_path(request.out))
        with (
            VideoWriter(request.out, (request.width, request.height), request.fps, metadata) as writer,
            self.watch.stage(shorten(request.prompt, 40, placeholder="..."), total) as advance,
        ):
            for index, frames in enumerate(self._frames(request, log, total, timing), start=1):
                frames = frames[: request.frames - writer.frames]
                writer.write(frames)
                sampler.write(frames)
                timing.total = time.perf_counter() - began
                timing.first_frame = timing.first_frame or timing.total
                timing.megabytes.append(used_megabytes(self.device))
                advance(index, self._progress(request, writer.frames, timing))

    def _progress(self, request: Request, frames: int, timing: Timing) -> dict[str, str]:
        return {
            "video": f"{frames / request.fps:.1f} s",
            "fps": f"{_rate(frames, timing.total):g}",
            "memory": f"{timing.megabytes[-1] / 1e3:.2f} GB",
        }

    def _frames(self, request: Request, log: LatentLog, total: int, timing: Timing) -> Iterator[Frames]:
        """Video frames uint8 [T, H, W, 3], a chunk's worth at a time: first those of the log, then new ones."""
        decoder = (
            StreamingDecoder(self.vae)
            if self.options.tile is None
            else TiledDecoder(self.vae, self.options.tile)
        )
        done = len(log)
        for chunk in log.chunks(done):
            yield self._decode(decoder, chunk, timing)
        chunks = self._chunks(request, log, done, total)
        for _ in range(done, total):
            began = time.perf_counter()
            chunk = next(chunks)
            log.append(chunk)
            rolled = time.perf_counter() - began
            frames = self._decode(decoder, chunk, timing)
            timing.loop.add(rolled, len(frames))
            yield frames

    def _chunks(self, request: Request, log: LatentLog, done: int, total: int) -> Iterator[Tensor]:
        """The rollout from chunk `done` on; the chunks before it refill the cache."""
        noise = VideoNoise([request.seed], log.shape[1:], self.device)
        return self.sampler.rollout(
            self.student,
            noise.chunks(done, total),
            self.text([request.prompt]).to(self.device),
            noise.draw,
            past=(chunk.to(self.device) for chunk in log.chunks(done)),
        )

    def _decode(self, decoder: StreamingDecoder | TiledDecoder, chunk: Tensor, timing: Timing) -> Frames:
        began = time.perf_counter()
        frames = to_uint8(decoder(chunk.to(self.device, self.vae.dtype)))[0]
        synchronize(self.device)
        timing.vae.add(time.perf_counter() - began, len(frames))
        return frames.cpu().numpy()


def _rate(frames: int, seconds: float) -> float:
    return round(frames / seconds, 2) if seconds > 0 else 0.0
