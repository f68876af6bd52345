"""ODE pairs: the teacher's trajectories, made by any number of ranks and continued where they were interrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import normal, seeded
from sfpp_cli.core.ode import student_step_indices, trajectory
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.data.trajectories import missing_shards, write_index, write_shard
from sfpp_cli.models.bundle import Bundle, weights_digest
from sfpp_cli.progress import Watch
from sfpp_cli.training.recipes import StudentRecipe


def make_pairs(
    bundle: Bundle,
    recipe: StudentRecipe,
    prompts: list[str],
    text: Callable[[list[str]], Tensor],
    watch: Watch,
    device: torch.device,
) -> None:
    """Generate the missing shards of the teacher's trajectories; ranks share them out, none twice."""
    pairs, settings, ranks = recipe.pairs, bundle.settings, Ranks.from_environment()
    folder = Path(pairs.folder)
    student_step_indices(FlowSchedule(settings.shift), settings.steps, pairs.sampling_steps)
    teacher = bundle.load_teacher(device, torch.float32)
    shape = (
        bundle.teacher_horizon,
        teacher.config.in_channels,
        *bundle.compression.latent_size(settings.width, settings.height),
    )
    origin = {
        "teacher": weights_digest(bundle.teacher, bundle.folder / "text_encoder"),
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16],
        "steps": settings.steps,
        "shift": settings.shift,
        "guidance": pairs.guidance,
        "negative_prompt": pairs.negative_prompt,
        "sampling_steps": pairs.sampling_steps,
        "batch": pairs.batch,
        "seed": recipe.seed,
        "shape": shape,
    }
    sizes = [min(pairs.batch, pairs.count - first) for first in range(0, pairs.count, pairs.batch)]
    missing = missing_shards(folder, sizes, origin)
    if ranks.first:
        watch.say(f"{pairs.count} trajectories in {folder}: {len(missing)} of {len(sizes)} shards to do")
    mine = [shard for shard in missing if shard % ranks.world == ranks.rank]
    with watch.stage("trajectories", len(mine)) as advance:
        for done, shard in enumerate(mine, start=1):
            numbers = range(shard * pairs.batch, shard * pairs.batch + sizes[shard])
            chosen = [prompts[number % len(prompts)] for number in numbers]
            with recipe.training.autocast(device):
                path = trajectory(
                    teacher,
                    torch.stack([normal(shape, seeded(recipe.seed, number)) for number in numbers]).to(
                        device
                    ),
                    text(chosen).to(device),
                    text([pairs.negative_prompt] * len(chosen)).to(device),
                    schedule=FlowSchedule(settings.shift),
                    steps=settings.steps,
                    sampling_steps=pairs.sampling_steps,
                    guidance=pairs.guidance,
                )
            write_shard(folder, shard, path.cpu(), chosen, origin)
            advance(done, {})
    ranks.join(device)
    ranks.wait()
    if ranks.first:
        write_index(folder, len(sizes), origin)
    ranks.wait()
