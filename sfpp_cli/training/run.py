"""What `sfpp train` and `sfpp distill` do: a recipe is checked, planned, and trained into a run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import tomli_w
import torch
from torch import nn

from sfpp_cli.core import checkpoint
from sfpp_cli.core.parallel import Ranks, is_restarted
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training
from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.devices import peak_megabytes, threads_for
from sfpp_cli.errors import Interrupted, UserError, is_out_of_memory, reason
from sfpp_cli.files import owned
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.layout import Layout
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.training import objectives
from sfpp_cli.training.check import check, planned_layout
from sfpp_cli.training.context import RunContext
from sfpp_cli.training.memory import plan, refuse_excess
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
    if "preview.seconds" in changes and not (isinstance(recipe, TeacherRecipe) or recipe.preview.every):
        raise UserError("this recipe makes no previews: say how often, as in --set preview.every=100")
    if dry_run:
        return dry_plan(recipe, run)
    with owning(run), explained(recipe, run):
        fit(task_of(recipe, run), recipe, run)
    return None


def task_of(recipe: TeacherRecipe | MatchingRecipe | GRPORecipe, run: RunContext) -> objectives.Task:
    """What `sfpp train` trains."""
    if isinstance(recipe, TeacherRecipe):
        bundle = begin(recipe, Bundle(recipe.model), run)
        return objectives.flow_matching(recipe, bundle, run)
    bundle = begin(recipe, Bundle(recipe.model, recipe.student), run)
    prompts = [line.prompt for line in read_prompts(Path(recipe.prompts))]
    if isinstance(recipe, GRPORecipe):
        text = objectives.embed_prompts(bundle, prompts, recipe.text_store, run)
        return objectives.policy_optimisation(recipe, bundle, prompts, text, run)
    text = objectives.embed_prompts(bundle, [recipe.dmd.negative_prompt, *prompts], recipe.text_store, run)
    return objectives.distribution_matching(recipe, bundle, prompts, text, run)


def flow_band(path: Path, changes: dict[str, str], run: RunContext, clips: int) -> str:
    """`sfpp train --flow-band`: a GRPO recipe's lines of what motion is right, from clips of its teacher."""
    from sfpp_cli.training.band import measure_band  # OpenCV, which other objectives need not load

    recipe = read_recipe(path, TeacherRecipe, MatchingRecipe, GRPORecipe, overrides=changes)
    if not isinstance(recipe, GRPORecipe):
        raise UserError(f"{path}: --flow-band is for recipes with objective = 'grpo'")
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
    with nullcontext() if pairs_only else owning(run), explained(recipe, run):
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


@contextmanager
def owning(run: RunContext) -> Iterator[None]:
    """Be the only command that writes into the run folder, which stays away if nothing is written.

    UserError if another one is at it, or if it holds a run that the command does not continue.
    """
    if not run.ranks.first:
        yield
        return
    try:
        with owned(run.out / ".lock", run.out):
            refuse_to_overwrite(run)
            yield
    finally:
        with suppress(OSError):  # it holds something, as it should
            run.out.rmdir()


def refuse_to_overwrite(run: RunContext) -> None:
    """UserError if the run folder holds what the command would write over."""
    saved = checkpoint.saved_steps(run.out)
    metrics = run.out / "metrics.jsonl"
    begun = any(run.out.glob("step-*")) or (metrics.exists() and metrics.stat().st_size > 0)
    if begun and not (run.resume or is_restarted()):
        raise UserError(f"{run.out} holds a run already: continue it with --resume, or choose another --out")
    if not saved and (stateless := [path for path in run.out.glob("step-*") if not path.suffix]):
        raise UserError(
            f"{max(stateless)} has no {checkpoint.STATE} to continue from, and would be written over: "
            "choose another --out"
        )


@contextmanager
def explained(recipe: Recipe, run: RunContext) -> Iterator[None]:
    """What ends a run before its time, in a line: the cause, what is kept, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {kept(recipe, run)}") from None
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(
                f"out of memory ({reason(error)[:100]}): lower training.micro_batch, set "
                f"training.gradient_checkpointing or training.offload, or use more ranks; {kept(recipe, run)}"
            ) from error
        if missing := run.ranks.missing(error):
            patience = f"{recipe.training.timeout:g} minutes (training.timeout)"
            raise UserError(
                f"rank {run.ranks.rank}: {missing} has gone, or did not answer for {patience}; "
                f"{kept(recipe, run)}"
            ) from error
        raise
    except OSError as error:
        where = error.filename or run.out
        raise UserError(f"{where}: {reason(error)}; {kept(recipe, run)}") from error


def kept(recipe: Recipe, run: RunContext) -> str:
    """What an interrupted run leaves, and how it goes on."""
    saved = checkpoint.saved_steps(run.out)
    if saved:
        return f"{checkpoint.path_of(run.out, saved[-1])} is kept: the same command with --resume goes on"
    if isinstance(recipe, StudentRecipe) and Path(recipe.pairs.folder).exists():
        return f"the trajectories in {recipe.pairs.folder} are kept: the same command with --resume goes on"
    return "no checkpoint is kept yet: the same command with --resume begins again"


def begin(recipe: Recipe, bundle: Bundle, run: RunContext) -> Bundle:
    """The recipe's model, checked; the plan is said, and the ranks are joined. UserError if it cannot fit."""
    check(recipe, bundle, run.ranks)
    if isinstance(recipe, StudentRecipe) and recipe.init is not None:
        Bundle(recipe.model, recipe.init).require_student()
    if isinstance(recipe, MatchingRecipe | GRPORecipe):
        bundle.require_student()
    run.progress.say(plan(recipe, bundle, run.ranks, run.device, run.out))
    refuse_excess(recipe, bundle, run.ranks, run.device, run.out)
    threads = threads_for(operations(recipe, bundle, run.ranks))
    torch.set_num_threads(threads)
    run.progress.detail(f"CPU threads for an operation: {threads}")
    if run.device.type == "cpu" and threads == 1 and (advice := sharing_out(recipe.training, run.ranks)):
        run.progress.detail(advice)
    run.ranks.join(run.device, recipe.training.timeout)
    return bundle


def sharing_out(training: Training, ranks: Ranks, cores: int | None = os.cpu_count()) -> str | None:
    """How a model that is too small for several threads can have several cores, if it can and does not."""
    count = max(n for n in range(1, (cores or 1) + 1) if training.batch % n == 0)
    if ranks.world > 1 or count == 1 or training.offload:
        return None
    return (
        f"one of {cores} cores is used: started as `torchrun --nproc-per-node {count} -m sfpp_cli ...`, "
        f"{count} would share a batch of {training.batch}"
    )


def operations(recipe: Recipe, layout: Layout, ranks: Ranks) -> float:
    """Floating-point operations of a pass over a window of all samples that a rank takes at once."""
    training = recipe.training
    share = training.batch // ranks.world
    samples = min(training.micro_batch or share, share)
    network = measure(layout.teacher or layout.student, layout)
    return 2 * network.linear * samples * layout.teacher_horizon * network.shape.tokens


def fit(task: objectives.Task, recipe: Recipe, run: RunContext) -> None:
    """Train, and show progress."""
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
            seen = {name: value for name, value in record.items() if name not in ("step", "samples")}
            advance(step, {name: f"{value:.4g}" for name, value in seen.items()})

        watch = partial(gauges, task=task, run=run)
        trainer = Trainer(task.objective, training, run.out, run.ranks, on_step, watch, run.progress.warn)
        prepare(task.networks, training)
        trainer.resume()
        advance(trainer.step, {})
        trainer.run()
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
        began = time.perf_counter()
        if gauged := task.preview(int(record["step"])):
            seen |= gauged | {"preview_s": time.perf_counter() - began}
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
