"""The command line. Importing this module imports no torch: commands load what they need when they run."""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

import typer

from sfpp_cli import __version__, interruption
from sfpp_cli.commands import distill, evaluate, generate, live, train, weights
from sfpp_cli.commands.console import error
from sfpp_cli.errors import Interrupted, UserError

_REFUSALS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says of paths, wherever one is looked at first."""

app = typer.Typer(
    name="sfpp",
    help="Minute-long video from a causal few-step student (Self-Forcing++).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate.generate)
app.command()(live.live)
app.command()(train.train)
app.command()(distill.distill)
app.command()(evaluate.evaluate)
app.add_typer(weights.app, name="weights")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sfpp {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run a command: exit code 0 done, 1 our bug, 2 the user can fix it, 3 a verdict of `evaluate --fail-on`
    fired, 130 interrupted, 143 terminated."""
    try:
        with interruption.handled():
            app(prog_name="sfpp")  # also under `python -m sfpp_cli` and torchrun
    except SystemExit as leaving:
        if leaving.code != 130:  # which is typer's word for an interrupt that no command has explained
            raise
        _end(interruption.UNFINISHED, interruption.exit_code())
    except Interrupted as interrupted:
        _end(str(interrupted), interruption.exit_code())
    except BaseException as problem:
        if interruption.seen():  # libraries have their own words for it
            _end(interruption.UNFINISHED, interruption.exit_code())
        if isinstance(problem, UserError):
            _end(str(problem), 2)
        if isinstance(problem, OSError) and problem.errno in _REFUSALS:
            _end(f"{problem.filename}: {problem.strerror}; choose another path, or see its permissions", 2)
        raise


def _end(text: str, code: int) -> NoReturn:
    for line in text.split("\n"):
        error(line)
    sys.exit(code)
