"""How long-running work says where it is: it knows this protocol, only the console knows terminals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[int, Mapping[str, str]], None]
"""(units done so far, figures to show) -> None."""


class Progress(Protocol):
    """Who is told what goes on."""

    def say(self, text: str) -> None:
        """A line of information."""

    def detail(self, text: str) -> None:
        """A line for those who asked for all of it."""

    def warn(self, text: str) -> None:
        """A line that deserves attention."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """A stretch of work of `total` units; the context's value reports progress."""


class Silent:
    """Nobody at a terminal: the package is used from Python. Warnings go Python's way."""

    def say(self, text: str) -> None:
        """Nothing."""

    def detail(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """A UserWarning."""
        warnings.warn(text, stacklevel=2)

    def stage(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """No bar."""
        return nullcontext(lambda done, figures: None)
