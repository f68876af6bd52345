"""Wan's VAE as a stream: a video is encoded and decoded piece by piece, its temporal cache kept per video.

diffusers keeps that cache inside the module and clears it on every call; here the cache belongs to the
stream, so one VAE serves many videos at once and the memory of a decode does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResample,
    patchify,
    unpatchify,
)
from torch import Tensor, nn

from sfpp_cli.errors import UserError
from sfpp_cli.models.tiny_vae import TinyDecoder, TinyStream

Decoder: TypeAlias = AutoencoderKLWan | TinyDecoder


class _Stream:
    """The temporal feature cache of one half of the VAE; empty until the first piece has passed."""

    def __init__(self, vae: AutoencoderKLWan, module: nn.Module) -> None:
        self.vae = vae
        self.module = module
        self.cache: list[Any] = [None] * sum(isinstance(part, WanCausalConv3d) for part in module.modules())
        self.passes = 0

    def _pass(self, piece: Tensor) -> Tensor:
        # The layout of the weights. Convolutions keep it, and norms over channels are much faster in it.
        piece = piece.contiguous(memory_format=torch.channels_last_3d)
        # From the fourth pass on all are alike: one graph, if the module is compiled. The first two have
        # shapes of their own, the third caches of other strides, and each would be compiled for itself.
        run = self.module if self.passes > 2 else self.module.forward
        self.passes += 1
        out: Tensor = run(piece, feat_cache=self.cache, feat_idx=[0])
        return out

    def _pass_all(self, pieces: Tensor, first: int) -> Tensor:
        """The first piece of a video goes alone, since it is one picture; the rest go together."""
        if self.passes or pieces.shape[2] == first:
            return self._pass(pieces)
        return torch.cat([self._pass(pieces[:, :, :first]), self._pass(pieces[:, :, first:])], dim=2)

    def detach(self) -> None:
        """Cut the graph here: truncated back-propagation through a long stream."""
        self.cache = [part.detach() if isinstance(part, Tensor) else part for part in self.cache]


class StreamingEncoder(_Stream):
    """Video frames [B, T, 3, H, W] in [-1, 1] -> latents [B, F, C, h, w], normalised by the VAE's statistics.

    The first call takes 1 + 4k frames, later ones 4k (4 being the temporal compression); F = T / 4 but for
    the first frame, which is a latent frame by itself.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae, vae.encoder)

    def __call__(self, frames: Tensor) -> Tensor:
        mean, _ = self.moments(frames)
        return normalise(self.vae, mean.transpose(1, 2))

    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, [B, C, F, h, w], not normalised."""
        pixels = frames.transpose(1, 2)
        if self.vae.config.patch_size is not None:
            pixels = patchify(pixels, self.vae.config.patch_size)
        mean, log_variance = self.vae.quant_conv(self._pass_all(pixels, first=1)).chunk(2, dim=1)
        return mean, log_variance


class StreamingDecoder(_Stream):
    """Normalised latents [B, F, C, h, w] -> video frames [B, T, 3, H, W], in [-1, 1] but for overshoot.

    T = 4 F, less 3 for the first latent frame of the video, which is one picture.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae, vae.decoder)

    def __call__(self, latents: Tensor) -> Tensor:
        return self.from_raw(denormalise(self.vae, latents).transpose(1, 2))

    def from_raw(self, raw: Tensor) -> Tensor:
        """Decode latents [B, C, F, h, w] that were never normalised."""
        pixels = self._pass_all(self.vae.post_quant_conv(raw), first=1)
        if self.vae.config.patch_size is not None:
            pixels = unpatchify(pixels, self.vae.config.patch_size)
        return pixels.transpose(1, 2)


def decoder_stream(decoder: Decoder) -> StreamingDecoder | TinyStream:
    """For a video's beginning."""
    return TinyStream(decoder) if isinstance(decoder, TinyDecoder) else StreamingDecoder(decoder)


class CausalConv(WanCausalConv3d):  # type: ignore[misc]
    """Wan's causal convolution without a padded copy of its input, and by oneDNN on a CPU.

    For one small video PyTorch prefers an older kernel, which takes four times as long.
    """

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """x [B, C, T, H, W] after the frames of `cache_x`; zeros before the first."""
        across, _, down, _, before, _ = self._padding
        if cache_x is not None and before:
            x = torch.cat([cache_x, x], dim=2)
            before -= cache_x.shape[2]
        if before:
            x = F.pad(x, (0, 0, 0, 0, before, 0))
        padding = (0, down, across)
        eager = not torch.compiler.is_compiling()  # the compiler cannot look into that kernel
        plain = x.device.type == "cpu" and x.dtype == torch.float32
        if eager and plain and torch.backends.mkldnn.is_available():
            settings = (padding, self.stride, self.dilation, self.groups)
            return torch.mkldnn_convolution(x, self.weight, self.bias, *settings)
        return F.conv3d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Growth(WanResample):  # type: ignore[misc]
    """Wan's step up in time and size, with nothing but tensors in the cache.

    diffusers marks a video's first frame by a word, and compares the cache with it, at which the compiler of
    torch 2.11 breaks its graph. What the next frames see of the first is nothing, so zeros say the same.
    """

    def forward(self, x: Tensor, feat_cache: list[Tensor | None], feat_idx: list[int]) -> Tensor:
        """x [B, C, T, h, w] -> [B, C / 2, T or 2 T, 2 h, 2 w]; a video's first frame stays one."""
        seen = feat_cache[feat_idx[0]]
        if seen is None:
            feat_cache[feat_idx[0]] = x.new_zeros(*x.shape[:2], 2, *x.shape[3:])
        else:
            feat_cache[feat_idx[0]] = torch.cat([seen, x], dim=2)[:, :, -2:].clone()
            # Of twice the channels the first half is the earlier frame.
            x = self.time_conv(x, seen).unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
        feat_idx[0] += 1
        pictures = self.resample(x.transpose(1, 2).flatten(0, 1))
        grown: Tensor = pictures.unflatten(0, (len(x), -1)).transpose(1, 2)
        return grown


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Convolutions as fast as they can be, on CPUs and on tensor cores: their weights' layout, their kernels.

    The same numbers but for rounding.
    """
    layouts = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}
    for module in vae.modules():
        if type(module) is WanCausalConv3d:
            module.__class__ = CausalConv
        if type(module) is WanResample and module.mode == "upsample3d":
            module.__class__ = Growth
        for kind, layout in layouts.items():
            if isinstance(module, kind):
                module.to(memory_format=layout)  # type: ignore[call-overload]
    return vae


def compile_decoder(decoder: Decoder) -> None:
    """Compile what decodes a chunk amid a video: one graph, whatever the video. Small decoders stay."""
    if isinstance(decoder, AutoencoderKLWan):
        decoder.decoder.compile(dynamic=False)


@torch.no_grad()
def image_latent(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The last picture of latents [B, F, C, h, w], encoded as if a video began with it: [B, 1, C, h, w].

    A latent frame from the middle of a video holds four pictures, but a teacher expects its first to be one.
    """
    picture = StreamingDecoder(vae)(latents)[:, -1:].clamp(-1, 1)
    return StreamingEncoder(vae)(picture)


def normalise(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """(latents - mean) / std per channel, [B, F, C, h, w]."""
    mean = _channels(vae.config.latents_mean, latents)
    return (latents - mean) / _channels(vae.config.latents_std, latents)


def denormalise(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """latents * std + mean per channel, [B, F, C, h, w]."""
    return latents * _channels(vae.config.latents_std, latents) + _channels(vae.config.latents_mean, latents)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    """A number for each channel of latents [B, F, C, h, w]: [C, 1, 1]."""
    return _column(tuple(values), like.device, like.dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _column(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once: a GPU drains its queue whenever it is handed Python's numbers."""
    return torch.tensor(values, device=device, dtype=dtype)[:, None, None]


class TiledDecoder:
    """`decoder_stream` in overlapping spatial tiles that are blended, each with its own temporal cache.

    The largest activation is that of one tile, so a small GPU decodes large frames; near tile borders the
    picture differs slightly from an untiled decode, since a convolution there sees padding.
    """

    def __init__(self, vae: Decoder, tile: int, overlap: int | None = None) -> None:
        """`tile` and `overlap` in latent cells; tiles overlap by a quarter if not told otherwise."""
        if tile < 2:
            raise UserError(f"a tile of {tile} latent cells is too small: use 2 or more")
        self.vae = vae
        self.tile = tile
        self.overlap = max(1, tile // 4) if overlap is None else overlap
        self.decoders: dict[tuple[int, int], StreamingDecoder | TinyStream] = {}

    def __call__(self, latents: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        total: Tensor | None = None
        weight: Tensor | None = None
        for top in self._starts(height):
            for left in self._starts(width):
                decoder = self.decoders.setdefault((top, left), decoder_stream(self.vae))
                piece = decoder(latents[..., top : top + self.tile, left : left + self.tile])
                scale = piece.shape[-1] // min(self.tile, width)
                if total is None or weight is None:
                    total = piece.new_zeros(*piece.shape[:-2], height * scale, width * scale)
                    weight = piece.new_zeros(height * scale, width * scale)
                down = self._ramp(piece.shape[-2], scale, piece)
                across = self._ramp(piece.shape[-1], scale, piece)
                ramp = down[:, None] * across
                rows = slice(top * scale, top * scale + piece.shape[-2])
                columns = slice(left * scale, left * scale + piece.shape[-1])
                total[..., rows, columns] += piece * ramp
                weight[rows, columns] += ramp
        assert total is not None
        assert weight is not None
        return total / weight

    def _starts(self, length: int) -> list[int]:
        """Tile origins that cover `length`; the last tile ends at the border."""
        if length <= self.tile:
            return [0]
        stride = self.tile - self.overlap
        return [*range(0, length - self.tile, stride), length - self.tile]

    def _ramp(self, pixels: int, scale: int, like: Tensor) -> Tensor:
        """Weights that rise linearly over the overlap from both ends.

        They are positive everywhere, so a tile without neighbours is left as it is.
        """
        distance = torch.arange(pixels, device=like.device, dtype=like.dtype) + 0.5
        return torch.minimum(distance, pixels - distance).clamp(max=self.overlap * scale)


def to_uint8(frames: Tensor) -> Tensor:
    """Frames [B, T, 3, H, W] in [-1, 1] -> uint8 [B, T, H, W, 3], contiguous; overshoot is clamped."""
    planes = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return planes.movedim(2, -1).contiguous()  # here, where the frames are: a GPU does it in no time
