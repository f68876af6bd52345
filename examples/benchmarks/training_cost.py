"""What does a Self-Forcing++ update cost as rollouts grow longer?

    python examples/benchmarks/training_cost.py --frames 21 63 126 252

For every horizon N a fresh process runs the student's update (rollout, window with gradient, loss, backward)
at window starts spread evenly over the rollout, and one of the critic's. A rollout stops behind its window,
so the mean update rolls out (N + K) / 2 latent frames; the table holds that against what was measured, in
units of one rolled-out chunk (denoise passes and context pass).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.core.dmd import DistributionMatching
from sfpp_cli.core.dmd_config import DMDConfig
from sfpp_cli.core.objective import Update
from sfpp_cli.core.training_config import Training
from sfpp_cli.devices import peak_megabytes, pick_device, synchronize
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.training.objectives import matching_objective
from sfpp_cli.training.recipes import MatchingRecipe


def main() -> None:
    options = parse()
    if options.one:
        print(json.dumps(measure(options)))
        return
    print(
        f"{'N':>6}{'chunks':>9}{'student s':>11}{'chunks worth':>14}{'critic s':>10}"
        f"{'ratio':>8}{'peak MB':>9}"
    )
    first = None
    for frames in options.frames:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", str(frames)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        first = first or row["student"]
        print(
            f"{frames:6}{row['chunks']:9.1f}{row['student']:11.2f}{row['student'] / row['chunk']:14.1f}"
            f"{row['critic']:10.2f}{row['student'] / first:8.2f}{row['peak_mb']:9.0f}"
        )


def measure(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    bundle = Bundle(options.model)
    horizon = bundle.teacher_horizon if options.horizon is None else options.horizon
    config = DMDConfig("self-forcing++", frames=options.one, horizon=horizon, guidance=3.0)
    recipe = MatchingRecipe("dmd", options.model, "", config, Training(1))
    prompts = [bundle.settings.prompt]
    text = EmbeddedPrompts(bundle.load_text(device, torch.float32), ["", *prompts])
    objective = matching_objective(recipe, bundle, prompts, text, device)
    for model in (objective.student, objective.critic):
        if options.checkpointing:
            model.enable_gradient_checkpointing()
    last = objective.starts - 1
    starts = sorted({round(last * i / (options.turns - 1)) for i in range(options.turns)})
    samples = tuple(range(options.batch))
    timed(objective, samples, 0, device)  # warm-up
    student = [timed(objective, samples, start, device) for start in starts]
    began = time.perf_counter()
    objective.critic_loss(Update(0, 1, 0, samples))[0].backward()
    synchronize(device)
    critic = time.perf_counter() - began
    return {
        "chunks": sum(starts) / len(starts) + objective.length,
        "student": sum(student) / len(student),
        "critic": critic,
        "chunk": chunk_seconds(objective, samples, device),
        "peak_mb": peak_megabytes(device),
    }


def timed(
    objective: DistributionMatching, samples: tuple[int, ...], start: int, device: torch.device
) -> float:
    """Seconds of one student's update with its window at chunk `start`."""
    objective.draw_start = lambda draws: start
    began = time.perf_counter()
    objective.student_loss(Update(0, 0, 0, samples))[0].backward()
    synchronize(device)
    return time.perf_counter() - began


@torch.no_grad()
def chunk_seconds(
    objective: DistributionMatching, samples: tuple[int, ...], device: torch.device, chunks: int = 10
) -> float:
    """Seconds of a rolled-out chunk once the context is full."""
    sampler = objective.sampler
    text, _ = objective.texts(Update(0, 0, 0, samples))
    warm = sampler.context // sampler.chunk
    noise = [torch.randn(len(samples), *objective.chunk_shape, device=device) for _ in range(warm + chunks)]
    rolled = sampler.rollout(objective.student, noise, text, lambda index, step, like: torch.zeros_like(like))
    for _ in range(warm):
        next(rolled)
    began = time.perf_counter()
    for _ in rolled:
        synchronize(device)
    return (time.perf_counter() - began) / chunks


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--frames", type=int, nargs="+", default=[21, 63, 126, 252], help="horizons N in latent frames"
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--horizon", type=int, help="K (default: the model's)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5, help="window starts, spread evenly")
    parser.add_argument("--checkpointing", action="store_true", help="forget activations")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
