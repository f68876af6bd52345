"""Rewards of frames that were drawn: their motion is known, so are fades and spikes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfpp_cli.errors import UserError
from sfpp_cli.training.reward_config import RewardConfig
from sfpp_cli.training.rewards import (
    Motion,
    Rewards,
    exposure_reward,
    flow_band,
    flow_reward,
    measure_motion,
    measure_window,
)
from sfpp_cli.video import Frames

FPS = 16
SIZE = 64
DIAGONAL = SIZE * 2**0.5
CONFIG = RewardConfig(target=2 / DIAGONAL, width=0.5, spikes=1e-4)


def panned(pace: float, count: int = 24, jump: int = 0, light: float = 1.0) -> Frames:
    """Smooth clouds that pass at `pace` pixels a frame, once with a jump of `jump` pixels."""
    where = np.arange(count) * pace + np.where(np.arange(count) > count // 2, jump, 0)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    frames = []
    for x in where:
        value = np.sin((columns + x) / 5) + np.sin(rows / 7 + (columns + x) / 11)
        frames.append(np.clip((value * 50 + 128) * light, 0, 255))
    return np.repeat(np.array(frames, np.uint8)[..., None], 3, axis=3)


def test_motion_is_pixels_over_the_diagonal() -> None:
    for pace in (1.0, 2.0, 3.0):
        assert measure_motion(panned(pace), FPS).pace == pytest.approx(pace / DIAGONAL, rel=0.25)
    still = measure_motion(panned(0), FPS)
    assert still == Motion(0, 0)
    assert measure_motion(panned(2, jump=9), FPS).variance > 10 * measure_motion(panned(2), FPS).variance


def test_the_flow_reward_is_a_band_with_a_price_on_spikes() -> None:
    target = CONFIG.target
    assert flow_reward(Motion(target, 0), CONFIG) == 1
    half = flow_reward(Motion(target * 2**0.5, 0), CONFIG)
    assert half == pytest.approx(np.exp(-0.5))
    assert flow_reward(Motion(target / 2**0.5, 0), CONFIG) == pytest.approx(half)
    assert flow_reward(Motion(target, 1e-4), CONFIG) == pytest.approx(np.exp(-1))
    assert flow_reward(Motion(0, 0), CONFIG) == 0


def test_a_fade_costs_the_exposure_reward() -> None:
    base = 0.5
    assert exposure_reward(np.full(8, base), base) == 1
    assert exposure_reward(np.full(8, 0.6), base) == pytest.approx(0.5), "a fifth of the way to white"
    assert exposure_reward(np.full(8, 0.25), base) == 0, "half of the way to black"


def test_a_window_that_moves_as_it_should_is_worth_most() -> None:
    right = panned(2)
    windows = {
        "right": right,
        "still": panned(0),
        "fast": panned(7),
        "faded": panned(2, light=0.5),
        "jumps": panned(2, jump=12),
    }
    found = {name: measure_window(frames, right, CONFIG, FPS) for name, frames in windows.items()}
    rewards = {name: row["reward"] for name, row in found.items()}
    assert max(rewards, key=lambda name: rewards[name]) == "right"
    assert rewards["right"] == pytest.approx(found["right"]["flow"] + 0.5 * found["right"]["exposure"])
    assert [name for name, row in found.items() if row["still"]] == ["still"]
    assert [name for name, row in found.items() if row["over_moving"]] == ["fast"]


def redness(frames: Frames) -> float:
    return float(frames[..., 0].mean())


def test_workers_say_what_this_process_says() -> None:
    frames = torch.from_numpy(np.stack([panned(1), panned(3)]))
    here = Rewards(CONFIG, FPS, torch.device("cpu"))(frames, frames)
    there = Rewards(
        RewardConfig(target=CONFIG.target, width=0.5, spikes=1e-4, workers=1), FPS, torch.device("cpu")
    )
    assert there(frames, frames) == here
    there.pool.shutdown()  # type: ignore[union-attr]


def test_a_reward_of_ones_own() -> None:
    config = RewardConfig(
        target=0.1, width=1, spikes=1, flow=0, exposure=0, own={"test_rewards:redness": 2.0}
    )
    frames = panned(1)
    found = measure_window(frames, frames, config, FPS)
    assert found["redness"] == redness(frames)
    assert found["reward"] == 2 * redness(frames)
    for name in ("no_such_module:f", "test_rewards:no_such_function", "test_rewards:FPS"):
        with pytest.raises(UserError, match=r"reward\.own: .*"):
            Rewards(RewardConfig(target=1, width=1, spikes=1, own={name: 1.0}), FPS, torch.device("cpu"))
    with pytest.raises(ValueError, match="must name functions as 'module:function'"):
        RewardConfig(target=1, width=1, spikes=1, own={"redness": 1.0})


def test_the_band_is_the_clips_own() -> None:
    paces = 0.01 * 2 ** np.linspace(-1, 1, 101)
    band = flow_band([Motion(pace, 3e-6) for pace in paces])
    assert band["target"] == pytest.approx(0.01)
    assert band["width"] == pytest.approx(0.68, abs=0.01), "68 of 100 lie within"
    assert band["spikes"] == pytest.approx(6e-6)
