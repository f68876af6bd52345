"""`sfpp train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sfpp_cli.commands.console import Terminal, result, waiting
from sfpp_cli.commands.options import Device, DryRun, Resume, RunFolder, Seed, Steps, Verbose

if TYPE_CHECKING:
    from sfpp_cli.training.context import RunContext


def train(
    recipe: Annotated[
        Path | None, Argument(help="Recipe (a TOML file), such as examples/landscape/self-forcing-pp.toml.")
    ] = None,
    out: RunFolder = Path("runs/train"),
    steps: Steps = None,
    seed: Seed = None,
    set_: Annotated[
        list[str] | None,
        Option(
            "--set", help="Change a key of the recipe, as in --set training.lr=1e-4.", metavar="KEY=VALUE"
        ),
    ] = None,
    preview_seconds: Annotated[
        float | None, Option(help="Length of preview videos, in seconds, if the recipe makes any.")
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    flow_band: Annotated[
        int | None,
        Option(
            help="Print what motion a GRPO recipe should reward, from N clips of its teacher, and stop.",
            metavar="N",
            min=2,
        ),
    ] = None,
    plot: Annotated[
        Path | None, Option(help="Draw the curves of a run folder, finished or not, and stop.", metavar="RUN")
    ] = None,
    schema: Annotated[
        bool, Option("--schema", help="Print the JSON schema of recipes, for editors, and stop.")
    ] = False,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Train a student on its own videos (Self-Forcing, Self-Forcing++, GRPO), or a teacher on stored ones.

    The recipe says which. An interrupted run continues with --resume. Several GPUs, or for a small model
    several cores of a CPU, share a batch: torchrun --nproc-per-node 2 -m sfpp_cli train RECIPE --out RUN.

    metrics.jsonl in the run folder has a line a step: losses, norms of gradients before they are clipped,
    learning rates (lr), samples seen so far, seconds of the whole step (step_s) and of its stages (update_s,
    critic_update_s, preview_s), the largest memory so far (peak_mb), gauges of previews, and the student's
    loss over the critic's (ratio).
    """
    from sfpp_cli.errors import UserError

    if plot is not None:
        from sfpp_cli.training.curves import plot_run

        result(str(plot_run(plot)))
        return
    if schema:
        from sfpp_cli.training.recipes import schema as recipe_schema

        result(recipe_schema())
        return
    if recipe is None:
        raise UserError("no recipe: give the path of a TOML file, such as those in examples/, or --plot RUN")
    with waiting("loading PyTorch ..."):
        from sfpp_cli.training import run

    context = run_context(out, resume, device, dry_run, verbose)
    changes = run.overrides(set_, steps, seed, preview_seconds)
    if flow_band is not None:
        result(run.flow_band(recipe, changes, context, flow_band))
        return
    plan = run.train(recipe, changes, context, dry_run=dry_run)
    if plan and context.ranks.first:
        result(plan)


def run_context(out: Path, resume: bool, device: str | None, dry_run: bool, verbose: bool) -> RunContext:
    """What the flags and the environment say about a run.

    A dry run may name a GPU that this machine lacks.
    """
    from sfpp_cli.core.parallel import Ranks
    from sfpp_cli.devices import pick_device
    from sfpp_cli.training.context import RunContext

    ranks = Ranks.from_environment(launched=not dry_run)
    return RunContext(
        out=out,
        resume=resume,
        device=pick_device(device, ranks.local, absent_too=dry_run),
        ranks=ranks,
        progress=Terminal(quiet=not ranks.first, verbose=verbose),
    )
