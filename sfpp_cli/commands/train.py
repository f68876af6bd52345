"""`sfpp train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfpp_cli.commands.console import Terminal, result


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe (TOML), such as examples/toyworld/self-forcing-pp.toml.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Run folder: checkpoints, metrics.jsonl, the resolved recipe.")
    ] = Path("runs/train"),
    steps: Annotated[int | None, typer.Option(help="Train for this many steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a recipe key, as in --set training.lr=1e-4.")
    ] = None,
    preview_seconds: Annotated[float | None, typer.Option(help="Length of the recipe's previews.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan (memory, cost, what is written) and stop.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Draw a run's curves instead, finished or not.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cpu, cuda:1 ...; the best there is by default.")
    ] = None,
) -> None:
    """Train a model by a recipe; interrupted runs continue with --resume."""
    from sfpp_cli.errors import UserError

    if plot is not None:
        from sfpp_cli.training.curves import plot_run

        result(str(plot_run(plot)))
        return
    if recipe is None:
        raise UserError("no recipe: give the path of a TOML file, such as those in examples/, or --plot RUN")
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
    plan = run.train(recipe, run.overrides(set_, steps, seed, preview_seconds), how)
    if plan and ranks.first:
        result(plan)
