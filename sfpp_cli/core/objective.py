"""What an objective is to the trainer: players, who take turns to learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Update:
    """Which update this is. All its randomness is a function of these numbers alone."""

    step: int
    """Training step, from 0; it holds one or more updates of every player."""
    player: int
    """Index of the player being updated."""
    repeat: int
    """Which of the player's updates in this step, from 0."""
    samples: tuple[int, ...]
    """Numbers of the samples in the whole run: sample i of step s is s * batch + i."""


Loss = tuple[Tensor, dict[str, float]]
"""The mean loss of an update's samples, and what to log beside it."""


@dataclass(frozen=True)
class Player:
    """Models that learn together, by one loss and one optimiser."""

    models: Mapping[str, nn.Module]
    """By the name they are saved under."""
    loss: Callable[[Update], Loss]
    name: str = ""
    """Prefix of its metrics in the log; empty for the main player."""
    updates: int = 1
    """How many in every step."""
    lr: float | None = None
    """Learning rate; the recipe's if None."""
    has_ema: bool = True
    """Whether an exponential moving average of its weights is kept and saved."""
    save_extra: Callable[[Path], None] | None = None
    """Writes into every saved folder of its models what belongs beside their weights."""
    prepare: Callable[[Sequence[Update]], None] | None = None
    """Called once a step before its first update, with all the parts that this rank's loss will get."""


def merge_metric(name: str, values: Sequence[float]) -> float:
    """One figure of parts, updates or ranks: NAME_max is the largest, NAME_min the least, others the mean."""
    if name.endswith("_max"):
        return max(values)
    return min(values) if name.endswith("_min") else fmean(values)


class Objective(Protocol):
    """What is trained and by which losses."""

    @property
    def players(self) -> Sequence[Player]:
        """In the order of their updates within a step."""
