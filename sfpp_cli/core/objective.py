"""What an objective is to the trainer: players, who take turns to learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Turn:
    """Which update this is. Everything random in it is a function of these numbers alone, whatever the ranks or restarts."""

    step: int
    player: int
    """The number of who learns."""
    repeat: int
    """Which of the player's updates in this step."""
    samples: tuple[int, ...]
    """Their numbers in the whole run: number i of step s is s * batch + i."""


Losses = Iterator[tuple[Tensor, dict[str, float]]]
"""Losses that add up to the mean loss of a turn's samples, with figures to log. Each is back-propagated before the next is made."""


@dataclass(frozen=True)
class Player:
    """Models that learn together, by one loss and one optimiser."""

    models: Mapping[str, nn.Module]
    """By the name they are saved under."""
    losses: Callable[[Turn], Losses]
    name: str = ""
    """Stands before its figures in the log; the main player has none."""
    updates: int = 1
    """In every step."""
    lr: float | None = None
    """The recipe's if not given."""
    averaged: bool = True


class Objective(Protocol):
    """What is trained and by which losses."""

    @property
    def players(self) -> Sequence[Player]:
        """In the order of their turns."""
