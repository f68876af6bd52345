"""The one chunk loop, for training and for inference.

arXiv 2506.08009, algorithm 1; arXiv 2510.02283, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sfpp_cli.core.cache import CacheSnapshot, KeysValues, KVCache, NoisyPast
from sfpp_cli.core.constants import CLEAN
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.student import CausalWanModel, SinkPositions

Draw = Callable[[int, int, Tensor], Tensor]
"""(chunk index, denoising step, tensor to be like) -> the Gaussian noise that re-noises that step's x0."""

Record = Callable[[int, int, Tensor, Tensor], None]
"""(chunk index, denoising step, its input, its x0), told of every denoising pass."""

How = Literal["switch", "recache", "cut"]
"""What a new prompt does to what was made before it.

"switch": nothing; the context still tells of the old prompt. "recache": the context's clean latents are run
again under the new prompt (LongLive's KV recache, arXiv 2509.22622), but for the sink, which is never
overwritten. "cut": the context begins anew, as at the beginning of a video; noise goes on.
"""


@dataclass(frozen=True)
class Change:
    """Another prompt, from a chunk on."""

    text: Tensor
    """Its padded embeddings [B, L, D]."""
    how: How = "recache"


Changes = Callable[[int], Change | None]
"""Asked once before each chunk, `past` included, by its index."""


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
    sink_positions: SinkPositions = "absolute"
    """Whether the sink keeps its place in time, or moves along with the context."""
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
        changes: Changes | None = None,
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

        `changes` tells of new prompts. Only if it is given are clean latents of the context kept, which
        "recache" runs again: those of `past` and of this rollout, so there can be no `cache` beside it.

        `first_steps` are for a chunk at frame 0, the first of `past` included: nothing may come before it.

        For training: `timesteps` replace the sampler's, its first ones too. In the chunks that `grad_chunks`
        contains, the pass at denoising step `grad_step` (the last if None) carries gradient, unless gradients
        are off, and no other pass ever does; its prediction is what is yielded. Later steps are run all the
        same: what is cached is always the last x0. `record` is told of every denoising pass.

        A chunk is yielded before its context pass: the viewer waits less, and the last chunk needs none.
        """
        history = _History(self, student, text, draw, cache, changes, timesteps)
        history.fill(past)
        waiting: Tensor | None = None
        for x in noise.split(self.chunk, dim=1) if isinstance(noise, Tensor) else noise:
            if waiting is not None:
                history.add(waiting)
            index = history.begin_chunk()
            chunk_timesteps = history.timesteps
            last = len(chunk_timesteps) - 1
            learns = index in grad_chunks
            yielded = grad_step if learns and grad_step is not None else last
            memory = history.memory(x, with_gradient=learns and torch.is_grad_enabled())
            for step, t in enumerate(chunk_timesteps):
                with torch.set_grad_enabled(torch.is_grad_enabled() and learns and step == yielded):
                    x0 = self._predict(student, x, t, memory)
                if record is not None:
                    record(index, step, x, x0.detach())
                if step == yielded:
                    prediction = x0
                if step < last:
                    x0 = x0.detach()
                    x = self.schedule.add_noise(x0, draw(index, step, x0), chunk_timesteps[step + 1])
            yield prediction
            waiting = x0.detach()

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
        history = _History(self, student, text, draw, None, None, timesteps)
        history.fill(past)
        for chunk, (passes, x0) in enumerate(zip(inputs, clean, strict=True)):
            history.begin_chunk()
            memory = history.memory(x0, with_gradient=True)
            yield [self._predict(student, passes[step], timesteps[step], memory) for step in steps]
            if chunk < len(clean) - 1:
                history.add(x0)

    def _predict(
        self, student: CausalWanModel, x: Tensor, t: Tensor, cache: KVCache | CacheSnapshot
    ) -> Tensor:
        """x0 by one denoising pass."""
        # In float32 whatever the latents are: bfloat16 would tell the network 936 for 937.5.
        flow = student(x, x.new_full(x.shape[:1], t.item(), dtype=torch.float32), cache)
        return self.schedule.x0_from_flow(flow, x, t)


class _History:
    """What the chunks of one rollout go on from: the cache, the prompt and, if it may change, latents."""

    def __init__(
        self,
        sampler: Sampler,
        student: CausalWanModel,
        text: Tensor,
        draw: Draw,
        cache: KVCache | CacheSnapshot | None,
        changes: Changes | None,
        timesteps: Tensor | None,
    ) -> None:
        """The arguments of `Sampler.rollout`."""
        if cache is not None and changes is not None:
            raise ValueError("a prompt may change after `past`, not after a cache: its latents are not known")
        self.sampler = sampler
        self.student = student
        self.text = text
        self.draw = draw
        self.cache = cache
        self.changes = changes
        self.later = sampler.timesteps if timesteps is None else timesteps
        self.first = sampler.first_timesteps if timesteps is None else timesteps
        self.index = -1
        """Of the chunk that is made now."""
        self.timesteps = self.first
        """Of that chunk."""
        self.carries_gradient = False
        self.clean: list[_Clean] = []
        """The latents in the context, oldest first."""

    def fill(self, past: Iterable[Tensor]) -> None:
        """Go through clean chunks that were made before."""
        for x0 in past:
            self.begin_chunk()
            self.add(x0)

    def begin_chunk(self) -> int:
        """The next chunk's index; its prompt is in force from now on."""
        self.index += 1
        change = None if self.changes is None else self.changes(self.index)
        if change is not None:
            self._change(change)
        self.timesteps = self.first if self.cache is None or self.cache.frame == 0 else self.later
        return self.index

    def memory(self, x: Tensor, *, with_gradient: bool) -> KVCache | CacheSnapshot:
        """The cache for a chunk like x; for one that learns, and from then on, what nothing will overwrite.

        Text was embedded without gradient when the cache was made. Cross-attention's keys and values are its
        weights' work, so they are computed again, once for all chunks that learn.
        """
        if with_gradient and not self.carries_gradient:
            self.carries_gradient = True
            if isinstance(self.cache, KVCache):
                self.cache = self.cache.snapshot(x.shape[1])
            if self.cache is not None:
                self.cache.text = self._embedded()
        return self._opened(x)

    def add(self, x0: Tensor) -> None:
        """The context pass of the chunk that is finished."""
        cache = self._opened(x0)
        # Its own timesteps' number: a resumed video counts its context noise by the same.
        clean = _Clean(x0, cache.frame, self.index, len(self.timesteps) - 1)
        self._run(clean, cache)
        if self.changes is not None:
            oldest = cache.frame - self.sampler.context
            self.clean = [part for part in (*self.clean, clean) if part.frame + part.x0.shape[1] > oldest]

    def _change(self, change: Change) -> None:
        self.text = change.text
        if change.how == "cut":
            self.cache = None
            self.clean = []
            self.carries_gradient = False
        elif self.cache is not None:
            self.cache.text = self._embedded()
            if change.how == "recache":
                self._run_again(self.cache)

    def _run_again(self, cache: KVCache | CacheSnapshot) -> None:
        """Fill the cache anew, but for the sink, with what the next chunk sees."""
        seen = self.sampler.context - self.sampler.sink - self.sampler.chunk
        first = max(cache.room.sink, cache.frame - seen)
        if first >= cache.frame:
            return
        cache.forget(first)
        for clean in self.clean:
            x0 = clean.x0[:, max(0, first - clean.frame) :]
            if x0.shape[1]:
                self._run(replace(clean, x0=x0), cache)

    def _opened(self, like: Tensor) -> KVCache | CacheSnapshot:
        """The cache, an empty one if there is none yet."""
        if self.cache is None:
            sampler = self.sampler
            size = (like.shape[3], like.shape[4])
            room = (sampler.context, sampler.sink, sampler.sink_positions)
            if self.carries_gradient:
                self.cache = CacheSnapshot(self._embedded(), self.student.room(size, *room))
            else:
                with torch.no_grad():
                    self.cache = self.student.new_cache(self.text, size, *room)
        return self.cache

    def _embedded(self) -> list[KeysValues]:
        """The prompt's keys and values for every block."""
        with torch.set_grad_enabled(self.carries_gradient):
            return self.student.embed_text(self.text)

    def _run(self, clean: _Clean, cache: KVCache | CacheSnapshot) -> None:
        """One context pass."""
        sampler = self.sampler
        x0 = clean.x0
        timestep = torch.tensor(sampler.context_noise)
        if sampler.context_noise == CLEAN:
            self.student.cache_clean(x0, cache)
        elif sampler.context_noise_on == "latents":
            x0 = sampler.schedule.add_noise(x0, self.draw(clean.index, clean.last, x0), timestep)
            self.student.cache_clean(x0, cache, sampler.context_noise)
        else:

            def noise(number: int, like: Tensor) -> Tensor:
                # Up to `last`, draws are those of latents.
                return self.draw(clean.index, clean.last + 1 + number, like)

            self.student.cache_clean(x0, NoisyPast(cache, sampler.schedule.sigma(timestep).item(), noise))


@dataclass(frozen=True)
class _Clean:
    """A finished chunk, and what its context noise depends on."""

    x0: Tensor
    frame: int
    """Absolute latent frame of its first."""
    index: int
    last: int
    """Number of its last denoising step."""


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
