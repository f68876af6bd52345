"""Where a recipe is run, and who is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.progress import Progress


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Read once by the command, and handed to everything that a run is made of."""

    out: Path
    """The run folder."""
    resume: bool
    """Continue from the newest checkpoint in `out`."""
    device: torch.device
    ranks: Ranks
    progress: Progress
