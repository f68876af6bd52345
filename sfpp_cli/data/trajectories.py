"""Stored ODE trajectories: shards written whole, so an interrupted generation continues with what is missing, and an index."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfpp_cli.errors import UserError

INDEX = "index.json"


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"pairs-{shard:05d}.safetensors"


def write_shard(
    folder: Path, shard: int, trajectories: Tensor, prompts: list[str], origin: Mapping[str, Any]
) -> None:
    """Trajectories [N, S + 1, F, C, H, W] (stored as float16), their prompts and `origin`, which says how they were made.

    Written under a temporary name and renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = shard_path(folder, shard)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    metadata = {"prompts": json.dumps(prompts), "origin": json.dumps(origin)}
    save_file({"trajectories": trajectories.half().contiguous()}, temporary, metadata=metadata)
    temporary.rename(path)


def missing_shards(folder: Path, sizes: Sequence[int], origin: Mapping[str, Any]) -> list[int]:
    """Which shards, of so many trajectories each, are still to be made. UserError if those that are there were made otherwise."""
    wanted = json.loads(json.dumps(origin))
    counts = {}
    for path in folder.glob("pairs-*.safetensors"):
        prompts, found = _described(path)
        counts[path] = len(prompts)
        changed = [key for key in wanted if found.get(key) != wanted[key]]
        if changed:
            raise UserError(
                f"{path} was made with another {', '.join(changed)}: choose another pairs.folder, or delete this one"
            )
    return [shard for shard, size in enumerate(sizes) if counts.get(shard_path(folder, shard), 0) < size]


def write_index(folder: Path, shards: int, origin: Mapping[str, Any]) -> None:
    """Say what the complete store holds: every trajectory's shard and prompt, in order, and how all were made."""
    paths = [shard_path(folder, shard) for shard in range(shards)]
    rows = {path.name: _described(path)[0] for path in paths}
    temporary = folder / f".{INDEX}.part"
    temporary.write_text(json.dumps({"origin": origin, "shards": rows}, indent=1) + "\n", encoding="utf-8")
    temporary.rename(folder / INDEX)


def _described(path: Path) -> tuple[list[str], dict[str, Any]]:
    """A shard's prompts and origin."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return json.loads(metadata.get("prompts", "[]")), json.loads(metadata.get("origin", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and it will be made again") from error


class TrajectoryStore:
    """Random access to all trajectories of a complete store, read row by row."""

    def __init__(self, folder: Path) -> None:
        try:
            shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["shards"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"no complete trajectories in {folder} ({error}): make some with `sfpp distill`"
            ) from None
        self.rows = []
        for name, prompts in shards.items():
            part = safe_open(folder / name, framework="pt").get_slice("trajectories")
            self.rows += [(part, row, prompt) for row, prompt in enumerate(prompts)]

    @property
    def prompts(self) -> list[str]:
        return [prompt for _, _, prompt in self.rows]

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """A random trajectory [S + 1, F, C, H, W] in float32 and its prompt."""
        part, row, prompt = self.rows[int(torch.randint(len(self.rows), (), generator=generator))]
        trajectory: Tensor = part[row]
        return trajectory.float(), prompt
