"""From a request to video frames: text, rollout, VAE, chunk by chunk. Knows no folder, key or log."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from textwrap import shorten

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file
from torch import Tensor

from sfpp_cli.core.geometry import Compression, Timeline
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.rollout import Change, Changes, Sampler
from sfpp_cli.core.split import Split
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.devices import Made, Moment, cpu_threads, own_stream, release_memory, synchronize, threads_for
from sfpp_cli.errors import NOT_FINITE, UserError
from sfpp_cli.generation.kernels import attention, kernel_for, multiply_fast, quantize
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.pipeline import Pipeline
from sfpp_cli.generation.requests import Request
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.lora import fold
from sfpp_cli.models.text import EmbeddedPrompts, TextEncoder, padded
from sfpp_cli.models.vae import (
    Decoder,
    StreamingEncoder,
    TiledDecoder,
    compile_decoder,
    decoder_stream,
    to_uint8,
)
from sfpp_cli.progress import Progress
from sfpp_cli.video import Frames


@dataclass(frozen=True)
class Piece:
    """A chunk's frames that are shown; of a video's first chunk, the first picture is a piece of its own."""

    made: Made
    finite: Made
    """Whether all of them are; asked only with the frames, so that a GPU's work is never waited for."""
    chunk: int
    """Counted from 0."""
    is_last: bool
    """Whether it ends the chunk."""

    def frames(self) -> Frames:
        """uint8 [T, H, W, 3]; waits for them. UserError if they came from what is not finite."""
        frames: Frames = self.made.cpu().numpy()
        if not self.finite.cpu():  # as bytes they would be black
            raise UserError(NOT_FINITE.format(f"chunk {self.chunk + 1} of the VAE's pictures is"))
        return frames


class Generator:
    """A loaded student and VAE, and the embeddings of prompts."""

    def __init__(
        self,
        student: CausalWanModel,
        text: Callable[[Sequence[str]], Tensor],
        vae: AutoencoderKLWan,
        sampler: Sampler,
        compression: Compression,
        tile: int | None = None,
        attention: str | None = None,
        compiled: bool = False,
        pictures: Decoder | None = None,
    ) -> None:
        """`text` gives prompts' padded embeddings [B, L, D]; `tile`, `attention` are as in `ModelOptions`.

        `pictures` decodes latents instead of the VAE.
        """
        self.student = student
        self.text = text
        self.vae = vae
        self.pictures = vae if pictures is None else pictures
        self.sampler = sampler
        self.compression = compression
        self.tile = tile
        self.attention = attention
        self.cold = compiled
        """Whether there is something left to compile."""
        self.device = student.device
        self.lead: Callable[[Request, Iterable[Tensor], int], Iterable[Tensor]] | None = None
        """Tells other ranks what is made, and answers its past, if they make it together."""

    @classmethod
    def load(
        cls, bundle: Bundle, options: ModelOptions, prompts: Iterable[str], progress: Progress
    ) -> Generator:
        """A bundle's parts on the device, ready for `prompts`."""
        sampler = options.sampler(bundle.settings)
        student = bundle.load_student(options.device, options.dtype)
        fold(student, options.loras)
        text = PromptEmbeddings(bundle, options, progress)
        text.add(prompts)
        where = options.decoder_device or options.device
        vae = bundle.load_vae(where, options.dtype)
        pictures = options.decoder and options.decoder.load(bundle, where, options.dtype)
        multiply_fast(options.device, options.dtype)
        if options.split is not None:
            student.split = Split(options.split)
        if options.quantize:
            quantize(student)
        if options.compile:
            student.compile_blocks()
        if options.compiles_decoder:
            compile_decoder(pictures or vae)
        return cls(
            *(student, text, vae, sampler, bundle.compression, options.tile, options.attention),
            compiled=bool(options.compile),
            pictures=pictures,
        )

    def frames(self, request: Request, changes: Changes | None = None) -> Iterator[Frames]:
        """The video as it is made, first one picture, then chunk by chunk: uint8 [T, H, W, 3].

        `changes` tells of new prompts, as in `Sampler.rollout`, instead of the request's scenes; the
        student's stage asks it.
        """
        given = list(self.given(request))
        cuts = list(request.cuts)

        def noted(index: int) -> Change | None:
            change = changes(index) if changes else None
            if change is not None and change.how == "cut":
                cuts.append(index)
            return change

        with self.pipeline(request) as stages:
            latents = self.latents(request, given, len(given), stages, noted if changes else None)
            made = stages.ahead(self.made(latents))
            chunks = chain(given, (chunk.cpu() for chunk in made))
            pieces = stages.ahead(self.decoded(request, chunks, cuts))
            yield from filter(len, (piece.frames() for piece in pieces))

    def pipeline(self, request: Request) -> Pipeline:
        """For the stages of a video: student, decoder, and whoever reads."""
        return Pipeline(threads=self.threads(request))

    def warm_up(self, request: Request) -> float:
        """Compile for the video's size, by chunks that nobody sees: their seconds, 0 if all is compiled."""
        if not self.cold:
            return 0.0
        self.cold = False
        began = time.perf_counter()
        short = replace(request, frames=1, start=None)
        with cpu_threads(self.threads(request)):  # which a graph is bound to
            (made,) = self.made(self.latents(short))
            for _ in self.decoded(short, [made.cpu()] * 4):  # from the fourth pass on the decoder is compiled
                pass
        for device in (self.device, self.pictures.device):
            synchronize(device)
        return time.perf_counter() - began

    def attention_kernel(self, request: Request) -> str:
        """The kernel that the student's self-attention runs by once its context is full."""
        config = self.student.config
        height, width = self.chunk_shape(request)[3:]
        tokens = self.student.tokens((height, width))
        like = torch.empty((), dtype=self.student.dtype, device=self.device)
        query, key = (
            like.new_empty(1, config.num_attention_heads, frames * tokens, config.attention_head_dim)
            for frames in (self.sampler.chunk, self.sampler.context)
        )
        with attention(self.attention, self.device):
            return kernel_for(query, key)

    def threads(self, request: Request) -> int:
        """How many CPU threads an operation gets in each stage."""
        height, width = self.chunk_shape(request)[3:]
        tokens = self.sampler.chunk * self.student.tokens((height, width))
        return threads_for(2 * tokens * sum(weight.numel() for weight in self.student.blocks.parameters()))

    def latents(
        self,
        request: Request,
        past: Iterable[Tensor] = (),
        done: int = 0,
        stages: Pipeline | None = None,
        changes: Changes | None = None,
    ) -> Iterator[Tensor]:
        """Clean latents, a chunk [1, chunk, C, h, w] at a time, from after the `done` chunks of `past`.

        With `stages`, noise for a GPU is drawn by one.
        """
        if self.lead is not None:
            past = self.lead(request, past, done)
        noise = VideoNoise([request.seed], self.chunk_shape(request)[1:], self.device)
        chunks = noise.chunks(done, self.chunks(request))
        if stages is not None and self.device.type == "cuda":
            chunks = stages.ahead(noise.drawn(done, self.chunks(request), len(self.sampler.steps) - 1))
        scenes = {scene.chunk: scene for scene in request.scenes}

        def scene_changes(index: int) -> Change | None:
            scene = scenes.get(index)
            return None if scene is None else Change(self.text([scene.prompt]).to(self.device), scene.how)

        return self.sampler.rollout(
            self.student,
            chunks,
            self.text([request.prompt]).to(self.device),
            noise.draw,
            past=(chunk.to(self.device) for chunk in past),
            changes=changes or (scene_changes if scenes else None),
        )

    @torch.no_grad()
    def given(self, request: Request) -> Iterator[Tensor]:
        """The chunks of the request's start, [1, chunk, C, h, w] in float32 on the CPU; none without one."""
        start = request.start
        if start is None:
            return
        if start.kept_latents:
            kept = load_file(start.file)
            yield from torch.cat([kept[name] for name in sorted(kept)])[None].split(self.sampler.chunk, dim=1)
            return
        encode = StreamingEncoder(self.vae)
        pictures = start.pictures(request.width, request.height, request.fps)
        for index in range(start.chunks):
            frames = np.stack(list(islice(pictures, self.timeline().chunk_frames(index))))
            pixels = torch.from_numpy(frames).to(self.vae.device).movedim(-1, 1)[None]
            yield encode(pixels.to(self.vae.dtype) / 127.5 - 1).float().cpu()

    def made(self, latents: Iterable[Tensor]) -> Iterator[Made]:
        """The student's stage: `latents`, timed and on their way to the CPU."""
        with attention(self.attention, self.device):
            began = Moment(self.device)
            for chunk in latents:
                yield Made(chunk, began)
                began = Moment(self.device)

    def decoded(
        self, request: Request, chunks: Iterable[Tensor], cuts: Container[int] = ()
    ) -> Iterator[Piece]:
        """The decoder's stage: all chunks of one video from its beginning, from the CPU's memory.

        At `cuts`, chunks that begin the context anew, it begins anew too.
        """
        device = self.pictures.device
        first = request.hidden
        end = first + request.frames
        with own_stream(device), torch.no_grad():
            for number, chunk in enumerate(chunks):
                began = Moment(device)
                if number == 0 or number in cuts:
                    stream = self.decoder()
                latents = chunk.to(device, non_blocking=True).to(self.pictures.dtype)
                count = latents.shape[1]
                # The first picture is one latent frame, which needs none of the others.
                parts = latents.split([1, count - 1], dim=1) if number == 0 and count > 1 else [latents]
                for part in parts:
                    pictures = stream(part)
                    finite = Made(pictures.isfinite().all(), began)
                    frames = to_uint8(pictures)[0]
                    seen = frames[max(0, first) : max(0, end)]
                    first -= len(frames)
                    end -= len(frames)
                    yield Piece(Made(seen, began), finite, number, is_last=part is parts[-1])

    def decoder(self) -> Callable[[Tensor], Tensor]:
        """For a video's beginning, or what follows a cut."""
        return decoder_stream(self.pictures) if self.tile is None else TiledDecoder(self.pictures, self.tile)

    def chunks(self, request: Request) -> int:
        """How many chunks hold the video's frames; the last may hold more than are wanted."""
        return self.timeline(request.cuts).chunks(request.hidden + request.frames)

    def timeline(self, cuts: tuple[int, ...] = ()) -> Timeline:
        """Where a video's chunks stand among its frames, hidden ones included."""
        return Timeline(self.compression, self.sampler.chunk, cuts)

    def chunk_shape(self, request: Request) -> tuple[int, int, int, int, int]:
        """[1, chunk, C, h, w] of the video's latents."""
        height, width = self.compression.latent_size(request.width, request.height)
        return (1, self.sampler.chunk, self.student.config.in_channels, height, width)


class PromptEmbeddings:
    """Embeddings of prompts, each computed once: ahead for a batch, or when it is first asked for.

    The encoder, by far the largest part of Wan, is freed each time unless `offload` is "none".
    """

    def __init__(self, bundle: Bundle, options: ModelOptions, progress: Progress) -> None:
        self.bundle = bundle
        self.options = options
        self.progress = progress
        self.length = bundle.settings.text_length
        self.embeddings: dict[str, Tensor] = {}
        self._encoder: TextEncoder | None = None

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Padded embeddings [B, length, D]."""
        self.add(prompts)
        return padded([self.embeddings[prompt] for prompt in prompts], self.length)

    def add(self, prompts: Iterable[str]) -> None:
        """Embed those that are new; warns of what does not fit."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.embeddings]
        if not new:
            return
        self._embed(new)
        if self._encoder is None:
            release_memory(self.options.device)

    def _embed(self, new: Sequence[str]) -> None:
        """Load the encoder if it is not there, and let go of it unless it is to stay."""
        options = self.options
        encoder = self._encoder or self.bundle.load_text(
            options.device, options.dtype, layerwise=options.offload == "sequential"
        )
        operations = 2 * self.length * sum(weight.numel() for weight in encoder.model.encoder.parameters())
        with cpu_threads(threads_for(operations)):
            embedded = EmbeddedPrompts(encoder, new)
        self.embeddings |= embedded.embeddings
        for prompt, rest in embedded.cut.items():
            if rest:
                known = f"the prompt '{shorten(prompt, 60)}' is longer than {self.length} tokens"
                self.progress.warn(f"{known}; this part is not seen: '{shorten(rest, 120)}'")
        if options.offload == "none":
            self._encoder = encoder
