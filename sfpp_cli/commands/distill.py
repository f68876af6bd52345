"""`sfpp distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfpp_cli.console import Terminal


def distill(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML), such as examples/toyworld/student.toml.")],
    out: Annotated[Path, typer.Option(help="Run folder: checkpoints, metrics.jsonl, the resolved recipe.")] = Path("runs/distill"),
    steps: Annotated[int | None, typer.Option(help="Train for this many steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key, as in --set pairs.count=64.")] = None,
    pairs_only: Annotated[bool, typer.Option("--pairs-only", help="Make the teacher's trajectories and stop.")] = False,
    resume: Annotated[bool, typer.Option(help="Continue the run in --out from its newest checkpoint.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, cuda:1 ...; the best there is by default.")] = None,
) -> None:
    """Warm up a causal student on the teacher's ODE trajectories; both stages continue where they were interrupted."""
    from sfpp_cli.core.parallel import Ranks
    from sfpp_cli.training import distill_student, overrides

    distill_student(
        recipe,
        out,
        overrides(set_, steps, seed),
        Terminal(quiet=not Ranks.from_environment().first),
        pairs_only=pairs_only,
        resume=resume,
        device=device,
    )
