"""Rewards of decoded videos: motion inside the teacher's band without spikes, steady exposure, one's own.

Motion after arXiv 2510.02283, section 3.3: the magnitude of optical flow relative to the picture. Near zero
is stagnation, spikes are abrupt changes of scene; so the reward is a band, with a price on variance. A second
reward keeps the first from being earned by fading, which lowers flow everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from itertools import pairwise
from math import hypot
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.metrics.exposure import exposure, luma_of
from sfpp_cli.evaluation.metrics.motion import Curve, FlowMeter, fastest, windowed_variance
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.stability import drift_to_white_and_black
from sfpp_cli.evaluation.networks.raft import PUBLISHED, Raft, load_raft
from sfpp_cli.evaluation.parallel import single_threaded, worker_pool
from sfpp_cli.training.reward_config import RewardConfig
from sfpp_cli.video import Frames

PARAMETERS = Parameters()
FLOW_SHORT_SIDE = 256
"""Flow is taken at this size, at which VBench states its threshold and the bands of recipes were measured."""


class Motion(NamedTuple):
    """A clip's flow relative to its picture's diagonal."""

    pace: float
    """Mean over frames of the fastest 5 %."""
    variance: float
    """Mean variance of the mean flow in windows of 8 frames."""


class Rewards:
    """Rewards of windows of many videos at once."""

    def __init__(self, config: RewardConfig, fps: float, device: torch.device) -> None:
        """UserError if RAFT is wanted and absent, or a reward of one's own cannot be imported."""
        for name in config.own:
            own_reward(name)
        self.config = config
        self.fps = fps
        self.raft = load_raft(PUBLISHED, device) if config.estimator == "raft" else None
        self.pool: ProcessPoolExecutor | None = None
        if config.workers and self.raft is None:
            self.pool = worker_pool(config.workers)

    def __call__(self, frames: Tensor, beginning: Tensor) -> list[dict[str, float]]:
        """Of each video what `measure_window` says; frames uint8 [B, T, H, W, 3]."""
        pairs = list(zip(frames.numpy(), beginning.numpy(), strict=True))
        if self.pool is None:
            return [measure_window(*pair, self.config, self.fps, self.raft) for pair in pairs]
        with single_threaded():
            futures = [self.pool.submit(measure_window, *pair, self.config, self.fps) for pair in pairs]
        return [future.result() for future in futures]


def measure_window(
    frames: Frames, beginning: Frames, config: RewardConfig, fps: float, raft: Raft | None = None
) -> dict[str, float]:
    """The reward of a window [T, H, W, 3] of a video that began with `beginning`, and what it is made of.

    `still` and `over_moving` are 1 beyond twice the band's width. OpenCV runs on one thread, since DIS flow
    differs slightly with more.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        motion = measure_motion(frames, fps, raft)
        base = float(np.mean([luma_of(frame).mean() / 255 for frame in beginning]))
        seen = [exposure(frame, luma_of(frame)) for frame in frames]
    finally:
        cv2.setNumThreads(threads)
    luma = np.array([row["luma"] for row in seen])
    octaves = float(np.log2(max(motion.pace, 1e-12) / config.target))
    parts = {"flow": flow_reward(motion, config), "exposure": exposure_reward(luma, base)}
    reward = config.flow * parts["flow"] + config.exposure * parts["exposure"]
    for name, weight in config.own.items():
        short = name.partition(":")[2]
        parts[short] = float(own_reward(name)(frames))
        reward += weight * parts[short]
    return {
        "reward": reward,
        **parts,
        "motion": motion.pace,
        "flow_variance": motion.variance,
        "still": float(octaves < -2 * config.width),
        "over_moving": float(octaves > 2 * config.width),
        "luma": float(luma.mean()),
        "saturation": float(np.mean([row["saturation"] for row in seen])),
    }


def measure_motion(frames: Frames, fps: float, raft: Raft | None = None) -> Motion:
    """The motion of a clip [T, H, W, 3] by DIS, or by RAFT."""
    size = (frames.shape[2], frames.shape[1])
    if raft is None:
        meter = FlowMeter(size, fps, FLOW_SHORT_SIDE, PARAMETERS.clip_seconds)
        for frame in frames:
            meter.update(luma_of(frame))
        mean = np.array(meter.mean)
        top = np.array(meter.top)
    else:
        flows = [raft(before, after) for before, after in pairwise(frames)]
        mean = np.array([np.nan, *(np.hypot(flow[..., 0], flow[..., 1]).mean() for flow in flows)])
        top = np.array([np.nan, *(fastest(flow) for flow in flows)])
    diagonal = hypot(*size)
    variance = windowed_variance(mean / diagonal, PARAMETERS.flow_window)
    return Motion(float(np.mean(top[1:])) / diagonal, float(np.mean(variance[1:])))


def flow_reward(motion: Motion, config: RewardConfig) -> float:
    """exp(-(octaves from the target / width)^2 / 2) exp(-variance / spikes), 0..1; 0 for a still picture."""
    if motion.pace <= 0:
        return 0.0
    off = np.log2(motion.pace / config.target) / config.width
    return float(np.exp(-off * off / 2 - motion.variance / config.spikes))


def exposure_reward(luma: Curve, base: float) -> float:
    """1 at the beginning's mean luma, 0 from where `evaluate` calls a video over-exposed or darkened."""
    gone = np.maximum(*drift_to_white_and_black(luma, base)).mean()
    return float(1 - min(1.0, gone / PARAMETERS.exposure_way))


def own_reward(name: str) -> Callable[[Frames], float]:
    """The function that "module:function" names. UserError if there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"reward.own: {name} cannot be imported ({error}): name a function of a module on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(f"reward.own: {name} is not a function")
    reward: Callable[[Frames], float] = found
    return reward


def flow_band(motions: Sequence[Motion]) -> dict[str, float]:
    """Target, width and spikes of a recipe from clips: median pace, its spread in octaves, usual variance.

    A clip whose variance is twice the median is at e^-1, so the usual one keeps 0.61 of its reward.
    """
    pace = np.log2([max(motion.pace, 1e-12) for motion in motions])
    middle = float(np.median(pace))
    low, high = np.quantile(pace, [0.16, 0.84])
    return {
        "target": 2**middle,
        "width": max(float(high - low) / 2, 0.1),
        "spikes": 2 * float(np.median([motion.variance for motion in motions])),
    }
