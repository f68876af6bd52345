"""`sfpp distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfpp_cli.commands.console import result
from sfpp_cli.commands.train import run_context


def distill(
    recipe: Annotated[
        Path, typer.Argument(help="Recipe (a TOML file), such as examples/toyworld/student.toml.")
    ],
    out: Annotated[
        Path, typer.Option(help="Run folder: gets checkpoints, metrics.jsonl, previews and the recipe.")
    ] = Path("runs/distill"),
    steps: Annotated[
        int | None, typer.Option(help="Stop after this many steps, instead of the recipe's number.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random numbers, instead of the recipe's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the recipe, as in --set pairs.count=64."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Folder of a causal student to start from, instead of the teacher's weights."),
    ] = None,
    pairs_only: Annotated[
        bool, typer.Option("--pairs-only", help="Make the teacher's sampling trajectories and stop.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print what a run would need (memory, disk) and stop; nothing is written."
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where to train: cuda, cuda:1, cpu. A GPU by default, if there is one.")
    ] = None,
) -> None:
    """Make a first causal student: sample the teacher many times, then train the student to jump to the ends.

    Both stages continue where they were interrupted: the first by itself, the second with --resume.
    """
    from sfpp_cli.training import run

    context = run_context(out, resume, device, dry_run)
    changes = run.overrides(set_, steps, seed)
    if init:
        changes["init"] = init
    plan = run.distill(recipe, changes, context, dry_run=dry_run, pairs_only=pairs_only)
    if plan and context.ranks.first:
        result(plan)
