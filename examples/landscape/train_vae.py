"""Train the landscape's VAE: pictures, then long streams.

A VAE trained on short clips drifts by itself after their end and would pass for a decaying student, so
streams of 161 frames are walked in segments with the temporal caches carried along, detached. Every eighth
step sees single pictures again.

    python examples/landscape/train_vae.py --work runs/landscape --minutes 60
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from inflate import inflate, pictures, prepare
from muon import Muon
from road import VAE_SEED, Clock, Job, Speed, job_of, load_state, replace_folder, save_state
from streams import Disturbance, Group, Pool
from torch import Tensor, nn

from sfpp_cli.data.landscape import draw_scenes
from sfpp_cli.models.vae import StreamingDecoder, StreamingEncoder

LATENT_CHANNELS = 16
CONFIG = {
    "base_dim": 16,
    "z_dim": LATENT_CHANNELS,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "latents_mean": [0.0] * LATENT_CHANNELS,
    "latents_std": [1.0] * LATENT_CHANNELS,
}
PICTURES = 0.35
"""Share of the time that goes to single pictures."""
MIX = 8
PICTURE_LR, STREAM_LR = 3e-3, 1.5e-3
WARMUP = 50
KL = 1e-4
RENDERING = 0.12
"""Share of the time that may go to rendering."""


class Trainer:
    """The VAE, its optimiser, and where it is on its way."""

    def __init__(self, job: Job) -> None:
        self.job, self.scale = job, job.scale
        torch.manual_seed(VAE_SEED)
        self.vae = AutoencoderKLWan(**CONFIG)
        prepare(self.vae)
        self.vae.to(job.device)
        self.optimizer = self.new_optimizer()
        self.step, self.phase_step, self.phase = 0, 0, "pictures"
        state = load_state(job.work / "vae-state.pt", job.device)
        self.clock = Clock(job, state["spent"] if state else 0.0)
        if state:
            self.restore(state)
            torch.manual_seed(VAE_SEED + self.step)
        else:
            self.begin_from_earlier()
        self.pool = Pool(job)
        self.groups: list[Group] = []
        self.rendering = 0.0
        self.good = self.state()

    def begin_from_earlier(self) -> None:
        """Weights that a call elsewhere has left, without their optimiser: straight to the streams."""
        folder = self.job.work / "vae"
        if not folder.exists():
            return
        self.vae.load_state_dict(AutoencoderKLWan.from_pretrained(folder).state_dict())
        self.phase = "streams"
        self.job.say("vae: goes on from the weights of an earlier call")

    def new_optimizer(self) -> Muon:
        parameters = list(self.vae.parameters())
        matrices = [p for p in parameters if p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1]
        return Muon(parameters, matrices, betas=(0.9, 0.98), weight_decay=1e-4)

    def run(self) -> None:
        speed = Speed()
        self.begin_streams_if_due()
        while self.pool.filled < self.scale.pool // 6:
            self.renew()
        self.choose_layout()
        while self.clock.done < 1:
            self.render()
            try:
                loss, psnr = self.update()
            except torch.OutOfMemoryError:
                self.shrink()
                continue
            self.begin_streams_if_due()
            if self.step % 50 == 0 and not self.healthy(loss):
                continue
            if self.step % 200 == 0 or self.step == 10:
                rendered = self.rendering / max(1e-9, time.monotonic() - self.clock.began)
                pace = f"{speed.ask(self.step):.1f} steps/s, {rendered:.0%} rendering"
                told = f"loss {loss.item():.4f}, {psnr.item():.2f} dB, {pace}, {self.pool.filled} streams"
                self.job.say(f"vae {self.phase} step {self.step}, {self.clock.spent:.0f} s: {told}")
            if self.clock.time_to_save():
                self.save()
        measure_statistics(self.vae, self.job)
        self.save()

    def render(self) -> None:
        """New streams, as long as rendering takes no more than its share."""
        elapsed = time.monotonic() - self.clock.began
        if self.rendering > RENDERING * elapsed:
            return
        self.renew()

    def renew(self) -> None:
        began = time.monotonic()
        self.pool.renew()
        if self.job.cuda:
            torch.cuda.synchronize()
        self.rendering += time.monotonic() - began

    def shrink(self) -> None:
        """There was no room for a step: smaller ones from now on."""
        self.scale = replace(
            self.scale, pictures=max(1, self.scale.pictures // 2), streams=max(1, self.scale.streams // 2)
        )
        self.pool.scale, self.groups = self.scale, []
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        self.job.say(
            f"vae: out of memory; {self.scale.pictures} pictures, {self.scale.streams} streams from now on"
        )

    def update(self) -> tuple[Tensor, Tensor]:
        """One step; returns loss and PSNR, both still on the device."""
        still = self.phase == "pictures" or self.step % MIX == 0
        with pictures(still):
            group = None if still else self.next_group()
            loss, psnr = self.losses(group)
            self.optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(self.optimizer.parameters, 1.0)
        lr = self.rate()
        self.optimizer.step(lr, lr)
        if group is not None:
            group.detach()
        self.step += 1
        self.phase_step += 1
        return loss.detach(), psnr.detach()

    def losses(self, group: Group | None) -> tuple[Tensor, Tensor]:
        if group is None:
            frames, weights = self.pool.pictures(self.scale.pictures)
            frames = Disturbance.drawn(len(frames), self.job.device)(frames, 0)
            encoder, decoder = StreamingEncoder(self.vae), StreamingDecoder(self.vae)
        else:
            frames, weights = group.step()
            encoder, decoder = group.encoder, group.decoder
        with self.job.autocast():
            mean, log_variance = encoder.moments(frames)
            mean, log_variance = mean.float(), log_variance.float().clamp(-20, 10)
            pixels = decoder.from_raw(mean + torch.exp(log_variance / 2) * torch.randn_like(mean)).float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        psnr = -10 * torch.log10(F.mse_loss(pixels, frames) / 4)
        return reconstruction_loss(pixels, frames, weights) + KL * divergence, psnr

    def next_group(self) -> Group:
        """Batches of streams take turns, each at another place, so that no step sees one place only."""
        if not self.groups:
            length, count = self.scale.length, self.scale.groups
            self.groups = [
                Group(self.vae, self.pool, 1 + (i + 1) * (length - 1) // count) for i in range(count)
            ]
        number = self.phase_step % len(self.groups)
        if self.groups[number].over:
            self.groups[number] = Group(self.vae, self.pool)
        return self.groups[number]

    def rate(self) -> float:
        warm = min(1.0, (self.phase_step + 1) / WARMUP)
        if self.phase == "pictures":
            return PICTURE_LR * warm * (1 - 0.75 * min(1.0, self.clock.done / PICTURES))
        return STREAM_LR * warm * (1 - max(0.0, self.clock.done - PICTURES) / (1 - PICTURES))

    def begin_streams_if_due(self) -> None:
        if self.phase == "pictures" and self.clock.done >= PICTURES:
            inflate(self.vae)
            self.phase, self.phase_step = "streams", 0
            self.optimizer = self.new_optimizer()
            self.good = self.state()
            self.choose_layout()
        self.optimizer.last_tap = self.phase == "pictures"

    def choose_layout(self) -> None:
        """On a GPU, the faster of two layouts of convolution weights, tried on a copy."""
        if not self.job.cuda or self.job.careful:
            return
        seconds = {}
        mine = self.vae
        for name in ("contiguous", "channels last"):
            self.vae = copy.deepcopy(mine)
            set_layout(self.vae, name)
            seconds[name] = self.time_of_steps()
        self.vae = mine
        best = min(seconds, key=lambda name: seconds[name])
        set_layout(self.vae, best)
        self.groups = []
        tried = ", ".join(f"{name} {1000 * spent:.1f} ms" for name, spent in seconds.items())
        self.job.say(f"vae {self.phase}: {best}, of {tried} a step")

    def time_of_steps(self, count: int = 6) -> float:
        """Seconds a step of this phase, caches warm. The optimiser is left out: it sees no layout."""
        group = Group(self.vae, self.pool) if self.phase == "streams" else None
        began = 0.0
        with pictures(group is None):
            for number in range(2 + count):
                if number == 2:
                    torch.cuda.synchronize()
                    began = time.monotonic()
                if group is not None and group.over:
                    group = Group(self.vae, self.pool)
                self.losses(group)[0].backward()
                if group is not None:
                    group.detach()
        torch.cuda.synchronize()
        return (time.monotonic() - began) / count

    def healthy(self, loss: Tensor) -> bool:
        """Remember a good state; go back to the last one if the loss is no number any more."""
        if torch.isfinite(loss):
            self.good = self.state()
            return True
        self.job.say(f"vae: loss is not finite at step {self.step}; going back to step {self.good['step']}")
        self.restore(self.good)
        self.groups = []
        return False

    def state(self) -> dict[str, object]:
        tensors = {"vae": self.vae.state_dict(), "optimizer": self.optimizer.state_dict()}
        numbers = {
            "step": self.step,
            "phase_step": self.phase_step,
            "phase": self.phase,
            "spent": self.clock.spent,
        }
        return copy.deepcopy(tensors) | numbers

    def restore(self, state: dict[str, object]) -> None:
        self.vae.load_state_dict(state["vae"])
        self.optimizer = self.new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.phase_step, self.phase = state["step"], state["phase_step"], state["phase"]

    def save(self) -> None:
        save_state(self.job.work / "vae-state.pt", self.state())
        store(self.vae, self.job.work / "vae")


def reconstruction_loss(pixels: Tensor, frames: Tensor, weights: Tensor) -> Tensor:
    """Of [B, T, 3, H, W]: pixels, their edges, and the picture seen from afar."""
    difference = pixels - frames
    flat, weight = difference.flatten(0, 1), weights.flatten(0, 1)
    near = (weights * (difference.abs() + 2 * difference.square())).mean()
    edges = (weight[..., 1:] * flat.diff(dim=-1).abs()).mean() + (
        weight[..., 1:, :] * flat.diff(dim=-2).abs()
    ).mean()
    far = F.avg_pool2d(flat, 4).abs().mean() + F.avg_pool2d(flat, 16).abs().mean()
    return near + 0.5 * edges + 0.5 * far


def set_layout(vae: AutoencoderKLWan, name: str) -> None:
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.to(
                memory_format=torch.channels_last_3d if name == "channels last" else torch.contiguous_format
            )
        if isinstance(module, nn.Conv2d):
            module.to(
                memory_format=torch.channels_last if name == "channels last" else torch.contiguous_format
            )


@torch.no_grad()
def measure_statistics(vae: AutoencoderKLWan, job: Job, count: int = 64, segments: int = 5) -> None:
    """Per-channel mean and std of the clean world's latents go into the configuration, as in Wan's."""
    latents = []
    count = min(count, job.scale.clips)
    for first in range(0, count, job.scale.encode):
        scenes = draw_scenes(VAE_SEED, range(first, first + job.scale.encode), job.device)
        encoder = StreamingEncoder(vae)
        for segment in range(segments):
            start, frames = (0, 17) if segment == 0 else (1 + 16 * segment, 16)
            latents.append(encoder.moments(scenes.render(start, frames, job.scale.size) * 2 - 1)[0].float())
    together = torch.cat([part.transpose(0, 1).flatten(1) for part in latents], dim=1)
    vae.register_to_config(latents_mean=together.mean(1).tolist(), latents_std=together.std(1).tolist())


def store(vae: AutoencoderKLWan, folder: Path) -> None:
    """As float32 in plain layout, whatever the training used."""
    plain = AutoencoderKLWan.from_config(vae.config)
    plain.load_state_dict(
        {name: value.detach().cpu().contiguous() for name, value in vae.state_dict().items()}
    )
    replace_folder(folder, plain.save_pretrained)


def run(job: Job) -> None:
    Trainer(job).run()


if __name__ == "__main__":
    run(job_of(__doc__))
