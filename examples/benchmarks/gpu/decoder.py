"""Decoding a chunk of three latent frames (12 pictures at 832x480) amid a video."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

import torch
import torch._dynamo as dynamo
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from gpu.measuring import Result, Section, error_of, rate
from gpu.networks import VAE_CHUNK_FLOP, lean_decoder, make_vae, sizes
from gpu.profiling import kernels
from sfpp_cli.models.vae import StreamingDecoder, channels_last, compile_decoder, to_uint8


class Decoding:
    """A chunk, and all that one needs to time its decoding."""

    def __init__(self, s: Section) -> None:
        self.s = s
        self.dtype = half(s)
        self.chunk = torch.randn(1, 3, 16, *sizes(s.tiny).latent, device=s.device)

    def vae(self, *, lean: bool = False) -> AutoencoderKLWan:
        """The decoder as the product lays it out; `lean` with the mend of that name."""
        vae = channels_last(make_vae(self.s.tiny, self.dtype, self.s.device))
        if lean:
            lean_decoder(vae)
        return vae

    def steady(self, vae: AutoencoderKLWan) -> tuple[StreamingDecoder, Tensor]:
        """A decoder amid a video, and the chunk that comes next."""
        decoder = StreamingDecoder(vae)
        latents = self.chunk.to(vae.dtype)
        decoder(latents)
        return decoder, latents

    def decode(self, vae: AutoencoderKLWan, n: int = 5) -> Result:
        self.s.reset_peak()
        decoder, latents = self.steady(vae)
        return self.figures(self.s.timed(lambda: decoder(latents), n=n, warm=1))

    def figures(self, result: Result) -> Result:
        known = result if self.s.tiny else rate(result, VAE_CHUNK_FLOP)
        return {**known, "fps": round(12e3 / result["ms"], 1), "peak_gb": self.s.peak_gb()}

    def kernels(self, title: str, vae: AutoencoderKLWan) -> Result:
        decoder, latents = self.steady(vae)
        return kernels(self.s, f"VAE, a chunk, {title}", lambda: decoder(latents))

    def first(self, vae: AutoencoderKLWan) -> Result:
        latents = self.chunk.to(vae.dtype)
        alone = self.s.timed(lambda: StreamingDecoder(vae)(latents[:, :1]), n=3)
        whole = self.s.timed(lambda: StreamingDecoder(vae)(latents), n=3)
        return {"one latent frame (1 picture) ms": alone["ms"], "first chunk (9 pictures) ms": whole["ms"]}


def half(s: Section) -> torch.dtype:
    """Convolutions in bfloat16 are very slow on CPUs."""
    return torch.bfloat16 if s.cuda else torch.float32


@torch.no_grad()
def decoder(s: Section) -> None:
    d = Decoding(s)
    planar(s, d)
    layouts(s, d)
    s.free()
    compiled(s, n=5)
    single = channels_last(make_vae(s.tiny, torch.float32, s.device))
    s.attempt("float32 (previews, image latents)", lambda: d.decode(single, n=2), need=6)
    width, height = sizes(s.tiny).pixels
    frames = torch.randn(1, 12, 3, height, width, device=s.device, dtype=d.dtype)
    s.attempt("to_uint8", lambda: s.timed(lambda: to_uint8(frames)))


def planar(s: Section, d: Decoding) -> None:
    vae = make_vae(s.tiny, d.dtype, s.device)
    s.attempt("planar (NCDHW)", lambda: d.decode(vae))
    s.attempt("kernels planar", lambda: d.kernels("planar", vae))


def layouts(s: Section, d: Decoding) -> None:
    """Channels last: as the product has it, with cuDNN's own choice of kernels, with the lean decoder."""
    vae = d.vae()
    s.attempt("as it is (channels last)", lambda: d.decode(vae))
    s.attempt("kernels as it is", lambda: d.kernels("as it is (channels last)", vae))
    torch.backends.cudnn.benchmark = True
    s.attempt("cudnn.benchmark", lambda: d.decode(vae), need=10)
    lean_decoder(vae)
    s.attempt("lean: no float32 upsampling", lambda: d.decode(vae))
    s.attempt("lean decoder's error (float32, small)", lambda: lean_error(s))
    s.attempt("first chunk", lambda: d.first(vae))


@torch.no_grad()
def warm_decoder(s: Section) -> None:
    """Fill the compiler's cache for `decoder`, with the same graphs and shapes."""
    torch.backends.cudnn.benchmark = True
    compiled(s, n=1)


def compiled(s: Section, n: int) -> None:
    d = Decoding(s)
    s.attempt("compiled whole, as by --compile", partial(compiled_whole, d, n), need=25)
    s.attempt("norm and silu compiled into one kernel", partial(compiled_norms, d, n), need=20)


def lean_error(s: Section) -> Result:
    torch.manual_seed(1)
    latents = torch.randn(1, 7, 16, 6, 8, device=s.device)

    def decoded(vae: AutoencoderKLWan) -> Tensor:
        decoder = StreamingDecoder(vae)
        return torch.cat([decoder(piece) for piece in latents.split([1, 3, 3], dim=1)], dim=1)

    vae = channels_last(make_vae(True, torch.float32, s.device))
    reference = decoded(vae)
    lean_decoder(vae)
    return error_of(decoded(vae), reference)


def compiled_norms(d: Decoding, n: int) -> Result:
    dynamo.config.recompile_limit = 64
    vae = d.vae(lean=True)

    @torch.compile(dynamic=False)
    def fast(x: Tensor, gamma: Tensor, scale: float) -> Tensor:
        return F.silu(F.normalize(x.float(), dim=1).to(x.dtype) * scale * gamma)

    def forward(self: Any, x: Tensor) -> Tensor:
        return fast(x, self.gamma, self.scale)

    for owner in vae.modules():
        if hasattr(owner, "norm1") and hasattr(owner, "norm2"):
            owner.nonlinearity = nn.Identity()
            for norm in (owner.norm1, owner.norm2):
                norm.forward = MethodType(forward, norm)
    return d.decode(vae, n)


def compiled_whole(d: Decoding, n: int) -> Result:
    vae = d.vae()
    compile_decoder(vae)
    return {**d.decode(vae, n), "kernels": d.kernels("compiled whole", vae)}
