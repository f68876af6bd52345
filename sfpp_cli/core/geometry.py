"""Arithmetic of frames and tokens. Every number comes from a model's configuration; none is written here."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Compression:
    """How many video frames and pixels one latent frame and one latent cell stand for (Wan: 4 and 8)."""

    temporal: int
    spatial: int

    def latent_frames(self, video_frames: int) -> int:
        """The fewest latent frames that decode to at least `video_frames`."""
        return 1 + math.ceil((video_frames - 1) / self.temporal)

    def video_frames(self, latent_frames: int) -> int:
        return 1 + self.temporal * (latent_frames - 1)

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """Pixels (width, height) -> latent (height, width)."""
        return height // self.spatial, width // self.spatial


def round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def tokens_per_frame(latent_height: int, latent_width: int, patch: tuple[int, int, int]) -> int:
    """Tokens of one latent frame: the latent grid in patches of (1, ph, pw)."""
    return (latent_height // patch[1]) * (latent_width // patch[2])


def window_chunks(frames: int, horizon: int, chunk: int) -> tuple[int, int]:
    """Chunks of a window, and chunks at which one may start.

    Windows have `horizon` latent frames, rollouts `frames`. Raises ValueError if either are not made of
    whole chunks.
    """
    if horizon % chunk or frames % chunk or frames < horizon:
        raise ValueError(
            f"rollouts of {frames} latent frames and windows of {horizon} must be whole chunks of {chunk}"
        )
    return horizon // chunk, (frames - horizon) // chunk + 1
