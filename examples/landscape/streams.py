"""What the VAE is trained on: rendered streams, half of them photometrically disturbed.

A VAE that has seen the clean world only cannot draw a video that has left it, and would hide the very failure
that is to be seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from road import VAE_SEED, Job
from torch import Tensor

from sfpp_cli.data.landscape import draw_scenes
from sfpp_cli.data.landscape.palette import LUMA_WEIGHTS
from sfpp_cli.models.vae import StreamingDecoder, StreamingEncoder

SEGMENT = 8
"""Video frames of a step."""
FOREGROUND = 6.0
"""Weight of the balloon's pixels, and of those right beside it."""


class Pool:
    """Streams as bytes on the device, a few of which are replaced by new ones whenever asked."""

    def __init__(self, job: Job) -> None:
        scale = job.scale
        self.scale, self.device = scale, job.device
        self.frames = torch.empty(
            scale.pool, scale.length, 3, *scale.size, dtype=torch.uint8, device=job.device
        )
        self.masks = torch.empty(
            scale.pool, scale.length, 1, *scale.size, dtype=torch.uint8, device=job.device
        )
        self.filled, self.next = 0, 0

    def renew(self) -> None:
        """Render some new streams, each from a start of its own."""
        indices = torch.randint(2**40, (self.scale.render,)).tolist()
        scenes = draw_scenes(VAE_SEED, indices, self.device)
        starts = torch.randint(100_000, (self.scale.render,), device=self.device)
        rows = slice(self.next, self.next + self.scale.render)
        for first in range(0, self.scale.length, 32):
            count = min(32, self.scale.length - first)
            at = slice(first, first + count)
            self.frames[rows, at] = to_bytes(scenes.render(starts + first, count, self.scale.size))
            self.masks[rows, at] = to_bytes(scenes.balloon_mask(starts + first, count, self.scale.size))
        self.filled = max(self.filled, rows.stop)
        self.next = rows.stop if rows.stop + self.scale.render <= self.scale.pool else 0

    def pictures(self, count: int) -> tuple[Tensor, Tensor]:
        """Random frames [B, 1, 3, H, W] in [-1, 1] and the weights of their pixels [B, 1, 1, H, W]."""
        rows = torch.randint(self.filled, (count,), device=self.device)
        at = torch.randint(self.scale.length, (count,), device=self.device)
        return from_bytes(self.frames[rows, at])[:, None], pixel_weights(self.masks[rows, at][:, None])


class Group:
    """Streams that are walked together, with the caches of both halves of the VAE."""

    def __init__(self, vae: AutoencoderKLWan, pool: Pool, until: int | None = None) -> None:
        """They are left at frame `until`, or at their end."""
        batch = pool.scale.streams
        rows = torch.randperm(pool.filled)[:batch].to(pool.device)
        rows = rows.repeat(-(-batch // len(rows)))[:batch]
        self.frames, self.masks = pool.frames[rows], pool.masks[rows]
        self.flipped = bool(torch.rand(()) < 0.5)
        self.disturb = Disturbance.drawn(batch, pool.device)
        self.encoder, self.decoder = StreamingEncoder(vae), StreamingDecoder(vae)
        self.at, self.until = 0, until or pool.scale.length

    def step(self) -> tuple[Tensor, Tensor]:
        """The next frames [B, T, 3, H, W], disturbed, and the weights of their pixels."""
        count = SEGMENT + (self.at == 0)
        at = slice(self.at, self.at + count)
        frames = self.disturb(from_bytes(self.frames[:, at]), self.at)
        weights = pixel_weights(self.masks[:, at])
        if self.at == 0:
            weights[:, 0] *= 2  # the first picture's path is its own
        self.at += count
        return (frames.flip(-1), weights.flip(-1)) if self.flipped else (frames, weights)

    def detach(self) -> None:
        self.encoder.detach()
        self.decoder.detach()

    @property
    def over(self) -> bool:
        return self.at >= self.until


@dataclass(frozen=True)
class Disturbance:
    """Gain, gamma, contrast, saturation and tint of every second clip.

    Each swings slowly between two values, [2, B, ...].
    """

    gain: Tensor
    gamma: Tensor
    contrast: Tensor
    saturation: Tensor
    tint: Tensor
    pivot: Tensor
    phase: Tensor
    period: Tensor

    @classmethod
    def drawn(cls, batch: int, device: torch.device) -> Disturbance:
        on = (torch.arange(batch, device=device) % 2 == 0).float()
        some = (torch.rand(5, batch, device=device) < 0.5).float()
        some[0] = torch.maximum(some[0], (some.sum(0) == 0).float())  # at least one of the five
        some = some * on
        still = torch.rand(batch, device=device) < 0.5

        def swing(kind: int, low: float, high: float, *channels: int) -> Tensor:
            """Two values for each clip: both 0 where this kind is off, the same where the clip is still."""
            values = low + torch.rand(2, batch, *channels, device=device) * (high - low)
            shape = (batch, *(1 for _ in channels))
            second = torch.where(still.view(shape), values[0], values[1])
            return torch.stack([values[0], second]) * some[kind].view(shape)

        return cls(
            gain=swing(0, math.log(0.5), math.log(1.7)).exp(),
            gamma=swing(1, -0.5, 0.5).exp(),
            contrast=1 + swing(2, -0.5, 0.5),
            saturation=1 + swing(3, -1.0, 1.0),
            tint=1 + swing(4, -0.2, 0.2, 3),
            pivot=0.3 + 0.4 * torch.rand(batch, device=device),
            phase=torch.rand(batch, device=device) * 2 * math.pi,
            period=60 + torch.rand(batch, device=device) * 200,
        )

    def __call__(self, frames: Tensor, start: int) -> Tensor:
        """Frames [B, T, 3, H, W] in [-1, 1], the first of which is the stream's frame `start`."""
        batch, count = frames.shape[:2]
        t = start + torch.arange(count, device=frames.device)[None]
        share = 0.5 + 0.5 * torch.sin(2 * math.pi * t / self.period[:, None] + self.phase[:, None])

        def now(values: Tensor) -> Tensor:
            part = share.view(batch, count, *(1 for _ in values.shape[2:]))
            return torch.lerp(values[0][:, None], values[1][:, None], part).view(batch, count, -1, 1, 1)

        y = (frames + 1) / 2
        luma = sum(weight * y[:, :, i : i + 1] for i, weight in enumerate(LUMA_WEIGHTS))
        y = luma + (y - luma) * now(self.saturation)
        y = y.clamp(1e-4, 1) ** now(self.gamma)
        pivot = self.pivot.view(-1, 1, 1, 1, 1)
        y = (y - pivot) * now(self.contrast) + pivot
        return (y * now(self.gain) * now(self.tint)).clamp(0, 1) * 2 - 1


def pixel_weights(masks: Tensor) -> Tensor:
    """The balloon [B, T, 1, H, W] as bytes, grown by two pixels, as weights."""
    grown = F.max_pool2d(masks.flatten(0, 1).float() / 255, 5, 1, 2)
    return 1 + (FOREGROUND - 1) * grown.unflatten(0, masks.shape[:2])


def to_bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)


def from_bytes(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1
