"""Pictures first, then video, as Wan's own VAE was made.

While single pictures are learned, every causal convolution is its last temporal tap, a 2D convolution. Then
the other taps and the temporal resampling grow from there. All of it works on the class of diffusers'
convolutions, so one VAE is trained at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
)
from torch import Tensor

NOISE = 0.25
"""Size of what new taps begin with, as a share of the last tap's."""

_video = WanCausalConv3d.forward


def _picture(self: WanCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    batch, channels, frames, height, width = x.shape
    flat = x.transpose(1, 2).reshape(batch * frames, channels, height, width)
    answer = F.conv2d(flat, self.weight[:, :, -1], self.bias, padding=(self._padding[2], self._padding[0]))
    return answer.reshape(batch, frames, *answer.shape[1:]).transpose(1, 2)


@contextmanager
def pictures(on: bool = True) -> Iterator[None]:
    """Inside, convolutions see single pictures."""
    WanCausalConv3d.forward = _picture if on else _video
    try:
        yield
    finally:
        WanCausalConv3d.forward = _video


@torch.no_grad()
def prepare(vae: AutoencoderKLWan) -> None:
    """Only last taps, and residual branches that begin at zero."""
    for module in vae.modules():
        if _over_three_frames(module):
            module.weight[:, :, -1] *= 3**0.5
            module.weight[:, :, :-1] = 0
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
        if isinstance(module, WanAttentionBlock):
            module.proj.weight.zero_()
            module.proj.bias.zero_()


@torch.no_grad()
def inflate(vae: AutoencoderKLWan) -> None:
    """Give the other taps something to grow from; let temporal resampling begin near a copy of frames."""
    for module in vae.modules():
        if _over_three_frames(module):
            others = module.weight[:, :, :-1]
            others.copy_(torch.randn_like(others) * module.weight[:, :, -1:].std() * NOISE)
        if isinstance(module, WanResample) and hasattr(module, "time_conv"):
            _begin_near_copy(module)


def _begin_near_copy(module: WanResample) -> None:
    weight = module.time_conv.weight
    channels = module.dim
    eye = torch.eye(channels, device=weight.device)
    weight.mul_(NOISE)
    module.time_conv.bias.zero_()
    halves = [weight[:channels]] if module.mode == "downsample3d" else [weight[:channels], weight[channels:]]
    halves[0][:, :, 2, 0, 0] += 0.7 * eye
    halves[0][:, :, 1, 0, 0] += 0.3 * eye
    for half in halves[1:]:
        half[:, :, 2, 0, 0] += eye


def _over_three_frames(module: torch.nn.Module) -> bool:
    return isinstance(module, WanCausalConv3d) and module.weight.shape[2:] == (3, 3, 3)
