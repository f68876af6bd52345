"""Encode the toy world into a store of captioned latents for the teacher.

python examples/toyworld/encode_world.py --vae runs/vae/vae --out runs/latents
"""

from __future__ import annotations

import argparse
import random
from multiprocessing import get_context
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from sfpp_cli.data.latents import write_shard
from sfpp_cli.data.toyworld.world import ToyWorld
from sfpp_cli.models.vae import StreamingEncoder

SEGMENT = 24
CHATTER = ("beautiful", "cinematic", "please", "very", "nice", "hd")
"""Words outside the world, sprinkled over captions: the model learns to overlook what it does not know."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--videos", type=int, default=2048)
    parser.add_argument("--frames", type=int, default=121, help="video frames, 1 + a multiple of 24")
    parser.add_argument("--seed", type=int, default=1, help="the world's seed (the VAE trains on 0)")
    parser.add_argument("--shard", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    firsts = range(0, options.videos, options.shard)
    with get_context("spawn").Pool(options.processes) as pool:
        jobs = [
            (
                options.vae,
                options.seed,
                shard,
                range(first, min(first + options.shard, options.videos)),
                options.frames,
            )
            for shard, first in enumerate(firsts)
        ]
        for shard, latents, captions in pool.imap(encode, jobs):
            write_shard(options.out, shard, latents, captions)
            print(f"shard {shard + 1} of {len(firsts)}", flush=True)


@torch.no_grad()
def encode(job: tuple[Path, int, int, range, int]) -> tuple[int, torch.Tensor, list[list[str]]]:
    vae_path, seed, shard, numbers, frames = job
    count = len(numbers)
    torch.set_num_threads(1)
    vae = AutoencoderKLWan.from_pretrained(vae_path)
    scenes = ToyWorld(seed).scenes(numbers)
    latents = []
    for part in range(0, count, 16):
        batch, encoder = scenes[part : part + 16], StreamingEncoder(vae)
        pieces = [encoder(batch.frames(0, 1 + SEGMENT))]
        pieces += [encoder(batch.frames(start, SEGMENT)) for start in range(1 + SEGMENT, frames, SEGMENT)]
        latents.append(torch.cat(pieces, dim=1))
    dice = random.Random(seed * 1_000_003 + shard)
    variants = [scenes.captions([0] * count)] * 2 + [
        scenes.captions([dice.randrange(10_000) for _ in range(count)]) for _ in range(6)
    ]
    captions = [[chatter(caption, dice) for caption in choices] for choices in zip(*variants, strict=True)]
    return shard, torch.cat(latents), captions


def chatter(caption: str, dice: random.Random) -> str:
    words = caption.split()
    if dice.random() < 0.25:
        words.insert(dice.randint(0, len(words)), dice.choice(CHATTER))
    return " ".join(words)


if __name__ == "__main__":
    main()
