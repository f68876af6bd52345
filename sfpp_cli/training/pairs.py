"""ODE pairs: the teacher's trajectories, made by any number of ranks and continued after an interruption."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import normal, seeded
from sfpp_cli.core.ode import trajectory
from sfpp_cli.data.trajectories import missing_shards, write_index, write_shard
from sfpp_cli.models.bundle import Bundle, weights_digest
from sfpp_cli.training.context import RunContext
from sfpp_cli.training.objectives import EncodeText
from sfpp_cli.training.recipes import StudentRecipe


def make_pairs(
    bundle: Bundle, recipe: StudentRecipe, prompts: list[str], text: EncodeText, run: RunContext
) -> None:
    """Generate the missing shards of the teacher's trajectories; ranks share them out, none is made twice."""
    pairs = recipe.pairs
    ranks = run.ranks
    folder = Path(pairs.folder)
    teacher = bundle.load_teacher(run.device, recipe.training.dtype(run.device))
    shape = (bundle.teacher_horizon, teacher.config.in_channels, *bundle.latent_size)
    origin = _origin(bundle, recipe, prompts, shape)
    sizes = [min(pairs.batch, pairs.count - first) for first in range(0, pairs.count, pairs.batch)]
    missing = missing_shards(folder, sizes, origin)
    if ranks.first:
        todo = f"{len(missing)} of {len(sizes)} shards to do"
        run.progress.say(f"{pairs.count} trajectories in {folder}: {todo}")
    mine = [shard for shard in missing if shard % ranks.world == ranks.rank]
    with run.progress.stage("trajectories", len(mine)) as advance:
        for done, shard in enumerate(mine, start=1):
            first = shard * pairs.batch
            numbers = range(first, first + sizes[shard])
            chosen = [prompts[number % len(prompts)] for number in numbers]
            noise = torch.stack([normal(shape, seeded(recipe.seed, number)) for number in numbers])
            with recipe.training.autocast(run.device):
                trajectories = trajectory(
                    teacher,
                    noise.to(run.device),
                    text(chosen).to(run.device),
                    text([pairs.negative_prompt] * len(chosen)).to(run.device),
                    schedule=FlowSchedule(bundle.settings.shift),
                    steps=bundle.settings.steps,
                    sampling_steps=pairs.sampling_steps,
                    guidance=pairs.guidance,
                )
            write_shard(folder, shard, trajectories.cpu(), chosen, origin)
            advance(done, {})
    ranks.wait()
    if ranks.first:
        write_index(folder, len(sizes), origin)
    ranks.wait()


def _origin(
    bundle: Bundle, recipe: StudentRecipe, prompts: list[str], shape: tuple[int, ...]
) -> dict[str, Any]:
    """All that decides the trajectories: pairs of another origin are never mixed in."""
    pairs = recipe.pairs
    settings = bundle.settings
    return {
        "teacher": weights_digest(bundle.require_teacher(), bundle.folder / "text_encoder"),
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
