"""`sfpp train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfpp_cli.console import Terminal


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML), such as examples/toyworld/teacher.toml.")],
    out: Annotated[Path, typer.Option(help="Run folder: checkpoints, metrics.jsonl, the resolved recipe.")] = Path("runs/train"),
    steps: Annotated[int | None, typer.Option(help="Train for this many steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key, as in --set training.lr=1e-4.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in --out from its newest checkpoint.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, cuda:1 ...; the best there is by default.")] = None,
) -> None:
    """Train a model by a recipe; interrupted runs continue with --resume."""
    from sfpp_cli.core.parallel import Ranks
    from sfpp_cli.training import overrides, train_teacher

    train_teacher(
        recipe, out, overrides(set_, steps, seed), Terminal(quiet=not Ranks.from_environment().first), resume=resume, device=device
    )
