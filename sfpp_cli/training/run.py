"""What `sfpp train` and `sfpp distill` do: a recipe is checked, planned, and trained into a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tomli_w
import torch
from torch import nn

from sfpp_cli.core import checkpoint
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.trainer import Trainer, Training
from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.devices import peak_megabytes, threads_for
from sfpp_cli.errors import Interrupted, UserError
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.layout import Layout
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.training import objectives
from sfpp_cli.training.check import check, planned_layout
from sfpp_cli.training.context import RunContext
from sfpp_cli.training.memory import plan
from sfpp_cli.training.networks import measure
from sfpp_cli.training.pairs import make_pairs
from sfpp_cli.training.recipes import (
    GRPORecipe,
    MatchingRecipe,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    read_recipe,
    write_recipe,
)


def overrides(
    pairs: Sequence[str] | None,
    steps: int | None = None,
    seed: int | None = None,
    preview_seconds: float | None = None,
) -> dict[str, str]:
    """`--set key=value` and the flags that stand for one, as dotted recipe keys."""
    changes = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write it as key=value, for example --set training.lr=1e-4")
        changes[key.strip()] = value.strip()
    flags = {"training.steps": steps, "seed": seed, "preview.seconds": preview_seconds}
    return changes | {key: str(value) for key, value in flags.items() if value is not None}


def train(path: Path, changes: dict[str, str], run: RunContext, *, dry_run: bool = False) -> str | None:
    """`sfpp train`: the objective that the recipe names. A dry run answers the plan and writes nothing."""
    kinds: list[type[MatchingRecipe | GRPORecipe]] = [MatchingRecipe, GRPORecipe]
    recipe = read_recipe(path, TeacherRecipe, *kinds, overrides=changes)
    if dry_run:
        return dry_plan(recipe, run)
    refuse_to_overwrite(run)
    if isinstance(recipe, TeacherRecipe):
        bundle = begin(recipe, Bundle(recipe.model), run)
        fit(objectives.flow_matching(recipe, bundle, run), recipe, run)
        return None
    bundle = begin(recipe, Bundle(recipe.model, recipe.student), run)
    prompts = [line.prompt for line in read_prompts(Path(recipe.prompts))]
    if isinstance(recipe, GRPORecipe):
        text = objectives.embed_prompts(bundle, prompts, recipe.text_store, run)
        fit(objectives.policy_optimisation(recipe, bundle, prompts, text, run), recipe, run)
        return None
    text = objectives.embed_prompts(bundle, [recipe.dmd.negative_prompt, *prompts], recipe.text_store, run)
    fit(objectives.distribution_matching(recipe, bundle, prompts, text, run), recipe, run)
    return None


def flow_band(path: Path, changes: dict[str, str], run: RunContext, clips: int) -> str:
    """`sfpp train --flow-band`: a GRPO recipe's lines of what motion is right, from clips of its teacher."""
    from sfpp_cli.training.band import measure_band  # OpenCV, which other objectives need not load

    recipe = read_recipe(path, GRPORecipe, overrides=changes)
    bundle = Bundle(recipe.model, recipe.student)
    check(recipe, bundle, run.ranks)
    prompts = [line.prompt for line in read_prompts(Path(recipe.prompts))][:clips]
    text = objectives.embed_prompts(bundle, ["", *prompts], recipe.text_store, run)
    return tomli_w.dumps(measure_band(recipe, bundle, prompts, text, run)).rstrip()


def distill(
    path: Path, changes: dict[str, str], run: RunContext, *, dry_run: bool = False, pairs_only: bool = False
) -> str | None:
    """`sfpp distill`: ODE trajectories, then a student by regression on them. A dry run answers the plan."""
    recipe = read_recipe(path, StudentRecipe, overrides=changes)
    if dry_run:
        return dry_plan(recipe, run)
    if not pairs_only:
        refuse_to_overwrite(run)
    bundle = begin(recipe, Bundle(recipe.model), run)
    pairs = recipe.pairs
    prompts = [line.prompt for line in read_prompts(Path(pairs.prompts))][: pairs.count]
    text = objectives.embed_prompts(bundle, [pairs.negative_prompt, *prompts], recipe.text_store, run)
    make_pairs(bundle, recipe, prompts, text, run)
    if not pairs_only:
        fit(objectives.trajectory_regression(recipe, bundle, prompts, text, run), recipe, run)
    return None


def dry_plan(recipe: Recipe, run: RunContext) -> str:
    """What a run would take. UserError if it would be refused."""
    quiet_libraries()
    layout, assumed = planned_layout(recipe)
    check(recipe, layout, run.ranks)
    return plan(recipe, layout, run.ranks, run.device, run.out, assumed)


def refuse_to_overwrite(run: RunContext) -> None:
    """UserError if the run folder holds checkpoints that the command does not continue."""
    if checkpoint.saved_steps(run.out) and not run.resume:
        raise UserError(f"{run.out} holds a run already: continue it with --resume, or choose another --out")


def begin(recipe: Recipe, bundle: Bundle, run: RunContext) -> Bundle:
    """The recipe's model, checked; the plan is said, and the ranks are joined."""
    check(recipe, bundle, run.ranks)
    run.progress.say(plan(recipe, bundle, run.ranks, run.device, run.out))
    threads = threads_for(operations(recipe, bundle, run.ranks))
    torch.set_num_threads(threads)
    run.progress.detail(f"CPU threads for an operation: {threads}")
    run.ranks.join(run.device)
    return bundle


def operations(recipe: Recipe, layout: Layout, ranks: Ranks) -> float:
    """Floating-point operations of a pass over a window of all samples that a rank takes at once."""
    training = recipe.training
    share = training.batch // ranks.world
    samples = min(training.micro_batch or share, share)
    network = measure(layout.teacher or layout.student, layout)
    return 2 * network.linear * samples * layout.teacher_horizon * network.shape.tokens


def fit(task: objectives.Task, recipe: Recipe, run: RunContext) -> None:
    """Train, and show progress. Interrupted by Ctrl-C, it says how to go on."""
    training = recipe.training
    if run.ranks.first:
        write_recipe(recipe, run.out / "recipe.toml")
    with run.progress.stage("training", training.steps) as advance:
        first_step: int | None = None

        def on_step(record: dict[str, float]) -> None:
            nonlocal first_step
            step = int(record["step"])
            if first_step is None:
                first_step = step
                run.progress.say(how_long(record["step_s"], training.steps - step))
            advance(step, {name: f"{value:.4g}" for name, value in record.items() if name != "step"})

        watch = partial(gauges, task=task, run=run)
        try:
            trainer = Trainer(task.objective, training, run.out, run.ranks, on_step, watch)
            prepare(task.networks, training)
            trainer.run()
        except KeyboardInterrupt:
            last = f"the last checkpoint in {run.out}"
            raise Interrupted(f"interrupted; the same command with --resume goes on from {last}") from None
    if run.ranks.first:
        from sfpp_cli.training.curves import plot_run  # matplotlib is slow to import

        done = checkpoint.path_of(run.out, training.steps)
        run.progress.say(f"done: {done}; curves in {plot_run(run.out)}")


def prepare(networks: Sequence[nn.Module], training: Training) -> None:
    """What a recipe asks of the networks themselves, once the trainer has copied and sharded them.

    A compiled block can neither be copied without its weights nor be sharded.
    """
    for network in networks:
        if training.gradient_checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        if training.compile:
            network.compile_blocks()  # type: ignore[operator]


def gauges(record: dict[str, float], *, task: objectives.Task, run: RunContext) -> dict[str, float]:
    """What is logged beside losses: peak memory, the student's loss over the critic's, a preview's gauges."""
    seen = {"peak_mb": round(peak_megabytes(run.device), 1)}
    if "critic_loss" in record:
        seen["ratio"] = record["loss"] / record["critic_loss"]
    if task.preview is not None:
        seen |= task.preview(int(record["step"]))
    return seen


def how_long(seconds: float, steps: int) -> str:
    """A step's time, and what it makes of those that are left. Compilation makes the first one slower."""
    if not steps:
        return f"the only step took {duration(seconds)}"
    return f"the first step took {duration(seconds)}: about {duration(seconds * steps)} for the {steps} left"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: `4.2 s`, `3 min 20 s`, `5 h 7 min`, `2 d 3 h`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for large, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"
