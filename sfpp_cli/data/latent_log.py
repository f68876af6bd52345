"""Latents on disk as they come: what an interrupted video is resumed from."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sfpp_cli.errors import NOT_FINITE, UserError, reason
from sfpp_cli.files import atomic_write, remove

_DIGEST = hashlib.sha256().digest_size


class LatentLog:
    """An append-only file of equal float32 chunks [1, chunk, C, H, W] in a hidden folder beside the video.

    A digest follows each chunk. Opening cuts off what a killed process left of a last one, and everything
    from the first damaged one on.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], request: dict[str, Any]) -> None:
        """`request` is written beside the latents, for people who find the folder."""
        self.folder = folder
        self.shape = shape
        self.file = folder / "latents.f32"
        self.size = 4 * int(np.prod(shape))
        self.record = self.size + _DIGEST
        self.lost = 0
        """Whole chunks that were there and were not what had been written, or came after such."""
        try:
            if folder.is_symlink():
                raise OSError(errno.ELOOP, "it is a link")
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / "request.json", json.dumps(request, indent=2) + "\n")
            with open(self.file, "a+b", opener=_no_link) as file:
                whole = file.tell() // self.record
                file.seek(0)
                intact = sum(takewhile(bool, (self._read(file) is not None for _ in range(whole))))
                self.lost = whole - intact
                file.truncate(intact * self.record)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({reason(error)}): free some space or choose another --out"
            ) from error

    def __len__(self) -> int:
        return self.file.stat().st_size // self.record

    def append(self, chunk: Tensor) -> None:
        """One more chunk; the system has it when this returns. UserError for one that is not finite."""
        if not chunk.isfinite().all():
            raise UserError(NOT_FINITE.format(f"chunk {len(self) + 1} of the student's latents is"))
        data = chunk.float().cpu().contiguous().numpy().tobytes()
        try:
            with open(self.file, "ab", opener=_no_link) as file:
                file.write(data + hashlib.sha256(data).digest())
        except OSError as error:
            raise UserError(
                f"{self.file} cannot be written ({reason(error)}): "
                "free some space, then continue with --resume"
            ) from error

    def chunks(self, count: int | None = None) -> Iterator[Tensor]:
        """The chunks written so far (the first `count`), one in memory at a time."""
        count = len(self) if count is None else count
        with open(self.file, "rb", opener=_no_link) as file:
            for number in range(1, count + 1):
                data = self._read(file)
                if data is None:
                    raise UserError(
                        f"{self.file} is damaged in chunk {number}: the same command with --resume makes it "
                        "again from there"
                    )
                yield torch.frombuffer(data, dtype=torch.float32).view(self.shape)

    def remove(self) -> None:
        """The video is finished."""
        remove(self.folder)

    def _read(self, file: BinaryIO) -> bytearray | None:
        """The next chunk's bytes, or None if they are not what was written."""
        data = bytearray(file.read(self.size))
        return data if hashlib.sha256(data).digest() == file.read(_DIGEST) else None


def _no_link(path: str, flags: int) -> int:
    """Opens the file itself, never one that a link of its name points to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
