"""Options of commands, with their help text first, and those that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def option(text: str, *names: str, **rules: Any) -> Any:
    """An option, or with a name such as `--json` a flag that has no `--no-json`."""
    return typer.Option(*names, help=text, **rules)


Json = Annotated[bool, option("Print the result as JSON.", "--json")]
RunFolder = Annotated[Path, option("Run folder: gets checkpoints, metrics.jsonl, previews and the recipe.")]
Steps = Annotated[int | None, option("Stop after this many steps, instead of the recipe's number.")]
Seed = Annotated[int | None, option("Seed of all random numbers, instead of the recipe's.")]
Resume = Annotated[bool, option("Continue the run in --out from its newest checkpoint.", "--resume")]
DryRun = Annotated[
    bool, option("Print what a run would need (memory, disk) and stop; nothing is written.", "--dry-run")
]
Device = Annotated[
    str | None, option("Where to train: cuda, cuda:1, cpu. A GPU by default, if there is one.")
]
