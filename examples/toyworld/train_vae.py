"""Train the toy world's VAE on long streams.

A VAE trained on short clips drifts by itself after the clip's end (its causal convolutions look back some 120
frames) and would pass for a decaying student. So every video here is a stream of 161 frames, walked in
segments of 16 with the temporal caches carried along, detached.

    torchrun --nproc-per-node 2 examples/toyworld/train_vae.py --out runs/vae
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.training_config import Training
from sfpp_cli.data.toyworld.world import ToyWorld
from sfpp_cli.models.vae import StreamingDecoder, StreamingEncoder

CONFIG = {
    "base_dim": 16,
    "z_dim": 8,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "latents_mean": [0.0] * 8,
    "latents_std": [1.0] * 8,
}
SEGMENT = 16
SEGMENTS = 10


def main() -> None:
    options = parse()
    ranks = Ranks.from_environment()
    ranks.join(torch.device("cpu"))
    training = Training(options.steps, lr=options.lr, warmup=options.warmup, decay="cosine")
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    vae = AutoencoderKLWan(**CONFIG)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=1e-4)
    step = restore(options.out, vae, optimizer)
    torch.manual_seed(options.seed * 1000 + ranks.rank + step)

    while step < options.steps:
        indices = torch.randint(2**40, (options.batch,)).tolist()
        scenes = ToyWorld(options.seed).scenes(indices)
        encoder, decoder = StreamingEncoder(vae), StreamingDecoder(vae)
        for segment in range(SEGMENTS):
            began = time.perf_counter()
            start, count = (0, 1 + SEGMENT) if segment == 0 else (1 + SEGMENT * segment, SEGMENT)
            frames = scenes.frames(start, count)
            weight = 1 + options.foreground * scenes.neighbourhood(start, count)[:, :, None]
            if start == 0:
                weight[:, 0] *= options.first
            loss, parts = reconstruct(encoder, decoder, frames, weight, options.kl)
            for group in optimizer.param_groups:
                group["lr"] = options.lr * training.lr_scale(step)
            optimizer.zero_grad()
            loss.backward()
            ranks.average(vae.parameters())
            norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            encoder.detach()
            decoder.detach()
            step += 1
            if ranks.first and step % 25 == 0:
                record = dict(
                    step=step,
                    segment=segment,
                    **parts,
                    grad_norm=norm.item(),
                    step_s=time.perf_counter() - began,
                )
                with open(options.out / "metrics.jsonl", "a") as log:
                    log.write(json.dumps({k: round(v, 5) for k, v in record.items()}) + "\n")
            if step >= options.steps:
                break
        if ranks.first and step >= options.steps:
            measure_statistics(vae, options.seed)
        if ranks.first and (step % options.save_every < SEGMENTS or step >= options.steps):
            save(options.out, vae, optimizer, step)


def reconstruct(
    encoder: StreamingEncoder, decoder: StreamingDecoder, frames: Tensor, weight: Tensor, kl: float
) -> tuple[Tensor, dict[str, float]]:
    mean, log_variance = encoder.moments(frames)
    mean, log_variance = mean.float(), log_variance.float().clamp(-20, 10)
    pixels = decoder.from_raw(mean + torch.exp(log_variance / 2) * torch.randn_like(mean)).float()
    difference = (pixels - frames).abs()
    reconstruction = (weight * difference).mean() + 2 * (weight * difference.square()).mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    psnr = -10 * torch.log10(F.mse_loss(pixels, frames) / 4)
    parts = {
        "loss": reconstruction.item(),
        "kl": divergence.item(),
        "psnr": psnr.item(),
        "latent_std": mean.std().item(),
    }
    return reconstruction + kl * divergence, parts


@torch.no_grad()
def measure_statistics(vae: AutoencoderKLWan, seed: int, videos: int = 64) -> None:
    """Per-channel mean and std of the latents go into the configuration, as in Wan's, so that networks see
    unit variance."""
    scenes = ToyWorld(seed).scenes(range(videos))
    encoder = StreamingEncoder(vae)
    pieces = [encoder(scenes.frames(0, 1 + SEGMENT))]
    pieces += [encoder(scenes.frames(1 + SEGMENT * i, SEGMENT)) for i in range(1, SEGMENTS)]
    latents = torch.cat(pieces, dim=1)
    mean, std = latents.mean((0, 1, 3, 4)), latents.std((0, 1, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def save(out: Path, vae: AutoencoderKLWan, optimizer: torch.optim.Optimizer, step: int) -> None:
    vae.save_pretrained(out / "vae")
    torch.save(
        {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, out / "state.tmp"
    )
    (out / "state.tmp").rename(out / "state.pt")


def restore(out: Path, vae: AutoencoderKLWan, optimizer: torch.optim.Optimizer) -> int:
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "state.pt").exists():
        return 0
    state = torch.load(out / "state.pt", weights_only=True)
    vae.load_state_dict(state["vae"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=2, help="streams a rank")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--kl", type=float, default=1e-4)
    parser.add_argument(
        "--foreground", type=float, default=8.0, help="extra weight of pixels around the object"
    )
    parser.add_argument(
        "--first", type=float, default=6.0, help="weight of a stream's first picture, whose path is its own"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=200)
    return parser.parse_args()


if __name__ == "__main__":
    main()
