"""A store of captioned latents on disk, written once and read in random windows."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfpp_cli.data.digests import checked, digest
from sfpp_cli.errors import UserError

INDEX = "captions.jsonl"
MID_STREAM = "continued"
"""Appended to the caption of a window that does not begin with an image latent, so that the teacher knows."""


def write_shard(folder: Path, shard: int, latents: Tensor, captions: list[list[str]]) -> None:
    """Append latents [N, F, C, H, W] (stored as float16), and of each its captions, one of which is drawn.

    The index is appended to last, so an interrupted write leaves a file that the index does not name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"latents-{shard:05d}.safetensors"
    stored = latents.half().contiguous()
    save_file({"latents": stored}, folder / name)
    with (folder / INDEX).open("a") as index:
        for row, choices in enumerate(captions):
            digests = [digest(frame) for frame in stored[row]]
            line = {"shard": name, "row": row, "captions": choices, "digests": digests}
            index.write(json.dumps(line) + "\n")


class LatentWindows:
    """Random windows of `frames` latent frames; a share `mid_stream` of them starts after a first frame."""

    def __init__(self, folder: Path, frames: int, mid_stream: float = 0.0) -> None:
        if not (folder / INDEX).exists():
            raise UserError(
                f"no latents in {folder}: encode some first (examples/landscape/README.md shows how)"
            )
        rows = [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]
        files = {name: safe_open(folder / name, framework="pt") for name in {row["shard"] for row in rows}}
        latents = {name: file.get_slice("latents") for name, file in files.items()}
        self.videos = [(latents[row["shard"]], row) for row in rows]
        self.folder = folder
        self.frames = frames
        self.mid_stream = mid_stream

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """A random window [F, C, H, W] in float32 and a caption. UserError if it is damaged."""
        # All four numbers are drawn whatever is done with them, so that a sample's draws depend on its seed
        # alone.
        which, choice, where, start = torch.rand(4, generator=generator).tolist()
        latents, video = self.videos[int(which * len(self.videos))]
        captions = video["captions"]
        caption = captions[int(choice * len(captions))]
        room = latents.get_shape()[1] - self.frames
        first = 0
        if where < self.mid_stream and room > 0:
            first = 1 + int(start * room)
            caption = f"{caption} {MID_STREAM}"
        window: Tensor = latents[video["row"], first : first + self.frames]
        digests = video.get("digests", [None] * latents.get_shape()[1])
        for frame, wanted in zip(window, digests[first:], strict=False):
            checked(frame, wanted, self.folder / video["shard"])
        return window.float(), caption
