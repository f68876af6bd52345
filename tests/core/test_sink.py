"""A sink that moves along: the same wherever it is computed, never farther away than the context is long."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import CONFIG, IDENTITY, SIZE, NaiveCache, gradients, latents, make_student, prompts
from torch import Tensor

from sfpp_cli.core.cache import Attend, KeysValues, KVCache, Room
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.rollout import Change, Sampler
from sfpp_cli.core.student import CausalWanModel, SinkPositions, rotate
from sfpp_cli.models.settings import Settings

SINK = 2
CONTEXT = 8
SAMPLER = Sampler(
    schedule=FlowSchedule(5),
    steps=(1000, 500),
    chunk=3,
    context=CONTEXT,
    sink=SINK,
    sink_positions="relative",
)
NOISE = VideoNoise([7], (3, CONFIG["in_channels"], *SIZE))
TEXT, OTHER = prompts(2).double().split(1)
COUNT = 8


@pytest.fixture(scope="module")
def student() -> CausalWanModel:
    return make_student().double()


class NaiveRelative(NaiveCache):
    """Takes RoPE off all keys in sight and puts it on again, at positions counted from what is in sight."""

    def __init__(self, student: CausalWanModel, text: Tensor) -> None:
        tokens = student.tokens(SIZE)
        super().__init__(student.embed_text(text), tokens=tokens, context=CONTEXT, sink=SINK)
        self.student = student
        self.farthest = 0

    def attention(self, layer: int) -> Attend:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            frames = key.shape[2] // self.tokens
            end = self.frame + frames
            self.write(layer, key, value)
            past = self.past[layer] + self.present[layer]
            seen = [f for f in range(end) if f < SINK or f >= end - (CONTEXT - SINK)]
            keys = [self.at(past[f][0], f, place) for place, f in enumerate(seen)]
            queries = [
                self.at(part, self.frame + f, len(seen) - frames + f)
                for f, part in enumerate(query.split(self.tokens, 2))
            ]
            self.farthest = max(self.farthest, len(seen))
            values = torch.cat([past[f][1] for f in seen], 2)
            return F.scaled_dot_product_attention(torch.cat(queries, 2), torch.cat(keys, 2), values)

        return attend

    def at(self, vectors: Tensor, frame: int, place: int) -> Tensor:
        """Vectors of a frame, as if it were another."""
        cos, sin = self.rope(frame)
        return rotate(rotate(vectors, (cos, -sin)), self.rope(place))

    def rope(self, frame: int) -> KeysValues:
        _, rows, columns = CONFIG["patch_size"]
        return self.student._rope(frame, 1, SIZE[0] // rows, SIZE[1] // columns, torch.device("cpu"))


def roll(student: CausalWanModel, sampler: Sampler = SAMPLER, **options: object) -> list[Tensor]:
    noise = (chunk.double() for chunk in NOISE.chunks(0, COUNT))
    return list(sampler.rollout(student, noise, TEXT, NOISE.draw, **options))  # type: ignore[arg-type]


@torch.no_grad()
def test_the_ring_is_a_naive_recomputation(student: CausalWanModel) -> None:
    naive = NaiveRelative(student, TEXT)
    ours = roll(student)
    for index, x in enumerate(NOISE.chunks(0, COUNT)):
        x = x.double()
        for step, t in enumerate(SAMPLER.timesteps):
            flow = student(x, x.new_full((1, 3), t.item(), dtype=torch.float32), naive)
            x0 = SAMPLER.schedule.x0_from_flow(flow, x, t)
            if step == 0:
                x = SAMPLER.schedule.add_noise(x0, NOISE.draw(index, step, x0), SAMPLER.timesteps[1])
        torch.testing.assert_close(ours[index], x0, atol=1e-5, rtol=0)
        student.cache_clean(x0, naive)
    assert naive.farthest == CONTEXT, "it is never asked about more"


def test_it_differs_from_one_that_stays_once_frames_are_out_of_sight(student: CausalWanModel) -> None:
    moving, staying = roll(student), roll(student, replace(SAMPLER, sink_positions="absolute"))
    assert all(torch.equal(one, other) for one, other in zip(moving[:2], staying[:2], strict=True))
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(moving[3:], staying[3:], strict=True))


def test_without_a_sink_nothing_changes_by_a_bit(student: CausalWanModel) -> None:
    ours, theirs = (
        roll(student, replace(SAMPLER, sink=0, sink_positions=positions))
        for positions in ("relative", "absolute")
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("begin", [0, 1, 5])
def test_chunks_that_learn_are_those_of_the_ring(begin: int) -> None:
    student = make_student().double()
    with torch.no_grad():
        expected = roll(student)
    learned = roll(student, grad_chunks=range(begin, COUNT))
    assert all(torch.equal(one, other) for one, other in zip(learned, expected, strict=True))
    learned[-1].sum().backward()
    assert gradients(student)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_one_block_causal_pass_is_the_ring_chunk_by_chunk(
    student: CausalWanModel, positions: SinkPositions
) -> None:
    x = latents(1, 3 * COUNT).double()
    ring = student.new_cache(TEXT, SIZE, context=CONTEXT, sink=SINK, sink_positions=positions)
    pieces = []
    for piece in x.split(3, dim=1):
        pieces.append(student(piece, torch.zeros(1), ring))
        ring.commit(3)
    memory = student.block_causal(TEXT, SIZE, chunk=3, context=CONTEXT, sink=SINK, sink_positions=positions)
    whole = student(x, torch.zeros(1), memory)
    torch.testing.assert_close(whole, torch.cat(pieces, dim=1), atol=IDENTITY, rtol=0)


def test_a_resumed_video_and_a_changed_prompt(student: CausalWanModel) -> None:
    def changes(index: int) -> Change | None:
        return Change(OTHER) if index == 5 else None

    whole = roll(student, changes=changes)
    for done in (2, 5, 7):
        noise = (chunk.double() for chunk in NOISE.chunks(done, COUNT))
        rest = SAMPLER.rollout(student, noise, TEXT, NOISE.draw, past=whole[:done], changes=changes)
        assert all(torch.equal(one, other) for one, other in zip(rest, whole[done:], strict=True))


@torch.no_grad()
def test_the_sink_is_moved_once_a_chunk(student: CausalWanModel) -> None:
    turned: list[int] = []

    def turn(keys: Tensor, frames: int) -> Tensor:
        turned.append(frames)
        return keys

    cache = KVCache(student.embed_text(TEXT), Room(student.tokens(SIZE), 8, 2, turn))
    for _ in range(4):
        for _ in range(3):
            student(latents(1, 3).double(), torch.zeros(1), cache)
        cache.commit(3)
    layers = CONFIG["num_layers"]
    assert turned == [1] * layers + [4] * layers


def test_who_gets_one() -> None:
    """A missing key is "absolute"; a sink that a student was not trained with moves along."""
    assert Settings().sampler().sink_positions == "absolute"
    assert Settings().sampler(sink=3).sink_positions == "relative"
    assert Settings(sink=3).sampler().sink_positions == "absolute"
    assert Settings(sink=3).sampler(sink=2).sink_positions == "absolute"
    assert Settings(sink=3, sink_positions="relative").sampler().sink_positions == "relative"
