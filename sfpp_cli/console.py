"""What people see: chatter and progress on stderr, results on stdout."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

err = Console(stderr=True, highlight=False, soft_wrap=True)


def progress(*columns: str, console: Console = err) -> Progress:
    """A progress display of named text fields; silent without a terminal."""
    parts = [SpinnerColumn(), *(TextColumn(column) for column in columns)]
    return Progress(*parts, console=console, disable=not console.is_terminal, transient=True)


def result(text: str) -> None:
    """The answer of a command, and nothing else, goes to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
