"""The causal student: Wan's transformer, with attention that sees only the past.

Same modules, parameter names and configuration as diffusers' `WanTransformer3DModel`, so a teacher's weights
load unchanged and a saved student is a diffusers folder. What differs is the forward pass: latents may start
at any absolute frame, every frame has its own timestep, and self-attention goes through a `Memory` (arXiv
2506.08009, section 3.2; arXiv 2510.02283, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor

from sfpp_cli.core.cache import Attend, BlockCausal, KeysValues, KVCache, Memory, Past, Room, Turn
from sfpp_cli.core.constants import CLEAN
from sfpp_cli.core.geometry import tokens_per_frame
from sfpp_cli.core.norm import norm_in_own_precision
from sfpp_cli.core.split import Split, SplitCache

ROPE_BASE = 10000.0

SinkPositions = Literal["absolute", "relative"]
"""Where a sink's keys are: where they were made, or always before what else the context holds, so that they
are never farther away than it is long."""


class CausalBlock(WanTransformerBlock):  # type: ignore[misc]
    """A Wan block in three parts: `project` and `finish`, with the memory between them.

    The two are pure functions of tensors, so they can be compiled.
    """

    def forward(
        self, x: Tensor, modulation: Tensor, rope: KeysValues, attend: Attend, text: KeysValues
    ) -> Tensor:
        """x [B, F, N, D] (N tokens a latent frame), modulation [B, F or 1, 6, D] -> [B, F, N, D]."""
        attended = attend(*self.project(x, modulation, rope))
        return self.finish(x, attended, modulation, *text)

    def cache_keys_values(
        self, x: Tensor, modulation: Tensor, rope: KeysValues, cache: Past, layer: int
    ) -> None:
        """Write this block's keys and values and nothing more, all a context pass needs of the last one."""
        _, key, value = self.project(x, modulation, rope)
        cache.write(layer, key, value)

    def project(self, x: Tensor, modulation: Tensor, rope: KeysValues) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention's query, key and value [B, heads, F N, head_dim], rotated."""
        shift, scale = self._modulation(modulation, 0, 1)
        h = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x).flatten(1, 2)
        attn = self.attn1
        return (
            rotate(_heads(attn.norm_q(attn.to_q(h)), attn.heads), rope),
            rotate(_heads(attn.norm_k(attn.to_k(h)), attn.heads), rope),
            _heads(attn.to_v(h), attn.heads),
        )

    def finish(
        self, x: Tensor, attended: Tensor, modulation: Tensor, text_key: Tensor, text_value: Tensor
    ) -> Tensor:
        """All after self-attention: its gate, cross-attention to all text tokens, the feed-forward."""
        gate, ffn_shift, ffn_scale, ffn_gate = self._modulation(modulation, 2, 3, 4, 5)
        frames = x.shape[1]
        out = self.attn1.to_out[0](attended.transpose(1, 2).flatten(2)).unflatten(1, (frames, -1))
        x = (x.float() + out * gate).type_as(x)

        h = self.norm2(x.float()).type_as(x).flatten(1, 2)
        query = _heads(self.attn2.norm_q(self.attn2.to_q(h)), self.attn2.heads)
        out = F.scaled_dot_product_attention(query, text_key, text_value).transpose(1, 2).flatten(2)
        x = x + self.attn2.to_out[0](out).unflatten(1, (frames, -1))

        h = (self.norm3(x.float()) * (1 + ffn_scale) + ffn_shift).type_as(x)
        out = self.ffn(h).float()
        x = (x.float() + out * ffn_gate).type_as(x)
        return x

    def text_keys_values(self, text: Tensor) -> KeysValues:
        """Cross-attention's keys and values of embedded text [B, L, D]; they serve all chunks."""
        attn = self.attn2
        keys = _heads(attn.norm_k(attn.to_k(text)), attn.heads)
        values = _heads(attn.to_v(text), attn.heads)
        return keys, values

    def _modulation(self, modulation: Tensor, *which: int) -> list[Tensor]:
        """Rows of the adaptive-norm table plus the timestep's part, each [B, F, 1, D]."""
        return [(self.scale_shift_table[:, i] + modulation[:, :, i]).unsqueeze(2) for i in which]


class CausalWanModel(WanTransformer3DModel):  # type: ignore[misc]
    """The student. Called as `student(latents, timestep, memory)`, it answers the flow."""

    split: Split | None = None
    """What this rank has of every pass, if several make one video."""

    @wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **config: Any) -> None:
        super().__init__(*args, **config)
        norm_in_own_precision(self.blocks)
        for block in self.blocks:
            block.__class__ = CausalBlock  # the modules stay, so names and weights are diffusers'

    def compile_blocks(self) -> None:
        """Compile the tensor functions of every block.

        The memory and its Python integers stay outside, so shapes are static.
        """
        for block in self.blocks:
            block.project = torch.compile(block.project)
            block.finish = torch.compile(block.finish)

    def new_cache(
        self,
        text: Tensor,
        latent_size: tuple[int, int],
        context: int,
        sink: int = 0,
        sink_positions: SinkPositions = "absolute",
    ) -> KVCache:
        """An empty rolling cache for videos of `latent_size` (height, width) under `text` [B, L, D]."""
        room = self.room(latent_size, context, sink, sink_positions)
        text_keys_values = self.embed_text(text)
        if self.split is not None:
            return SplitCache(text_keys_values, room, self.split)
        return KVCache(text_keys_values, room)

    def room(
        self, latent_size: tuple[int, int], context: int, sink: int, sink_positions: SinkPositions
    ) -> Room:
        """Of a cache for videos of `latent_size`."""
        return Room(self.tokens(latent_size), context, sink, self.sink_turn(sink_positions))

    def block_causal(
        self,
        text: Tensor,
        latent_size: tuple[int, int],
        *,
        chunk: int,
        context: int | None = None,
        sink: int = 0,
        sink_positions: SinkPositions = "absolute",
    ) -> BlockCausal:
        """The memory of one pass over all chunks of a clip (ODE training, arXiv 2510.02283, equation 4)."""
        room = {"tokens": self.tokens(latent_size), "chunk": chunk, "sink": sink}
        turn = self.sink_turn(sink_positions)
        return BlockCausal(self.embed_text(text), **room, context=context, turn=turn)

    def sink_turn(self, positions: SinkPositions) -> Turn | None:
        """What moves a sink's keys along, if anything does."""
        return self._turn if positions == "relative" else None

    def _turn(self, keys: Tensor, frames: int) -> Tensor:
        """Keys after RoPE, so many frames later: of the head's pairs only those of time are rotated."""
        return rotate(keys, _time_rotation(frames, self.config.attention_head_dim // 2, keys.device))

    def tokens(self, latent_size: tuple[int, int]) -> int:
        return tokens_per_frame(*latent_size, self.config.patch_size)

    def embed_text(self, text: Tensor) -> list[KeysValues]:
        """Every block's cross-attention keys and values for padded prompt embeddings [B, L, D]."""
        embedded = self.condition_embedder.text_embedder(text.to(self.dtype))
        return [block.text_keys_values(embedded) for block in self.blocks]

    def forward(self, latents: Tensor, timestep: Tensor, memory: Memory) -> Tensor:
        """Flow of noisy `latents` [B, F, C, H, W], shaped alike.

        `timestep` is [B] or [B, F] (the same within a chunk), float32 whatever the latents are.
        """
        x, temb, modulation, rope = self._embed(latents, timestep, memory.frame)
        for layer, block in enumerate(self.blocks):
            run = (
                self._checkpointed(block)
                if self.gradient_checkpointing and torch.is_grad_enabled()
                else block
            )
            x = run(x, modulation, rope, memory.attention(layer), memory.text[layer])
        shift, scale = (self.scale_shift_table + temb.unsqueeze(2)).chunk(2, dim=2)
        x = self.proj_out((self.norm_out(x.float()) * (1 + scale) + shift).type_as(x))
        return self._unpatchify(x if self.split is None else self.split.whole(x), latents)

    @torch.no_grad()
    def cache_clean(self, x0: Tensor, cache: Past, timestep: float = CLEAN) -> None:
        """The context pass: run clean latents [B, F, C, H, W] at t = 0 and commit them to the cache.

        Only keys and values are wanted, so the last block's output and the head are never computed. Another
        `timestep` is for latents with noise of that level in them.
        """
        t = x0.new_full(x0.shape[:1], timestep, dtype=torch.float32)
        x, _, modulation, rope = self._embed(x0, t, cache.frame)
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks[:-1]):
            x = block(x, modulation, rope, cache.attention(layer), cache.text[layer])
        self.blocks[-1].cache_keys_values(x, modulation, rope, cache, last)
        cache.commit(x0.shape[1])

    def _checkpointed(self, block: CausalBlock) -> Callable[..., Tensor]:
        """The block under gradient checkpointing: the backward pass computes its activations again.

        That is exact, since all its arguments are as they were in the forward pass, wherever the rollout is
        by then; the attention it is given is to a past that nothing overwrites.
        """
        return partial(self._gradient_checkpointing_func, block)

    def _embed(
        self, latents: Tensor, timestep: Tensor, frame: int
    ) -> tuple[Tensor, Tensor, Tensor, KeysValues]:
        """Patches [B, F, N, D], time embedding [B, F', D], modulation [B, F', 6, D] (F' is F or 1), RoPE."""
        batch, frames, _, height, width = latents.shape
        _, patch_h, patch_w = self.config.patch_size
        x = self.patch_embedding(latents.transpose(1, 2).to(self.dtype)).flatten(3).permute(0, 2, 3, 1)
        # As a view it would stay channel by channel through all blocks, and norms and sums would stride.
        x = x.contiguous() if self.split is None else self.split.mine(x)
        time = self.condition_embedder
        sinusoid = time.timesteps_proj(timestep.flatten()).to(time.time_embedder.linear_1.weight.dtype)
        temb = time.time_embedder(sinusoid).type_as(x)
        modulation = time.time_proj(time.act_fn(temb)).float()
        shape = (batch, -1)
        rope = self._rope(frame, frames, height // patch_h, width // patch_w, latents.device)
        if self.split is not None:
            cos, sin = (self.split.mine(part.unflatten(0, (1, frames, -1)))[0].flatten(0, 1) for part in rope)
            rope = cos, sin
        return x, temb.unflatten(0, shape), modulation.unflatten(0, shape).unflatten(2, (6, -1)), rope

    def _rope(self, frame: int, frames: int, rows: int, columns: int, device: torch.device) -> KeysValues:
        """Cosine and sine [F rows columns, head_dim / 2] at absolute frames."""
        return _rope_table(frame, frames, rows, columns, self.config.attention_head_dim // 2, device)

    def _unpatchify(self, x: Tensor, like: Tensor) -> Tensor:
        """Tokens [B, F, N, pH pW C] -> [B, F, C, H, W]."""
        _, patch_h, patch_w = self.config.patch_size
        rows = like.shape[3] // patch_h
        columns = like.shape[4] // patch_w
        x = x.unflatten(3, (patch_h, patch_w, -1)).unflatten(2, (rows, columns))
        return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4).to(like.dtype)


def rotate(x: Tensor, rope: KeysValues) -> Tensor:
    """Rotate interleaved pairs of x [B, heads, L, head_dim] in float32."""
    cos, sin = rope
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _rope_table(
    frame: int, frames: int, rows: int, columns: int, pairs: int, device: torch.device
) -> KeysValues:
    """All passes of a chunk share one table. Float64 inside, so no frame is too late.

    Of the head's complex pairs, two thirds (rounded down) go to rows and columns, the rest to time.
    """
    spatial = pairs // 3
    angles = [
        _angles(frame, frames, pairs - 2 * spatial, device)[:, None, None].expand(-1, rows, columns, -1),
        _angles(0, rows, spatial, device)[None, :, None].expand(frames, -1, columns, -1),
        _angles(0, columns, spatial, device)[None, None].expand(frames, rows, -1, -1),
    ]
    angle = torch.cat(angles, dim=-1).flatten(0, 2)
    return angle.cos().float(), angle.sin().float()


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _time_rotation(frames: int, pairs: int, device: torch.device) -> KeysValues:
    """Cosine and sine [1, head_dim / 2] that move keys by so many frames."""
    time = pairs - 2 * (pairs // 3)
    angle = F.pad(_angles(frames, 1, time, device), (0, pairs - time))
    return angle.cos().float(), angle.sin().float()


def _angles(first: int, count: int, pairs: int, device: torch.device) -> Tensor:
    positions = torch.arange(first, first + count, device=device, dtype=torch.float64)
    frequency = ROPE_BASE ** (-torch.arange(pairs, device=device, dtype=torch.float64) / pairs)
    return torch.outer(positions, frequency)


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(2, (heads, -1))
    return split.transpose(1, 2)
