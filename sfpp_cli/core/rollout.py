"""The one chunk loop, for training and for inference.

arXiv 2506.08009, algorithm 1; arXiv 2510.02283, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfpp_cli.core.cache import CacheSnapshot, KVCache
from sfpp_cli.core.constants import CLEAN
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.student import CausalWanModel

Draw = Callable[[int, int, Tensor], Tensor]
"""(chunk index, denoising step, tensor to be like) -> the Gaussian noise that re-noises that step's x0."""


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
    context_noise: float = CLEAN
    """Timestep to which a clean chunk is re-noised before it is cached."""

    @property
    def timesteps(self) -> Tensor:
        """The warped steps, float32 on the CPU."""
        return self.schedule.warp(self.steps)

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
        grad_chunks: Container[int] | None = None,
    ) -> Iterator[Tensor]:
        """Continue the student's own history, chunk by chunk: yields clean latents x0 [B, chunk, C, H, W].

        `noise` is [B, F, C, H, W], or an iterable of chunks for a video without end. `text` [B, L, D] holds
        the padded prompt embeddings. `past` are clean chunks that came before (an interrupted video, a clip
        to continue): they fill the cache, are not yielded, and chunks are counted after them. `cache` is one
        to continue instead of a new one; chunks are then counted from 0.

        For training: `timesteps` replace the sampler's. The prediction at the last of them is what is
        yielded, and it carries gradient in the chunks that `grad_chunks` contains. Earlier passes and
        context passes never carry gradient.

        A chunk is yielded before its context pass: the viewer waits less, and the last chunk needs none.
        """
        timesteps = self.timesteps if timesteps is None else timesteps
        last = len(timesteps) - 1
        if cache is not None and grad_chunks is not None:
            # Whoever made this cache embedded the text without gradient. Cross-attention's keys and values
            # are weights' work too, so they are computed again, once for all chunks.
            with torch.enable_grad():
                cache.text = student.embed_text(text)

        index = 0
        waiting: Tensor | None = None
        for clean in past:
            cache = self._open(student, text, clean, grad_chunks) if cache is None else cache
            self._cache_clean(student, clean, cache, draw, index, last)
            index += 1
        for x in noise.split(self.chunk, dim=1) if isinstance(noise, Tensor) else noise:
            cache = self._open(student, text, x, grad_chunks) if cache is None else cache
            if waiting is not None:
                self._cache_clean(student, waiting, cache, draw, index - 1, last)
            for step, t in enumerate(timesteps):
                learns = grad_chunks is not None and step == last and index in grad_chunks
                with torch.set_grad_enabled(learns):
                    # In float32 whatever the latents are: bfloat16 would tell the network 936 for 937.5.
                    flow = student(x, x.new_full(x.shape[:1], t.item(), dtype=torch.float32), cache)
                    x0 = self.schedule.x0_from_flow(flow, x, t)
                if step < last:
                    x = self.schedule.add_noise(x0, draw(index, step, x0), timesteps[step + 1])
            yield x0
            waiting = x0.detach()
            index += 1

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
        if self.context_noise != CLEAN:
            timestep = torch.tensor(self.context_noise)
            x0 = self.schedule.add_noise(x0, draw(index, last, x0), timestep)
        student.cache_clean(x0, cache, self.context_noise)

    def _open(
        self, student: CausalWanModel, text: Tensor, like: Tensor, grad_chunks: Container[int] | None
    ) -> KVCache | CacheSnapshot:
        """An empty cache: the ring, or for passes with gradient one that nothing overwrites."""
        size = (like.shape[3], like.shape[4])
        if grad_chunks is None:
            with torch.no_grad():
                return student.new_cache(text, size, context=self.context, sink=self.sink)
        with torch.enable_grad():
            embedded = student.embed_text(text)
        return CacheSnapshot(embedded, tokens=student.tokens(size), context=self.context, sink=self.sink)


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
