"""What an update of GRPO costs against the rollout's length N and the group's size G, on the embedded model.

    python examples/benchmarks/grpo_cost.py

One thread, videos one after the other, windows of 21 latent frames in the middle of the rollout. Times are
the processor's, so other work on the machine does not count. Every case has a process of its own, whose peak
is the memory given.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.core.grpo import GRPO
from sfpp_cli.core.grpo_config import GRPOConfig
from sfpp_cli.core.objective import Update
from sfpp_cli.devices import peak_megabytes
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.training.objectives import frames_of
from sfpp_cli.training.reward_config import RewardConfig
from sfpp_cli.training.rewards import Rewards

CPU = torch.device("cpu")
CASES = ((21, 2), (63, 2), (126, 2), (252, 2), (21, 4), (21, 8))
"""N and G."""


def main() -> None:
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for line in processes.map(measure, *zip(*CASES, strict=True)):
            print(line, flush=True)


def measure(frames: int, group: int) -> str:
    """One update's cost, as a line."""
    torch.set_num_threads(1)
    bundle = Bundle(DEFAULT_MODEL)
    student = bundle.load_student(CPU, torch.float32).train().requires_grad_(True)
    with torch.no_grad():
        text = bundle.load_text(CPU, torch.float32)([bundle.settings.prompt]).float()
    score = Rewards(RewardConfig(target=0.0148, width=0.209, spikes=7.69e-6), bundle.settings.fps, CPU)
    objective = GRPO(
        student,
        lambda prompts: text.repeat(len(prompts), 1, 1),
        [bundle.settings.prompt],
        decode=frames_of(bundle, CPU),
        score=score,
        sampler=bundle.settings.sampler(),
        horizon=bundle.teacher_horizon,
        latent=(student.config.in_channels, *bundle.latent_size),
        config=GRPOConfig(frames=frames, group=group),
        seed=0,
    )
    start = (objective.starts - 1) // 2
    objective.span = lambda step: (start, start + objective.length)
    parts = [Update(0, 0, 0, (sample,)) for sample in range(group)]
    began = time.process_time()
    objective.prepare(parts)
    rolled = time.process_time()
    for part in parts:
        objective.loss(part)[0].backward()
    done = time.process_time()
    return (
        f"N {frames}, G {group}: rollouts and rewards {rolled - began:.2f} s, "
        f"replay and backward {done - rolled:.2f} s, peak {peak_megabytes(CPU):.0f} MB"
    )


if __name__ == "__main__":
    main()
