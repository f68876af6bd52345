"""What people see: chatter and progress on stderr, results on stdout; foreign text in visible form."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from sfpp_cli.importing import collecting_later
from sfpp_cli.progress import Advance
from sfpp_cli.text import visible

err = Console(stderr=True, highlight=False, soft_wrap=True)

_BAR = 16
"""Characters of a progress bar."""
_LINE_EVERY = 30.0
"""Seconds between lines of progress where there is no terminal to draw a bar on."""


class Terminal:
    """Progress on stderr: details if `verbose`, only warnings if `quiet`."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose

    def say(self, text: str) -> None:
        if not self.quiet:
            err.print(plain(text))

    def detail(self, text: str) -> None:
        if self.verbose:
            self.say(text)

    def warn(self, text: str) -> None:
        err.print(Text.assemble(("warning:", "yellow"), " ", plain(text)))

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        if self.quiet:
            yield lambda done, figures: None
        elif not err.is_terminal or err.is_dumb_terminal:
            yield _lines(name, total)
        else:
            with _bar(total) as bar:
                task = bar.add_task(visible(name), total=total, figures="")

                def advance(done: int, figures: Mapping[str, str]) -> None:
                    bar.update(task, completed=done, figures=_listed(figures))

                yield advance


def plain(text: str) -> Text:
    """Foreign text for rich: nothing in it is markup or the name of an emoji, nothing is obeyed."""
    return Text(visible(text))


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A line on a terminal while libraries are imported, which takes seconds; gone at the block's end.

    Of several ranks the first says it.
    """
    shown = err.is_terminal and os.environ.get("RANK", "0") == "0"
    line: AbstractContextManager[object] = nullcontext()
    if shown:
        spinner = Spinner("dots", plain(text), style="status.spinner")
        line = Live(spinner, console=err, refresh_per_second=4, transient=True)  # unlike a status, at once
    with line, collecting_later():
        yield


def error(text: str) -> None:
    """What ended a command."""
    err.print(Text.assemble(("error:", "bold red"), " ", plain(text)))


def result(text: str) -> None:
    """The answer of a command, and nothing else, goes to stdout.

    What the terminal's encoding lacks is written as an escape: the work is done, and stays done.
    """
    encoding = sys.stdout.encoding or "utf-8"
    safe = visible(text, longest=None).encode(encoding, errors="backslashreplace").decode(encoding)
    sys.stdout.write(safe + "\n")
    sys.stdout.flush()


def _bar(total: int) -> Bar:
    """Bar, count and time left keep their room where a terminal is narrow; title and figures are cut."""
    count = 2 * len(str(total)) + 1
    rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Bar(
        _Marks() if err.no_color else BarColumn(_BAR, table_column=Column(min_width=_BAR)),
        MofNCompleteColumn(table_column=Column(min_width=count)),
        TimeRemainingColumn(table_column=Column(min_width=len("0:00:00"))),
        TextColumn("{task.description}  {task.fields[figures]}", markup=False, table_column=rest),
        console=err,
        transient=True,
        expand=True,
    )


class _Marks(ProgressColumn):
    """A bar of characters, for where there is no colour."""

    def __init__(self) -> None:
        super().__init__(Column(min_width=_BAR))

    def render(self, task: Task) -> Text:
        done = round(task.percentage / 100 * _BAR)
        return Text("#" * done + "." * (_BAR - done))


def _lines(name: str, total: int) -> Advance:
    """A line now and then, for a file that somebody looks into."""
    said = time.monotonic()

    def advance(done: int, figures: Mapping[str, str]) -> None:
        nonlocal said
        if time.monotonic() - said >= _LINE_EVERY:
            said = time.monotonic()
            err.print(plain(f"{name}: {done} of {total}  {_listed(figures)}".rstrip()))

    return advance


def _listed(figures: Mapping[str, str]) -> str:
    return "  ".join(f"{key} {value}" for key, value in figures.items())
