"""The command line: light to start, answers on stdout, a line a fault on stderr, exit codes that mean it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Sfpp
from rich.console import Console

import sfpp_cli
from sfpp_cli import DEFAULT_MODEL, __version__
from sfpp_cli.app import app
from sfpp_cli.commands import console

pytest_plugins = ["tiny_bundle"]

HEAVY = [
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "numpy",
    "huggingface_hub",
    "safetensors",
    "PIL",
    "tokenizers",
]
HELP = """
import json, sys
for name in {heavy}:
    sys.modules[name] = None  # importing it raises ImportError
from sfpp_cli.app import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["sfpp", *command, "--help"]
    try:
        main()
    except SystemExit as leaving:
        assert not leaving.code, (command, leaving.code)
    else:
        raise AssertionError(command)
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, at a width that wraps nothing."""
    root = str(Path(sfpp_cli.__file__).parent.parent)
    variables = os.environ | {"PYTHONPATH": root, "COLUMNS": "200", "TERM": "dumb"} | environment
    return subprocess.run(
        [sys.executable, *arguments], env=variables, capture_output=True, text=True, check=False
    )


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group there is."""
    command = command or typer.main.get_command(app)
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def test_all_commands_are_there() -> None:
    expected = {
        "generate",
        "train",
        "distill",
        "evaluate",
        "weights",
        "weights list",
        "weights show",
        "weights pull",
        "weights convert",
    }
    assert expected <= {" ".join(path) for path in commands()}


def test_help_of_every_command_needs_nothing_heavy() -> None:
    answer = run("-c", HELP.format(heavy=HEAVY), json.dumps(list(commands())))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("Usage: sfpp") == len(list(commands()))


def test_help_really_imports_none_of_it() -> None:
    answer = run("-X", "importtime", "-m", "sfpp_cli", "--help")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in answer.stderr.splitlines()}
    assert answer.returncode == 0
    assert "typer" in imported, "the test reads the wrong thing"
    assert not imported & set(HEAVY)


def test_every_option_is_explained() -> None:
    silent = []
    for path in commands():
        command: Any = typer.main.get_command(app)
        for name in path:
            command = command.commands[name]
        assert command.help, path
        silent += [
            (path, parameter.name) for parameter in command.params if not getattr(parameter, "help", None)
        ]
    assert not silent


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_goes_to_stdout(flag: str, sfpp: Sfpp) -> None:
    code, out, err = sfpp(flag)
    assert (code, err) == (0, "")
    assert "Usage: sfpp" in out


def test_version(sfpp: Sfpp) -> None:
    assert sfpp("--version") == (0, f"sfpp {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["weights", "frobnicate"], ["generate", "--frobnicate"], ["weights", "show"]],
)
def test_unknown_commands_and_options(arguments: list[str], sfpp: Sfpp) -> None:
    code, out, err = sfpp(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["generate", "a circle", "--model", "/absent"], "unknown model '/absent'"),
        (["generate", "a circle", "--device", "tpu"], "unknown device 'tpu'"),
        (["train", "absent.toml"], "no recipe at absent.toml"),
        (["distill", "absent.toml"], "no recipe at absent.toml"),
        (["train", "absent.toml", "--set", "seed"], "--set seed: write it as key=value"),
        (["weights", "show", "[red]x[/red]"], "[red]x[/red]"),
        (["weights", "show", "x" * 500], "x" * 500),
        (["weights", "pull", "a/b/c"], "unknown model 'a/b/c'"),
        (["weights", "convert", "absent.pt", "out"], "absent.pt is not there"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_the_user_can_fix_is_one_line(
    arguments: list[str], complaint: str, sfpp: Sfpp, tmp_path: Path
) -> None:
    code, out, err = sfpp(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert complaint in err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert not list(tmp_path.iterdir())


def test_our_own_bugs_show_their_traceback(sfpp: Sfpp, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("sfpp_cli.models.summary.summarise", broken)
    with pytest.raises(ZeroDivisionError):
        sfpp("weights", "show", DEFAULT_MODEL)


@pytest.mark.parametrize(
    ("terminal", "rank", "shown"), [(True, "0", True), (False, "0", False), (True, "1", False)]
)
def test_a_terminal_is_told_at_once_of_a_wait(
    terminal: bool, rank: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of several ranks; a log is not."""
    screen = Console(file=io.StringIO(), force_terminal=terminal)
    monkeypatch.setattr(console, "err", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("RANK", rank)
    with console.waiting("loading PyTorch ..."):
        seen = screen.file.getvalue()  # type: ignore[attr-defined]
    assert ("loading PyTorch ..." in seen) is shown


def test_the_process_itself_exits_as_told() -> None:
    """Once for all in a real process: the code, and not a word more than the one line."""
    answer = run("-m", "sfpp_cli", "weights", "show", "/absent")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("error: unknown model '/absent'")
    assert answer.stderr.count("\n") == 1


def test_looking_at_models_needs_no_torch(tiny_bundle: Path) -> None:
    script = "import sys; sys.modules['torch'] = None\nfrom sfpp_cli.app import main\nmain()"
    answer = run("-c", script, "weights", "show", str(tiny_bundle))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "2 layers, 2 heads of 12" in answer.stdout
