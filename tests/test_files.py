"""Files appear under their names whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfpp_cli.errors import InUse, UserError
from sfpp_cli.files import (
    _scratch_folder,
    atomic_write,
    file_digest,
    natural,
    owned,
    remove,
    replacing,
    sweep,
)


@pytest.mark.parametrize(("content", "expected"), [("é", "é".encode()), (b"\x00", b"\x00")])
def test_text_and_bytes(tmp_path: Path, content: str | bytes, expected: bytes) -> None:
    path = tmp_path / "new" / "a.json"
    atomic_write(path, "older")
    atomic_write(path, content)
    assert path.read_bytes() == expected
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a\.json cannot be written \(.+\); check"):
        atomic_write(tmp_path / "file" / "a.json", "{}")


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.json" / "kept").touch()
    with pytest.raises(UserError, match=r"a\.json cannot be written \(Is a directory\)"):
        atomic_write(tmp_path / "a.json", "{}")
    assert (tmp_path / "a.json" / "kept").exists()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    complaint = pytest.raises(UserError, match=r"a cannot be written \(No space left on device\)")
    with complaint, replacing(tmp_path / "a"), Path("/dev/full").open("w") as full:
        full.write("x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_older_one_survives_a_failure(tmp_path: Path, kind: str, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    file = path if kind == "file" else path / "b"
    file.parent.mkdir(exist_ok=True)
    file.write_text("older")
    with pytest.raises(error), replacing(path) as part:
        _write_half(part if kind == "file" else part / "b", error)
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def _write_half(file: Path, error: type[BaseException]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("half")
    raise error


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for name in ("older", "newer"):
        with replacing(tmp_path / "a") as part:
            part.mkdir()
            (part / name).touch()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["newer"]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_is_for_the_umask_to_say(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.safetensors") as part:
            save_file({"a": torch.zeros(1)}, part)  # for its owner alone
        with replacing(tmp_path / "folder") as part:
            part.mkdir()
            save_file({"a": torch.zeros(1)}, part / "a.safetensors")
            (part / "run.sh").touch(0o755)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.rglob("*") if file.is_file()}
    assert modes == {"a.safetensors": mode, "run.sh": 0o755 & ~umask}


def killed_while_writing(path: Path) -> None:
    """What a process that dies in the middle leaves behind."""
    script = f"""
import os, signal
from pathlib import Path
from sfpp_cli.files import replacing
with replacing(Path({str(path)!r})) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert len(list(path.parent.glob(".sfpp-*"))) == 2


@pytest.mark.parametrize("next_write", [atomic_write, None])
def test_leftovers_of_a_killed_process_go(
    tmp_path: Path, next_write: Callable[[Path, str], None] | None
) -> None:
    path = tmp_path / "a[1].mp4"
    killed_while_writing(path)
    if next_write is None:
        sweep(tmp_path)
    else:
        next_write(path, "whole")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["whole"] * path.exists()


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replacing(path) as part:
        part.write_text("half")
        sweep(tmp_path)
        part.write_text(part.read_text() + "whole")
    assert path.read_text() == "halfwhole"


def test_names_of_any_legal_length(tmp_path: Path) -> None:
    for name in ("a" * 255, "圆" * 85, os.fsdecode(b"\xff" * 255)):
        atomic_write(tmp_path / name, "x")
        with replacing(tmp_path / "folder") as part:
            part.mkdir()
            (part / name).touch()
    assert len(list(tmp_path.iterdir())) == 4


def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def write(letter: str) -> None:
        for _ in range(10):
            with replacing(path) as part:
                part.write_text(letter)
                time.sleep(0.001)
                part.write_text(part.read_text() + letter)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    assert path.read_text() in {"aa", "bb", "cc", "dd"}
    assert list(tmp_path.iterdir()) == [path]


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    with owned(lock, lock.parent):
        busy = rf"run is in use by process {os.getpid()} on .+ since \d{{4}}-.+: wait for it, or stop it"
        with pytest.raises(InUse, match=busy), owned(lock, lock.parent):
            pass
    with owned(lock, lock.parent):
        assert lock.exists()
    assert not lock.exists()


def test_a_dead_owner_holds_nothing(tmp_path: Path) -> None:
    killed_while_writing(tmp_path / "a")
    (lock,) = tmp_path.glob("*.lock")
    with owned(lock, tmp_path / "a"):
        assert str(os.getpid()) in lock.read_text()


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    for name in ("precious", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("kept")
    folder = _scratch_folder(tmp_path / "b")
    folder.symlink_to(tmp_path / "folder")
    folder.with_suffix(".lock").symlink_to(tmp_path / "precious" / "a")
    with pytest.raises(UserError, match=r"b cannot be written"):
        atomic_write(tmp_path / "b", "x")
    folder.with_suffix(".lock").unlink()
    with pytest.raises(UserError, match=r"b cannot be written"):
        atomic_write(tmp_path / "b", "x")
    assert {path.read_text() for path in tmp_path.glob("*/a")} == {"kept"}


def test_a_folder_goes_by_rename_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "a.old"):  # the latter of a process that was killed in the middle
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    seen = []

    def look(folder: Path, **_: object) -> None:
        seen.append((folder.name, (tmp_path / "a").exists()))
        rmtree(folder, **_)

    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", look)
    remove(tmp_path / "a")
    assert seen == [("a.old", True), ("a.old", False)]
    assert not list(tmp_path.iterdir())


def test_numbers_in_names_count_by_value() -> None:
    names = ["10-0_ema.mp4", "2-0_ema.mp4", "b.mp4", "a10", "a²", "a9", "a09", "1-0_ema.mp4", "1-10", "1-9"]
    expected = [
        "1-0_ema.mp4",
        "1-9",
        "1-10",
        "2-0_ema.mp4",
        "10-0_ema.mp4",
        "a09",
        "a9",
        "a10",
        "a²",
        "b.mp4",
    ]
    assert [path.name for path in sorted(map(Path, names), key=natural)] == expected


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
