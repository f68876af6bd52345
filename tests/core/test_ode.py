"""The warm-up: trajectories whose course is known, and the regression loss written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tiny import CONFIG, SIZE, MaskedMemory, gaussian, loss_of, make_student, make_teacher, prompts
from torch import Tensor

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import seeded
from sfpp_cli.core.ode import TrajectoryRegression, sampling_sigmas, student_step_indices, trajectory
from sfpp_cli.errors import UserError

STEPS = (1000, 750, 500, 250)
SCHEDULE = FlowSchedule(5)
SHAPE = (2, 7, 4, 4, 6)
TEXT, NEGATIVE = torch.full((2, 3, 5), 2.0), torch.full((2, 3, 5), -1.0)

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


def follow(
    velocity: Velocity, *, sampling_steps: int = 48, guidance: float = 1.0, steps: Sequence[int] = STEPS
) -> Tensor:
    """The trajectory of a teacher with this velocity of (x, sigma, mean of its text), float64."""

    def forward(x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        assert timestep.shape == (2,)
        return velocity(x, timestep[0] / 1000, text.mean())

    teacher = make_teacher()
    teacher.forward = forward  # type: ignore[method-assign]
    path = trajectory(
        teacher,
        gaussian(*SHAPE, dtype=torch.float64),
        TEXT,
        NEGATIVE,
        schedule=SCHEDULE,
        steps=steps,
        sampling_steps=sampling_steps,
        guidance=guidance,
    )
    assert path.shape == (2, len(steps) + 1, *SHAPE[1:])
    assert torch.equal(path[:, 0], gaussian(*SHAPE, dtype=torch.float64))
    return path


def test_the_samplers_grid_holds_the_students_steps() -> None:
    assert student_step_indices(SCHEDULE, STEPS, 48) == [0, 12, 24, 36]
    assert student_step_indices(SCHEDULE, STEPS, 4) == [0, 1, 2, 3]
    assert student_step_indices(SCHEDULE, (1000, 500), 10) == [0, 5]
    sigmas = sampling_sigmas(SCHEDULE, 48)
    assert sigmas.shape == (49,)
    assert sigmas[[0, 12, 24, 36, 48]].tolist() == pytest.approx([1, 0.9375, 5 / 6, 0.625, 0], abs=1e-12)


@pytest.mark.parametrize(("sampling_steps", "good"), [(50, 48), (47, 48), (30, 32), (1, 4)])
def test_a_grid_that_misses_the_students_steps_is_refused(sampling_steps: int, good: int) -> None:
    with pytest.raises(UserError, match=rf"{sampling_steps} sampling steps miss .* to {good}$"):
        student_step_indices(SCHEDULE, STEPS, sampling_steps)
    assert len(set(student_step_indices(SCHEDULE, STEPS, good))) == 4


@pytest.mark.parametrize("steps", [(250, 500, 750, 1000), (1000, 1000, 500), (1000, 500, 0)])
def test_steps_must_descend(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="descend"):
        student_step_indices(SCHEDULE, steps, 48)


def test_a_straight_flow_ends_in_its_data() -> None:
    """All data in one point: v = (x - point) / sigma.

    Euler walks x_t = (1 - sigma) point + sigma noise without an error.
    """
    point = gaussian(*SHAPE, seed=9, dtype=torch.float64)
    path = follow(lambda x, sigma, text: (x - point) / sigma)
    torch.testing.assert_close(path[:, -1], point, atol=1e-6, rtol=0)  # timesteps are float32: 1e-8 measured
    for kept, timestep in enumerate(SCHEDULE.warp(STEPS)):
        expected = SCHEDULE.add_noise(point, path[:, 0], timestep)
        torch.testing.assert_close(
            path[:, kept], expected, atol=1e-5, rtol=0
        )  # the schedule's sigmas are float32


def test_a_linear_flow_follows_the_analytic_solution() -> None:
    """dx / dsigma = a x + c: Euler's own product to rounding, the exponential to first order in the step."""
    a, c = 0.8, 0.3
    errors = []
    for sampling_steps in (48, 480):
        path = follow(lambda x, sigma, text: a * x + c, sampling_steps=sampling_steps)
        noise, end = path[:, 0], path[:, -1]
        euler = math.prod(1 + a * step for step in sampling_sigmas(SCHEDULE, sampling_steps).diff().tolist())
        torch.testing.assert_close(end, (noise + c / a) * euler - c / a, atol=1e-12, rtol=0)
        exact = (noise + c / a) * math.exp(-a) - c / a
        errors.append((end - exact).abs().max().item())
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


@pytest.mark.parametrize("guidance", [0.0, 3.0, 7.5])
def test_guidance_is_in_the_usual_convention(guidance: float) -> None:
    path = follow(lambda x, sigma, text: torch.ones_like(x) * text, guidance=guidance)
    velocity = -1 + guidance * (2 - -1)
    sigma = torch.cat([SCHEDULE.sigma(SCHEDULE.warp(STEPS)), torch.zeros(1)]).double()
    expected = path[:, :1] - (1 - sigma).view(-1, 1, 1, 1, 1) * velocity
    torch.testing.assert_close(path, expected, atol=1e-5, rtol=0)  # sigmas to 6e-8, velocities to 22


def test_without_guidance_the_negative_prompt_is_not_asked() -> None:
    asked = []

    def velocity(x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        asked.append(text.item())
        return x

    follow(velocity, sampling_steps=4)
    assert asked == [2.0] * 4
    asked.clear()
    follow(velocity, sampling_steps=4, guidance=2.0)
    assert sorted(asked) == [-1.0] * 4 + [2.0] * 4


def test_the_teacher_is_told_exact_timesteps_whatever_the_latents_are() -> None:
    told = []
    teacher = make_teacher()

    def forward(x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        told.append(timestep)
        return x

    teacher.forward = forward  # type: ignore[method-assign]
    trajectory(
        teacher,
        gaussian(*SHAPE).bfloat16(),
        TEXT,
        NEGATIVE,
        schedule=SCHEDULE,
        steps=STEPS,
        sampling_steps=4,
        guidance=1.0,
    )
    assert all(timestep.dtype == torch.float32 for timestep in told)
    assert [timestep[0].item() for timestep in told] == pytest.approx([1000, 937.5, 2500 / 3, 625], abs=1e-4)


class Store:
    """Eight trajectories of 7 latent frames."""

    paths = gaussian(8, 5, 7, CONFIG["in_channels"], *SIZE)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        index = int(torch.randint(8, (), generator=generator))
        return self.paths[index], f"prompt {index}"


def encode_text(texts: list[str]) -> Tensor:
    return torch.cat([prompts(1, seed=int(text.split()[-1])) for text in texts])


@pytest.fixture(scope="module", params=[0, 1], ids=lambda sink: f"sink {sink}")
def regression(request: pytest.FixtureRequest) -> TrajectoryRegression:
    settings: dict[str, Any] = {"schedule": SCHEDULE, "steps": STEPS, "chunk": 3, "context": 5, "seed": 11}
    settings["sink"] = request.param
    return TrajectoryRegression(make_student(), encode_text, Store(), **settings)


@torch.no_grad()
def by_hand(regression: TrajectoryRegression, number: int) -> float:
    """The loss of one sample.

    Every chunk at its own student step, x0 = x_t - sigma flow, against the trajectory's end.
    """
    student = regression.student
    generator = seeded(11, number)
    path, prompt = Store().draw(generator)
    choice = torch.randint(4, (3,), generator=generator).tolist()
    by_frame = [choice[frame // 3] for frame in range(7)]
    x_t = torch.stack([path[step, frame] for frame, step in enumerate(by_frame)])[None]
    timestep = torch.tensor([[[1000.0, 937.5, 2500 / 3, 625.0][step] for step in by_frame]])
    text = student.embed_text(encode_text([prompt]))
    memory = MaskedMemory(text, tokens=student.tokens(SIZE), chunk=3, context=5, sink=regression.sink)
    x0 = x_t - timestep.view(1, 7, 1, 1, 1) / 1000 * student(x_t, timestep, memory)
    return (x0 - path[-1]).square().mean().item()


@torch.no_grad()
def test_the_loss_is_that_of_the_equation(regression: TrajectoryRegression) -> None:
    numbers = [0, 1, 2, 5, 1000]
    expected = [by_hand(regression, number) for number in numbers]
    for number, wanted in zip(numbers, expected, strict=True):
        assert loss_of(regression, [number])[0].item() == pytest.approx(wanted, rel=1e-5)  # 170 roundings
    assert loss_of(regression, numbers)[0].item() == pytest.approx(sum(expected) / 5, rel=1e-5)
    assert len({round(value, 6) for value in expected}) == 5


@torch.no_grad()
def test_the_loss_is_a_function_of_the_sample_numbers(regression: TrajectoryRegression) -> None:
    torch.manual_seed(0)
    first, figures = loss_of(regression, [3, 8])
    torch.manual_seed(1)
    again, _ = loss_of(regression, [3, 8])
    assert torch.equal(first, again)
    assert figures == {}
    assert loss_of(regression, [8, 3])[0].item() == pytest.approx(first.item(), rel=1e-5)


def test_every_chunk_draws_its_own_step(regression: TrajectoryRegression) -> None:
    drawn = torch.stack([regression._steps(7, seeded(number)) for number in range(400)])
    assert drawn.shape == (400, 7)
    chunks = drawn[:, [0, 3, 6]]
    assert torch.equal(drawn, chunks.repeat_interleave(3, 1)[:, :7])
    counts = torch.bincount((chunks[:, 0] * 16 + chunks[:, 1] * 4 + chunks[:, 2]), minlength=64)
    assert (counts > 0).sum() > 55, "the chunks' steps are not independent"


def test_every_weight_learns(regression: TrajectoryRegression) -> None:
    loss_of(regression, [0, 1])[0].backward()
    silent = [
        name for name, p in regression.student.named_parameters() if p.grad is None or not p.grad.abs().max()
    ]
    regression.student.zero_grad(set_to_none=True)
    assert silent == []
