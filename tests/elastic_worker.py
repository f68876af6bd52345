"""A rank of a toy run, as `torchrun` starts it: RUN [STEP RANK SIGNAL [TIMEOUT]].

At the step, that rank gets the signal once, in its first life. The timeout is in minutes.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from toy_training import TRAINING, Regression

from sfpp_cli.core.objective import Loss, Update
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.errors import UserError


class Struck(Regression):
    """Gets a signal within a step."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__()
        self.strike = (step, number)

    def loss(self, update: Update) -> Loss:
        step, number = self.strike
        if update.step == step:
            os.kill(os.getpid(), number)
        return super().loss(update)


def main(run: Path, step: int = -1, rank: int = -1, number: int = 9, timeout: float = 1.0) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    ranks.join(torch.device("cpu"), timeout)
    marker = run.parent / "struck"
    struck = ranks.rank == rank and not marker.exists()
    if struck:
        marker.touch()
    objective = Struck(step, number) if struck else Regression()
    trainer = Trainer(objective, replace(TRAINING, saving="background", timeout=timeout), run, ranks)
    try:
        trainer.run()
    except RuntimeError as error:
        missing = ranks.missing(error)
        if missing is None:
            raise
        sys.stderr.write(f"rank {ranks.rank}: {missing} does not answer at step {trainer.step}\n")
        sys.stderr.flush()
        os._exit(2)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    main(Path(folder), *map(int, numbers[:3]), *map(float, numbers[3:]))
