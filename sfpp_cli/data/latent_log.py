"""Latents on disk as they come: what an interrupted video is resumed from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfpp_cli.errors import UserError, reason


class LatentLog:
    """An append-only file of equal float32 chunks [1, chunk, C, H, W] in a hidden folder beside the video.

    A process killed in the middle of a write leaves part of a chunk, which is cut off on opening.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], request: dict[str, Any]) -> None:
        """`request` is written beside the latents, for people who find the folder."""
        self.folder = folder
        self.shape = shape
        self.file = folder / "latents.f32"
        self.record = 4 * int(np.prod(shape))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "request.json").write_text(json.dumps(request, indent=2) + "\n")
            self.file.touch()
            with self.file.open("r+b") as file:
                file.truncate(self.file.stat().st_size // self.record * self.record)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({reason(error)}): free some space or choose another --out"
            ) from error

    def __len__(self) -> int:
        return self.file.stat().st_size // self.record

    def append(self, chunk: Tensor) -> None:
        """One more chunk; it is on disk when this returns."""
        try:
            with self.file.open("ab") as file:
                file.write(chunk.float().cpu().contiguous().numpy().tobytes())
        except OSError as error:
            raise UserError(
                f"{self.file} cannot be written ({reason(error)}): "
                "free some space, then continue with --resume"
            ) from error

    def chunks(self, count: int | None = None) -> Iterator[Tensor]:
        """The chunks written so far (the first `count`), one in memory at a time."""
        count = len(self) if count is None else count
        with self.file.open("rb") as file:
            for _ in range(count):
                data = bytearray(file.read(self.record))
                yield torch.frombuffer(data, dtype=torch.float32).view(self.shape)

    def remove(self) -> None:
        """The video is finished."""
        shutil.rmtree(self.folder)
