"""How long-running work tells whoever watches it: the work knows this protocol, only the console knows terminals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

Advance = Callable[[int, Mapping[str, str]], None]
"""(units done so far, figures to show) -> None."""


class Watch(Protocol):
    """Someone who watches."""

    def say(self, text: str) -> None:
        """A line of information."""

    def warn(self, text: str) -> None:
        """A line that deserves attention."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """A stretch of work of `total` units; the context's value reports progress."""
