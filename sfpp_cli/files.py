"""Files and folders that appear under their names whole or not at all. Importing this loads no torch."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sfpp_cli import interruption
from sfpp_cli.errors import InUse, UserError, reason

PATIENCE = 60.0
"""Seconds to wait for another process that writes the same file."""


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a small file whole or not at all; text as UTF-8. UserError where that fails."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what `path` is to become, a file or a folder: it takes the name at the end of the block.

    An older file or folder of the name stays until then, and for good if the block fails. The place given has
    the last name of `path`, in a hidden folder beside it; missing parent folders are made. UserError where
    anything in the block cannot be written.
    """
    with writing(path), scratch(path) as part:
        yield part
        _open_to_readers(part)
        put_in_place(part, path)


@contextmanager
def scratch(path: Path, patience: float = PATIENCE) -> Iterator[Path]:
    """A place for what is to replace `path`, in a hidden folder beside it that goes at the end of the block.

    The folder is called after a digest of the name: short, whatever the name's length, and the same for every
    process, so that what a killed one left in it goes when the next begins.
    """
    folder = _scratch_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with owned(lock_of(path), path, patience):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder / path.name
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _scratch_folder(path: Path) -> Path:
    return path.parent / f".sfpp-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.part"


def put_in_place(part: Path, path: Path) -> None:
    """Move what is finished from its scratch folder to `path`; an older folder goes the other way."""
    if part.is_dir() and path.is_dir():  # a folder that is not empty cannot be replaced in one step
        path.rename(_scratch_folder(part))
    os.replace(part, path)


def remove(folder: Path) -> None:
    """Delete a folder; a process that is killed meanwhile leaves none that looks whole."""
    doomed = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Clear away what killed processes left in a folder that nobody can go on with, whatever it was to be."""
    for doomed in folder.glob(".sfpp-*.old"):
        shutil.rmtree(doomed, ignore_errors=True)
    for lock in folder.glob(".sfpp-*.lock"):
        with suppress(InUse), owned(lock, lock):
            shutil.rmtree(lock.with_suffix(".part"), ignore_errors=True)


def lock_of(path: Path) -> Path:
    """The lock for who writes `path`."""
    return _scratch_folder(path).with_suffix(".lock")


@contextmanager
def owned(lock: Path, what: Path, patience: float = 0.0) -> Iterator[None]:
    """Be the only process that works on `what`, for as long as the block runs.

    The lock is on the file `lock` and goes with its process, however that ends: the file alone means nothing.
    It holds over NFS too; where a file system knows no locks, filelock says so and goes by the file. InUse,
    with who has it, after `patience` seconds.
    """
    from filelock import FileLock, Timeout  # help texts do not wait for it

    guard = FileLock(lock, timeout=patience, thread_local=False)
    with writing(what):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            guard.acquire()
        except Timeout:
            raise InUse(f"{what} is in use by {_owner(lock)}: wait for it, or stop it") from None
        try:
            lock.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')}")
        except OSError:
            guard.release()
            raise
    interruption.at_stake.add(lock)
    try:
        yield
    finally:
        # While it is ours: who takes it afterwards makes a file of his own.
        lock.unlink(missing_ok=True)
        guard.release()
        interruption.at_stake.discard(lock)


def _owner(lock: Path) -> str:
    try:
        return lock.read_text() or "another process"
    except (OSError, ValueError):
        return "another process"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong in the block while `path` is written, as a UserError."""
    from safetensors import SafetensorError  # its own error for a full disk; help texts do not wait for it

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be written ({reason(error)}); check its directory's permissions and free space"
        ) from error


def natural(path: Path) -> tuple[list[str | int], str]:
    """A key that sorts files by the numbers in their names: a2 before a10."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


def nearest_folder(path: Path) -> Path:
    """What exists of a path. A name that is too long for the system, or holds what none may, does not."""
    whole = path.absolute()
    return next(part for part in (whole, *whole.parents) if os.path.exists(part))


def check_writable(folder: Path) -> None:
    """See that a file can be written into the folder, or into what exists of its path; none is left."""
    try:
        with tempfile.TemporaryFile(dir=nearest_folder(folder)) as probe:
            probe.write(os.urandom(4096))
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({reason(error)}): choose another folder, or make room"
        ) from error


def free_space(folder: Path) -> int:
    """Bytes free where a folder is or will be."""
    return shutil.disk_usage(nearest_folder(folder)).free


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_to_readers(part: Path) -> None:
    """Let everybody read whom the umask lets: safetensors writes files for their owner alone."""
    probe = _scratch_folder(part).with_suffix(".mode")
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    for file in part.rglob("*") if part.is_dir() else [part]:
        if file.is_file():
            file.chmod(stat.S_IMODE(file.stat().st_mode) | usual)
