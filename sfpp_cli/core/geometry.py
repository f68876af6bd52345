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


@dataclass(frozen=True)
class Timeline:
    """Where the chunks of a video stand among its frames."""

    compression: Compression
    chunk: int
    """Latent frames in each."""
    cuts: tuple[int, ...] = ()
    """Chunks that begin a video anew: their first latent frame is one picture, as is that of chunk 0."""

    def frames_before(self, index: int) -> int:
        """Video frames before chunk `index`."""
        starts = [0, *(cut for cut in self.cuts if 0 < cut < index)]
        lengths = [end - start for start, end in zip(starts, [*starts[1:], index], strict=True)]
        return sum(self.compression.video_frames(length * self.chunk) for length in lengths if length)

    def chunk_frames(self, index: int) -> int:
        """Video frames of chunk `index`."""
        return self.frames_before(index + 1) - self.frames_before(index)

    def chunks(self, frames: int) -> int:
        """The fewest chunks that hold so many video frames."""
        count = math.ceil(self.compression.latent_frames(frames) / self.chunk)
        while self.frames_before(count) < frames:
            count += 1
        return count

    def latent_frames(self, frames: int) -> int:
        """The fewest latent frames that hold so many video frames."""
        last = max((cut for cut in (0, *self.cuts) if self.frames_before(cut) < frames), default=0)
        return last * self.chunk + self.compression.latent_frames(frames - self.frames_before(last))


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
