"""Flow matching: how a teacher is trained from latents and captions (arXiv 2210.02747)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfpp_cli.core.constants import TRAIN_STEPS
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import normal, seeded
from sfpp_cli.core.objective import Loss, Player, Update
from sfpp_cli.core.teacher import Teacher


class Clips(Protocol):
    """Captioned clips."""

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """A random clip's latents [F, C, H, W] and its caption."""


class FlowMatching:
    """Mean squared error of the predicted flow, at timesteps drawn uniformly and then shifted.

    Some captions are dropped, so that guidance has an unconditional prediction to lead away from.
    """

    def __init__(
        self,
        teacher: Teacher,
        encode_text: Callable[[list[str]], Tensor],
        clips: Clips,
        *,
        schedule: FlowSchedule,
        text_dropout: float,
        seed: int,
        models: Mapping[str, nn.Module],
    ) -> None:
        self.teacher = teacher
        self.encode_text = encode_text
        self.clips = clips
        self.schedule = schedule
        self.text_dropout = text_dropout
        self.seed = seed
        self.players = (Player(models, self.loss),)

    def loss(self, update: Update) -> Loss:
        generators = [seeded(self.seed, number) for number in update.samples]
        latents, captions = zip(*(self.clips.draw(generator) for generator in generators), strict=True)
        uniform = torch.cat([torch.rand(2, 1, generator=generator) for generator in generators], dim=1)
        prompts = [
            "" if u < self.text_dropout else caption
            for u, caption in zip(uniform[0].tolist(), captions, strict=True)
        ]

        device = next(self.teacher.parameters()).device
        x0 = torch.stack(latents).to(device)
        noise = torch.stack([normal(x0.shape[1:], generator) for generator in generators]).to(device)
        timestep = self.schedule.shift_timesteps(TRAIN_STEPS * uniform[1]).to(device)
        # Not `FlowSchedule.add_noise`: a teacher learns at continuous noise levels, not at the table's.
        sigma = (timestep / TRAIN_STEPS).view(-1, 1, 1, 1, 1)
        flow = self.teacher((1 - sigma) * x0 + sigma * noise, timestep, self.encode_text(prompts))
        return F.mse_loss(flow.float(), noise - x0), {}
