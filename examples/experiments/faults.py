"""Faults for videos that have none, and what it takes to put them there: filming a student, decoding,
injecting, encoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.data.landscape import parse_caption
from sfpp_cli.data.landscape.features import FEATURES
from sfpp_cli.data.landscape.palette import LUMA_WEIGHTS
from sfpp_cli.data.landscape.reader import judge_frames, read_video
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.models.vae import StreamingDecoder, StreamingEncoder, to_uint8

DRIFTS = {"to white": 0.4, "to black": 0.4, "desaturation": 1.0, "tint": 1.0}
"""Drifts, and how much of every pixel is white, black, its own grey or its tinted self where a full one has
arrived."""
TINT = (0.15, -0.05, -0.13)
"""Added to red, green and blue in 0..1: towards orange, at the same luma."""
FAULTS = (*DRIFTS, "frozen stretch", "motion glitch")
FROZEN, SKIP = 5.0, 1.0
"""Seconds for which a full frozen stretch holds its first frame, and that a full glitch jumps ahead."""
CPU = torch.device("cpu")


def inject(frames: Tensor, fault: str, strength: float, fps: int, grown: int | None = None) -> Tensor:
    """Video frames [B, T, 3, H, W] in [-1, 1] with `fault` at `strength` in 0..1 of a full one.

    A drift grows linearly over the first `grown` frames (all if None) and stays. A frozen stretch lies in the
    middle, and all its frames show its first. A glitch replaces the middle half by what is shown up to a
    second later: a jump ahead, and a jump back.
    """
    count = frames.shape[1]
    if fault in DRIFTS:
        if fault == "desaturation":
            goal = torch.einsum("btchw,c->bthw", frames, frames.new_tensor(LUMA_WEIGHTS))[:, :, None]
        elif fault == "tint":
            goal = (frames + 2 * frames.new_tensor(TINT)[:, None, None]).clamp(-1, 1)
        else:
            goal = frames.new_tensor(1.0 if fault == "to white" else -1.0)
        ramp = torch.arange(count).div((grown or count) - 1).clamp(max=1)
        return frames.lerp(goal.expand_as(frames), (strength * DRIFTS[fault] * ramp)[:, None, None, None])
    shown = torch.arange(count)
    if fault == "frozen stretch":
        length = min(count, round(strength * FROZEN * fps))
        first = (count - length) // 2
        shown[first : first + length] = first
    else:
        shown[count // 4 : count - count // 4] += round(strength * SKIP * fps)
    return frames[:, shown]


class Studio:
    """The models of a bundle at work on the CPU, in float32, and everything that its settings decide."""

    def __init__(self, model: str, prompts: Sequence[str]) -> None:
        """`prompts` are all those whose embeddings will be asked for."""
        self.bundle = Bundle(model)
        self.settings, self.horizon = self.bundle.settings, self.bundle.teacher_horizon
        self.sampler = self.settings.sampler()
        self.schedule = self.sampler.schedule
        self.vae = self.bundle.load_vae(CPU, torch.float32)
        self.text = EmbeddedPrompts(self.bundle.load_text(CPU, torch.float32), prompts)
        self.student = self.bundle.load_student(CPU, torch.float32)
        self.shape = (
            self.student.config.in_channels,
            *self.bundle.compression.latent_size(self.settings.width, self.settings.height),
        )
        self.window = self.bundle.compression.video_frames(self.horizon)
        """Video frames that the teacher can judge."""

    @torch.no_grad()
    def roll(
        self,
        student: CausalWanModel,
        prompts: Sequence[str],
        seeds: Sequence[int],
        past: Tensor | None = None,
    ) -> Tensor:
        """The next K latent frames [B, K, C, h, w] behind `past`, [B, F, C, h, w]; or the first."""
        chunk = self.settings.chunk
        noise = VideoNoise(seeds, (chunk, *self.shape))
        first = 0 if past is None else past.shape[1] // chunk
        chunks = self.sampler.rollout(
            student.eval(),
            noise.chunks(first, first + self.horizon // chunk),
            self.text(prompts),
            noise.draw,
            past=() if past is None else past.split(chunk, dim=1),
        )
        return torch.cat(list(chunks), dim=1)

    @torch.no_grad()
    def film(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """The student's first 2 K latent frames as video, [B, T, 3, H, W] in [-1, 1]."""
        begin = self.roll(self.student, prompts, seeds)
        return self.decode(torch.cat([begin, self.roll(self.student, prompts, seeds, begin)], dim=1))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] in [-1, 1], a chunk at a time."""
        decoder = StreamingDecoder(self.vae)
        return torch.cat(
            [decoder(piece) for piece in latents.split(self.settings.chunk, dim=1)], dim=1
        ).clamp(-1, 1)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] whose first is that of a picture, as the teacher knows clips."""
        encoder = StreamingEncoder(self.vae)
        pieces = frames[:, 1:].split(self.bundle.compression.temporal * self.settings.chunk, dim=1)
        return torch.cat([encoder(frames[:, :1]), *(encoder(piece) for piece in pieces)], dim=1)

    def stream(self, film: Tensor, fault: str | None) -> Tensor:
        """Latents of a whole film in whose first half `fault` grows to full strength; unharmed if None."""
        return self.encode(
            film if fault is None else inject(film, fault, 1.0, self.settings.fps, grown=self.window)
        )

    def continuations(
        self, student: CausalWanModel, prompts: Sequence[str], seeds: Sequence[int], past: Tensor
    ) -> list[dict[str, float]]:
        """Gauges of the next 5 s behind `past`, a row a video, means over frames.

        `luma`, `saturation` and `tint` (red less luma) as the world's reader has them; `speed` in pixels a
        frame; shares in which the balloon is not one and whole (`broken`), or light and colour are not the
        captioned ones (`astray`).
        """
        latents = torch.cat(
            [past[:, -self.settings.chunk :], self.roll(student, prompts, seeds, past)], dim=1
        )
        behind = self.bundle.compression.video_frames(self.settings.chunk)
        rows = []
        for video, prompt in zip(self.decode(latents)[:, behind:], prompts, strict=True):
            scene = parse_caption(prompt)
            seen = read_video(to_uint8(video[None])[0], scene.time)
            gauges = dict(zip(FEATURES, seen.features.mean(0).tolist(), strict=True))
            rows.append(
                {
                    "luma": gauges["luma"],
                    "saturation": gauges["saturation"],
                    "tint": gauges["chroma_u"],
                    "speed": float(seen.speed.abs().mean()),
                    "broken": 1 - float(seen.intact.float().mean()),
                    "astray": 1 - float(judge_frames(seen, scene)["palette"].float().mean()),
                }
            )
        return rows
