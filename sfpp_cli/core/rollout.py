"""The one chunk loop, for training and for inference (arXiv 2506.08009, algorithm 1; arXiv 2510.02283, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sfpp_cli.core.cache import KVCache
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
    exit_step: int | None = None,
    gradient: Container[int] = (),
) -> Iterator[Tensor]:
    """Continue the student's own history, chunk by chunk: yields clean latents x0 [B, chunk, C, H, W].

    `noise` is [B, F, C, H, W], or an iterable of chunk noises for a rollout without end. `text` [B, L, D] holds the padded prompt
    embeddings. `steps` are nominal student steps, warped by the schedule. `past` are clean chunks that came before (an interrupted
    video, a clip to continue): they fill the cache, are not yielded, and chunks are counted from behind them.

    For training: denoising stops at student step `exit_step` (the last one if None) and its prediction is yielded; it carries
    gradient in the chunks that `gradient` contains. Earlier steps and the context pass never do.

    A chunk is yielded before its context pass: who watches waits less, and the last chunk needs none.
    """
    timesteps = schedule.warp(steps)[: None if exit_step is None else exit_step + 1]
    last_step = len(timesteps) - 1
    cache: KVCache | None = None
    index = 0
    for clean in past:
        cache = cache or _open(student, text, clean, context, sink)
        student.remember(clean, cache)
        index += 1
    previous: Tensor | None = None
    for x in _chunks(noise, chunk):
        cache = cache or _open(student, text, x, context, sink)
        if previous is not None:
            student.remember(previous, cache)
        for step, level in enumerate(timesteps):
            learning = step == last_step and index in gradient
            with torch.set_grad_enabled(learning):
                if learning:
                    cache.text = student.embed_text(text)
                flow = student(x, x.new_full(x.shape[:1], level.item()), cache)
                x0 = schedule.x0_from_flow(flow, x, level)
            if step < last_step:
                x = schedule.add_noise(x0, draw(index, step, x0), timesteps[step + 1])
        yield x0
        previous = x0.detach()
        index += 1


@torch.no_grad()
def _open(student: CausalWanModel, text: Tensor, like: Tensor, context: int, sink: int) -> KVCache:
    return student.new_cache(text, (like.shape[3], like.shape[4]), context=context, sink=sink)


def _chunks(noise: Tensor | Iterable[Tensor], chunk: int) -> Iterable[Tensor]:
    return noise.split(chunk, dim=1) if isinstance(noise, Tensor) else noise
