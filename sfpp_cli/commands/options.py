"""Options that `sfpp train` and `sfpp distill` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

RunFolder = Annotated[
    Path, Option(help="Run folder: gets checkpoints, metrics.jsonl, previews and the recipe.")
]
Steps = Annotated[int | None, Option(help="Stop after this many steps, instead of the recipe's number.")]
Seed = Annotated[int | None, Option(help="Seed of all random numbers, instead of the recipe's.")]
Resume = Annotated[bool, Option("--resume", help="Continue the run in --out from its newest checkpoint.")]
DryRun = Annotated[
    bool, Option("--dry-run", help="Print what a run would need (memory, disk) and stop; nothing is written.")
]
Device = Annotated[
    str | None, Option(help="Where to train: cuda, cuda:1, cpu. A GPU by default, if there is one.")
]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Also say how it is run.")]
