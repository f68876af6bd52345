"""`sfpp distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sfpp_cli.commands.console import result, waiting
from sfpp_cli.commands.options import Device, DryRun, Resume, RunFolder, Seed, Steps, Verbose
from sfpp_cli.commands.train import run_context


def distill(
    recipe: Annotated[Path, Argument(help="Recipe (a TOML file), such as examples/landscape/student.toml.")],
    out: RunFolder = Path("runs/distill"),
    steps: Steps = None,
    seed: Seed = None,
    set_: Annotated[
        list[str] | None,
        Option("--set", help="Change a key of the recipe, as in --set pairs.count=64.", metavar="KEY=VALUE"),
    ] = None,
    init: Annotated[
        str | None, Option(help="Folder of a causal student to start from, instead of the teacher's weights.")
    ] = None,
    pairs_only: Annotated[
        bool, Option("--pairs-only", help="Make the teacher's sampling trajectories and stop.")
    ] = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Make a first causal student: sample the teacher many times, then train the student to jump to the ends.

    Both stages continue where they were interrupted: the first by itself, the second with --resume.
    """
    with waiting("loading PyTorch ..."):
        from sfpp_cli.training import run

    context = run_context(out, resume, device, dry_run, verbose)
    changes = run.overrides(set_, steps, seed)
    if init:
        changes["init"] = init
    plan = run.distill(recipe, changes, context, dry_run=dry_run, pairs_only=pairs_only)
    if plan and context.ranks.first:
        result(plan)
