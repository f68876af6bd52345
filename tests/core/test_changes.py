"""A prompt that changes midway: what each way of changing it does to the context, and resuming."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import CONFIG, IDENTITY, SIZE, NaiveCache, gradients, make_student, prompts
from torch import Tensor

from sfpp_cli.core.cache import KVCache
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.rollout import Change, Changes, How, Sampler
from sfpp_cli.core.student import CausalWanModel

SAMPLER = Sampler(schedule=FlowSchedule(5), steps=(1000, 500), chunk=3, context=8, sink=1)
CHUNK = (3, CONFIG["in_channels"], *SIZE)
NOISE = VideoNoise([7], CHUNK)
DAY, NIGHT, RAIN = prompts(3).double().split(1)
COUNT = 7


@pytest.fixture(scope="module")
def student() -> CausalWanModel:
    return make_student().double()


def at(**scenes: Change) -> Changes:
    """Changes by the index of their chunk, as `c3=Change(...)`."""
    return lambda index: scenes.get(f"c{index}")


def roll(student: CausalWanModel, changes: Changes | None = None, **options: Any) -> list[Tensor]:
    sampler = options.pop("sampler", SAMPLER)
    past = options.get("past", [])
    noise = (chunk.double() for chunk in NOISE.chunks(len(past), COUNT))
    return list(sampler.rollout(student, noise, DAY, NOISE.draw, changes=changes, **options))


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@torch.no_grad()
def naive(student: CausalWanModel, chunk: int, how: How, sampler: Sampler = SAMPLER) -> list[Tensor]:
    """NIGHT from `chunk` on, from the definitions, over caches that keep all."""

    def cache(text: Tensor) -> Any:
        keys_values = student.embed_text(text)
        room = {"context": sampler.context, "sink": sampler.sink}
        return NaiveCache(keys_values, tokens=student.tokens(SIZE), **room)

    memory = cache(DAY)
    video: list[Tensor] = []
    for index, x in enumerate(NOISE.chunks(0, COUNT)):
        if index == chunk and how == "switch":
            memory.text = student.embed_text(NIGHT)
        elif index == chunk and how == "cut":
            memory = cache(NIGHT)
        elif index == chunk:
            old, memory = memory, cache(NIGHT)
            memory.past = [frames[: sampler.sink] for frames in old.past]
            whole = torch.cat(video, dim=1)
            memory.frame = max(
                sampler.sink, whole.shape[1] - (sampler.context - sampler.sink - sampler.chunk)
            )
            while memory.frame < whole.shape[1]:
                end = (memory.frame // sampler.chunk + 1) * sampler.chunk
                student.cache_clean(whole[:, memory.frame : end], memory)
        x = x.double()
        for step, t in enumerate(sampler.timesteps):
            flow = student(x, x.new_full((1, 3), t.item(), dtype=torch.float32), memory)
            x0 = sampler.schedule.x0_from_flow(flow, x, t)
            if step == 0:
                x = sampler.schedule.add_noise(x0, NOISE.draw(index, step, x0), sampler.timesteps[1])
        video.append(x0)
        student.cache_clean(x0, memory)
    return video


@pytest.mark.parametrize("sink", [0, 1, 4])
@pytest.mark.parametrize("how", ["switch", "recache", "cut"])
def test_a_change_is_what_its_name_says(student: CausalWanModel, how: How, sink: int) -> None:
    sampler = replace(SAMPLER, sink=sink, context=9 if sink else 7)
    ours = roll(student, at(c3=Change(NIGHT, how)), sampler=sampler)
    theirs = naive(student, 3, how, sampler)
    torch.testing.assert_close(torch.cat(ours), torch.cat(theirs), atol=IDENTITY, rtol=0)
    plain = roll(student, sampler=sampler)
    assert same(ours[:3], plain[:3])
    assert all((one - other).abs().max() > 0.01 for one, other in zip(ours[3:], plain[3:], strict=True))


def test_the_ways_differ(student: CausalWanModel) -> None:
    ways: tuple[How, ...] = ("switch", "recache", "cut")
    videos = [roll(student, at(c4=Change(NIGHT, how)))[4] for how in ways]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (videos[one] - videos[other]).abs().max() > 0.01


@pytest.mark.parametrize("noise_on", ["latents", "keys"])
@pytest.mark.parametrize("level", [0.0, 100.0])
def test_a_video_with_changes_can_be_resumed_after_any_chunk(
    student: CausalWanModel, noise_on: Any, level: float
) -> None:
    sampler = replace(SAMPLER, context_noise=level, context_noise_on=noise_on, first_steps=(1000, 750, 500))
    changes = at(c2=Change(NIGHT), c4=Change(RAIN, "cut"), c5=Change(DAY, "switch"), c6=Change(NIGHT))
    whole = roll(student, changes, sampler=sampler)
    for done in range(COUNT):
        assert same(roll(student, changes, sampler=sampler, past=whole[:done]), whole[done:])


def test_no_change_changes_nothing(student: CausalWanModel) -> None:
    assert same(roll(student, lambda index: None), roll(student))


def test_text_is_embedded_once_a_scene(student: CausalWanModel, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = []
    plain = student.embed_text
    monkeypatch.setattr(student, "embed_text", lambda text: embedded.append(text) or plain(text))
    roll(student, at(c2=Change(NIGHT), c4=Change(RAIN, "cut")))
    assert [text is expected for text, expected in zip(embedded, (DAY, NIGHT, RAIN), strict=True)]


def test_the_sink_is_never_overwritten(student: CausalWanModel) -> None:
    caches: list[KVCache] = []
    plain = student.new_cache
    student.new_cache = lambda *a, **o: caches.append(plain(*a, **o)) or caches[-1]  # type: ignore[func-returns-value, method-assign]
    try:
        for changes in (None, at(c3=Change(NIGHT), c5=Change(RAIN))):
            roll(student, changes)
    finally:
        del student.new_cache
    span = slice(0, student.tokens(SIZE))
    for one, other in zip(caches[0].keys, caches[1].keys, strict=True):
        assert torch.equal(one[:, :, span], other[:, :, span])
        assert not torch.equal(one, other)


@pytest.mark.parametrize("how", ["switch", "recache", "cut"])
def test_chunks_that_learn_are_those_of_the_ring(how: How) -> None:
    """And every scene's text learns."""
    student = make_student().double()
    changes = at(c3=Change(NIGHT, how), c5=Change(RAIN, how))
    with torch.no_grad():
        expected = roll(student, changes)
    learned = roll(student, changes, grad_chunks=range(2, COUNT))
    assert same([chunk.detach() for chunk in learned], expected)
    for index in (2, 4, 6):
        learned[index].sum().backward(retain_graph=True)
        assert "condition_embedder.text_embedder.linear_1.weight" in gradients(student)


def test_a_cache_from_elsewhere_cannot_change(student: CausalWanModel) -> None:
    cache = student.new_cache(DAY, SIZE, context=8)
    with pytest.raises(ValueError, match="not after a cache"):
        roll(student, at(c1=Change(NIGHT)), cache=cache)
