"""Compile what later stages will run, with random weights, beside other stages; and measure whether it pays.

Compiled kernels are kept on disk, so the stage itself finds them. If this is slow, hangs or fails, the stage
runs uncompiled.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from init_model import TEXT, TEXT_LENGTH, TRANSFORMER
from road import Job, write_json
from torch import Tensor, nn
from train_students import HERE
from train_teacher import SHIFT, flow_matching_loss

from sfpp_cli.core.dmd import DistributionMatching
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.training.recipes import MatchingRecipe, read_recipe

GAIN = 0.9
"""A compiled step must take at most this share of an uncompiled one's time."""


def warm_teacher(job: Job) -> None:
    """One file for all three phases; a phase that does not pay is left out of it."""
    height, width = (side // 8 for side in job.scale.size)
    schedule = FlowSchedule(SHIFT)
    even = torch.ones((), device=job.device)
    pays = []
    compiled = Teacher(**TRANSFORMER).to(job.device).train()
    plain = Teacher(**TRANSFORMER).to(job.device).train()
    compiled.compile_blocks()
    for frames, batch, _ in job.scale.curriculum[::-1]:
        x0 = torch.randn(batch, frames, TRANSFORMER["in_channels"], height, width, device=job.device)
        text = torch.randn(batch, TEXT_LENGTH, TEXT["d_model"], device=job.device)

        def step(teacher: Teacher, x0: Tensor = x0, text: Tensor = text) -> None:
            flow_matching_loss(teacher, lambda tokens: text, x0, even, text, schedule, job).backward()

        began = time.monotonic()
        step(compiled)
        settle(job)
        built = time.monotonic() - began
        slow, fast = (best_time(lambda model=model: step(model), job) for model in (plain, compiled))
        speeds = f"{1000 * slow:.1f} ms a step, compiled {1000 * fast:.1f} ms"
        job.say(f"warm: teacher of {frames} frames, {speeds} (built in {built:.0f} s)")
        if fast < GAIN * slow:
            pays.append(frames)
        write_json(job.work / "compile-teacher.json", {"frames": pays})


def warm_matching(job: Job) -> None:
    """Steps of Self-Forcing on random weights; those of Self-Forcing++ are made of the same passes."""
    seconds = {}
    for compiled in (True, False):
        changes = {"training.batch": str(job.scale.match_batch)}
        recipe = read_recipe(HERE / "self-forcing.toml", MatchingRecipe, overrides=changes)
        objective = random_objective(recipe, job)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(objective, recipe.training, Path(folder))
            if compiled:
                for network in (objective.student, objective.critic, objective.teacher):
                    network.compile_blocks()
            began = time.monotonic()
            trainer.update()
            settle(job)
            built = time.monotonic() - began
            seconds[compiled] = best_time(lambda trainer=trainer: trainer.update(), job, count=2)
        kind = "compiled" if compiled else "plain"
        job.say(f"warm: Self-Forcing, {kind} {seconds[compiled]:.2f} s a step (the first {built:.1f} s)")
    write_json(job.work / "compile-matching.json", {"faster": seconds[True] < GAIN * seconds[False]})


def random_objective(recipe: MatchingRecipe, job: Job) -> DistributionMatching:
    height, width = (side // 8 for side in job.scale.size)
    channels = TRANSFORMER["in_channels"]
    student = CausalWanModel(**TRANSFORMER).to(job.device).train()
    critic, teacher = (Teacher(**TRANSFORMER).to(job.device) for _ in range(2))
    nn.Module.requires_grad_(teacher, False)
    text = torch.randn(TEXT_LENGTH, TEXT["d_model"], device=job.device)
    sampler = Sampler(schedule=FlowSchedule(5.0), steps=(1000, 750, 500, 250), chunk=3, context=21)
    return DistributionMatching(
        student,
        critic.train(),
        teacher.eval(),
        lambda prompts: text.expand(len(prompts), -1, -1),
        ["any"],
        sampler=sampler,
        horizon=21,
        latent=(channels, height, width),
        config=recipe.dmd,
        seed=recipe.seed,
    )


def best_time(step: Callable[[], object], job: Job, count: int = 5) -> float:
    """Seconds of the fastest of a few: others use the device as well."""
    times = []
    for _ in itertools.repeat(None, count):
        settle(job)
        began = time.monotonic()
        step()
        settle(job)
        times.append(time.monotonic() - began)
    return min(times)


def settle(job: Job) -> None:
    if job.cuda:
        torch.cuda.synchronize()
