"""`sfpp distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfpp_cli.commands.console import Terminal, result


def distill(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML), such as examples/toyworld/student.toml.")],
    out: Annotated[
        Path, typer.Option(help="Run folder: checkpoints, metrics.jsonl, the resolved recipe.")
    ] = Path("runs/distill"),
    steps: Annotated[int | None, typer.Option(help="Train for this many steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a recipe key, as in --set pairs.count=64.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Causal weights to start from, instead of the teacher's.")
    ] = None,
    pairs_only: Annotated[
        bool, typer.Option("--pairs-only", help="Make the teacher's trajectories and stop.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan (memory, cost, what is written) and stop.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cuda, cpu, cuda:1 ...; the best there is by default.")
    ] = None,
) -> None:
    """Warm up a causal student on the teacher's ODE trajectories; both stages continue where they were interrupted."""
    from sfpp_cli.core.parallel import Ranks
    from sfpp_cli.devices import pick_device
    from sfpp_cli.training import run

    ranks = Ranks.from_environment()
    how = run.How(
        out,
        resume,
        dry_run,
        pick_device(device, ranks.local, absent_too=dry_run),
        Terminal(quiet=not ranks.first),
    )
    changes = run.overrides(set_, steps, seed) | ({"init": init} if init else {})
    plan = run.distill(recipe, changes, how, pairs_only=pairs_only)
    if plan and ranks.first:
        result(plan)
