"""What ends a run before its time says so in a line, with the right code, and leaves what can be resumed."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import torch
from conftest import Sfpp
from killed import Forked, command
from toy_training import metrics
from waiting import until

from sfpp_cli.commands.console import Terminal
from sfpp_cli.core import checkpoint
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.files import owned
from sfpp_cli.progress import Advance

pytest_plugins = ["tiny_bundle"]

RECIPE = """
objective = "dmd"
model = "tiny"
prompts = "prompts.txt"
[dmd]
method = "self-forcing++"
frames = 12
horizon = 6
critic_updates = 1
[training]
steps = 4
batch = 2
lr = 1e-3
ema_start = 1
save_every = 2
"""
DISTILL = """
objective = "ode"
model = "tiny"
[pairs]
prompts = "prompts.txt"
count = 3
folder = "pairs"
sampling_steps = 4
batch = 2
[training]
steps = 4
batch = 2
save_every = 2
"""


@pytest.fixture(autouse=True)
def folder(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, a prompt file and recipes; commands run there."""
    (tmp_path / "tiny").symlink_to(tiny_bundle)
    (tmp_path / "prompts.txt").write_text("a red circle moving left\na blue square moving right\n")
    (tmp_path / "train.toml").write_text(RECIPE)
    (tmp_path / "distill.toml").write_text(DISTILL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def whole(sfpp: Sfpp, folder: Path, no_curves: None) -> Path:
    assert sfpp("train", "train.toml", "--out", "whole")[0] == 0
    return folder / "whole"


def errors(err: str) -> list[str]:
    """The lines that end a command, without what it had to say before."""
    assert "Traceback" not in err
    return [line for line in err.splitlines() if line.startswith("error: ")]


def leftovers(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.name.startswith(".") or path.suffix == ".old")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 9 bytes"
        ),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_says_what_helps(
    error: BaseException, sfpp: Sfpp, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def failing(trainer: Trainer) -> dict[str, float]:
        if trainer.step == 3:
            raise error
        return update(trainer)

    monkeypatch.setattr(Trainer, "update", failing)
    code, _, err = sfpp("train", "train.toml", "--out", "run")
    assert code == 2
    (line,) = errors(err)
    assert "out of memory" in line
    assert "training.micro_batch" in line
    assert "run/step-000002 is kept: the same command with --resume goes on" in line
    assert leftovers(folder / "run") == []


def test_another_error_stays_what_it_is(sfpp: Sfpp, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(trainer: Trainer) -> dict[str, float]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Trainer, "update", failing)
    with pytest.raises(RuntimeError, match="a bug"):
        sfpp("train", "train.toml", "--out", "run")


def test_weights_that_are_not_finite_stop_the_run(sfpp: Sfpp, folder: Path) -> None:
    code, _, err = sfpp(
        "train", "train.toml", "--out", "run", "--set", "training.lr=1e6", "--set", "training.clip=1e9"
    )
    assert code == 2
    (line,) = errors(err)
    assert "is not finite; stopped before the update" in line
    assert leftovers(folder / "run") == []


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("recipe", ["train", "distill"])
def test_a_run_has_one_owner(recipe: str, sfpp: Sfpp, folder: Path) -> None:
    """The second one is refused before anything is loaded; a dead owner's lock holds nobody up."""

    def own() -> None:
        with owned(folder / "run/.lock", folder / "run"):
            (folder / "ready").touch()
            time.sleep(600)

    owner = Forked.start(own)
    while not (folder / "ready").exists():
        time.sleep(0.01)
    code, _, err = sfpp(recipe, f"{recipe}.toml", "--out", "run")
    assert code == 2
    (line,) = errors(err)
    assert f"run is in use by process {owner.pid} on " in line
    assert not (folder / "pairs").exists()
    os.kill(owner.pid, signal.SIGKILL)
    owner.end()
    assert sfpp(recipe, f"{recipe}.toml", "--out", "run")[0] == 0
    assert leftovers(folder / "run") == []


@pytest.mark.parametrize(
    ("recipe", "change", "line"),
    [
        ("distill", "init=nope", "unknown model 'nope'"),
        ("distill", "init=tiny/vae", "tiny/vae is of class AutoencoderKLWan, not a causal student"),
        ("distill", "pairs.folder=prompts.txt", "cannot write to prompts.txt (Not a directory)"),
        ("train", "student=tiny/teacher", "tiny/teacher is a bidirectional teacher, not a causal student"),
        ("train", "text_store=prompts.txt", "cannot write to prompts.txt (Not a directory)"),
        ("train", "preview.decoder=nope", "--decoder nope is not there"),
    ],
)
def test_what_can_be_known_is_refused_first(
    recipe: str, change: str, line: str, sfpp: Sfpp, folder: Path
) -> None:
    """Before embeddings and trajectories, which may take days."""
    before = sorted(folder.rglob("*"))
    code, _, err = sfpp(recipe, f"{recipe}.toml", "--out", "run", "--set", change)
    assert code == 2
    assert errors(err)[0].startswith(f"error: {line}")
    assert sorted(folder.rglob("*")) == before


def test_a_refused_run_leaves_no_folder(sfpp: Sfpp, folder: Path) -> None:
    (folder / "prompts.txt").unlink()
    assert sfpp("train", "train.toml", "--out", "run")[0] == 2
    assert not (folder / "run").exists()


def test_a_resumed_run_counts_from_where_it_is(
    whole: Path, sfpp: Sfpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    @contextmanager
    def stage(terminal: Terminal, name: str, total: int) -> Iterator[Advance]:
        yield lambda done, figures: shown.append((name, done))

    monkeypatch.setattr(Terminal, "stage", stage)
    assert sfpp("train", "train.toml", "--out", "whole", "--steps", "5", "--resume")[0] == 0
    assert [done for name, done in shown if name == "training"] == [4, 5]


def test_a_length_of_previews_needs_previews(sfpp: Sfpp, folder: Path) -> None:
    code, _, err = sfpp("train", "train.toml", "--out", "run", "--preview-seconds", "3")
    assert code == 2
    assert err == "error: this recipe makes no previews: say how often, as in --set preview.every=100\n"
    assert not (folder / "run").exists()


@pytest.mark.usefixtures("no_curves")
def test_a_run_too_short_for_an_average_says_so(sfpp: Sfpp) -> None:
    code, _, err = sfpp("train", "train.toml", "--out", "run", "--set", "training.ema_start=9")
    assert code == 0
    assert re.search(r"^EMA +none: it would begin at step 9 \(training.ema_start\)$", err, re.MULTILINE)
    missing = "run/step-000004/student-ema"
    code, _, err = sfpp("generate", "--model", "tiny", "--student", missing, "--frames", "1")
    assert code == 2
    assert err == (
        f"error: there is no {missing} in its run, before whose ema_start there is no average: "
        "beside it there is critic, student\n"
    )


def test_a_run_without_its_state_is_not_written_over(whole: Path, sfpp: Sfpp) -> None:
    """Deleted to save disk, say: neither without --resume nor with it."""
    for state in whole.glob("step-*/state"):
        shutil.rmtree(state)
    before = sorted(whole.rglob("*"))
    code, _, err = sfpp("train", "train.toml", "--out", "whole", "--steps", "2", "--seed", "9")
    assert code == 2
    assert "whole holds a run already" in err
    code, _, err = sfpp("train", "train.toml", "--out", "whole", "--resume")
    assert code == 2
    assert "step-000004 has no state to continue from" in err
    for step in whole.glob("step-*"):
        shutil.rmtree(step)
    assert "holds a run already" in sfpp("train", "train.toml", "--out", "whole")[2], (
        "the log alone is enough"
    )
    assert set(whole.rglob("*")) < set(before)


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("recipe", "what"), [("train", "run"), ("distill", "pairs")])
def test_a_full_disk_is_known_before_the_first_step(
    recipe: str, what: str, sfpp: Sfpp, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 20_000))
    changes = ("--set", "training.steps=1", "--set", "training.ema_start=9") if recipe == "distill" else ()
    changes += ("--set", "pairs.count=99") if recipe == "distill" else ()
    code, _, err = sfpp(recipe, f"{recipe}.toml", "--out", "run", *changes)
    assert code == 2
    (line,) = errors(err)
    assert "will take" in line
    assert "there is room for 20.0 kB" in line
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    "change", ["training.batch=1048576", "context=999999", "dmd.horizon=999999", "lora_rank=4096"]
)
def test_what_the_machine_cannot_hold_is_refused_before_it_is_tried(
    change: str, sfpp: Sfpp, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of two megabytes."""
    pages = 2_000_000 // os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 4096}[name])
    more = ("--set", "dmd.frames=999999") if "horizon" in change else ()
    code, _, err = sfpp("train", "train.toml", "--out", "run", "--set", change, *more)
    assert code == 2
    (line,) = errors(err)
    assert "of memory a rank, cpu has 2.0 MB" in line
    assert not (folder / "run").exists()


def limit(size: int) -> Callable[[], None]:
    """Let no file of this process grow beyond so many bytes: a full disk, but for the error's name."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


SIZES = (0, 30, 300, 3_000, 20_000, 60_000, 120_000, 250_000)


@pytest.mark.parametrize("recipe", ["train", "distill"])
@pytest.mark.parametrize("size", [3_000, *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES)])
def test_a_disk_that_fills_up(size: int, recipe: str, sfpp: Sfpp, folder: Path) -> None:
    """At any file; then there is room again, and the run goes on."""
    work = command(recipe, f"{recipe}.toml", "--out", "run", before=limit(size))
    code, _, err = Forked.start(work).end()
    assert code == 2, err
    assert len(errors(err)) == 1
    if (folder / "run").exists():
        assert [name for name in leftovers(folder / "run") if "part" in name] == []
    assert sfpp(recipe, f"{recipe}.toml", "--out", "run", "--resume")[0] == 0
    assert checkpoint.saved_steps(folder / "run") == [2, 4]
    assert [record["step"] for record in metrics(folder / "run")] == [1, 2, 3, 4]


MOMENTS = list(product((0.0, 0.3, 1.0, 2.0, 4.0), ("train", "distill"), (signal.SIGINT, signal.SIGTERM)))
QUICK = ((1.0, "train", signal.SIGINT), (1.0, "distill", signal.SIGTERM))


@pytest.mark.parametrize(
    ("moment", "recipe", "number"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in MOMENTS],
)
def test_interrupted_at_any_moment(moment: float, recipe: str, number: int, folder: Path) -> None:
    """One line says what is kept and how to go on."""
    steps = ("--set", "training.steps=100000", "--set", "pairs.count=200")[: 2 if recipe == "train" else 4]
    process = Forked.start(command(recipe, f"{recipe}.toml", "--out", "run", *steps))
    time.sleep(moment)
    os.kill(process.pid, number)
    code, _, err = process.end()
    assert code == 128 + number, err
    (line,) = errors(err)
    assert "interrupted" in line
    if (folder / "run").exists():
        assert leftovers(folder / "run") == []


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("moment", ["_exports", "_export", "_put_in_place"])
def test_interrupted_amid_a_checkpoint(moment: str, sfpp: Sfpp, folder: Path) -> None:
    """Nothing that is half written stays, and what the line names is whole."""

    def before() -> None:
        usual = getattr(checkpoint.Saver, moment)

        def interrupted(saver: checkpoint.Saver, *arguments: Any) -> Any:
            if list(saver.run.glob(".step-000004.part")):
                os.kill(os.getpid(), signal.SIGINT)
            return usual(saver, *arguments)

        setattr(checkpoint.Saver, moment, interrupted)

    code, _, err = Forked.start(command("train", "train.toml", "--out", "run", before=before)).end()
    assert code == 130
    (line,) = errors(err)
    assert "run/step-000002 is kept: the same command with --resume goes on" in line
    assert leftovers(folder / "run") == []
    assert sfpp("train", "train.toml", "--out", "run", "--resume")[0] == 0


def test_an_interrupt_that_is_lost_ends_a_run_all_the_same(folder: Path) -> None:
    """Python drops what a destructor raises: it comes again."""

    class Dropping:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def before() -> None:
        update = Trainer.update

        def dropping(trainer: Trainer) -> dict[str, float]:
            if trainer.step == 2:
                Dropping()
            return update(trainer)

        Trainer.update = dropping  # type: ignore[method-assign, assignment]

    steps = ("--set", "training.steps=100000")
    code, _, err = Forked.start(command("train", "train.toml", "--out", "run", *steps, before=before)).end()
    assert code == 143
    assert len(errors(err)) == 1
    assert "ignored" not in err


def test_interrupted_while_it_waits_for_other_ranks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch waits for half an hour and looks for no signals."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in ranks.items():
        monkeypatch.setenv(name, str(value))
    process = Forked.start(command("train", "train.toml", "--out", "run"))
    until(lambda: _listens(port))
    for _ in range(2):
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
    code, _, err = process.end()
    assert code == 130
    assert len(errors(err)) == 1


def _listens(port: int) -> bool:
    with socket() as other:
        return other.connect_ex(("127.0.0.1", port)) == 0
