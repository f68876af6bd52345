"""Stored ODE trajectories: shards written whole, so an interrupted generation continues with the first missing one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfpp_cli.errors import UserError


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"pairs-{shard:05d}.safetensors"


def write_shard(folder: Path, shard: int, trajectories: Tensor, prompts: list[str], origin: Mapping[str, Any]) -> None:
    """Trajectories [N, S + 1, F, C, H, W] (stored as float16), their prompts and `origin`, which says how they were made.

    Written under a temporary name and renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = shard_path(folder, shard)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    metadata = {"prompts": json.dumps(prompts), "origin": json.dumps(origin)}
    save_file({"trajectories": trajectories.half().contiguous()}, temporary, metadata=metadata)
    temporary.rename(path)


def missing_shards(folder: Path, count: int, origin: Mapping[str, Any]) -> list[int]:
    """Which of `count` shards are still to be made. Raises UserError if those that are there were made otherwise."""
    wanted = json.loads(json.dumps(origin))
    for path in folder.glob("pairs-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found = json.loads(file.metadata().get("origin", "{}"))
        changed = [key for key in wanted if found.get(key) != wanted[key]]
        if changed:
            raise UserError(f"{path} was made with another {', '.join(changed)}: choose another pairs.folder, or delete this one")
    return [shard for shard in range(count) if not shard_path(folder, shard).exists()]


class TrajectoryStore:
    """Random access to all complete shards of a folder, read row by row."""

    def __init__(self, folder: Path) -> None:
        self.rows = []
        for path in sorted(folder.glob("pairs-*.safetensors")):
            file = safe_open(path, framework="pt")
            prompts = json.loads(file.metadata()["prompts"])
            self.rows += [(file.get_slice("trajectories"), row, prompt) for row, prompt in enumerate(prompts)]
        if not self.rows:
            raise UserError(f"no complete trajectories in {folder}: make some with `sfpp distill`")

    @property
    def prompts(self) -> list[str]:
        return [prompt for _, _, prompt in self.rows]

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """A random trajectory [S + 1, F, C, H, W] in float32 and its prompt."""
        part, row, prompt = self.rows[int(torch.randint(len(self.rows), (), generator=generator))]
        trajectory: Tensor = part[row]
        return trajectory.float(), prompt
