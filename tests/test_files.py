"""Files appear under their names whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfpp_cli.errors import UserError
from sfpp_cli.files import atomic_write, file_digest, remove_leftovers, replacing


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


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    for name in (".a[1].mp4.part-x", ".a1.mp4.part-x"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path / "a[1].mp4")
    assert [folder.name for folder in tmp_path.iterdir()] == [".a1.mp4.part-x"]


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
