"""Files and folders that appear under their names whole or not at all. Importing this loads no torch."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfpp_cli.errors import UserError, reason


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
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_folder(path)
        try:
            part = scratch / path.name
            yield part
            _open_to_readers(part)
            put_in_place(part, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def scratch_folder(path: Path) -> Path:
    """A new hidden folder beside `path`, on the same file system, for what is to replace it."""
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.part-", dir=path.parent))


def put_in_place(part: Path, path: Path) -> None:
    """Move what is finished from its scratch folder to `path`; an older folder goes the other way."""
    if part.is_dir() and path.is_dir():  # a folder that is not empty cannot be replaced in one step
        path.rename(part.with_name(f"{part.name}.old"))
    os.replace(part, path)


def remove_leftovers(path: Path) -> None:
    """Clear away what a killed process left of its unfinished `path`."""
    for scratch in path.parent.glob(f".{glob.escape(path.name)}.part-*"):
        shutil.rmtree(scratch, ignore_errors=True)


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


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_to_readers(part: Path) -> None:
    """Let everybody read whom the umask lets: safetensors writes files for their owner alone."""
    probe = part.with_name(f"{part.name}.mode")
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    for file in part.rglob("*") if part.is_dir() else [part]:
        if file.is_file():
            file.chmod(stat.S_IMODE(file.stat().st_mode) | usual)
