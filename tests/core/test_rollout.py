"""The chunk loop: the reference's videos.

The same whatever the length, the batch or the interruptions, for an hour.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from golden_data import ATOL, load, weights
from tiny import CONFIG, IDENTITY, SIZE, NaiveCache, gradients, make_student, prompts
from torch import Tensor

from sfpp_cli.core.cache import KeysValues, KVCache
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import VideoNoise, normal, seeded
from sfpp_cli.core.rollout import Sampler, rollout
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.models.convert import student_from_original

STEPS = (1000, 750, 500, 250)
SAMPLER = Sampler(schedule=FlowSchedule(5), steps=STEPS, chunk=3, context=8, sink=1)
CHUNK = (3, CONFIG["in_channels"], *SIZE)
TEXT = prompts(2)


@pytest.fixture(scope="module")
def student() -> CausalWanModel:
    """Shared: tests that watch its methods undo it."""
    return make_student()


@pytest.fixture(scope="module")
def exact() -> CausalWanModel:
    """The same in float64."""
    return make_student().double()


@pytest.fixture
def noise() -> VideoNoise:
    return VideoNoise([7, 8], CHUNK)


def start(noise: VideoNoise, count: int) -> Iterator[Tensor]:
    """The first `count` chunks, in float64."""
    return (chunk.double() for chunk in noise.chunks(0, count))


@pytest.mark.parametrize(
    "case", ["causal_rollout_full", "causal_rollout_rolling", "causal_rollout_rolling_sink"]
)
@torch.no_grad()
def test_videos_are_the_references(case: str) -> None:
    config, golden = load(case)
    first, renoise = golden["input.noise"], golden["input.renoise"]
    chunks = rollout(
        student_from_original(weights("transformer"), config),
        first,
        golden["input.prompt_embeds"],
        schedule=FlowSchedule(5),
        steps=golden["input.denoising_step_list"],
        chunk=3,
        context=first.shape[1] if config["local_attn_size"] == -1 else config["local_attn_size"],
        sink=config["sink_size"],
        draw=lambda index, step, like: renoise[index, step],
    )
    torch.testing.assert_close(
        torch.cat(list(chunks), dim=1), golden["output.final_latents"], atol=ATOL, rtol=0
    )


def test_numbers_one_by_one_are_a_sampler(student: CausalWanModel, noise: VideoNoise) -> None:
    video = torch.cat(list(noise.chunks(0, 4)), dim=1)
    settings: dict[str, Any] = {"schedule": FlowSchedule(5), "chunk": 3, "context": 8, "sink": 1}
    expected = list(SAMPLER.rollout(student, video, TEXT, noise.draw))
    for steps in (STEPS, torch.tensor(STEPS), FlowSchedule(5).warp(STEPS)):
        for ours, theirs in zip(
            rollout(student, video, TEXT, steps=steps, draw=noise.draw, **settings), expected, strict=True
        ):
            assert torch.equal(ours, theirs)


@torch.no_grad()
def test_the_network_is_told_exact_timesteps_whatever_the_latents_are() -> None:
    """In bfloat16 937.5 would be 936, 833.3 would be 832 and 625 would be 624."""
    student = make_student().to(torch.bfloat16)
    noise = VideoNoise([7], CHUNK)
    told: list[Tensor] = []
    student.register_forward_pre_hook(lambda module, given: told.append(given[1]))
    chunks = SAMPLER.rollout(student, next(noise.chunks(0, 1)).bfloat16(), TEXT[:1].bfloat16(), noise.draw)
    assert next(chunks).dtype == torch.bfloat16
    assert all(timestep.dtype == torch.float32 for timestep in told)
    assert [timestep.item() for timestep in told] == pytest.approx([1000, 937.5, 2500 / 3, 625], abs=1e-4)


def test_a_longer_video_begins_as_a_shorter_one(student: CausalWanModel, noise: VideoNoise) -> None:
    long = list(SAMPLER.rollout(student, noise.chunks(0, 6), TEXT, noise.draw))
    for count in (1, 3, 5):
        short = list(SAMPLER.rollout(student, noise.chunks(0, count), TEXT, noise.draw))
        assert len(short) == count
        for ours, theirs in zip(short, long, strict=False):
            assert torch.equal(ours, theirs)


def test_noise_may_be_one_tensor_with_a_short_last_chunk(student: CausalWanModel, noise: VideoNoise) -> None:
    whole = torch.cat(list(noise.chunks(0, 4)), dim=1)
    expected = list(SAMPLER.rollout(student, noise.chunks(0, 4), TEXT, noise.draw))

    def draw(index: int, step: int, like: Tensor) -> Tensor:
        return noise.draw(index, step, like)[:, : like.shape[1]]

    for frames in (12, 11, 10, 2):
        chunks = list(SAMPLER.rollout(student, whole[:, :frames], TEXT, draw))
        assert sum(chunk.shape[1] for chunk in chunks) == frames
        for ours, theirs in zip(chunks[: frames // 3], expected, strict=False):
            assert torch.equal(ours, theirs)


def test_a_batch_is_so_many_single_videos(exact: CausalWanModel) -> None:
    both, text = VideoNoise([7, 8], CHUNK), TEXT.double()
    together = torch.cat(list(SAMPLER.rollout(exact, start(both, 4), text, both.draw)), dim=1)
    for i, seed in enumerate([7, 8]):
        single = VideoNoise([seed], CHUNK)
        chunks = SAMPLER.rollout(exact, start(single, 4), text[i : i + 1], single.draw)
        torch.testing.assert_close(together[i : i + 1], torch.cat(list(chunks), dim=1), atol=IDENTITY, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_resuming_after_any_chunk_changes_nothing(student: CausalWanModel, noise: VideoNoise) -> None:
    count = 7
    whole = list(SAMPLER.rollout(student, noise.chunks(0, count), TEXT, noise.draw))
    for done in range(count + 1):
        past = iter(whole[:done])
        rest = list(SAMPLER.rollout(student, noise.chunks(done, count), TEXT, noise.draw, past=past))
        assert len(rest) == count - done
        for ours, theirs in zip(rest, whole[done:], strict=True):
            assert torch.equal(ours, theirs)


def test_a_chunk_comes_before_its_context_pass(
    student: CausalWanModel, noise: VideoNoise, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached: list[Tensor] = []
    plain = student.cache_clean

    def cache_clean(x0: Tensor, cache: KVCache) -> None:
        cached.append(x0)
        plain(x0, cache)

    monkeypatch.setattr(student, "cache_clean", cache_clean)
    chunks = []
    for chunk in SAMPLER.rollout(student, noise.chunks(0, 4), TEXT, noise.draw):
        chunks.append(chunk)
        assert len(cached) == len(chunks) - 1
    assert len(cached) == 3, "the last chunk needs no context pass"
    for ours, theirs in zip(cached, chunks, strict=False):
        assert torch.equal(ours, theirs)


def test_a_video_may_be_endless(student: CausalWanModel, noise: VideoNoise) -> None:
    asked = []

    def chunks() -> Iterator[Tensor]:
        for index in itertools.count():
            assert index < 9, "noise is drawn ahead"
            asked.append(index)
            yield from noise.chunks(index, index + 1)

    endless = SAMPLER.rollout(student, chunks(), TEXT, noise.draw)
    some = list(itertools.islice(endless, 5))
    assert asked == [0, 1, 2, 3, 4], "noise is drawn when it is needed"
    for ours, theirs in zip(
        some, SAMPLER.rollout(student, noise.chunks(0, 5), TEXT, noise.draw), strict=True
    ):
        assert torch.equal(ours, theirs)


def by_hand(
    student: CausalWanModel,
    noise: VideoNoise,
    count: int,
    exit_step: int,
    learning: int | None = None,
    first: list[float] | None = None,
) -> list[Tensor]:
    """The rollout from the formulas, over a cache that keeps all; `learning` has gradient at its last step.

    `first` are the first chunk's timesteps if they are others. In float64. The schedule's sigmas are float32:
    3e-8 from these, for flows near 5, four times a chunk.
    """
    later = [1000.0, 937.5, 2500 / 3, 625.0][: exit_step + 1]
    with torch.no_grad():
        text = student.embed_text(TEXT.double())
        cache: Any = NaiveCache(text, tokens=student.tokens(SIZE), context=8, sink=1)
    chunks = []
    for x in start(noise, count):
        index = len(chunks)
        timesteps = first if first and index == 0 else later
        last = len(timesteps) - 1
        for step in range(last + 1):
            sigma = timesteps[step] / 1000
            with torch.set_grad_enabled(index == learning and step == last):
                cache.text = student.embed_text(TEXT.double())
                x0 = x - sigma * student(x, torch.full((2,), timesteps[step]), cache)
            if step < last:
                after = timesteps[step + 1] / 1000
                x = (1 - after) * x0 + after * noise.draw(index, step, x0)
        chunks.append(x0)
        with torch.no_grad():
            student(x0, torch.zeros(2), cache)
            cache.commit(3)
    return chunks


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_an_early_exit_yields_that_steps_prediction(
    exit_step: int, exact: CausalWanModel, noise: VideoNoise
) -> None:
    chunks = list(
        SAMPLER.rollout(
            exact, start(noise, 4), TEXT.double(), noise.draw, timesteps=SAMPLER.timesteps[: exit_step + 1]
        )
    )
    for ours, theirs in zip(chunks, by_hand(exact, noise, 4, exit_step), strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_first_chunk_of_the_same_steps_changes_nothing(student: CausalWanModel, noise: VideoNoise) -> None:
    same = replace(SAMPLER, first_steps=STEPS)
    for ours, theirs in zip(
        same.rollout(student, noise.chunks(0, 4), TEXT, noise.draw),
        SAMPLER.rollout(student, noise.chunks(0, 4), TEXT, noise.draw),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("first_steps", "count"), [((1000,), 4), ((1000, 500), 4), (STEPS, 1), ((1000, 750, 500, 400, 250), 2)]
)
def test_the_first_chunk_may_take_other_steps(
    first_steps: tuple[int, ...], count: int, exact: CausalWanModel, noise: VideoNoise
) -> None:
    sampler = replace(SAMPLER, steps=STEPS[:count], first_steps=first_steps)
    text = TEXT.double()
    chunks = list(sampler.rollout(exact, start(noise, 5), text, noise.draw))
    alone = replace(SAMPLER, steps=first_steps).rollout(exact, start(noise, 1), text, noise.draw)
    assert torch.equal(chunks[0], next(alone))
    warped = [1000 * 5 * step / (1000 + 4 * step) for step in first_steps]
    for ours, theirs in zip(chunks, by_hand(exact, noise, 5, count - 1, first=warped), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("on", ["latents", "keys"])
@pytest.mark.parametrize("context_noise", [0.0, 100.0])
def test_resuming_a_video_does_not_begin_it_again(
    context_noise: float, on: Literal["latents", "keys"], student: CausalWanModel, noise: VideoNoise
) -> None:
    """Its first chunk is past, whose context noise is no other than that of the video in one go."""
    sampler = replace(
        SAMPLER, steps=(1000,), first_steps=STEPS, context_noise=context_noise, context_noise_on=on
    )
    drawn: list[tuple[int, int]] = []

    def draw(index: int, step: int, like: Tensor) -> Tensor:
        drawn.append((index, step))
        return noise.draw(index, step, like)

    whole = list(sampler.rollout(student, noise.chunks(0, 4), TEXT, draw))
    assert drawn[:3] == [(0, 0), (0, 1), (0, 2)]
    if on == "latents":
        assert len(drawn) == len(set(drawn)), "no noise is used twice"
    for done in range(5):
        past = iter(whole[:done])
        rest = list(sampler.rollout(student, noise.chunks(done, 4), TEXT, noise.draw, past=past))
        for ours, theirs in zip(rest, whole[done:], strict=True):
            assert torch.equal(ours, theirs)


def test_first_steps_are_for_frame_0(student: CausalWanModel, noise: VideoNoise) -> None:
    """Not for the first chunk after a cache that holds some; nor where timesteps are given."""
    sampler = replace(SAMPLER, steps=(1000, 500), first_steps=STEPS)
    whole = list(sampler.rollout(student, noise.chunks(0, 3), TEXT, noise.draw))

    def later(index: int, step: int, like: Tensor) -> Tensor:
        return noise.draw(index + 1, step, like)

    with torch.no_grad():
        cache = student.new_cache(TEXT, SIZE, context=8, sink=1)
        begun = sampler.rollout(student, noise.chunks(0, 1), TEXT, noise.draw, cache=cache)
        assert torch.equal(next(begun), whole[0])
        student.cache_clean(whole[0], cache)
    rest = sampler.rollout(student, noise.chunks(1, 3), TEXT, later, cache=cache)
    for ours, theirs in zip(rest, whole[1:], strict=True):
        assert torch.equal(ours, theirs)
    given = sampler.timesteps
    plain = replace(sampler, first_steps=None).rollout(student, noise.chunks(0, 2), TEXT, noise.draw)
    told = sampler.rollout(student, noise.chunks(0, 2), TEXT, noise.draw, timesteps=given)
    for ours, theirs in zip(told, plain, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("exit_step", [1, 3])
def test_gradient_lies_in_the_asked_chunks_at_the_exit_step(exit_step: int, noise: VideoNoise) -> None:
    student = make_student().double()
    with_gradient: list[bool] = []
    student.register_forward_pre_hook(lambda *_: with_gradient.append(torch.is_grad_enabled()))
    timesteps = SAMPLER.timesteps[: exit_step + 1]
    chunks = list(
        SAMPLER.rollout(
            student, start(noise, 5), TEXT.double(), noise.draw, timesteps=timesteps, grad_chunks={2}
        )
    )
    assert [chunk.requires_grad for chunk in chunks] == [False, False, True, False, False]
    passes = 1 + exit_step
    assert [number for number, enabled in enumerate(with_gradient) if enabled] == [3 * passes - 1]
    assert len(with_gradient) == 5 * passes

    chunks[2].square().mean().backward()
    ours = gradients(student)
    by_hand(student, noise, 3, passes - 1, learning=2)[2].square().mean().backward()
    theirs = gradients(student)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        largest = theirs[name].abs().max().item()
        torch.testing.assert_close(gradient, theirs[name], atol=1e-8 + 1e-5 * largest, rtol=0, msg=name)


def test_gradient_in_many_chunks_does_not_change_the_video(exact: CausalWanModel, noise: VideoNoise) -> None:
    text = TEXT.double()
    plain = list(SAMPLER.rollout(exact, start(noise, 4), text, noise.draw))
    learning = list(SAMPLER.rollout(exact, start(noise, 4), text, noise.draw, grad_chunks=range(1, 4)))
    assert [chunk.requires_grad for chunk in learning] == [False, True, True, True]
    for ours, theirs in zip(learning, plain, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, atol=IDENTITY, rtol=0)


def test_noise_is_a_function_of_seed_chunk_and_step() -> None:
    like = torch.zeros(1, *CHUNK)
    wide, single = VideoNoise([3, 4, 5], CHUNK), VideoNoise([4], CHUNK)
    for index in (0, 1, 4800):
        (first,), (alone,) = wide.chunks(index, index + 1), single.chunks(index, index + 1)
        assert torch.equal(first[1], alone[0])
        for step in range(3):
            assert torch.equal(wide.draw(index, step, like)[1], single.draw(index, step, like)[0])
    assert torch.equal(
        torch.stack(list(single.chunks(2, 5))),
        torch.stack([chunk for i in (2, 3, 4) for chunk in single.chunks(i, i + 1)]),
    )
    assert single.draw(0, 0, like.bfloat16()).dtype == torch.bfloat16
    assert single.draw(0, 0, torch.zeros(1, 2, 5)).shape == (1, 2, 5)


def test_noise_of_another_use_is_other_noise() -> None:
    like = torch.zeros(1, 1, 4, 4, 4)
    seen = []
    for seed in range(12):
        noise = VideoNoise([seed], (1, 4, 4, 4))
        for index in range(12):
            seen += [*noise.chunks(index, index + 1), *(noise.draw(index, step, like) for step in range(3))]
    rows = torch.stack(seen).flatten(1).double()
    assert rows.mean().abs() < 4 / rows.numel() ** 0.5
    assert rows.std().item() == pytest.approx(1, abs=4 / (2 * rows.numel()) ** 0.5)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.75, "two of these 576 draws are alike"
    torch.manual_seed(0)
    first = normal((8,), seeded(1, 2))
    torch.manual_seed(1)
    assert torch.equal(first, normal((8,), seeded(1, 2)))
    assert not torch.equal(first, normal((8,), seeded(2, 1)))
    assert not torch.equal(normal((8,), seeded(0)), normal((8,), seeded(0, 0)))


class Watched(KVCache):
    """Notes how many keys a pass sees."""

    seen: set[int]

    def write(self, layer: int, key: Tensor, value: Tensor) -> KeysValues:
        keys, values = super().write(layer, key, value)
        self.seen.add(keys.shape[2])
        return keys, values


def long_rollout(frames: int, chunk: int, context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest student there is, one token a frame and two steps."""
    student = make_student(num_layers=1, num_attention_heads=1)
    caches = []

    def new_cache(text: Tensor, latent_size: tuple[int, int], *room: Any) -> KVCache:
        caches.append(Watched(student.embed_text(text), student.room(latent_size, *room)))
        caches[-1].seen = set()
        return caches[-1]

    monkeypatch.setattr(student, "new_cache", new_cache)
    noise = VideoNoise([1], (chunk, 4, 2, 2))
    sampler = replace(SAMPLER, steps=(1000, 500), chunk=chunk, context=context)
    nbytes, scale = set(), []
    for index, x0 in enumerate(
        sampler.rollout(student, noise.chunks(0, frames // chunk), TEXT[:1], noise.draw)
    ):
        (cache,) = caches
        nbytes.add(cache.nbytes)
        assert cache.frame == chunk * index
        if cache.frame >= context:
            assert cache.seen == {context}, "a chunk late in the video sees as much as an early one"
        cache.seen.clear()
        assert x0.isfinite().all()
        scale.append(x0.std().item())
    assert len(scale) == frames // chunk
    assert nbytes == {2 * context * 12 * 4}
    assert max(scale) < 10


def test_memory_and_work_of_300_chunks_are_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    long_rollout(900, 3, 8, monkeypatch)


@pytest.mark.slow
def test_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """14,400 latent frames at 4 pictures a frame and 16 pictures a second.

    Long chunks, to have it done in seconds.
    """
    long_rollout(14_400, 12, 30, monkeypatch)
