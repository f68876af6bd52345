"""Stored ODE trajectories: shards, each written whole, and an index. What is missing can be made later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfpp_cli.data.digests import checked, digest
from sfpp_cli.errors import UserError
from sfpp_cli.files import atomic_write, replacing

INDEX = "index.json"


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"pairs-{shard:05d}.safetensors"


def write_shard(
    folder: Path, shard: int, trajectories: Tensor, prompts: list[str], origin: Mapping[str, Any]
) -> None:
    """Trajectories [N, S + 1, F, C, H, W] (stored as float16), their prompts, and how they were made."""
    path = shard_path(folder, shard)
    rows = trajectories.half().contiguous()
    about = {"prompts": prompts, "origin": origin, "digests": [digest(row) for row in rows]}
    with replacing(path) as part:
        # As one text: safetensors writes several in any order, and the same pairs should be the same file.
        save_file({"trajectories": rows}, part, metadata={"about": json.dumps(about)})


def missing_shards(folder: Path, sizes: Sequence[int], origin: Mapping[str, Any]) -> list[int]:
    """Which shards, of these sizes, are still to be made. UserError if those there differ in origin."""
    wanted = json.loads(json.dumps(origin))
    counts = {}
    for path in folder.glob("pairs-*.safetensors"):
        about = described(path)
        stored = about["origin"]
        counts[path] = len(about["prompts"])
        changed = [key for key in wanted if stored.get(key) != wanted[key]]
        if changed:
            raise UserError(
                f"{path} was made with another {', '.join(changed)}: "
                "choose another pairs.folder, or delete this one"
            )
    return [shard for shard, size in enumerate(sizes) if counts.get(shard_path(folder, shard), 0) < size]


def write_index(folder: Path, shards: int, origin: Mapping[str, Any]) -> None:
    """Say what the complete store holds: shard and prompt of every trajectory, in order, and their origin."""
    paths = [shard_path(folder, shard) for shard in range(shards)]
    rows = {path.name: described(path)["prompts"] for path in paths}
    atomic_write(folder / INDEX, json.dumps({"origin": origin, "shards": rows}, indent=1) + "\n")


def described(path: Path) -> dict[str, Any]:
    """A shard's prompts, origin and, but for shards of before, digests. UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if "about" in metadata:
            return dict(json.loads(metadata["about"]))
        return {key: json.loads(metadata.get(key, "{}")) for key in ("prompts", "origin")}
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
            file = folder / name
            digests = described(file).get("digests", [None] * len(prompts))
            part = safe_open(file, framework="pt").get_slice("trajectories")
            self.rows += [
                (file, part, row, prompt, wanted)
                for row, (prompt, wanted) in enumerate(zip(prompts, digests, strict=True))
            ]

    @property
    def prompts(self) -> list[str]:
        return [prompt for _, _, _, prompt, _ in self.rows]

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """A random trajectory [S + 1, F, C, H, W] in float32 and its prompt. UserError if it is damaged."""
        number = int(torch.randint(len(self.rows), (), generator=generator))
        file, part, row, prompt, wanted = self.rows[number]
        return checked(part[row], wanted, file).float(), prompt
