"""Adapters: what a layer answers, one network as critic and teacher, what is trained, kept and saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_dmd import HORIZON, LATENT, SAMPLER, encode, matching, update
from tiny import IDENTITY, SIZE, gradients, latents, make_student, make_teacher, prompts
from torch import Tensor, nn

from sfpp_cli.core.adapter import FLOAT8, Adapted, add_adapters, folded, learned, without_adapters
from sfpp_cli.core.dmd import DistributionMatching
from sfpp_cli.core.dmd_config import DMDConfig
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training
from sfpp_cli.models.bundle import Bundle

pytest_plugins = ["tiny_bundle"]

RANK = 3
T = torch.tensor([500.0])


def with_adapters(model: Any, **options: Any) -> Any:
    """Adapters that have learned something, in float64."""
    add_adapters(model.double(), RANK, seed=1, **options)
    draws = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.endswith(("lora_A", "lora_B")):
            parameter.data = torch.randn(parameter.shape, generator=draws, dtype=torch.float64) / 5
    return model


def plain(model: Teacher) -> Teacher:
    """A network of its own that answers as the one with adapters; all of it learns."""
    other = make_teacher()
    other.load_state_dict(folded(model.state_dict()))
    return other.double()


def flow(teacher: Teacher) -> Tensor:
    return teacher(latents(1, 6).double(), T, prompts(1).double())


def test_adapters_begin_by_changing_nothing() -> None:
    teacher = make_teacher()
    before = flow(teacher.double())
    add_adapters(teacher, RANK, seed=1)
    assert torch.equal(flow(teacher.double()), before)
    trained = {name for name, parameter in teacher.named_parameters() if parameter.requires_grad}
    assert trained == learned(teacher).keys()
    assert all(name.endswith(("lora_A", "lora_B")) for name in trained)
    assert len(trained) == 2 * 10 * len(teacher.blocks), "q, k, v and out, twice, and two of the feed-forward"


def test_a_folded_network_answers_as_the_one_with_adapters() -> None:
    teacher = with_adapters(make_teacher())
    unchanged = flow(make_teacher().double())
    assert (flow(teacher) - unchanged).abs().max() > 0.1
    # Folded weights are float32.
    torch.testing.assert_close(flow(plain(teacher)), flow(teacher), atol=1e-5, rtol=0)
    with without_adapters(teacher):
        assert torch.equal(flow(teacher), unchanged)


def test_eight_bits_are_what_is_folded_and_close_to_the_weight() -> None:
    weights = {name: p.double() for name, p in make_teacher().named_parameters()}
    teacher = with_adapters(make_teacher(), float8=True)
    stored = {name: p for name, p in teacher.named_parameters() if p.dtype == FLOAT8}
    assert stored.keys() == {name for name in weights if name.endswith("weight") and f"{name}_scale" in
                             dict(teacher.named_parameters())}  # fmt: skip
    assert len(stored) == 10 * len(teacher.blocks)
    for name, weight in stored.items():
        scale = dict(teacher.named_parameters())[f"{name}_scale"].double()
        largest = weights[name].abs().amax(1, keepdim=True)
        # Three bits after the first: half a step is a sixteenth; below 2^-6 of the scale steps are even.
        bound = torch.maximum(weights[name].abs() / 16, scale * 2.0**-10)
        assert ((weight.double() * scale - weights[name]).abs() <= bound).all()
        assert (largest <= 448 * scale).all()
    torch.testing.assert_close(flow(plain(teacher)), flow(teacher), atol=1e-5, rtol=0)


# One network as critic and teacher


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = VideoNoise.chunks
    monkeypatch.setattr(
        VideoNoise, "chunks", lambda noise, first, last: (x.double() for x in chunks(noise, first, last))
    )


def objective(student: CausalWanModel, critic: Teacher, teacher: Teacher) -> DistributionMatching:
    made = DistributionMatching(
        student,
        critic,
        teacher,
        lambda texts: encode(texts).double(),
        ["a", "b"],
        sampler=SAMPLER,
        horizon=HORIZON,
        latent=LATENT,
        config=DMDConfig(method="self-forcing++", frames=30, shared_rollout=True),
        seed=0,
    )
    made.draw_start = lambda draws: 4  # type: ignore[method-assign]
    for network in (student, critic):
        network.enable_gradient_checkpointing()
    return made


def learn(made: DistributionMatching) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the student and of the critic."""
    made.student_loss(update())[0].backward()
    student = gradients(made.student)
    assert not gradients(made.critic)
    made.critic_loss(update(player=1))[0].backward()
    return student, gradients(made.critic)


@pytest.mark.usefixtures("in_float64")
def test_gradients_are_those_of_separate_networks() -> None:
    shared = with_adapters(make_teacher())
    student = with_adapters(make_student())
    ours = learn(objective(student, shared, shared))
    separate = objective(student, copy.deepcopy(shared), make_teacher().double().requires_grad_(False))
    theirs = learn(separate)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.keys() == expected.keys()
        assert all(name.endswith(("lora_A", "lora_B")) for name in found)
        for name, gradient in found.items():
            assert gradient.norm() > 1e-4
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.usefixtures("in_float64")
def test_they_are_full_weights_gradients_seen_through_the_adapter() -> None:
    """dL/dB = G A^T and dL/dA = B^T G, with G the gradient at W + B A where all weights learn."""
    shared = with_adapters(make_teacher())
    _, ours = learn(objective(with_adapters(make_student()), shared, shared))
    own = plain(shared)
    with torch.no_grad():  # in float64, not as folded
        for name, layer in shared.named_modules():
            if isinstance(layer, Adapted):
                own.get_submodule(name).weight.copy_(layer.weight + layer.lora_B @ layer.lora_A)  # type: ignore[operator,union-attr]
    teacher = make_teacher().double().requires_grad_(False)
    _, theirs = learn(objective(with_adapters(make_student()), own, teacher))
    for name, layer in shared.named_modules():
        if isinstance(layer, Adapted):
            full = theirs[f"{name}.weight"]
            torch.testing.assert_close(ours[f"{name}.lora_B"], full @ layer.lora_A.T, atol=IDENTITY, rtol=0)
            torch.testing.assert_close(ours[f"{name}.lora_A"], layer.lora_B.T @ full, atol=IDENTITY, rtol=0)


# What is trained, kept and saved


def trainer(folder: Path, steps: int) -> Trainer:
    made: Any = matching(shared_rollout=True)
    add_adapters(made.student, RANK, seed=1)
    add_adapters(made.critic, RANK, seed=1, float8=True)
    made.teacher = made.critic
    training = Training(steps=steps, batch=2, lr=1e-2, ema_start=0, ema=0.5, save_every=2, keep=9)
    return Trainer(made, training, folder)


def test_ema_optimiser_and_state_hold_adapters_only(tmp_path: Path) -> None:
    ours = trainer(tmp_path, 2)
    ours.run()
    assert ours.ema is not None
    for part in (ours.ema["student"], *ours._state().tensors()["models"].values()):
        assert all(name.endswith(("lora_A", "lora_B")) for name in part)
    for optimizer in ours.optimizers:
        assert sum(p.numel() for p in optimizer.param_groups[0]["params"]) == sum(
            value.numel() for value in ours.ema["student"].values()
        ), "student and critic are alike"


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    trainer(tmp_path / "whole", 4).run()
    trainer(tmp_path / "parts", 2).run()
    resumed = trainer(tmp_path / "parts", 4)
    resumed.run()
    for name in ("student", "student-ema", "critic"):
        whole, parts = (_saved(tmp_path / run / "step-000004" / name) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_what_is_saved_answers_as_what_was_trained(tmp_path: Path) -> None:
    ours = trainer(tmp_path, 2)
    ours.run()
    student = ours.models["student"]
    saved = CausalWanModel.from_pretrained(tmp_path / "step-000002" / "student")
    assert not any(isinstance(layer, Adapted) for layer in saved.modules())
    assert all(parameter.dtype == torch.float32 for parameter in saved.parameters())

    def rolled(model: Any) -> Tensor:
        model = copy.deepcopy(model).double()
        noise = torch.cat(list(VideoNoise([1], (3, *LATENT)).chunks(0, 2)), dim=1)
        with torch.no_grad():
            memory = model.block_causal(prompts(1).double(), SIZE, chunk=3)
            return model(noise, T, memory)

    torch.testing.assert_close(rolled(saved), rolled(student), atol=1e-5, rtol=0)
    assert (rolled(saved) - rolled(make_student())).abs().max() > 1e-3
    assert not torch.equal(
        _saved(tmp_path / "step-000002" / "student-ema")["blocks.0.attn1.to_q.weight"],
        saved.state_dict()["blocks.0.attn1.to_q.weight"],
    )


def _saved(folder: Path) -> dict[str, Tensor]:
    kind = Teacher if folder.name == "critic" else CausalWanModel
    state: dict[str, Tensor] = kind.from_pretrained(folder).state_dict()
    return state


def test_a_bundles_student_is_as_it_was(tiny_bundle: Path) -> None:
    """Freezing and folding need no weight of the folder."""
    student = Bundle(str(tiny_bundle)).load_student(torch.device("cpu"), torch.float32)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    add_adapters(student, RANK, seed=1)
    assert all(torch.equal(folded(student.state_dict())[name], value) for name, value in before.items())
    assert all(isinstance(layer, nn.Linear) for layer in student.modules() if isinstance(layer, Adapted))
