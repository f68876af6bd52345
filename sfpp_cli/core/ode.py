"""ODE warm-up: a causal student learns to jump from points of the teacher's trajectories to their ends.

arXiv 2510.02283, section 3.1 and equation 4; the idea is CausVid's (arXiv 2412.07772).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.core.constants import TRAIN_STEPS
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import seeded
from sfpp_cli.core.objective import Loss, Player, Update
from sfpp_cli.core.student import CausalWanModel, SinkPositions
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.errors import UserError


def sampling_sigmas(schedule: FlowSchedule, sampling_steps: int) -> Tensor:
    """The teacher's grid: `sampling_steps` + 1 sigmas from 1 to 0, float64, shifted as the student's."""
    uniform = torch.linspace(1.0, 0.0, sampling_steps + 1, dtype=torch.float64)
    return schedule.shift * uniform / (1 + (schedule.shift - 1) * uniform)


def student_step_indices(schedule: FlowSchedule, steps: Sequence[int], sampling_steps: int) -> list[int]:
    """Where the student's steps lie on the teacher's grid of `sampling_steps`.

    UserError if the grid misses them, as the student would be trained at noise levels it never meets.
    """
    if list(steps) != sorted(set(steps), reverse=True) or steps[-1] < 1:
        raise ValueError(f"student steps must descend and end above 0, not {tuple(steps)}")
    timesteps = TRAIN_STEPS * sampling_sigmas(schedule, sampling_steps)
    distance = (timesteps[None] - schedule.warp(steps).double()[:, None]).abs()
    if distance.min(1).values.max() > 1e-2:
        fitting = TRAIN_STEPS // math.gcd(TRAIN_STEPS, *steps)
        nearest = max(1, round(sampling_steps / fitting)) * fitting
        raise UserError(
            f"{sampling_steps} sampling steps miss the student's steps {tuple(steps)}: "
            f"set sampling_steps to {nearest}"
        )
    return distance.argmin(1).tolist()


@torch.no_grad()
def trajectory(
    teacher: Teacher,
    noise: Tensor,
    text: Tensor,
    negative: Tensor,
    *,
    schedule: FlowSchedule,
    steps: Sequence[int],
    sampling_steps: int,
    guidance: float,
) -> Tensor:
    """Euler from `noise` [B, F, C, H, W] down the teacher's guided flow: [B, len(steps) + 1, F, C, H, W].

    Kept are the latents at the student's steps and the clean end. `guidance` is `Teacher.guided`'s scale.
    """
    keep = student_step_indices(schedule, steps, sampling_steps)
    sigmas = sampling_sigmas(schedule, sampling_steps)
    x = noise
    kept = []
    for i in range(sampling_steps):
        if i in keep:
            kept.append(x)
        timestep = x.new_full(x.shape[:1], TRAIN_STEPS * sigmas[i].item(), dtype=torch.float32)
        flow = teacher.guided(x, timestep, text, negative, guidance)
        x = x + (sigmas[i + 1] - sigmas[i]).item() * flow
    return torch.stack([*kept, x], dim=1)


class Trajectories(Protocol):
    """Stored trajectories."""

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """A random trajectory [S + 1, F, C, H, W] and its prompt."""


class TrajectoryRegression:
    """L = E || G({x_t_i}, {t_i}) - {x0_i} ||^2, with a student step for every chunk i (equation 4)."""

    def __init__(
        self,
        student: CausalWanModel,
        encode_text: Callable[[list[str]], Tensor],
        trajectories: Trajectories,
        *,
        schedule: FlowSchedule,
        steps: Sequence[int],
        chunk: int,
        context: int,
        sink: int = 0,
        sink_positions: SinkPositions = "absolute",
        seed: int,
        save_extra: Callable[[Path], None] | None = None,
    ) -> None:
        self.student = student
        self.encode_text = encode_text
        self.trajectories = trajectories
        self.schedule = schedule
        self.timesteps = schedule.warp(steps)
        self.chunk = chunk
        self.context = context
        self.sink = sink
        self.sink_positions = sink_positions
        self.seed = seed
        self.players = (Player({"student": student}, self.loss, save_extra=save_extra),)

    def loss(self, update: Update) -> Loss:
        generators = [seeded(self.seed, number) for number in update.samples]
        paths, prompts = zip(*(self.trajectories.draw(generator) for generator in generators), strict=True)
        device = next(self.student.parameters()).device
        path = torch.stack(paths).to(device)
        step = torch.stack([self._steps(path.shape[2], generator) for generator in generators]).to(device)
        x_t = path.gather(1, step[:, None, :, None, None, None].expand(-1, 1, -1, *path.shape[3:])).squeeze(1)
        timestep = self.timesteps.to(device)[step]
        memory = self.student.block_causal(
            self.encode_text(list(prompts)).to(device),
            (path.shape[-2], path.shape[-1]),
            chunk=self.chunk,
            context=self.context,
            sink=self.sink,
            sink_positions=self.sink_positions,
        )
        x0 = self.schedule.x0_from_flow(self.student(x_t, timestep, memory), x_t, timestep)
        return F.mse_loss(x0, path[:, -1]), {}

    def _steps(self, frames: int, generator: torch.Generator) -> Tensor:
        """A student step for every chunk, repeated over its frames: indices [F]."""
        chunks = -(-frames // self.chunk)
        return torch.randint(len(self.timesteps), (chunks,), generator=generator).repeat_interleave(
            self.chunk
        )[:frames]
