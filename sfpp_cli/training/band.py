"""What motion is right: measured on the teacher's own clips, for the reward of GRPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import torch
from torch import Tensor

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import normal, seeded
from sfpp_cli.core.ode import trajectory
from sfpp_cli.evaluation.networks.raft import PUBLISHED, load_raft
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.training.context import RunContext
from sfpp_cli.training.objectives import frames_of
from sfpp_cli.training.recipes import GRPORecipe
from sfpp_cli.training.rewards import flow_band, measure_motion


@torch.no_grad()
def measure_band(
    recipe: GRPORecipe,
    bundle: Bundle,
    prompts: Sequence[str],
    text: Callable[[list[str]], Tensor],
    run: RunContext,
) -> dict[str, float]:
    """`target`, `width` and `spikes` of a recipe, from a clip of the teacher for each prompt."""
    settings = bundle.settings
    teacher = bundle.load_teacher(run.device, recipe.training.dtype(run.device))
    decode = frames_of(bundle, run.device)
    raft = load_raft(PUBLISHED, run.device) if recipe.reward.estimator == "raft" else None
    shape = (bundle.teacher_horizon, teacher.config.in_channels, *bundle.latent_size)
    cv2.setNumThreads(1)  # DIS flow differs slightly with more
    motions = []
    with run.progress.stage("clips", len(prompts)) as advance:
        for number, prompt in enumerate(prompts):
            with recipe.training.autocast(run.device):
                clip = trajectory(
                    teacher,
                    normal((1, *shape), seeded(recipe.seed, number)).to(run.device),
                    text([prompt]).to(run.device),
                    text([""]).to(run.device),
                    schedule=FlowSchedule(settings.shift),
                    steps=settings.steps,
                    sampling_steps=recipe.reward.sampling_steps,
                    guidance=recipe.reward.guidance,
                )[:, -1]
                frames = torch.cat(list(decode(clip.split(settings.chunk, dim=1))), dim=1)
            motions.append(measure_motion(frames[0].numpy(), settings.fps, raft))
            advance(number + 1, {})
    return {name: float(f"{value:.3g}") for name, value in flow_band(motions).items()}
