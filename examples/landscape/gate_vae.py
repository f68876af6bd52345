"""Is the VAE good enough to build on? Streams of unseen scenes, clean and disturbed.

python examples/landscape/gate_vae.py --work runs/landscape --minutes 5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKLWan
from road import JUDGE_SEED, Job, job_of, sheet
from torch import Tensor

from sfpp_cli.data.landscape import Scenes, draw_scenes
from sfpp_cli.data.landscape.palette import BALLOONS, LUMA_WEIGHTS
from sfpp_cli.models.vae import StreamingDecoder, StreamingEncoder

SEGMENT = 16
GAINS = (0.6, 1.5)
SHOWN = (0, 40, 80, 480)
"""Video frames of the contact sheet."""


@dataclass(frozen=True)
class Streamed:
    """What came out of the VAE."""

    error: Tensor
    """Mean squared error of each video frame, [B, T]."""
    luma: Tensor
    """Mean luma that came out, less what went in, [B, T]."""
    balloon: Tensor
    """Whether the balloon's colour is still the nearest of all, [B, T]."""
    latents: Tensor
    pictures: dict[int, tuple[Tensor, Tensor]]
    """Went in and came out, by video frame, [B, 3, H, W] each."""


@torch.no_grad()
def stream(
    vae: AutoencoderKLWan,
    scenes: Scenes,
    job: Job,
    frames: int,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Streamed:
    encoder, decoder = StreamingEncoder(vae), StreamingDecoder(vae)
    parts: list[tuple[Tensor, ...]] = []
    pictures = {}
    for start in range(1, frames, SEGMENT):
        start, count = (0, 1 + SEGMENT) if start == 1 else (start, SEGMENT)
        clean = scenes.render(start, count, job.scale.size)
        given = (change(clean) if change else clean) * 2 - 1
        latents = encoder(given)
        seen = decoder(latents).clamp(-1, 1)
        balloon = torch.ones_like(given[:, :, 0, 0, 0], dtype=torch.bool)
        if change is None:  # colours are read in clean scenes only
            balloon = nearest_balloon(scenes, seen, start, job) == scenes.balloon[:, None]
        parts.append(((seen - given).square().mean((2, 3, 4)), luma(seen) - luma(given), balloon, latents))
        pictures |= {
            at: (given[:, at - start], seen[:, at - start]) for at in SHOWN if start <= at < start + count
        }
    error, difference, kept, together = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    return Streamed(error, difference, kept, together, pictures)


def nearest_balloon(scenes: Scenes, seen: Tensor, start: int, job: Job) -> Tensor:
    """The colour of balloon whose picture is nearest to what is seen where the balloon is: indices [B, T]."""
    count = seen.shape[1]
    mask = scenes.balloon_mask(start, count, job.scale.size)
    area = mask.sum((2, 3, 4)).clamp(min=1)
    distances = []
    for color in range(len(BALLOONS)):
        painted = replace(scenes, balloon=torch.full_like(scenes.balloon, color))
        difference = (painted.render(start, count, job.scale.size) * 2 - 1 - seen) * mask
        distances.append(difference.square().sum((2, 3, 4)) / area)
    return torch.stack(distances).argmin(0)


def luma(pixels: Tensor) -> Tensor:
    """Mean luma of frames [B, T, 3, H, W] in [-1, 1], on a scale of 0 to 1: [B, T]."""
    weights = torch.tensor(LUMA_WEIGHTS, device=pixels.device).view(3, 1, 1)
    return ((pixels + 1) / 2 * weights).sum(2).mean((-1, -2))


def psnr(error: Tensor) -> float:
    return (-10 * torch.log10(error.mean() / 4)).item()


def run(job: Job) -> None:
    vae = AutoencoderKLWan.from_pretrained(job.work / "vae").eval().to(job.device)
    frames, count = job.scale.judged_frames, min(16, job.scale.judged)
    step = min(count, job.scale.encode)
    parts = [
        draw_scenes(JUDGE_SEED, range(i, min(i + step, count)), job.device) for i in range(0, count, step)
    ]
    long = [stream(vae, scenes, job, frames) for scenes in parts]
    error = torch.cat([part.error for part in long])
    kept = torch.cat([part.balloon for part in long]).float().mean().item()
    latents = torch.cat([part.latents for part in long])
    late, early = psnr(error[:, -81:]), psnr(error[:, 40:81])
    report: dict[str, object] = {
        "scenes": count,
        "frames": frames,
        "psnr": {"0": psnr(error[:, :1]), "0..16": psnr(error[:, :17]), "40..80": early, "last 81": late},
        "psnr_of_scenes": [round(psnr(row[:81]), 2) for row in error],
        "balloon": kept,
        "latent_std": [
            latents[:, span].std().item() for span in (slice(0, 1), slice(1, 21), slice(-20, None))
        ],
    }
    gates = {
        f"PSNR of the last 81 frames is {late:.2f} dB, at least 29.5": late >= 29.5,
        f"and {late - early:+.2f} dB from frames 40..80, within 0.5": abs(late - early) <= 0.5,
        f"the balloon's colour is kept in {kept:.1%} of the frames, at least 95%": kept >= 0.95,
    }
    for gain in GAINS:
        report[f"gain {gain}"], worst = at_gain(vae, parts, job, gain)
        gates[f"at gain {gain} luma is kept within {worst:.4f}, at most 0.02"] = worst <= 0.02
    job.gates("vae", report, gates)
    job.say(f"vae: {report}")
    shown = [at for at in SHOWN if at in long[0].pictures]
    rows = [
        [part.pictures[at][side][i] for at in shown for side in (0, 1)]
        for part in long
        for i in range(len(part.error))
    ]
    sheet(rows[:12], job.work / "vae.png", zoom=1 if job.cuda else 2)


def at_gain(
    vae: AutoencoderKLWan, parts: Sequence[Scenes], job: Job, gain: float
) -> tuple[dict[str, float], float]:
    """What comes back of scenes in another light, and by how much the mean luma of any is off."""

    def lit(pixels: Tensor) -> Tensor:
        return (pixels * gain).clamp(0, 1)

    seen = [stream(vae, scenes, job, min(81, job.scale.judged_frames), lit) for scenes in parts]
    difference = torch.cat([part.luma for part in seen])
    error = torch.cat([part.error for part in seen])
    report = {"psnr": psnr(error), "luma": difference.abs().max().item()}
    return report, difference.mean(1).abs().max().item()


if __name__ == "__main__":
    run(job_of(__doc__))
