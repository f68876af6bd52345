"""What a chunk's attention sees: a rolling cache of the past, or the other chunks of one block-causal pass.

Both hold the text's keys and values, both answer `attend`, so the student is written once. Keys are stored after RoPE at absolute
positions; attention is blind to their order, so the cache is a ring and eviction moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each [B, heads, L, head_dim]."""


class Memory(Protocol):
    """What a block needs to know of everything but its own input."""

    text: Sequence[KeysValues]
    """Cross-attention keys and values of every transformer block, computed once per prompt."""

    @property
    def frame(self) -> int:
        """Absolute latent frame of the input's first frame."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Self-attention of one transformer block; arguments and result [B, heads, L, head_dim]."""


class KVCache:
    """Rolling cache of `context` latent frames, the current chunk included; the first `sink` of them are never evicted.

    Latent frame f lives in slot f while f < sink, then in slot sink + (f - sink) mod (context - sink). A pass writes its own keys
    and values over the slots that its frames will own, so the oldest frames vanish as the window demands and nothing is moved.
    `commit` makes the last pass part of the past; before that, the next pass overwrites it. Memory depends on the context alone.

    A pass that carries gradient works on a copy, so later passes may overwrite the ring before the backward pass.
    """

    def __init__(self, text: Sequence[KeysValues], *, tokens: int, context: int, sink: int = 0) -> None:
        """`tokens` per latent frame. Batch, heads, head_dim, device and dtype are those of the text's keys."""
        if not 0 <= sink < context:
            raise ValueError(f"sink frames ({sink}) must leave room in the context ({context} latent frames)")
        self.text = text
        self.tokens, self.context, self.sink = tokens, context, sink
        self.frame = 0
        like = text[0][0]
        shape = (like.shape[0], like.shape[1], context * tokens, like.shape[3])
        self.keys = [like.new_zeros(shape) for _ in text]
        self.values = [like.new_zeros(shape) for _ in text]

    def commit(self, frames: int) -> None:
        """Keep the `frames` latent frames of the pass just run; the next pass starts behind them."""
        self.frame += frames

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        learning = any(part.requires_grad for part in (query, key, value))
        keys, values = self.write(layer, key, value, copy=learning)
        return F.scaled_dot_product_attention(query, keys, values)

    def write(self, layer: int, key: Tensor, value: Tensor, *, copy: bool = False) -> KeysValues:
        """Put a pass's keys and values in their slots (of a copy of the ring); returns all that the pass sees, its own included."""
        frames = key.shape[2] // self.tokens
        keys, values = self.keys[layer], self.values[layer]
        if copy:
            keys, values = keys.clone(), values.clone()
        for source, slot, length in self._runs(frames):
            here, there = _span(source, length, self.tokens), _span(slot, length, self.tokens)
            keys[:, :, there] = key[:, :, here]
            values[:, :, there] = value[:, :, here]
        filled = min(self.frame + frames, self.context) * self.tokens
        return keys[:, :, :filled], values[:, :, :filled]

    def _runs(self, frames: int) -> list[tuple[int, int, int]]:
        """The slots of the next `frames` latent frames as runs (offset in the chunk, first slot, length)."""
        if frames > self.context - self.sink:
            raise ValueError(f"a chunk of {frames} latent frames does not fit {self.context} of context, {self.sink} of them sink")
        runs = []
        offset = 0
        while offset < frames:
            frame = self.frame + offset
            slot = frame if frame < self.sink else self.sink + (frame - self.sink) % (self.context - self.sink)
            length = min(frames - offset, self.context - slot)
            runs.append((offset, slot, length))
            offset += length
        return runs

    @property
    def nbytes(self) -> int:
        """Bytes of the self-attention ring."""
        return sum(part.nbytes for part in (*self.keys, *self.values))


class BlockCausal:
    """Many chunks in one pass: a chunk sees itself and the chunks before it, at most `context` latent frames back from its end.

    Every chunk's queries meet one slice of the keys, so no mask is built, no length needs padding and the fast kernels apply.
    """

    frame = 0

    def __init__(self, text: Sequence[KeysValues], *, tokens: int, chunk: int, context: int | None = None) -> None:
        self.text = text
        self.tokens, self.chunk, self.context = tokens, chunk, context

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        frames = query.shape[2] // self.tokens
        pieces = []
        for start in range(0, frames, self.chunk):
            end = min(start + self.chunk, frames)
            first = 0 if self.context is None else max(0, end - self.context)
            seen = slice(first * self.tokens, end * self.tokens)
            asking = slice(start * self.tokens, end * self.tokens)
            pieces.append(F.scaled_dot_product_attention(query[:, :, asking], key[:, :, seen], value[:, :, seen]))
        return torch.cat(pieces, dim=2)


def _span(frame: int, frames: int, tokens: int) -> slice:
    return slice(frame * tokens, (frame + frames) * tokens)
