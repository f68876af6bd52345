"""Randomness as a pure function of what it is for.

There is no state to save, so any batch, rank, length or restart draws the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


def mixed(*numbers: int) -> int:
    """A number that depends on `numbers` alone (a splitmix-style hash: neighbours give unrelated ones)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state % 2**63


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator determined by `numbers` alone."""
    return torch.Generator().manual_seed(mixed(*numbers))


def normal(shape: Iterable[int], generator: torch.Generator) -> Tensor:
    """Standard normal noise in float32, drawn on the CPU so that every device sees the same."""
    return torch.randn(tuple(shape), generator=generator)


class VideoNoise:
    """The noise of a batch of videos, one seed a video: a function of (seed, chunk, student step)."""

    def __init__(
        self, seeds: Iterable[int], shape: Iterable[int], device: torch.device | str = "cpu"
    ) -> None:
        """`shape` is that of one video's chunk, [chunk, C, H, W]."""
        self.seeds = tuple(seeds)
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self._drawn: dict[tuple[int, int], Tensor] = {}

    def chunks(self, first: int, last: int) -> Iterator[Tensor]:
        """The starting noise [B, chunk, C, H, W] of chunks first..last-1."""
        return (self._draw(index, 0, self.shape) for index in range(first, last))

    def drawn(self, first: int, last: int, steps: int) -> Iterator[Tensor]:
        """`chunks`, with the noise of each chunk's first `steps` denoising steps drawn along with it.

        For a thread that runs ahead of the rollout, so that a GPU need not wait for the CPU to draw.
        """
        for index in range(first, last):
            for step in range(steps):
                self._drawn[index, step] = self._draw(index, step + 1, self.shape)
            yield self._draw(index, 0, self.shape)

    def draw(self, chunk: int, step: int, like: Tensor) -> Tensor:
        """Noise like `like` [B, ...], for `Sampler.rollout`: what re-noises the x0 of a denoising step."""
        noise = self._drawn.pop((chunk, step), None)
        if noise is None:
            noise = self._draw(chunk, step + 1, like.shape[1:])
        return noise.to(like)

    def _draw(self, chunk: int, use: int, shape: Sequence[int]) -> Tensor:
        noise = torch.stack([normal(shape, seeded(seed, chunk, use)) for seed in self.seeds])
        if self.device.type == "cuda":
            noise = noise.pin_memory()  # from where a copy does not make the CPU wait for the GPU
        return noise.to(self.device, non_blocking=True)
