"""Distribution matching: the reference's numbers, windows against naive ones, what may and may not learn."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_data import TIMESTEP, load
from tiny import CONFIG, SIZE, NaiveCache, gradients, make_student, make_teacher, prompts, randomize, rounding
from torch import Tensor

from sfpp_cli.core import dmd
from sfpp_cli.core.cache import KVCache
from sfpp_cli.core.dmd import (
    DistributionMatching,
    Videos,
    critic_loss,
    dmd_gradient,
    dmd_loss,
    score_timesteps,
)
from sfpp_cli.core.dmd_config import DMDConfig
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.objective import Update
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training

SCHEDULE = FlowSchedule(5.0)
CHUNK, HORIZON, FRAMES = 3, 6, 30
LATENT = (CONFIG["in_channels"], *SIZE)
SAMPLER = Sampler(schedule=SCHEDULE, steps=(1000, 750, 500, 250), chunk=CHUNK, context=8, sink=1)
TEXT = dict(zip(["", "a", "b"], prompts(3), strict=True))
Draw = Callable[[int, Tensor], Tensor]


def encode(texts: list[str]) -> Tensor:
    return torch.stack([TEXT[text] for text in texts])


def matching(
    seed: int = 0,
    start: int | None = None,
    sampler: Sampler = SAMPLER,
    videos: Videos | None = None,
    **config: Any,
) -> DistributionMatching:
    """The objective on tiny models.

    Critic and teacher differ. `start` is the window's chunk, if not drawn.
    """
    critic, teacher = make_teacher(), make_teacher().requires_grad_(False)
    randomize(critic, seed=5)
    made = DistributionMatching(
        make_student(),
        critic,
        teacher,
        encode,
        ["a", "b"],
        sampler=sampler,
        horizon=HORIZON,
        latent=LATENT,
        config=DMDConfig(**{"method": "self-forcing++", "frames": FRAMES, **config}),
        seed=seed,
        videos=videos,
    )
    if start is not None:
        made.draw_start = lambda draws: start  # type: ignore[method-assign]
    return made


def update(*samples: int, step: int = 0, player: int = 0, repeat: int = 0) -> Update:
    return Update(step, player, repeat, samples or (0, 1))


def test_gradient_loss_and_critic_loss_are_the_references() -> None:
    config, golden = load("dmd_grad")
    schedule = FlowSchedule(config["timestep_shift"])
    clamp = (config["min_step"], config["max_step"])
    timestep = score_timesteps(schedule, golden["input.raw_timestep"][:, 0], clamp)
    torch.testing.assert_close(timestep, golden["output.timestep"][:, 0], atol=TIMESTEP, rtol=0)
    x, noise = golden["input.student_x0"], golden["input.noise"]
    noisy = golden["output.noisy_latent"]
    torch.testing.assert_close(schedule.add_noise(x, noise, timestep), noisy, atol=rounding(noisy), rtol=0)

    cond, uncond = golden["input.real_cond_x0_pred"], golden["input.real_uncond_x0_pred"]
    guidance = 1 + config["real_guidance_scale"]
    gradient = dmd_gradient(x, golden["input.fake_x0_pred"], uncond + guidance * (cond - uncond))
    torch.testing.assert_close(gradient, golden["output.grad"], atol=rounding(gradient), rtol=0)
    assert dmd_loss(x, gradient).item() == pytest.approx(golden["output.loss"].item(), rel=1e-6)
    learns = golden["input.gradient_mask_frames"]
    assert dmd_loss(x, gradient, learns).item() == pytest.approx(
        golden["output.loss_masked"].item(), rel=1e-6
    )

    later = score_timesteps(schedule, golden["input.critic_raw_timestep"][:, 0], clamp)
    torch.testing.assert_close(later, golden["output.critic_timestep"][:, 0], atol=TIMESTEP, rtol=0)
    flow = schedule.flow_from_x0(golden["input.critic_x0_pred"], schedule.add_noise(x, noise, later), later)
    assert critic_loss(flow, x, noise).item() == pytest.approx(golden["output.critic_loss"].item(), rel=1e-6)


def test_scores_are_drawn_over_all_timesteps_and_only_then_clamped() -> None:
    """Whole timesteps 0..999, shifted, then clamped to 20..980: 2 and 92 of the 1000 lie beyond the ends."""
    objective = matching()
    x = torch.zeros(20_000, 1, 1, 1, 1)
    timesteps, _ = objective.score_noise(x, update(*range(20_000)))
    shifted = {score_timesteps(SCHEDULE, torch.tensor(t), (20, 980)).item(): t for t in range(1000)}
    assert set(timesteps.tolist()) <= shifted.keys()
    assert len(set(timesteps.tolist())) > 900 - 5
    shares = [(timesteps == end).float().mean().item() for end in (20, 980)]
    assert shares[0] == pytest.approx(5 / 1000, abs=4 * (0.005 / 20_000) ** 0.5)
    assert shares[1] == pytest.approx(92 / 1000, abs=4 * (0.092 / 20_000) ** 0.5)
    assert timesteps.mean().item() == pytest.approx(745.8, abs=4 * 240 / 20_000**0.5)

    narrow = matching(timesteps=(500, 502), clamp=(0, 1000))
    timesteps, _ = narrow.score_noise(x[:100], update(*range(100)))
    both = SCHEDULE.shift_timesteps(torch.tensor([500.0, 501.0]))
    assert set(timesteps.tolist()) == set(both.tolist()), "the end is not drawn"


def test_the_losses_derivative_is_the_gradient() -> None:
    x = torch.randn(
        2, 6, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad(dmd_loss(x, g), x)
    torch.testing.assert_close(found, g / x.numel(), atol=1e-12, rtol=0)
    learns = torch.tensor([False, True, True, True, True, False])
    (found,) = torch.autograd.grad(dmd_loss(x, g, learns), x)
    assert found[:, [0, 5]].abs().max() == 0
    torch.testing.assert_close(found[:, 1:5], (g / x.numel() * 6 / 4)[:, 1:5], atol=1e-12, rtol=0)


def test_a_sample_is_normalised_by_itself() -> None:
    x, critic, teacher = (
        torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in range(3)
    )
    both = dmd_gradient(x, critic, teacher)
    for i in range(2):
        part = slice(i, i + 1)
        assert torch.equal(both[part], dmd_gradient(x[part], critic[part], teacher[part]))
        expected = (critic[i] - teacher[i]) / (x[i] - teacher[i]).abs().mean()
        torch.testing.assert_close(both[i], expected, atol=1e-12, rtol=0)
    assert dmd_gradient(x, x, x).abs().max() == 0, (
        "where all agree nothing is to be done, and nothing is divided by zero"
    )


def naive(objective: DistributionMatching, start: int, step: int, which: Update) -> Tensor:
    """The window from the formulas, over a cache that forgets nothing.

    x0 of the step that learns, with gradient.
    """
    student, config = objective.student, objective.config
    text, _ = objective.texts(which)
    levels = SAMPLER.timesteps.tolist()
    with torch.no_grad():
        cache: Any = NaiveCache(student.embed_text(text), tokens=student.tokens(SIZE), context=8, sink=1)
    rolled = objective._video_noise(dmd._For.ROLLOUT, which, text)
    fresh = objective._video_noise(dmd._For.WINDOW, which, text, start)

    def chunk(x: Tensor, through: list[float], draw: Draw, learning: int | None = None) -> list[Tensor]:
        """The predictions of all steps; that of step `learning` has gradient."""
        predictions = []
        for number, level in enumerate(through):
            with torch.set_grad_enabled(number == learning):
                cache.text = student.embed_text(text)
                x0 = x - level / 1000 * student(x, torch.full((len(x),), level), cache)
            predictions.append(x0)
            if number < len(through) - 1:
                after = through[number + 1] / 1000
                x = (1 - after) * x0.detach() + after * draw(number, x0)
        return predictions

    def remember(x0: Tensor) -> None:
        with torch.no_grad():
            student(x0.detach(), torch.zeros(len(x0)), cache)
            cache.commit(CHUNK)

    window = HORIZON // CHUNK
    video, simulated, past = [], [], []
    for index in range(start + window):
        if index == start:
            past = [list(layer) for layer in cache.past]
        (x,) = rolled.chunks(index, index + 1)
        learning = step if index >= start else None
        predictions = chunk(
            x, levels, lambda number, x0, index=index: rolled.draw(index, number, x0), learning
        )
        video.append(predictions[-1].detach())
        simulated.append(predictions[step])
        remember(video[-1])
    if config.noise_init == "simulated":
        return torch.cat(simulated[start:], dim=1)
    cache.past, cache.frame = past, start * CHUNK
    predicted = []
    for index in range(window):
        (x,) = fresh.chunks(index, index + 1)
        through = levels[: step + 1]
        if config.noise_init == "renoised":
            sigma = levels[step] / 1000
            x = (1 - sigma) * video[start + index] + sigma * x
            through = levels[step : step + 1]
        *_, x0 = chunk(
            x, through, lambda number, x0, index=index: fresh.draw(index, number, x0), len(through) - 1
        )
        predicted.append(x0)
        remember(x0)
    return torch.cat(predicted, dim=1)


WINDOWS = [
    ("simulated", 3, 7),
    ("simulated", 1, 4),
    ("simulated", 3, 0),
    ("renoised", 3, 7),
    ("renoised", 1, 4),
    ("random", 2, 7),
    ("random", 3, 0),
]
"""Reading of equation 1, learning step, the window's first chunk.

The context of 8 frames has rolled by chunk 2.
"""


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("noise_init", "step", "start"),
    [WINDOWS[0], *(pytest.param(*window, marks=pytest.mark.slow) for window in WINDOWS[1:])],
)  # all are compared in float64 below
def test_a_window_and_its_gradients_are_the_naive_ones(
    noise_init: str, step: int, start: int, checkpointing: bool
) -> None:
    objective = matching(start=start, noise_init=noise_init, gradient_step="uniform")
    compare_with_naive(objective, step, start, checkpointing, 200, 4000)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("noise_init", "step", "start"), WINDOWS)
def test_in_float64_they_are_the_naive_ones_exactly(
    noise_init: str, step: int, start: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms and rotations stay in float32, so what is left are single roundings of it."""
    objective = matching(start=start, noise_init=noise_init, gradient_step="uniform")
    objective.student.double()
    encode_text = objective.encode_text
    objective.encode_text = lambda texts: encode_text(texts).double()
    chunks = VideoNoise.chunks
    monkeypatch.setattr(
        VideoNoise, "chunks", lambda noise, first, last: (x.double() for x in chunks(noise, first, last))
    )
    compare_with_naive(objective, step, start, checkpointing, 4, 40)


def compare_with_naive(
    objective: DistributionMatching,
    step: int,
    start: int,
    checkpointing: bool,
    roundings: int,
    gradient_roundings: int,
) -> None:
    objective.draw_step = lambda draws: step  # type: ignore[method-assign]
    which = update()
    if checkpointing:
        objective.student.enable_gradient_checkpointing()
    x, loss_mask = objective.window(which, objective.texts(which)[0])
    assert loss_mask.all()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    (x * direction).sum().backward()
    ours = gradients(objective.student)

    objective.student.disable_gradient_checkpointing()
    expected = naive(objective, start, step, which)
    torch.testing.assert_close(x, expected, atol=rounding(expected, roundings), rtol=0)
    (expected * direction).sum().backward()
    theirs = gradients(objective.student)
    assert ours.keys() == theirs.keys() == dict(objective.student.named_parameters()).keys()
    for name, gradient in ours.items():
        # A gradient's entries are sums of terms larger than themselves, hence more roundings of the largest.
        tolerance = 1e-6 + rounding(theirs[name], gradient_roundings)
        torch.testing.assert_close(gradient, theirs[name], atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("start", [0, 1, 7])
def test_a_simulated_window_is_the_rollouts_own_bit_for_bit(start: int, checkpointing: bool) -> None:
    """And it is what the ring's rollout would have made, without gradient and without a snapshot."""
    objective = matching(start=start)
    which = update()
    text, _ = objective.texts(which)
    noise = objective._video_noise(dmd._For.ROLLOUT, which, text)
    with torch.no_grad():
        chunks = list(SAMPLER.rollout(objective.student, noise.chunks(0, 10), text, noise.draw))
    rolled = torch.cat(chunks, dim=1)[:, start * CHUNK : start * CHUNK + HORIZON]
    if checkpointing:
        objective.student.enable_gradient_checkpointing()
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            x, _ = objective.window(which, text)
        assert x.requires_grad == gradient
        assert torch.equal(x.detach(), rolled)


def passes(student: CausalWanModel) -> list[tuple[bool, float]]:
    """Every pass from now on: whether it carries gradient, and its timestep."""
    seen: list[tuple[bool, float]] = []
    student.register_forward_pre_hook(
        lambda module, given: seen.append((torch.is_grad_enabled(), given[1][0].item()))
    )
    return seen


@pytest.mark.parametrize(
    ("noise_init", "before", "within", "after"),
    [("simulated", 4, 3, 1), ("renoised", 4 + 2, 1, 0), ("random", 4 + 1, 3, 0)],
)
def test_gradient_reaches_the_windows_chunks_at_the_learning_step_and_nothing_else(
    noise_init: str, before: int, within: int, after: int
) -> None:
    """And the rollout stops at the window's end: nothing later is needed."""
    objective = matching(start=4, noise_init=noise_init, gradient_step="uniform")
    objective.draw_step = lambda draws: 2  # type: ignore[method-assign]
    seen = passes(objective.student)
    objective.student_loss(update())[0].backward()
    assert len(seen) == 4 * before + (within + after) * (HORIZON // CHUNK)
    learning = [number for number, (enabled, _) in enumerate(seen) if enabled]
    first = 4 * before + within - 1
    assert learning == [first, first + within + after]
    assert all(seen[number][1] == pytest.approx(2500 / 3, abs=1e-3) for number in learning)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("noise_init", ["simulated", "random"])
def test_self_forcing_is_a_rollout_that_ends_at_the_learning_step(noise_init: str, step: int) -> None:
    objective = matching(method="self-forcing", frames=None, noise_init=noise_init)
    objective.draw_step = lambda draws: step  # type: ignore[method-assign]
    seen = passes(objective.student)
    loss, figures = objective.student_loss(update())
    assert [enabled for enabled, _ in seen] == ([False] * step + [True]) * (HORIZON // CHUNK)
    assert figures["dmd_gradient"] > 0.1
    loss.backward()
    assert gradients(objective.student)


@pytest.mark.parametrize("noise_init", ["simulated", "renoised", "random"])
def test_the_ring_is_gone_when_passes_keep_activations(
    noise_init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a window needs the larger of ring and window beside the snapshot, not both."""
    objective = matching(start=4, noise_init=noise_init)
    rings: list[weakref.ref[KVCache]] = []
    new_cache = objective.student.new_cache

    def noted(*arguments: Any, **options: Any) -> KVCache:
        ring = new_cache(*arguments, **options)
        rings.append(weakref.ref(ring))
        return ring

    monkeypatch.setattr(objective.student, "new_cache", noted)
    alive: list[bool] = []
    objective.student.register_forward_pre_hook(
        lambda *_: alive.append(rings[0]() is not None) if torch.is_grad_enabled() else None
    )
    objective.window(update(), objective.texts(update())[0])
    assert alive == [False] * (HORIZON // CHUNK)
    assert len(rings) == 1


def test_neither_teacher_nor_critic_learns_from_the_students_loss() -> None:
    objective = matching(start=3)
    objective.student_loss(update())[0].backward()
    assert not gradients(objective.critic)
    assert gradients(objective.student)
    objective.critic_loss(update(player=1))[0].backward()
    assert not gradients(objective.student), "the critic's windows are detached"
    assert gradients(objective.critic)
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_the_score_difference_is_the_formula() -> None:
    objective = matching(guidance=3.0)
    which = update()
    text, negative = objective.texts(which)
    x = torch.randn(2, HORIZON, *LATENT, generator=torch.Generator().manual_seed(3))
    timestep, noise = objective.score_noise(x, which)
    sigma = SCHEDULE.sigma(timestep).view(-1, 1, 1, 1, 1)
    x_t = (1 - sigma) * x + sigma * noise
    with torch.no_grad():
        critic = x_t - sigma * objective.critic(x_t, timestep, text)
        cond, uncond = (x_t - sigma * objective.teacher(x_t, timestep, given) for given in (text, negative))
    teacher = cond + 2 * (cond - uncond)
    expected = (critic - teacher) / (x - teacher).abs().mean((1, 2, 3, 4), keepdim=True)
    found = objective.score_difference(x, text, negative, which)
    torch.testing.assert_close(
        found, expected, atol=rounding(expected, 300), rtol=0
    )  # guidance triples errors
    assert ((timestep >= 20) & (timestep <= 980)).all()


@pytest.mark.parametrize(
    ("window", "expected"), [("uniform", [1 / 9] * 9), ("beta(1,2)", [(17 - 2 * i) / 81 for i in range(9)])]
)
def test_where_windows_start(window: str, expected: list[float]) -> None:
    """Every start has its share; Beta(1, 2) has density 2 (1 - u), summed up over a ninth."""
    objective = matching(window=window)
    draws = torch.Generator().manual_seed(0)
    drawn = torch.tensor([objective.draw_start(draws) for _ in range(8000)])
    share = torch.bincount(drawn, minlength=9) / 8000
    torch.testing.assert_close(share, torch.tensor(expected), atol=4 * (0.25 / 8000) ** 0.5, rtol=0)


def test_samples_are_the_same_in_any_company() -> None:
    """So batches may be cut into parts and shared out over ranks."""
    objective = matching()
    for later in (0, 7):
        together, _ = objective.window(update(4, 5, step=later), objective.texts(update(4, 5))[0])
        for i, sample in enumerate((4, 5)):
            alone, _ = objective.window(update(sample, step=later), objective.texts(update(sample))[0])
            torch.testing.assert_close(together[i], alone[0], atol=rounding(alone[0]), rtol=0)


def test_the_critic_learns_from_the_students_windows_or_from_new_ones() -> None:
    shared = matching(start=2)
    shared.student_loss(update())
    seen = passes(shared.student)
    first, again = (shared.critic_loss(update(player=1, repeat=i))[0].item() for i in range(2))
    assert not seen, "no new rollout"
    assert first != again, "but new noise"

    fresh = matching(start=2, shared_rollout=False)
    fresh.student_loss(update())
    seen = passes(fresh.student)
    windows = []
    for i in range(2):
        fresh.critic_loss(update(player=1, repeat=i))
        with torch.no_grad():
            windows.append(fresh.window(update(player=1, repeat=i), fresh.texts(update())[0])[0])
    assert len(seen) == 2 * 2 * 4 * 4
    assert not any(enabled for enabled, _ in seen)
    for one, other in itertools.combinations([*windows, fresh.kept[0, 1][0]], 2):
        assert (one - other).abs().max() > 0.1, "each rollout has its own noise"


def test_every_update_of_the_critic_has_prompts_of_its_own() -> None:
    asked: list[list[str]] = []

    def encode_and_note(texts: list[str]) -> Tensor:
        if texts != [""] * len(texts):
            asked.append(texts)
        return encode(texts)

    samples = tuple(range(16))
    for shared, updates in ((False, 4), (True, 1)):
        objective = matching(start=0, shared_rollout=shared)
        objective.encode_text = encode_and_note
        asked.clear()
        objective.student_loss(update(*samples))
        for repeat in range(3):
            objective.critic_loss(update(*samples, player=1, repeat=repeat))
        assert len(asked) == updates
        assert len({tuple(texts) for texts in asked}) == updates, "16 of two prompts: once in 65,536 alike"
    _, text = objective.kept[samples]
    assert torch.equal(text, encode(asked[0])), "a shared window keeps its text"


def test_windows_of_an_earlier_step_are_forgotten() -> None:
    objective = matching(start=0)
    objective.student_loss(update(0, 1))
    objective.student_loss(update(2, 3, step=1))
    assert list(objective.kept) == [(2, 3)]


def test_a_chunk_with_a_reencoded_first_frame_does_not_learn() -> None:
    seen = []

    def image_latent(latents: Tensor) -> Tensor:
        seen.append(latents)
        return torch.full_like(latents[:, :1], 0.5)

    def window_at(start: int, **config: Any) -> tuple[Tensor, Tensor]:
        objective = matching(start=start, **config)
        objective.image_latent = image_latent
        return objective.window(update(), objective.texts(update())[0])

    first, all_learn = window_at(0, first_frame="reencode")
    second, loss_mask = window_at(4, first_frame="reencode")
    plain_first, _ = window_at(0)
    plain_second, _ = window_at(4)
    assert all_learn.all(), "the first window of a video starts with an image latent anyway"
    assert torch.equal(first, plain_first)
    assert loss_mask.tolist() == [False] * CHUNK + [True] * (HORIZON - CHUNK)
    assert (second[:, 0] == 0.5).all()
    assert torch.equal(second[:, 1:], plain_second[:, 1:])
    (before,) = seen
    assert before.shape[1] == HORIZON + 1, "the decoder sees a window's length of past"
    assert torch.equal(before[:, -1:], plain_second[:, :1])


@pytest.mark.parametrize("noise_init", ["simulated", "renoised", "random"])
def test_what_comes_before_a_window_is_clean(noise_init: str) -> None:
    """Also if an early step learns, whose prediction the window is."""
    objective = matching(start=3, noise_init=noise_init, first_frame="reencode", gradient_step="uniform")
    objective.draw_step = lambda draws: 1  # type: ignore[method-assign]
    seen: list[Tensor] = []
    objective.image_latent = lambda latents: seen.append(latents) or latents[:, :1]  # type: ignore[func-returns-value]
    text, _ = objective.texts(update())
    noise = objective._video_noise(dmd._For.ROLLOUT, update(), text)
    with torch.no_grad():
        clean = list(SAMPLER.rollout(objective.student, noise.chunks(0, 3), text, noise.draw))
    objective.window(update(), text)
    assert torch.equal(seen[0][:, :-1], torch.cat(clean[1:], dim=1))


@pytest.mark.parametrize("noise_init", ["simulated", "renoised", "random"])
@pytest.mark.parametrize("on", ["latents", "keys"])
def test_context_noise_changes_what_is_remembered(on: Any, noise_init: str) -> None:
    samplers = [replace(SAMPLER, context_noise=t, context_noise_on=on) for t in (0.0, 50.0)]
    one, other = (
        made.window(update(), made.texts(update())[0])[0]
        for made in (matching(start=2, sampler=sampler, noise_init=noise_init) for sampler in samplers)
    )
    difference = (one - other).abs().mean()
    assert 1e-3 < difference < 1


def test_videos_may_take_the_place_of_rollouts() -> None:
    """The past fills the cache, the last frames are the window: as if the student had rolled them out."""
    which = update()
    objective = matching(start=3, noise_init="renoised")
    text, _ = objective.texts(which)
    noise = objective._video_noise(dmd._For.ROLLOUT, which, text)
    with torch.no_grad():
        chunks = list(SAMPLER.rollout(objective.student, noise.chunks(0, 5), text, noise.draw))
    expected, _ = objective.window(which, text)
    given = matching(
        noise_init="renoised", videos=lambda asked: (["b"] * len(asked.samples), torch.cat(chunks, dim=1))
    )
    assert torch.equal(given.texts(which)[0], encode(["b", "b"]))
    found, _ = given.window(which, text)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"method": "self-forcing", "frames": None, "noise_init": "renoised"}, "must not be 'renoised'"),
        ({"noise_init": "backward"}, "must be 'renoised', as 'backward' is called now"),
        ({"videos": lambda asked: ([], torch.zeros(0))}, "no denoising steps"),
        ({"frames": None}, "must be given"),
        ({"critic_updates": 0}, "greater than or equal to 1"),
        ({"critic_lr": 0.0}, "greater than 0"),
        ({"timesteps": (980, 20)}, "ascend"),
        ({"clamp": (20, 1001)}, "ascend"),
        ({"context_noise": 1000.0}, "context_noise"),
        ({"frames": 31}, "whole chunks"),
        ({"frames": 3}, "whole chunks"),
    ],
)
def test_configs_that_make_no_sense(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        matching(**wrong)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # the teacher's norms, on a CPU
def test_lower_precision_keeps_the_gradients() -> None:
    """Weights cast while gradients were off must not be found again when they are on."""
    objective = matching(start=1)
    trainer = Trainer(objective, Training(steps=1, batch=2, precision="bfloat16", clip=1e9), None)  # type: ignore[arg-type]
    trainer._accumulate(0, 0)
    lower = gradients(objective.student)
    trainer = Trainer(objective, Training(steps=1, batch=2, precision="float32"), None)  # type: ignore[arg-type]
    trainer._accumulate(0, 0)
    full = gradients(objective.student)
    assert lower.keys() == full.keys()
    for name in full:
        cosine = torch.cosine_similarity(lower[name].flatten(), full[name].flatten(), dim=0)
        assert cosine > 0.95, f"{name}: {cosine}"
