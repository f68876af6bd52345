"""The one chunk loop, for training and for inference (arXiv 2506.08009, algorithm 1; arXiv 2510.02283, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sfpp_cli.core.cache import KVCache, UnrolledCache
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.student import CausalWanModel

Draw = Callable[[int, int, Tensor], Tensor]
"""(chunk index, student step, tensor to be like) -> the Gaussian noise that re-noises that step's x0."""


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
    past: Iterable[Tensor] = (),
    cache: KVCache | UnrolledCache | None = None,
    context_noise: float = 0.0,
    exit_step: int | None = None,
    gradient: Container[int] = (),
) -> Iterator[Tensor]:
    """Continue the student's own history, chunk by chunk: yields clean latents x0 [B, chunk, C, H, W].

    `noise` is [B, F, C, H, W], or an iterable of chunk noises for a rollout without end. `text` [B, L, D] holds the padded prompt
    embeddings. `steps` are nominal student steps, warped by the schedule. `past` are clean chunks that came before (an interrupted
    video, a clip to continue): they fill the cache, are not yielded, and chunks are counted from behind them. `cache` is one to
    fill and go on from instead of a new one.

    For training: denoising stops at student step `exit_step` (the last one if None) and its prediction is yielded; it carries
    gradient in the chunks that `gradient` contains. Earlier steps and the context pass never do. Above 0, `context_noise` is the
    timestep to which the context is re-noised before it is remembered.

    A chunk is yielded before its context pass: who watches waits less, and the last chunk needs none.
    """
    timesteps = schedule.warp(steps)[: None if exit_step is None else exit_step + 1]
    last_step = len(timesteps) - 1

    def remember(clean: Tensor, index: int, cache: KVCache | UnrolledCache) -> None:
        if context_noise:
            clean = schedule.add_noise(clean, draw(index, last_step, clean), torch.tensor(context_noise))
        student.remember(clean, cache, context_noise)

    index = 0
    for clean in past:
        cache = cache or _open(student, text, clean, context, sink, gradient)
        remember(clean, index, cache)
        index += 1
    previous: Tensor | None = None
    for x in _chunks(noise, chunk):
        cache = cache or _open(student, text, x, context, sink, gradient)
        if previous is not None:
            remember(previous, index - 1, cache)
        elif gradient != ():
            with torch.enable_grad():
                cache.text = student.embed_text(text)
        for step, level in enumerate(timesteps):
            with torch.set_grad_enabled(step == last_step and index in gradient):
                flow = student(x, x.new_full(x.shape[:1], level.item(), dtype=torch.float32), cache)
                x0 = schedule.x0_from_flow(flow, x, level)
            if step < last_step:
                x = schedule.add_noise(x0, draw(index, step, x0), timesteps[step + 1])
        yield x0
        previous = x0.detach()
        index += 1


@torch.no_grad()
def _open(
    student: CausalWanModel, text: Tensor, like: Tensor, context: int, sink: int, gradient: Container[int]
) -> KVCache | UnrolledCache:
    size = (like.shape[3], like.shape[4])
    if gradient == ():
        return student.new_cache(text, size, context=context, sink=sink)
    return UnrolledCache(student.embed_text(text), tokens=student.tokens(size), context=context, sink=sink)


def _chunks(noise: Tensor | Iterable[Tensor], chunk: int) -> Iterable[Tensor]:
    return noise.split(chunk, dim=1) if isinstance(noise, Tensor) else noise
