"""Networks with random weights, of Wan 1.3B's size or of a toy's, and the mends that the campaign tries."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import Tensor, nn

from sfpp_cli.core.cache import KVCache
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.core.student import CausalBlock, CausalWanModel, _heads, rotate

WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
}
SMALL = {**WAN, "num_attention_heads": 2, "text_dim": 64, "ffn_dim": 512, "num_layers": 3}
TINY = {**SMALL, "attention_head_dim": 16, "ffn_dim": 64, "num_layers": 2, "text_dim": 32, "freq_dim": 32}
TINY_VAE: dict[str, Any] = {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
VAE_CHUNK_FLOP = 40.65e12
"""Of decoding three latent frames amid a video at 832x480, as counted by FlopCounterMode."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that sections run at."""

    config: dict[str, Any]
    latent: tuple[int, int]
    text: int
    """Tokens of a prompt."""

    @property
    def heads(self) -> int:
        return self.config["num_attention_heads"]

    @property
    def head_dim(self) -> int:
        return self.config["attention_head_dim"]

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def ffn(self) -> int:
        return self.config["ffn_dim"]

    @property
    def text_dim(self) -> int:
        return self.config["text_dim"]

    @property
    def tokens(self) -> int:
        """Of one latent frame."""
        return self.latent[0] * self.latent[1] // 4

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height."""
        return self.latent[1] * 8, self.latent[0] * 8

    def flop(self, frames: int, seen: int) -> float:
        """Of one pass over `frames` latent frames that see `seen`."""
        layers = self.config["num_layers"]
        queries = frames * self.tokens
        linear = layers * (6 * self.dim**2 + 2 * self.dim * self.ffn)
        attention = layers * self.dim * (seen * self.tokens + self.text)
        return 2 * linear * queries + 4 * attention * queries


def sizes(tiny: bool) -> Sizes:
    return Sizes(TINY, (8, 12), 16) if tiny else Sizes(WAN, (60, 104), 512)


def sampler(context: int = 21, sink: int = 0) -> Sampler:
    """How Wan's student samples."""
    schedule = FlowSchedule(5.0)
    return Sampler(schedule=schedule, steps=(1000, 750, 500, 250), chunk=3, context=context, sink=sink)


def make_network(kind: Any, config: dict[str, Any], dtype: torch.dtype, device: torch.device | str) -> Any:
    """A network with random weights made on the device.

    In half precision the parts that `from_pretrained` keeps in float32 stay so.
    """
    torch.manual_seed(0)
    with torch.device(device):
        network = kind(**config)
    keep = tuple(kind._keep_in_fp32_modules or ())
    for name, parameter in network.named_parameters():
        if not any(part in name for part in keep):
            parameter.data = parameter.data.to(dtype)
    return network.eval().requires_grad_(False)


def make_vae(tiny: bool, dtype: torch.dtype, device: torch.device | str) -> AutoencoderKLWan:
    """Wan's VAE with random weights; its decoder only, unless tiny."""
    torch.manual_seed(0)
    with torch.device(device):
        vae = AutoencoderKLWan(**TINY_VAE if tiny else {})
    if not tiny:
        vae.encoder = None
    for parameter in vae.parameters():
        parameter.data = parameter.data.to(dtype)
    return vae.eval().requires_grad_(False)


def full_cache(
    student: CausalWanModel, text: Tensor, size: tuple[int, int], context: int, frame: int
) -> KVCache:
    """A ring as it is `frame` latent frames into a video, full of noise."""
    cache = student.new_cache(text, size, context=context)
    for part in (*cache.keys, *cache.values):
        part.normal_()
    cache.frame = frame
    return cache


def fused_blocks(student: CausalWanModel) -> None:
    """One GEMM for query, key and value; the gelu in the epilogue of its GEMM."""
    for block in student.blocks:
        attn = block.attn1
        block.qkv_weight = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
        block.qkv_bias = torch.cat([attn.to_q.bias, attn.to_k.bias, attn.to_v.bias])
        block.project = MethodType(_project, block)
        block.finish = MethodType(_finish, block)


def _project(self: CausalBlock, x: Tensor, modulation: Tensor, rope: Any) -> tuple[Tensor, Tensor, Tensor]:
    shift, scale = self._modulation(modulation, 0, 1)
    h = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x).flatten(1, 2)
    attn = self.attn1
    query, key, value = F.linear(h, self.qkv_weight, self.qkv_bias).chunk(3, dim=-1)
    return (
        rotate(_heads(attn.norm_q(query), attn.heads), rope),
        rotate(_heads(attn.norm_k(key), attn.heads), rope),
        _heads(value, attn.heads),
    )


def _finish(
    self: CausalBlock, x: Tensor, attended: Tensor, modulation: Tensor, text_key: Tensor, text_value: Tensor
) -> Tensor:
    gate, ffn_shift, ffn_scale, ffn_gate = self._modulation(modulation, 2, 3, 4, 5)
    frames = x.shape[1]
    out = self.attn1.to_out[0](attended.transpose(1, 2).flatten(2)).unflatten(1, (frames, -1))
    x = (x.float() + out * gate).type_as(x)
    h = self.norm2(x.float()).type_as(x).flatten(1, 2)
    query = _heads(self.attn2.norm_q(self.attn2.to_q(h)), self.attn2.heads)
    out = F.scaled_dot_product_attention(query, text_key, text_value).transpose(1, 2).flatten(2)
    x = x + self.attn2.to_out[0](out).unflatten(1, (frames, -1))
    h = (self.norm3(x.float()) * (1 + ffn_scale) + ffn_shift).type_as(x)
    up = self.ffn.net[0].proj
    down = self.ffn.net[2]
    flat = torch._addmm_activation(up.bias, h.flatten(0, -2), up.weight.t(), use_gelu=True)
    out = F.linear(flat, down.weight, down.bias).unflatten(0, h.shape[:-1])
    return (x.float() + out.float() * ffn_gate).type_as(x)


def compile_blocks(student: CausalWanModel, **options: Any) -> None:
    """As CausalWanModel.compile_blocks, with options."""
    for block in student.blocks:
        block.project = torch.compile(block.project, **options)
        block.finish = torch.compile(block.finish, **options)


def lean_decoder(vae: AutoencoderKLWan) -> None:
    """Nearest-neighbour upsampling without a trip to float32; the rest of it is the product's own by now."""
    for module in vae.modules():
        if isinstance(module, WanUpsample):
            module.forward = MethodType(_upsample, module)


def _upsample(self: nn.Upsample, x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=self.scale_factor, mode="nearest-exact")
