"""Encode the landscape into a store of captioned latents for the teacher, until there are enough.

A clip begins somewhere in its scene, but the encoder begins with it: its first latent frame is a single
picture, as in every video.

    python examples/landscape/encode_world.py --work runs/landscape --minutes 10
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from road import TEACHER_SEED, Clock, Job, job_of
from torch import Tensor

from sfpp_cli.core.noise import seeded
from sfpp_cli.data.landscape import Scenes, draw_scenes
from sfpp_cli.data.landscape.captions import VARIANTS
from sfpp_cli.data.latents import INDEX, write_shard
from sfpp_cli.models.vae import StreamingEncoder

FRAMES, SEGMENT = 81, 16
TEMPORAL = 4
"""Video frames of a latent one, but for the first."""
SHARD = 64
LEAST = 256
"""So many clips are made, whatever the time."""
CHATTER = ("beautiful", "cinematic", "please", "very", "nice", "hd")
"""Words outside the world, sprinkled over captions: the model learns to overlook what it does not know."""


@torch.no_grad()
def run(job: Job) -> None:
    vae = AutoencoderKLWan.from_pretrained(job.work / "vae").eval().to(job.device)
    folder, clock = job.work / "latents", Clock(job)
    shard = whole_shards(folder)
    size = min(SHARD, job.scale.clips)
    while shard * size < job.scale.clips and (clock.done < 1 or shard * size < min(LEAST, job.scale.clips)):
        scenes, starts = drawn(shard, size, job.device)
        step = job.scale.encode
        parts = [encode(vae, scenes[i : i + step], starts[i : i + step], job) for i in range(0, size, step)]
        write_shard(folder, shard, torch.cat(parts).cpu(), captions_of(scenes, shard))
        shard += 1
    job.say(f"latents: {shard * size} clips, {clock.spent:.0f} s")


def drawn(shard: int, size: int, device: torch.device) -> tuple[Scenes, Tensor]:
    """The scenes of a shard, and the frame at which each of its clips begins."""
    scenes = draw_scenes(TEACHER_SEED, range(shard * size, shard * size + size), device)
    return scenes, torch.randint(100_000, (size,), generator=seeded(TEACHER_SEED, shard)).to(device)


def encode(vae: AutoencoderKLWan, scenes: Scenes, starts: Tensor, job: Job) -> Tensor:
    encoder = StreamingEncoder(vae)
    parts = []
    for first in range(1, FRAMES, SEGMENT):
        first, count = (0, 1 + SEGMENT) if first == 1 else (first, SEGMENT)
        parts.append(encoder(scenes.render(starts + first, count, job.scale.size) * 2 - 1))
    return torch.cat(parts, dim=1)


def balloon_share(
    scenes: Scenes, starts: Tensor, size: tuple[int, int], latent_size: tuple[int, int]
) -> Tensor:
    """How much of each latent cell the balloon covers in any of its frames, in [0, 1]: [N, F, 1, h, w]."""
    mask = scenes.balloon_mask(starts, FRAMES, size)[:, :, 0]
    cells = F.adaptive_max_pool2d(mask, latent_size)
    first, rest = cells[:, :1], cells[:, 1:].unflatten(1, (-1, TEMPORAL)).amax(2)
    return torch.cat([first, rest], dim=1)[:, :, None]


def captions_of(scenes: Scenes, shard: int) -> list[list[str]]:
    """Eight a clip, a quarter of them in the plain form."""
    dice = random.Random(TEACHER_SEED * 1_000_003 + shard)
    plain = scenes.captions(0)
    forms = [plain, plain, *(scenes.captions(dice.randrange(VARIANTS)) for _ in range(6))]
    return [[chatter(sentence, dice) for sentence in choices] for choices in zip(*forms, strict=True)]


def chatter(sentence: str, dice: random.Random) -> str:
    words = sentence.split()
    if dice.random() < 0.25:
        words.insert(dice.randint(0, len(words)), dice.choice(CHATTER))
    return " ".join(words)


def whole_shards(folder: Path) -> int:
    """Shards of an earlier call; what a kill left half-written is forgotten."""
    if not (folder / INDEX).exists():
        return 0
    rows = (folder / INDEX).read_text().splitlines()
    last = json.loads(rows[-1])["shard"] if rows and rows[-1].endswith("}") else None
    names = [json.loads(row)["shard"] for row in rows[:-1]] + ([last] if last else [])
    whole = [name for name in dict.fromkeys(names) if names.count(name) == names.count(names[0])]
    (folder / INDEX).write_text(
        "".join(row + "\n" for row, name in zip(rows, names, strict=False) if name in whole)
    )
    return len(whole)


if __name__ == "__main__":
    run(job_of(__doc__))
