"""A store of captioned latents on disk, written once and read in random windows."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfpp_cli.errors import UserError

INDEX = "captions.jsonl"
MID_STREAM = "continued"
"""Ends the caption of a window that starts mid-stream: such a window has no image latent, and a teacher must be able to tell."""


def write_shard(folder: Path, shard: int, latents: Tensor, captions: list[list[str]]) -> None:
    """Append latents [N, F, C, H, W] (stored as float16) with the captions of each, any one of which may be drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"latents-{shard:05d}.safetensors"
    save_file({"latents": latents.half().contiguous()}, folder / name)
    with (folder / INDEX).open("a") as index:
        for row, choices in enumerate(captions):
            index.write(json.dumps({"shard": name, "row": row, "captions": choices}) + "\n")


class LatentWindows:
    """Random windows of `frames` latent frames; a share `mid_stream` of them starts behind the video's first frame."""

    def __init__(self, folder: Path, frames: int, mid_stream: float = 0.0) -> None:
        if not (folder / INDEX).exists():
            raise UserError(
                f"no latents in {folder}: encode some first (examples/toyworld/README.md shows how)"
            )
        rows = [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]
        shards = {name: safe_open(folder / name, framework="pt") for name in {row["shard"] for row in rows}}
        self.videos = [
            (shards[row["shard"]].get_slice("latents"), row["row"], row["captions"]) for row in rows
        ]
        self.frames, self.mid_stream = frames, mid_stream

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """A random window [F, C, H, W] in float32 and a caption."""
        which, choice, where, start = torch.rand(4, generator=generator).tolist()
        latents, row, captions = self.videos[int(which * len(self.videos))]
        caption = captions[int(choice * len(captions))]
        room = latents.get_shape()[1] - self.frames
        first = 0
        if where < self.mid_stream and room > 0:
            first = 1 + int(start * room)
            caption = f"{caption} {MID_STREAM}"
        window: Tensor = latents[row, first : first + self.frames]
        return window.float(), caption
