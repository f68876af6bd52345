"""The noise schedule: the reference's tables and conversions, and the identities between x0, flow and x_t."""

from __future__ import annotations

import pytest
import torch
from golden_data import ATOL, SIGMA, TIMESTEP, load
from torch import Tensor

from sfpp_cli.core.flow import FlowSchedule

STEPS = [1000, 750, 500, 250]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load("scheduler")[1]


@pytest.fixture(params=[5, 8])
def shift(request: pytest.FixtureRequest) -> int:
    shift: int = request.param
    return shift


def test_tables_are_the_references(golden: dict[str, Tensor], shift: int) -> None:
    schedule = FlowSchedule(shift)
    torch.testing.assert_close(schedule.sigmas, golden[f"output.sigmas_shift{shift}"], atol=SIGMA, rtol=0)
    torch.testing.assert_close(
        schedule.timesteps, golden[f"output.timesteps_shift{shift}"], atol=TIMESTEP, rtol=0
    )


def test_student_steps_are_the_references(golden: dict[str, Tensor], shift: int) -> None:
    schedule = FlowSchedule(shift)
    warped = schedule.warp(golden["input.denoising_step_list"])
    torch.testing.assert_close(warped, golden[f"output.warped_timesteps_shift{shift}"], atol=TIMESTEP, rtol=0)
    torch.testing.assert_close(
        schedule.sigma(warped), golden[f"output.warped_sigmas_shift{shift}"], atol=SIGMA, rtol=0
    )


def test_sigma_is_that_of_the_entry_the_reference_chose(golden: dict[str, Tensor], shift: int) -> None:
    schedule = FlowSchedule(shift)
    sigma = schedule.sigma(golden["input.timesteps"])
    assert torch.equal(sigma, schedule.sigmas[golden[f"output.timestep_id_shift{shift}"]])
    torch.testing.assert_close(sigma, golden[f"output.sigma_shift{shift}"], atol=SIGMA, rtol=0)
    off_the_grid = sigma - golden["input.timesteps"] / 1000
    assert off_the_grid.abs().max() > 1e-3, (
        "the golden timesteps would not tell the nearest entry from t / 1000"
    )


def test_conversions_are_the_references(golden: dict[str, Tensor], shift: int) -> None:
    schedule = FlowSchedule(shift)
    x, timesteps = golden["input.x"], golden["input.timesteps"]
    noisy = schedule.add_noise(x, golden["input.noise"], timesteps)
    torch.testing.assert_close(noisy, golden[f"output.add_noise_shift{shift}"], atol=ATOL, rtol=0)
    x0 = schedule.x0_from_flow(golden["input.flow_pred"], x, timesteps)
    torch.testing.assert_close(x0, golden[f"output.x0_from_flow_shift{shift}"], atol=ATOL, rtol=0)
    flow = schedule.flow_from_x0(x0, x, timesteps)
    torch.testing.assert_close(flow, golden[f"output.flow_from_x0_shift{shift}"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("shift", [0.3, 1, 5, 8])
def test_sigmas_follow_the_formula(shift: float) -> None:
    schedule = FlowSchedule(shift)
    uniform = 1 - torch.arange(1000, dtype=torch.float64) / 1000
    sigma = shift * uniform / (1 + (shift - 1) * uniform)
    torch.testing.assert_close(schedule.sigmas.double(), sigma, atol=SIGMA, rtol=0)
    assert (schedule.sigmas.diff() < 0).all()
    on_the_grid = schedule.shift_timesteps(1000 * uniform)
    torch.testing.assert_close(on_the_grid, 1000 * sigma, atol=1e-9, rtol=0)
    torch.testing.assert_close(schedule.timesteps, on_the_grid.float(), atol=TIMESTEP, rtol=0)
    torch.testing.assert_close(
        schedule.shift_timesteps(torch.tensor([0.0, 1000.0])), torch.tensor([0.0, 1000.0])
    )


def test_the_papers_steps() -> None:
    schedule = FlowSchedule(5)
    expected = torch.tensor([1000, 937.5, 2500 / 3, 625])
    torch.testing.assert_close(schedule.warp(STEPS), expected, atol=TIMESTEP, rtol=0)
    assert schedule.warp([1000, 0]).tolist() == [1000, 0]
    assert schedule.sigma(torch.tensor(0.0)).item() == pytest.approx(0.00498008, abs=SIGMA)
    assert schedule.sigma(torch.tensor(1000.0)).item() == 1


def test_timesteps_are_not_warped_twice() -> None:
    schedule = FlowSchedule(5)
    warped = schedule.warp(STEPS)
    assert torch.equal(schedule.warp(warped), warped)
    assert schedule.warp([1000.0, 750.0]).tolist() == [1000, 750]
    assert schedule.warp(warped.double()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"0\.\.1000"):
        schedule.warp([1000.5])


def test_on_a_tie_the_first_entry_wins() -> None:
    schedule = FlowSchedule(1)
    schedule.timesteps = torch.tensor([4.0, 2.0, 0.0])
    schedule.sigmas = torch.tensor([0.4, 0.2, 0.0])
    assert schedule.sigma(torch.tensor([3.0, 1.0])).tolist() == schedule.sigmas[:2].tolist()


def test_conversions_invert_each_other_in_float64(shift: int) -> None:
    schedule = FlowSchedule(shift)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 1000, 1, 3, dtype=torch.float64, generator=generator)
    x_t = schedule.add_noise(x0, noise, schedule.timesteps)
    assert x_t.dtype == torch.float64
    torch.testing.assert_close(
        schedule.x0_from_flow(noise - x0, x_t, schedule.timesteps), x0, atol=1e-13, rtol=0
    )
    torch.testing.assert_close(
        schedule.flow_from_x0(x0, x_t, schedule.timesteps), noise - x0, atol=1e-11, rtol=0
    )
    assert torch.equal(schedule.add_noise(x0, noise, torch.tensor(1000.0)), noise)


def test_conversions_of_low_precision_latents_are_done_in_float64(shift: int) -> None:
    schedule = FlowSchedule(shift)
    generator = torch.Generator().manual_seed(0)
    x_t, flow = torch.randn(2, 1000, 1, 3, generator=generator).bfloat16()
    exact = x_t.double() - schedule.sigmas[:, None, None].double() * flow.double()
    assert torch.equal(schedule.x0_from_flow(flow, x_t, schedule.timesteps), exact.bfloat16())
    assert schedule.add_noise(x_t, flow, schedule.timesteps).dtype == torch.bfloat16


def test_timesteps_may_have_any_leading_shape(shift: int) -> None:
    schedule = FlowSchedule(shift)
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 2, 3, 1, 4, 5, generator=generator)
    conversions = (schedule.add_noise, schedule.x0_from_flow, schedule.flow_from_x0)
    for convert in conversions:
        scalar = convert(x, other, torch.tensor(833.0))
        assert torch.equal(scalar, convert(x, other, torch.full((2,), 833.0)))
        assert torch.equal(scalar, convert(x, other, torch.full((2, 3), 833.0)))
        mixed = torch.tensor([[1000.0, 625, 20], [937.5, 0, 333]])
        by_frame = [convert(x[b, f], other[b, f], mixed[b, f]) for b in range(2) for f in range(3)]
        assert torch.equal(convert(x, other, mixed).flatten(0, 1), torch.stack(by_frame))
    assert schedule.sigma(torch.tensor(833.0)).shape == ()
    assert schedule.sigma(torch.full((2, 3), 833.0)).shape == (2, 3)


@pytest.mark.parametrize("shift", [0, -1.0])
def test_a_shift_must_be_positive(shift: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        FlowSchedule(shift)


@pytest.mark.parametrize("steps", [[], [1001, 500], [1000, -1]])
def test_student_steps_must_lie_on_the_grid(steps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1000"):
        FlowSchedule(5).warp(steps)


def test_floating_point_steps_are_timesteps_already() -> None:
    timesteps = FlowSchedule(shift=5.0).warp([1000, 750, 500, 250])
    assert torch.equal(FlowSchedule(shift=5.0).warp(timesteps), timesteps)
