"""What attention sees: the ring against a cache that forgets nothing.

Block-causal slices against a dense mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny import MaskedMemory, NaiveCache, gaussian
from torch import Tensor

from sfpp_cli.core.cache import BlockCausal, KVCache, NoisyPast, Room

TOKENS = 2
LAYERS = 2
TEXT = [(gaussian(2, 2, 5, 4, dtype=torch.float64), gaussian(2, 2, 5, 4, dtype=torch.float64))] * LAYERS

Drawn = Callable[[int], tuple[Tensor, Tensor, Tensor]]


@pytest.fixture
def draw() -> Drawn:
    """Query, key and value of so many frames, new ones at each call."""
    generator = torch.Generator().manual_seed(0)

    def draw(frames: int) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = torch.randn(3, 2, 2, frames * TOKENS, 4, generator=generator, dtype=torch.float64)
        return query, key, value

    return draw


def walk(draw: Drawn, chunks: list[int], context: int, sink: int) -> None:
    """Two denoise passes and a context pass a chunk, on both caches.

    After each, both must answer the same.
    """
    ring = KVCache(TEXT, Room(TOKENS, context, sink))
    naive = NaiveCache(TEXT, tokens=TOKENS, context=context, sink=sink)
    for frames in chunks:
        for _ in range(3):
            for layer in range(LAYERS):
                qkv = draw(frames)
                answer, expected = ring.attention(layer)(*qkv), naive.attention(layer)(*qkv)
                torch.testing.assert_close(answer, expected, atol=1e-12, rtol=0)
        ring.commit(frames)
        naive.commit(frames)
    assert ring.frame == naive.frame == sum(chunks)


@pytest.mark.parametrize("context", range(1, 9))
def test_the_ring_sees_the_sink_and_the_latest_frames(context: int, draw: Drawn) -> None:
    for sink in range(context):
        for chunk in range(1, context - sink + 1):
            whole = [chunk] * math.ceil((2 * context + 1) / chunk)
            walk(draw, [*whole, max(1, chunk - 1)], context, sink)


@pytest.mark.parametrize(
    ("chunks", "context", "sink"),
    [
        ([3] * 12, 21, 0),
        ([3] * 12, 21, 3),
        ([3] * 11 + [2], 20, 4),
        ([1, 3, 2, 3, 3, 1, 2, 2, 3, 1, 3, 3], 7, 2),
        ([9, 9, 9, 4], 9, 0),
    ],
)
def test_the_ring_at_the_methods_sizes(chunks: list[int], context: int, sink: int, draw: Drawn) -> None:
    walk(draw, chunks, context, sink)


def test_a_denoise_pass_does_not_become_the_past(draw: Drawn) -> None:
    once, often = (KVCache(TEXT, Room(TOKENS, 7, 2)) for _ in range(2))
    for frames in [3, 3, 3, 2]:
        last = draw(frames)
        for _ in range(4):
            often.attention(0)(*draw(frames))
        assert torch.equal(often.attention(0)(*last), once.attention(0)(*last))
        once.commit(frames)
        often.commit(frames)


def test_eviction_moves_nothing(draw: Drawn) -> None:
    cache = KVCache(TEXT, Room(TOKENS, 7, 1))
    tensors = [*cache.keys, *cache.values]
    homes = [(tensor.data_ptr(), tensor.untyped_storage().nbytes()) for tensor in tensors]
    assert cache.nbytes == sum(nbytes for _, nbytes in homes) == 2 * LAYERS * 2 * 2 * (7 * TOKENS) * 4 * 8
    for number in range(20):
        before = cache.keys[0].clone()
        cache.attention(0)(*draw(3))
        cache.commit(3)
        changed = (cache.keys[0] != before).any(dim=(0, 1, 3)).sum().item()
        assert changed == 3 * TOKENS, "a pass writes its own frames' slots and no others"
        assert [
            (tensor.data_ptr(), tensor.untyped_storage().nbytes()) for tensor in [*cache.keys, *cache.values]
        ] == homes
        assert torch.equal(cache.keys[0][:, :, :TOKENS], before[:, :, :TOKENS]) == (number > 0), (
            "the sink is written once"
        )


def test_the_number_of_attended_keys_stops_growing(draw: Drawn) -> None:
    cache = KVCache(TEXT, Room(TOKENS, 8, 1))
    seen = []
    for frames in [3, 3, 3, 3, 3, 1]:
        _, key, value = draw(frames)
        keys, values = cache.write(0, key, value)
        cache.commit(frames)
        assert keys.shape == values.shape
        seen.append(keys.shape[2] // TOKENS)
    assert seen == [3, 6, 8, 8, 8, 8]


@pytest.mark.parametrize(("context", "sink"), [(3, 3), (3, 4), (3, -1), (0, 0)])
def test_a_sink_must_leave_room(context: int, sink: int) -> None:
    with pytest.raises(ValueError, match="room"):
        KVCache(TEXT, Room(TOKENS, context, sink))


@pytest.mark.parametrize(("context", "sink"), [(2, 0), (5, 3), (9, 7)])
def test_a_chunk_must_fit_beside_the_sink(context: int, sink: int, draw: Drawn) -> None:
    cache = KVCache(TEXT, Room(TOKENS, context, sink))
    with pytest.raises(ValueError, match="a chunk of 3 latent frames does not fit"):
        cache.attention(0)(*draw(3))
    cache.attention(0)(*draw(2))


def test_gradient_is_refused_where_it_would_be_overwritten(draw: Drawn) -> None:
    cache = KVCache(TEXT, Room(TOKENS, 5))
    query, key, value = draw(3)
    with pytest.raises(ValueError, match="snapshot"):
        cache.attention(0)(query.requires_grad_(), key, value)


@pytest.mark.parametrize(("context", "sink"), [(3, 0), (5, 0), (6, 0), (8, 2), (7, 1), (30, 4)])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_snapshot_goes_on_as_the_ring_would(context: int, sink: int, chunk: int, draw: Drawn) -> None:
    """Bit for bit.

    Taken after any number of chunks, between two passes, or after one that is not committed.
    """
    for before in range(9):
        ring = KVCache(TEXT[:1], Room(TOKENS, context, sink))
        for _ in range(before):
            ring.attention(0)(*draw(chunk))
            ring.commit(chunk)
        if before % 2:
            ring.attention(0)(*draw(chunk))
        snapshot = ring.snapshot(chunk)
        for _ in range(5):
            qkv = draw(chunk)
            assert torch.equal(snapshot.attention(0)(*qkv), ring.attention(0)(*qkv))
            snapshot.commit(chunk)
            ring.commit(chunk)
        assert snapshot.frame == ring.frame
        assert len(snapshot.past[0]) <= context, "what nobody will see is let go"


def test_noise_on_queries_and_keys_is_relative_to_them_and_stays_with_the_keys(draw: Drawn) -> None:
    """q + sigma |q| n and k + sigma |k| n, where |.| is a vector's root mean square.

    Values stay, and the noise is cached with the keys.
    """
    noisy, plain = (KVCache(TEXT[:1], Room(TOKENS, 6)) for _ in range(2))

    def noise(number: int, like: Tensor) -> Tensor:
        return gaussian(*like.shape, seed=100 + number, dtype=like.dtype)

    def changed(vectors: Tensor, number: int) -> Tensor:
        return vectors + 0.3 * vectors.square().mean(-1, keepdim=True).sqrt() * noise(number, vectors)

    query, key, value = draw(3)
    past = NoisyPast(noisy, 0.3, noise)
    found = past.attention(0)(query, key, value)
    expected = plain.attention(0)(changed(query, 1), changed(key, 0), value)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    past.commit(3)
    plain.commit(3)
    assert past.frame == noisy.frame == 3
    query, key, value = draw(3)
    past.write(0, key, value)
    plain.write(0, changed(key, 0), value)
    assert torch.equal(noisy.keys[0], plain.keys[0])
    assert torch.equal(noisy.values[0], plain.values[0])


def test_what_a_pass_saw_is_never_overwritten(draw: Drawn) -> None:
    """Attention begun before the rollout went on still sees the past of then, as a recomputation does."""
    cache = KVCache(TEXT[:1], Room(TOKENS, 5)).snapshot(3)
    for _ in range(2):
        cache.attention(0)(*draw(3))
        cache.commit(3)
    qkv = [tensor.requires_grad_() for tensor in draw(3)]
    attend = cache.attention(0)
    first = attend(*qkv)
    for _ in range(3):
        cache.attention(0)(*draw(3))
        cache.commit(3)
    assert torch.equal(attend(*qkv), first)
    assert not torch.equal(cache.attention(0)(*qkv), first)


def test_block_causal_is_a_dense_mask() -> None:
    """Lengths that 128 divides and others, whole and short last chunks, with a context and without."""
    for tokens, frames, chunk in [
        (8, 16, 4),
        (32, 12, 3),
        (8, 17, 4),
        (6, 7, 3),
        (5, 3, 3),
        (1, 10, 1),
        (4, 2, 3),
    ]:
        query, key, value = gaussian(3, 2, 2, frames * tokens, 4, seed=frames, dtype=torch.float64)
        for context in (None, chunk, chunk + 1, 2 * chunk, frames + 5):
            answer = BlockCausal(TEXT, tokens=tokens, chunk=chunk, context=context).attention(0)(
                query, key, value
            )
            expected = MaskedMemory(TEXT, tokens=tokens, chunk=chunk, context=context).attention(0)(
                query, key, value
            )
            torch.testing.assert_close(answer, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("context", "sink"), [(3, 0), (5, 0), (6, 0), (9, 0), (30, 0), (4, 1), (6, 3), (9, 2), (10, 4), (30, 3)]
)
def test_one_block_causal_pass_is_the_ring_chunk_by_chunk(context: int, sink: int, draw: Drawn) -> None:
    frames, chunk = 14, 3
    qkv = draw(frames)
    whole = BlockCausal(TEXT, tokens=TOKENS, chunk=chunk, context=context, sink=sink).attention(0)(*qkv)
    ring = KVCache(TEXT, Room(TOKENS, context, sink))
    pieces = []
    for query, key, value in zip(*(tensor.split(chunk * TOKENS, 2) for tensor in qkv), strict=True):
        pieces.append(ring.attention(0)(query, key, value))
        ring.commit(query.shape[2] // TOKENS)
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-12, rtol=0)
