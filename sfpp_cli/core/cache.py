"""What a chunk's attention sees: a rolling cache of the past, or the other chunks of one block-causal pass.

All hold the text's keys and values, all answer `attention`, so the student is written once. Keys are stored
after RoPE at absolute positions; attention is blind to their order, so the cache is a ring and eviction moves
nothing. Only a sink's keys may move along, so that its distance stays one that training knew: `turn` rotates
them, once for each chunk, to where they would be if the frames that left the context had never been. Passes
that carry gradient need a past that nothing overwrites: `KVCache.snapshot` gives one that sees the same
frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each [B, heads, L, head_dim]."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Self-attention of one transformer block: query, key, value -> answer, each [B, heads, L, head_dim]."""


Turn = Callable[[Tensor, int], Tensor]
"""(keys [B, heads, L, head_dim] after RoPE, latent frames) -> the same keys so many frames later."""


class Memory(Protocol):
    """What a block needs to know of everything but its own input."""

    text: Sequence[KeysValues]
    """Cross-attention keys and values of every transformer block, computed once per prompt."""

    @property
    def frame(self) -> int:
        """Absolute latent frame of the input's first frame."""

    def attention(self, layer: int) -> Attend:
        """The self-attention of transformer block `layer` for the pass that begins now."""


class Past(Memory, Protocol):
    """A memory that grows: a pass's keys and values become part of it once they are committed."""

    def write(self, layer: int, key: Tensor, value: Tensor) -> object:
        """Keep a pass's keys and values, to be committed or overwritten by the next pass."""

    def commit(self, frames: int) -> None:
        """Keep the `frames` latent frames of the pass just run; the next pass starts after them."""


@dataclass(frozen=True)
class Room:
    """Which latent frames a rolling memory holds: `context`, the current chunk's included.

    ValueError if the sink leaves no room.
    """

    tokens: int
    """Of a latent frame."""
    context: int
    sink: int = 0
    """How many of the first frames always stay."""
    turn: Turn | None = None
    """Moves the sink along, which without it stays where it is."""

    def __post_init__(self) -> None:
        if not 0 <= self.sink < self.context:
            raise ValueError(
                f"sink frames ({self.sink}) must leave room in the context ({self.context} latent frames)"
            )

    def visible(self, count: int, end: int, origin: int) -> list[int]:
        """Of the first `count` latent frames, those that a pass which ends before frame `end` sees.

        The sink, and as far back from `end` as the rest of the context reaches, but not before `origin`. It
        is counted from the end of the pass, not from its beginning, since the pass's own frames take part of
        the context.
        """
        oldest = max(origin, end - (self.context - self.sink))
        return [*range(min(self.sink, count)), *range(min(oldest, count), count)]

    def passed(self, end: int, origin: int) -> int:
        """How many frames between sink and rest a pass that ends before frame `end` no longer sees."""
        return max(origin, end - (self.context - self.sink)) - self.sink

    def slot(self, frame: int, origin: int) -> int:
        """Where a ring keeps a latent frame; `origin` is in the first slot after the sink."""
        return frame if frame < self.sink else self.sink + (frame - origin) % (self.context - self.sink)

    def span(self, frame: int, frames: int) -> slice:
        """The tokens of so many latent frames, or slots."""
        return slice(frame * self.tokens, (frame + frames) * self.tokens)


class KVCache:
    """Rolling cache of a room's latent frames.

    Latent frame f lives in slot f while f < sink, then in slot sink + (f - origin) mod (context - sink).
    `origin` is the first frame after the sink that the ring was given (`forget` moves it). A pass writes its
    own keys and values over the slots that its frames will own, so the oldest frames vanish as the window
    demands and nothing is moved. `commit` makes the last pass part of the past; before that, the next pass
    overwrites it. Memory depends on the context alone.
    """

    def __init__(self, text: Sequence[KeysValues], room: Room) -> None:
        """Batch, heads, head_dim, device and dtype are those of `text`'s keys."""
        self.text = text
        self.room = room
        self.origin = room.sink
        self.frame = 0
        self._turned = [0 for _ in text]
        """By layer, how many frames the sink's keys in the ring have been moved along."""
        self._sinks: dict[int, Tensor] = {}
        """By layer, the sink's keys as they were before that."""
        like = text[0][0]
        shape = (like.shape[0], like.shape[1], room.context * room.tokens, like.shape[3])
        self.keys = [like.new_zeros(shape) for _ in text]
        self.values = [like.new_zeros(shape) for _ in text]

    def commit(self, frames: int) -> None:
        """Keep the `frames` latent frames of the pass just run; the next pass starts after them."""
        self.frame += frames

    def forget(self, frame: int) -> None:
        """Forget all but the sink, which must be full; the next pass starts at `frame`, after the sink."""
        self.frame = frame
        self.origin = frame

    def attention(self, layer: int) -> Attend:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if any(part.requires_grad for part in (query, key, value)):
                raise ValueError(
                    "a pass with gradient needs a past that is not overwritten: take a snapshot of the cache"
                )
            return F.scaled_dot_product_attention(query, *self.write(layer, key, value))

        return attend

    def write(self, layer: int, key: Tensor, value: Tensor) -> KeysValues:
        """Put a pass's keys and values in their slots; returns all that the pass sees, its own included."""
        room = self.room
        frames = key.shape[2] // room.tokens
        keys = self.keys[layer]
        values = self.values[layer]
        for source, slot, length in self._runs(frames):
            here = room.span(source, length)
            there = room.span(slot, length)
            keys[:, :, there] = key[:, :, here]
            values[:, :, there] = value[:, :, here]
        self._turn_sink(layer, self.frame + frames)
        filled = min(room.sink + self.frame + frames - self.origin, room.context) * room.tokens
        return keys[:, :, :filled], values[:, :, :filled]

    def _turn_sink(self, layer: int, end: int) -> None:
        """Move the sink's keys to where a pass that ends before frame `end` sees them."""
        room = self.room
        passed = room.passed(end, self.origin)
        if room.turn is None or not room.sink or passed == self._turned[layer]:
            return
        ring = self.keys[layer][:, :, room.span(0, room.sink)]
        if layer not in self._sinks:
            self._sinks[layer] = ring.clone()
        ring.copy_(room.turn(self._sinks[layer], passed))
        self._turned[layer] = passed

    def _runs(self, frames: int) -> list[tuple[int, int, int]]:
        """The slots of the next `frames` latent frames as runs (offset in the chunk, first slot, length).

        More than one where the ring's end, or the sink's, falls inside the chunk.
        """
        room = self.room
        if frames > room.context - room.sink:
            raise ValueError(
                f"a chunk of {frames} latent frames does not fit a context of {room.context}, "
                f"{room.sink} of them sink"
            )
        runs = []
        offset = 0
        while offset < frames:
            slot = room.slot(self.frame + offset, self.origin)
            length = min(frames - offset, room.context - slot)
            runs.append((offset, slot, length))
            offset += length
        return runs

    def snapshot(self, frames: int) -> CacheSnapshot:
        """A copy of what the next pass of `frames` latent frames will see, to continue from with gradient.

        The ring stays as it is. What it has overwritten for a pass not yet committed is not copied: those
        slots are the oldest frames', which no later pass sees.
        """
        room = self.room
        past = room.visible(self.frame, self.frame + frames, self.origin)
        snapshot = CacheSnapshot(self.text, room)
        snapshot.frame = self.frame
        snapshot.origin = self.origin
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            spans = {frame: room.span(room.slot(frame, self.origin), 1) for frame in past}
            snapshot.past[layer] = {
                f: (keys[:, :, at].clone(), values[:, :, at].clone()) for f, at in spans.items()
            }
            if layer in self._sinks:
                for frame, key in enumerate(self._sinks[layer].split(room.tokens, 2)):
                    snapshot.past[layer][frame] = key.clone(), snapshot.past[layer][frame][1]
        return snapshot

    @property
    def nbytes(self) -> int:
        """Bytes of the self-attention ring."""
        return sum(part.nbytes for part in (*self.keys, *self.values))


class CacheSnapshot:
    """What `KVCache` sees, kept frame by frame and never overwritten, for passes that carry gradient.

    Every pass attends to a past fixed when it began, so a backward pass finds what the forward pass saw, and
    so does the recomputation under gradient checkpointing, however far the rollout has come by then. Passes
    share the frames that they see: a window of K frames holds K frames and a context, not one context a
    chunk.

    The past is detached: no gradient flows from a chunk into the passes that made its context, as
    Self-Forcing prescribes (a context pass carries none). Self-Forcing's released code lets some through when
    it checkpoints, from keys and values written in place: measured, its gradients differ from these by 6 to
    7 % of their L2 norm (cosine 0.998).
    """

    def __init__(self, text: Sequence[KeysValues], room: Room) -> None:
        self.text = text
        self.room = room
        self.origin = room.sink
        self.frame = 0
        self.past: list[dict[int, KeysValues]] = [{} for _ in text]
        self.present: list[KeysValues] = [(part[0][:, :, :0], part[1][:, :, :0]) for part in text]

    def attention(self, layer: int) -> Attend:
        past = self.past[layer]
        frame = self.frame
        origin = self.origin
        room = self.room

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # Checkpointing runs this again in the backward pass. That writes the same keys and values once
            # more, where only a pass that is not yet committed would be looking: by then there is none.
            self.write(layer, key, value)
            end = frame + key.shape[2] // room.tokens
            known = self._seen(past, end, origin) | self._by_frame(frame, key, value)
            if passed := room.turn and room.passed(end, origin):
                known |= {f: (room.turn(known[f][0], passed), known[f][1]) for f in range(room.sink)}
            # In the order of the ring's slots: sums then round alike, and a chunk that learns is bit for bit
            # the chunk that the ring's rollout would have made.
            ordered = [known[f] for f in sorted(known, key=lambda f: room.slot(f, origin))]
            keys = torch.cat([k for k, _ in ordered], dim=2)
            values = torch.cat([v for _, v in ordered], dim=2)
            return F.scaled_dot_product_attention(query, keys, values)

        return attend

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        self.present[layer] = key.detach(), value.detach()

    def commit(self, frames: int) -> None:
        first = self.frame
        self.frame += frames
        for layer, (key, value) in enumerate(self.present):
            known = self.past[layer] | self._by_frame(first, key, value)
            self.past[layer] = self._seen(known, self.frame, self.origin)

    def forget(self, frame: int) -> None:
        """As `KVCache.forget`."""
        self.frame = frame
        self.origin = frame
        self.past = [{f: known[f] for f in range(self.room.sink)} for known in self.past]

    def _by_frame(self, first: int, key: Tensor, value: Tensor) -> dict[int, KeysValues]:
        """A pass's keys and values by absolute latent frame; its first is `first`."""
        pieces = zip(key.split(self.room.tokens, 2), value.split(self.room.tokens, 2), strict=True)
        return dict(enumerate(pieces, start=first))

    def _seen(self, past: dict[int, KeysValues], end: int, origin: int) -> dict[int, KeysValues]:
        count = max(past, default=-1) + 1
        return {frame: past[frame] for frame in self.room.visible(count, end, origin)}


class NoisyPast:
    """A cache for one context pass whose queries and keys are given noise (arXiv 2510.02283, section 8.2).

    A vector's noise is Gaussian, of `sigma` times the vector's own length. Keys are cached with it.
    """

    def __init__(self, past: Past, sigma: float, draw: Callable[[int, Tensor], Tensor]) -> None:
        """`draw` (number, tensor to be like) -> Gaussian noise, different for every number."""
        self.past = past
        self.sigma = sigma
        self.draw = draw
        self.text = past.text

    @property
    def frame(self) -> int:
        return self.past.frame

    def attention(self, layer: int) -> Attend:
        attend = self.past.attention(layer)
        return lambda query, key, value: attend(
            self._noisy(query, layer, 1), self._noisy(key, layer, 0), value
        )

    def write(self, layer: int, key: Tensor, value: Tensor) -> object:
        return self.past.write(layer, self._noisy(key, layer, 0), value)

    def commit(self, frames: int) -> None:
        self.past.commit(frames)

    def _noisy(self, vectors: Tensor, layer: int, which: int) -> Tensor:
        size = vectors.square().mean(-1, keepdim=True).sqrt()
        return vectors + self.sigma * size * self.draw(2 * layer + which, vectors)


class BlockCausal:
    """Many chunks in one pass: a chunk sees itself and the chunks before it, `context` latent frames in all.

    The first `sink` frames stay in sight, as in `KVCache`. Every chunk's queries meet one slice of the keys,
    or two once frames after the sink are out of sight, so no mask is built, no length needs padding and the
    fast kernels apply.
    """

    frame = 0

    def __init__(
        self,
        text: Sequence[KeysValues],
        *,
        tokens: int,
        chunk: int,
        context: int | None = None,
        sink: int = 0,
        turn: Turn | None = None,
    ) -> None:
        self.text = text
        self.tokens = tokens
        self.chunk = chunk
        self.context = context
        self.sink = sink
        self.turn = turn

    def attention(self, layer: int) -> Attend:
        return self.attend

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        frames = query.shape[2] // self.tokens
        pieces = []
        for start in range(0, frames, self.chunk):
            end = min(start + self.chunk, frames)
            asking = slice(start * self.tokens, end * self.tokens)
            keys = self._seen(key, end, self.turn)
            values = self._seen(value, end, None)
            pieces.append(F.scaled_dot_product_attention(query[:, :, asking], keys, values))
        return torch.cat(pieces, dim=2)

    def _seen(self, part: Tensor, end: int, turn: Turn | None) -> Tensor:
        """Of a pass's keys or values, what a chunk that ends before frame `end` sees."""
        first = 0 if self.context is None else end - (self.context - self.sink)
        if first <= self.sink:
            return part[:, :, : end * self.tokens]
        recent = part[:, :, first * self.tokens : end * self.tokens]
        if not self.sink:
            return recent
        sink = part[:, :, : self.sink * self.tokens]
        return torch.cat([sink if turn is None else turn(sink, first - self.sink), recent], dim=2)
