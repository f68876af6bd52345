"""What people see: chatter and progress on stderr, results on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sfpp_cli.progress import Advance

err = Console(stderr=True, highlight=False, soft_wrap=True)


class Terminal:
    """Progress on stderr: no bar without a terminal, details if `verbose`, only warnings if `quiet`."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose

    def say(self, text: str) -> None:
        if not self.quiet:
            err.print(escape(text))

    def detail(self, text: str) -> None:
        if self.verbose:
            self.say(text)

    def warn(self, text: str) -> None:
        err.print(f"[yellow]warning:[/] {escape(text)}")

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[figures]}")
        hidden = self.quiet or not err.is_terminal
        with Bar(*columns, TimeRemainingColumn(), console=err, disable=hidden, transient=True) as bar:
            task = bar.add_task(escape(name), total=total, figures="")

            def advance(done: int, figures: Mapping[str, str]) -> None:
                text = "  ".join(f"{key} {value}" for key, value in figures.items())
                bar.update(task, completed=done, figures=text)

            yield advance


def waiting(text: str) -> AbstractContextManager[object]:
    """A line on a terminal while something loads, which takes seconds; gone at the block's end.

    Of several ranks the first says it.
    """
    if err.is_terminal and os.environ.get("RANK", "0") == "0":
        return err.status(escape(text), refresh_per_second=4)
    return nullcontext()


def error(text: str) -> None:
    """What ended a command."""
    err.print(f"[bold red]error:[/] {escape(text)}")


def result(text: str) -> None:
    """The answer of a command, and nothing else, goes to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
