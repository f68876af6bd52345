"""GRPO: equations against torch's own, ratios over a rolled cache, rewards that rise and fall."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONFIG, SIZE, gaussian, gradients, make_student, prompts
from torch import Tensor
from two_ranks import on_two_ranks

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.grpo import (
    GRPO,
    advantages,
    kl_divergence,
    log_prob,
    natural_sizes,
    score_loss,
    surrogate,
)
from sfpp_cli.core.grpo_config import GRPOConfig
from sfpp_cli.core.objective import Update
from sfpp_cli.core.parallel import ALONE, Ranks
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training
from sfpp_cli.errors import UserError

SAMPLER = Sampler(schedule=FlowSchedule(5.0), steps=(1000, 750, 500, 250), chunk=3, context=8, sink=1)
LATENT = (CONFIG["in_channels"], *SIZE)
HORIZON = 6
TEXT = dict(zip(["a", "b"], prompts(2), strict=True))


def encode(texts: list[str]) -> Tensor:
    return torch.stack([TEXT[text] for text in texts])


def look(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """A decoder that shows latents as they are: [B, F, H, W, C]."""
    return (chunk.movedim(2, -1) for chunk in chunks)


def brightness(frames: Tensor, beginning: Tensor) -> list[dict[str, float]]:
    return [{"reward": frame.mean().item()} for frame in frames]


def darkness(frames: Tensor, beginning: Tensor) -> list[dict[str, float]]:
    return [{"reward": -frame.mean().item()} for frame in frames]


def grpo(seed: int = 0, ranks: Ranks = ALONE, **changes: Any) -> GRPO:
    options: dict[str, Any] = {"decode": look, "score": brightness, "reference": make_student()}
    options |= {key: changes.pop(key) for key in list(changes) if key in options}
    return GRPO(
        make_student(),
        encode,
        ["a", "b"],
        sampler=SAMPLER,
        horizon=HORIZON,
        latent=LATENT,
        config=GRPOConfig(**{"frames": 21, "group": 4, **changes}),
        seed=seed,
        ranks=ranks,
        **options,
    )


def update(*samples: int, step: int = 0, repeat: int = 0) -> Update:
    return Update(step, 0, repeat, samples or (0, 1, 2, 3))


# --- the equations


def test_log_probability_is_the_normal_distributions() -> None:
    x0, x_next = (gaussian(3, 2, 4, 5, seed=seed, dtype=torch.float64) for seed in range(2))
    sigma = torch.tensor(0.8333, dtype=torch.float64)
    normal = torch.distributions.Normal((1 - sigma) * x0, sigma)
    expected = normal.log_prob(x_next).flatten(1).mean(1)
    torch.testing.assert_close(log_prob(x_next, x0, sigma), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(log_prob(x_next, x0, 0.8333), expected, atol=1e-14, rtol=0)


def test_the_score_is_the_policy_gradient() -> None:
    x0 = gaussian(3, 2, 4, seed=0, dtype=torch.float64).requires_grad_()
    x_next = gaussian(3, 2, 4, seed=1, dtype=torch.float64)
    advantage = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
    (expected,) = torch.autograd.grad(-(advantage * log_prob(x_next, x0, 0.625)).mean(), x0)
    (found,) = torch.autograd.grad(score_loss(x_next, x0, 0.625, advantage), x0)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    assert found[0].abs().min() > 0
    assert found[2].abs().max() == 0


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    x0, other = (gaussian(3, 2, 4, seed=seed, dtype=torch.float64) for seed in range(2))
    normal, reference = (torch.distributions.Normal((1 - 0.625) * mean, 0.625) for mean in (x0, other))
    expected = torch.distributions.kl_divergence(normal, reference).mean()
    assert kl_divergence(x0, other, 0.625).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # better and likelier than the clip allows: no further
        (0.5, 1.0, -0.5, -0.5),  # better but less likely: back
        (1.5, -1.0, 1.5, 1.5),  # worse and likelier: back
        (0.5, -1.0, 0.8, 0.0),  # worse and less likely than the clip allows: no further
        (1.0, 2.0, -2.0, -2.0),
    ],
)
def test_the_regions_of_the_clipped_surrogate(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    old = torch.tensor([-0.7], dtype=torch.float64)
    now = (old + math.log(ratio)).requires_grad_()
    loss = surrogate(now, old, torch.tensor([advantage], dtype=torch.float64), 0.2)
    (found,) = torch.autograd.grad(loss, now)
    assert loss.item() == pytest.approx(value, abs=1e-14)
    assert found.item() == pytest.approx(slope, abs=1e-14)


def test_advantages() -> None:
    rewards = gaussian(16, dtype=torch.float64)
    found = advantages(rewards)
    torch.testing.assert_close(found, (rewards - rewards.mean()) / rewards.std(), atol=1e-14, rtol=0)
    assert advantages(rewards * 5e-5).abs().max() == 0, "the group is left out"
    assert advantages(rewards[:1]).tolist() == [0]
    for size, largest in ((26, 25 / 26**0.5), (28, 5.0)):
        outlier = torch.zeros(size, dtype=torch.float64)
        outlier[3] = 1
        assert advantages(outlier).max().item() == pytest.approx(largest, abs=1e-12)


def test_natural_sizes_are_wans() -> None:
    sigmas = SAMPLER.schedule.sigma(SAMPLER.timesteps)
    torch.testing.assert_close(natural_sizes(sigmas), torch.tensor([0.0667, 0.1875, 0.5]), atol=1e-4, rtol=0)


# --- rollouts and their replay


@pytest.mark.parametrize("credit", ["window", "rollout"])
@pytest.mark.parametrize("initial_noise", ["own", "shared"])
def test_ratios_are_one_before_the_first_update_and_not_after(credit: str, initial_noise: str) -> None:
    """Seven chunks over a cache of 8 frames, 1 of them sink: it has rolled long before the end."""
    objective = grpo(credit=credit, initial_noise=initial_noise, surrogate="clipped", updates=2)
    objective.span = lambda step: (5, 7) if credit == "window" else (0, 7)  # type: ignore[method-assign]
    objective.prepare([update(0, 1), update(2, 3)])
    for part in ((0, 1), (2, 3)):
        _, metrics = objective.loss(update(*part))
        assert metrics["ratio_min"] == metrics["ratio_max"] == 1
    with torch.no_grad():
        objective.student.proj_out.weight.mul_(1.01)
    _, metrics = objective.loss(update(0, 1, repeat=1))
    assert metrics["ratio_min"] < 1
    with pytest.raises(UserError, match="are not those of its rollout"):
        objective.loss(update(0, 1))


def test_both_surrogates_have_one_gradient_before_the_first_update() -> None:
    found = []
    for kind in ("score", "clipped"):
        objective = grpo(surrogate=kind)
        objective.prepare([update()])
        objective.loss(update())[0].backward()
        found.append(gradients(objective.student))
    scale = max(gradient.abs().max().item() for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5 * scale, rtol=0)


def test_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        objective = grpo()
        if checkpointing:
            objective.student.enable_gradient_checkpointing()
        objective.prepare([update()])
        objective.loss(update())[0].backward()
        found.append(gradients(objective.student))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-8, rtol=1e-5)


def test_equal_weights_undo_natural_sizes() -> None:
    """The gradient in the network's flow: of the last layer's bias, transition by transition."""
    sizes = natural_sizes(SAMPLER.schedule.sigma(SAMPLER.timesteps).double())
    for step in range(3):
        found = []
        for weights in ("natural", "equal"):
            objective = grpo(step_weights=weights)
            objective.draw_transitions = lambda step, chosen=step: [chosen]  # type: ignore[misc]
            objective.prepare([update()])
            objective.loss(update())[0].backward()
            found.append(gradients(objective.student)["proj_out.bias"])
        torch.testing.assert_close(found[0].double() / sizes[step], found[1].double(), atol=1e-7, rtol=0)


def test_one_transition_is_drawn_a_step() -> None:
    objective = grpo(step_weights="one")
    drawn = [objective.draw_transitions(step) for step in range(60)]
    assert {len(steps) for steps in drawn} == {1}
    assert {step for steps in drawn for step in steps} == {0, 1, 2}


def test_videos_of_a_group_share_prompt_and_noise_as_asked() -> None:
    seen: list[Tensor] = []

    def score(frames: Tensor, beginning: Tensor) -> list[dict[str, float]]:
        seen.append(frames)
        return brightness(frames, beginning)

    for initial_noise in ("own", "shared"):
        objective = grpo(initial_noise=initial_noise, score=score)
        objective.prepare([update()])
        inputs = objective.kept[0, 1, 2, 3].inputs[0]
        assert torch.equal(inputs[0][0], inputs[0][3]) == (initial_noise == "shared")
        assert not torch.equal(inputs[1][0], inputs[1][3]), "what re-noises is each video's own"
        text = objective.kept[0, 1, 2, 3].text
        assert torch.equal(text[0], text[3])
        assert objective.draw_transitions(0) == [0, 1, 2]
    assert {frames.shape[1] for frames in seen} == {HORIZON}


def test_a_rollout_is_rewarded_window_by_window() -> None:
    """Seven chunks, two a window: the reward is the mean of four, decoded as one stream."""
    lengths: list[int] = []

    def score(frames: Tensor, beginning: Tensor) -> list[dict[str, float]]:
        lengths.append(frames.shape[1])
        return brightness(frames, beginning)

    objective = grpo(credit="rollout", score=score)
    objective.prepare([update()])
    assert lengths == [6, 6, 6, 3]


def test_divergence_from_the_start_grows_from_zero() -> None:
    objective = grpo(kl=0.5)
    objective.prepare([update()])
    plain, metrics = objective.loss(update())
    assert metrics["kl"] == 0
    with torch.no_grad():
        objective.student.proj_out.bias.add_(0.1)
    moved, metrics = objective.loss(update())
    assert metrics["kl"] > 0
    objective.loss(update())[0].backward()
    assert all(parameter.grad is None for parameter in objective.reference.parameters())  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="needs a reference"):
        grpo(kl=0.5, reference=None)
    assert moved != plain


def test_groups_without_spread_teach_nothing() -> None:
    objective = grpo(score=lambda frames, beginning: [{"reward": 1.0} for _ in frames])
    objective.prepare([update()])
    loss, metrics = objective.loss(update())
    loss.backward()
    assert metrics["groups_left_out"] == 1
    assert all(gradient.abs().max() == 0 for gradient in gradients(objective.student).values())


def test_shuffled_advantages_are_the_same_for_other_videos() -> None:
    right, wrong = grpo(), grpo(shuffle_advantages=True)
    kept = []
    for objective in (right, wrong):
        objective.prepare([update()])
        kept.append(objective.kept[0, 1, 2, 3].advantage)
    assert sorted(kept[0].tolist()) == sorted(kept[1].tolist())
    assert kept[0].tolist() != kept[1].tolist()


def test_score_has_one_update_a_rollout() -> None:
    with pytest.raises(ValueError, match="must be 1 for the surrogate 'score'"):
        GRPOConfig(frames=21, updates=2)


# --- learning


def learn(folder: Path, seed: int, ranks: Ranks = ALONE, steps: int = 2, **changes: Any) -> list[float]:
    rewards: list[float] = []
    changes = {"frames": 6, "group": 8, **changes}
    training = Training(
        steps=steps, batch=8, micro_batch=4, lr=3e-3, weight_decay=0.0, save_every=steps, ema_start=1
    )
    objective = grpo(seed, ranks, **changes)
    Trainer(objective, training, folder, ranks, on_step=lambda record: rewards.append(record["reward"])).run()
    return rewards


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_reward_rises_and_falls_with_its_sign(seed: int, tmp_path: Path) -> None:
    """Reward: mean brightness, one chunk or two. It begins at 0.5, of latents that spread by 1."""
    bright = learn(tmp_path / "bright", seed, steps=30)
    dark = learn(tmp_path / "dark", seed, steps=30, score=darkness)
    rise = sum(bright[-5:]) / 5 - sum(bright[:5]) / 5
    fall = sum(dark[-5:]) / 5 - sum(dark[:5]) / 5
    assert rise > 1
    assert fall > 1


def tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "student" / "diffusion_pytorch_model.safetensors")


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    options = {"surrogate": "clipped", "updates": 2, "kl": 0.1}
    learn(tmp_path / "whole", 0, steps=4, **options)
    learn(tmp_path / "parts", 0, steps=2, **options)
    learn(tmp_path / "parts", 0, steps=4, **options)
    whole, parts = (tensors(tmp_path / name / "step-000004") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def on_a_rank(ranks: Ranks, folder: Path) -> None:
    learn(folder / "two", 0, ranks)


def test_two_ranks_follow_one(tmp_path: Path) -> None:
    """Groups are spread over the ranks: even samples here, odd ones there."""
    learn(tmp_path / "one", 0)
    on_two_ranks(on_a_rank, tmp_path)
    one, two = (tensors(tmp_path / name / "step-000002") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=0)
