"""The one chunk loop, for training and for inference.

arXiv 2506.08009, algorithm 1; arXiv 2510.02283, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfpp_cli.core.cache import CacheSnapshot, KVCache, NoisyPast
from sfpp_cli.core.constants import CLEAN
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.student import CausalWanModel

Draw = Callable[[int, int, Tensor], Tensor]
"""(chunk index, denoising step, tensor to be like) -> the Gaussian noise that re-noises that step's x0."""

Record = Callable[[int, int, Tensor, Tensor], None]
"""(chunk index, denoising step, its input, its x0), told of every denoising pass."""


@dataclass(frozen=True)
class Sampler:
    """How a student samples. It was trained for these numbers, so they are stored beside its weights.

    Frames are latent frames.
    """

    schedule: FlowSchedule
    steps: tuple[int, ...]
    """Nominal timesteps, such as (1000, 750, 500, 250); the schedule warps them."""
    chunk: int
    """Frames denoised together."""
    context: int
    """Frames that attention sees, the current chunk included."""
    sink: int = 0
    """How many of the first frames are never evicted from the context."""
    first_steps: tuple[int, ...] | None = None
    """Other steps for the chunk that begins a video (Causal-Forcing++ takes more of them there)."""
    context_noise: float = CLEAN
    """Timestep of the noise that the cached past is given, so that a student learns to bear errors in it."""
    context_noise_on: Literal["latents", "keys"] = "latents"
    """What that noise is added to.

    "latents": a finished chunk is re-noised to the timestep, and the context pass told it (an option of
    Self-Forcing's training; its own inference tells the timestep but adds no noise). "keys": the context pass
    runs on clean latents, and its queries and keys are given Gaussian noise of sigma times their own length,
    before keys are cached. That is arXiv 2510.02283, section 8.2, which says neither how much nor whether in
    training, and found it of little help.
    """

    @property
    def timesteps(self) -> Tensor:
        """The warped steps, float32 on the CPU."""
        return self.schedule.warp(self.steps)

    @property
    def first_timesteps(self) -> Tensor:
        """Those of the chunk that begins a video."""
        return self.timesteps if self.first_steps is None else self.schedule.warp(self.first_steps)

    def rollout(
        self,
        student: CausalWanModel,
        noise: Tensor | Iterable[Tensor],
        text: Tensor,
        draw: Draw,
        *,
        past: Iterable[Tensor] = (),
        cache: KVCache | CacheSnapshot | None = None,
        timesteps: Tensor | None = None,
        grad_step: int | None = None,
        grad_chunks: Container[int] = (),
        record: Record | None = None,
    ) -> Iterator[Tensor]:
        """Continue the student's own history, chunk by chunk: yields clean latents x0 [B, chunk, C, H, W].

        `noise` is [B, F, C, H, W], or an iterable of chunks for a video without end. `text` [B, L, D] holds
        the padded prompt embeddings. `past` are clean chunks that came before (an interrupted video, a clip
        to continue): they fill the cache, are not yielded, and chunks are counted after them. `cache` is one
        to continue instead of a new one; chunks are then counted from 0.

        `first_steps` are for a chunk at frame 0, the first of `past` included: nothing may come before it.

        For training: `timesteps` replace the sampler's, its first ones too. In the chunks that `grad_chunks`
        contains, the pass at denoising step `grad_step` (the last if None) carries gradient, unless gradients
        are off, and no other pass ever does; its prediction is what is yielded. Later steps are run all the
        same: what is cached is always the last x0. `record` is told of every denoising pass.

        A chunk is yielded before its context pass: the viewer waits less, and the last chunk needs none.
        """
        later = self.timesteps if timesteps is None else timesteps
        begins = cache is None or cache.frame == 0
        first = self.first_timesteps if timesteps is None and begins else later
        ready = False
        waiting: Tensor | None = None
        last = len(later) - 1
        cache, index = self._fill(student, text, draw, past, cache, first, later)
        for x in noise.split(self.chunk, dim=1) if isinstance(noise, Tensor) else noise:
            if waiting is not None and cache is not None:
                # `last` is still that chunk's: a resumed video counts its context noise by the same number.
                self._cache_clean(student, waiting, cache, draw, index - 1, last)
            timesteps = later if index else first
            last = len(timesteps) - 1
            learns = index in grad_chunks
            yielded = grad_step if learns and grad_step is not None else last
            if learns and torch.is_grad_enabled() and not ready:
                cache = self._for_gradient(student, text, x, cache)
                ready = True
            elif cache is None:
                cache = self._open(student, text, x)
            for step, t in enumerate(timesteps):
                with torch.set_grad_enabled(torch.is_grad_enabled() and learns and step == yielded):
                    x0 = self._predict(student, x, t, cache)
                if record is not None:
                    record(index, step, x, x0.detach())
                if step == yielded:
                    prediction = x0
                if step < last:
                    x0 = x0.detach()
                    x = self.schedule.add_noise(x0, draw(index, step, x0), timesteps[step + 1])
            yield prediction
            waiting = x0.detach()
            index += 1

    def replay(
        self,
        student: CausalWanModel,
        inputs: Sequence[Sequence[Tensor]],
        clean: Sequence[Tensor],
        text: Tensor,
        draw: Draw,
        *,
        past: Iterable[Tensor],
        steps: Sequence[int],
    ) -> Iterator[list[Tensor]]:
        """Predict again what a rollout at `timesteps` predicted: yields of each chunk its x0 at `steps`.

        `inputs` are what the chunks' denoising passes were given (of each chunk at least those up to the last
        of `steps`), `clean` the finished chunks, `past` the clean chunks before. With the weights of then,
        the predictions are those of then bit for bit. They carry gradient, unless gradients are off.
        """
        timesteps = self.timesteps
        last = len(timesteps) - 1
        ring, index = self._fill(student, text, draw, past, None, timesteps, timesteps)
        cache = self._for_gradient(student, text, clean[0], ring)
        for chunk, (passes, x0) in enumerate(zip(inputs, clean, strict=True)):
            yield [self._predict(student, passes[step], timesteps[step], cache) for step in steps]
            if chunk < len(clean) - 1:
                self._cache_clean(student, x0, cache, draw, index + chunk, last)

    def _predict(
        self, student: CausalWanModel, x: Tensor, t: Tensor, cache: KVCache | CacheSnapshot
    ) -> Tensor:
        """x0 by one denoising pass."""
        # In float32 whatever the latents are: bfloat16 would tell the network 936 for 937.5.
        flow = student(x, x.new_full(x.shape[:1], t.item(), dtype=torch.float32), cache)
        return self.schedule.x0_from_flow(flow, x, t)

    def _fill(
        self,
        student: CausalWanModel,
        text: Tensor,
        draw: Draw,
        past: Iterable[Tensor],
        cache: KVCache | CacheSnapshot | None,
        first: Tensor,
        later: Tensor,
    ) -> tuple[KVCache | CacheSnapshot | None, int]:
        """The cache after the clean chunks of `past`, and their number; None if nothing is in it.

        `first` and `later` are the timesteps of the first chunk and of the others.
        """
        index = 0
        for x0 in past:
            cache = self._open(student, text, x0) if cache is None else cache
            last = len(later if index else first) - 1
            self._cache_clean(student, x0, cache, draw, index, last)
            index += 1
        return cache, index

    def _open(self, student: CausalWanModel, text: Tensor, like: Tensor) -> KVCache:
        """An empty ring."""
        size = (like.shape[3], like.shape[4])
        with torch.no_grad():
            return student.new_cache(text, size, context=self.context, sink=self.sink)

    def _for_gradient(
        self, student: CausalWanModel, text: Tensor, x: Tensor, cache: KVCache | CacheSnapshot | None
    ) -> CacheSnapshot:
        """The cache for passes with gradient, of which `x` is the first: what nothing will overwrite.

        Text was embedded without gradient when the cache was made. Cross-attention's keys and values are its
        weights' work, so they are computed again, once for all chunks that learn.
        """
        with torch.enable_grad():
            embedded = student.embed_text(text)
        if cache is None:
            tokens = student.tokens((x.shape[3], x.shape[4]))
            return CacheSnapshot(embedded, tokens=tokens, context=self.context, sink=self.sink)
        snapshot = cache.snapshot(x.shape[1]) if isinstance(cache, KVCache) else cache
        snapshot.text = embedded
        return snapshot

    def _cache_clean(
        self,
        student: CausalWanModel,
        x0: Tensor,
        cache: KVCache | CacheSnapshot,
        draw: Draw,
        index: int,
        last: int,
    ) -> None:
        """The context pass of a finished chunk."""
        timestep = torch.tensor(self.context_noise)
        if self.context_noise == CLEAN:
            student.cache_clean(x0, cache)
        elif self.context_noise_on == "latents":
            x0 = self.schedule.add_noise(x0, draw(index, last, x0), timestep)
            student.cache_clean(x0, cache, self.context_noise)
        else:

            def noise(number: int, like: Tensor) -> Tensor:
                return draw(index, last + 1 + number, like)  # up to `last`, draws are those of latents

            student.cache_clean(x0, NoisyPast(cache, self.schedule.sigma(timestep).item(), noise))


def rollout(
    student: CausalWanModel,
    noise: Tensor | Iterable[Tensor],
    text: Tensor,
    *,
    schedule: FlowSchedule,
    steps: Sequence[int] | Tensor,
    chunk: int,
    context: int,
    sink: int = 0,
    draw: Draw,
) -> Iterator[Tensor]:
    """`Sampler.rollout` for those who have its numbers one by one."""
    nominal = tuple(torch.as_tensor(steps).tolist())
    sampler = Sampler(schedule=schedule, steps=nominal, chunk=chunk, context=context, sink=sink)
    return sampler.rollout(student, noise, text, draw)
