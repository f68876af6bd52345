"""Distribution matching on the student's own rollouts: Self-Forcing and Self-Forcing++.

arXiv 2506.08009 and arXiv 2510.02283. Algorithm 1 of Self-Forcing++ is `student_loss` and `window`:

    V <- rollout(G, N frames, rolling cache of L), no gradient
    i ~ Unif{0 .. N-K};  W <- V[i : i+K]                          drawn first: nothing after W is rolled out
    t ~ student steps;  x_t(W) <- (1-sigma_t) W + sigma_t eps     backward noise initialisation, equation 1
    L <- DMD(G(x_t(W), t | cache before i), T)                    extended DMD, equation 2
    update G;  critic as above, on windows                        `players`, in this order
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from sfpp_cli.core.cache import CacheSnapshot
from sfpp_cli.core.constants import CLEAN, TRAIN_STEPS
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import VideoNoise, mixed, normal, seeded
from sfpp_cli.core.objective import Loss, Player, Update
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.schema import STRICT

Videos = Callable[[Update], tuple[list[str], Tensor]]
"""An update's prompts, and clean videos [B, F, C, H, W] in whole chunks that end in the window."""


@dataclass(frozen=True, config=STRICT)
class DMDConfig:
    """What the method leaves open. Frames are latent frames; the defaults are the paper's."""

    method: Literal["self-forcing", "self-forcing++"]
    """A rollout of K frames, all of it the window; or windows of K frames out of rollouts of N."""
    frames: Annotated[int | None, Field(ge=1, validate_default=True)] = None
    """N, the longest rollout."""
    horizon: Annotated[int, Field(ge=1)] | None = None
    """K, what the teacher can judge; the model's if not given."""
    window: Literal["uniform", "beta(1,2)"] = "uniform"
    """Where windows start; Beta(1, 2) prefers early ones."""
    noise_init: Annotated[Literal["backward", "random"], Field(validate_default=True)] = "backward"
    """A window starts from its own clean rollout, re-noised (equation 1), or from pure noise."""
    gradient_step: Literal["last", "uniform"] = "last"
    """The denoising step that learns; if uniform, one is drawn an update, for all chunks."""
    first_frame: Literal["none", "reencode"] = "none"
    """Whether a window's first frame becomes an image latent, which is what a teacher's first frame is."""
    context_noise: Annotated[float, Field(ge=CLEAN, lt=TRAIN_STEPS)] = CLEAN
    """Timestep to which clean chunks are re-noised before they are cached."""
    shared_rollout: bool = True
    """The critic learns from the student's window of the step; if false, from a new rollout each time."""
    guidance: float = 4.0
    """Of the teacher, in the usual convention; 4 is the reference's cond + 3 (cond - uncond)."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    timesteps: tuple[float, float] = (20.0, 980.0)
    """Range of the noise at which teacher and critic are compared, drawn uniformly and then shifted."""
    critic_updates: Annotated[int, Field(ge=1)] = 5
    """Updates of the critic to one of the student."""
    critic_lr: Annotated[float, Field(gt=0)] = 4e-7
    """Learning rate of the critic."""

    @field_validator("frames")
    @classmethod
    def _frames_are_the_methods(cls, frames: int | None, info: ValidationInfo) -> int | None:
        """Rules between fields stand at the later one, so that they are told along with all other faults."""
        method = info.data.get("method")
        if method == "self-forcing++" and frames is None:
            raise ValueError("must be given for self-forcing++: how many latent frames rollouts may go")
        if method == "self-forcing" and frames is not None:
            raise ValueError("must be left out for self-forcing, whose rollout is its window")
        return frames

    @field_validator("noise_init")
    @classmethod
    def _self_forcing_starts_from_noise(cls, noise_init: str, info: ValidationInfo) -> str:
        if info.data.get("method") == "self-forcing" and noise_init != "random":
            raise ValueError("must be 'random' for self-forcing, whose windows start from noise")
        return noise_init

    @field_validator("timesteps")
    @classmethod
    def _timesteps_ascend(cls, timesteps: tuple[float, float]) -> tuple[float, float]:
        low, high = timesteps
        if not 0 <= low < high <= TRAIN_STEPS:
            raise ValueError(f"must ascend within 0..{TRAIN_STEPS}, not {list(timesteps)}")
        return timesteps

    def chunks(self, horizon: int, chunk: int) -> tuple[int, int]:
        """Chunks of a window, and chunks at which one may start, for a teacher of `horizon` latent frames.

        Raises ValueError if windows or rollouts are not made of whole chunks.
        """
        horizon = self.horizon or horizon
        frames = self.frames or horizon
        if horizon % chunk or frames % chunk or frames < horizon:
            raise ValueError(
                f"rollouts of {frames} latent frames and windows of {horizon} must be whole chunks of {chunk}"
            )
        return horizon // chunk, (frames - horizon) // chunk + 1


class _For(IntEnum):
    """What a random number is for."""

    PROMPT, UPDATE, ROLLOUT, WINDOW, SCORE = range(5)


class DistributionMatching:
    """The student learns on windows of its own rollouts, from teacher and critic; the critic follows it."""

    def __init__(
        self,
        student: CausalWanModel,
        critic: Teacher,
        teacher: Teacher,
        encode_text: Callable[[list[str]], Tensor],
        prompts: Sequence[str],
        *,
        sampler: Sampler,
        horizon: int,
        latent: tuple[int, int, int],
        config: DMDConfig,
        seed: int,
        image_latent: Callable[[Tensor], Tensor] | None = None,
        videos: Videos | None = None,
        save_extra: Callable[[Path], None] | None = None,
    ) -> None:
        """`horizon` is K in latent frames, `latent` one latent frame's [C, H, W].

        The sampler's schedule is the only one: of rollouts, teacher, critic and noise. `image_latent` turns
        the picture in which latents [B, F, C, H, W] end into one image latent [B, 1, C, H, W]. `videos`, if
        given, take the place of rollouts. Raises ValueError if windows are not whole chunks.
        """
        self.student = student
        self.critic = critic
        self.teacher = teacher
        self.encode_text = encode_text
        self.prompts = prompts
        self.sampler = sampler
        self.schedule = sampler.schedule
        self.config = config
        self.seed = seed
        self.image_latent = image_latent
        self.videos = videos
        self.chunk_shape = (sampler.chunk, *latent)
        length, starts = config.chunks(horizon, sampler.chunk)
        self.length = length
        """Chunks of a window."""
        self.starts = starts
        """Chunks at which a window may start."""
        self.step = -1
        self.kept: dict[tuple[int, ...], Tensor] = {}
        """The student's windows of training step `step` by their samples, for the critic's updates."""
        self.players = (
            Player({"student": student}, self.student_loss, save_extra=save_extra),
            Player(
                {"critic": critic},
                self.critic_loss,
                name="critic",
                updates=config.critic_updates,
                lr=config.critic_lr,
                has_ema=False,
            ),
        )

    def student_loss(self, update: Update) -> Loss:
        """Extended DMD (equation 2) on one window, and the mean size of its gradient."""
        text, negative = self.texts(update)
        x, loss_mask = self.window(update, text, gradient=True)
        self._keep(update, x.detach())
        g = self.score_difference(x.detach(), text, negative, update)
        return dmd_loss(x, g, loss_mask), {"dmd_gradient": g.abs().mean().item()}

    def critic_loss(self, update: Update) -> Loss:
        """Flow matching on a window of the student, detached."""
        text, _ = self.texts(update)
        x = self.kept[update.samples] if self.config.shared_rollout else self.window(update, text)[0]
        t, noise = self.score_noise(x, update)
        flow = self.critic(self.schedule.add_noise(x, noise, t), t, text)
        return critic_loss(flow, x, noise), {}

    def window(self, update: Update, text: Tensor, *, gradient: bool = False) -> tuple[Tensor, Tensor]:
        """A window x0 [B, K, C, H, W] of the student's rollout, and its loss mask [K] of bool."""
        draws = seeded(self.seed, _For.UPDATE, update.step, update.player, update.repeat)
        start = self.draw_start(draws)
        step = self.draw_step(draws)
        if self.videos is None:
            video, past = self.roll_out(update, text, start)
        else:
            start, video, past = self._given(self.videos(update)[1], text)
        noise = self._video_noise(_For.WINDOW, update, text, start)
        x = torch.cat(list(noise.chunks(0, self.length)), dim=1)
        timesteps = self.sampler.timesteps
        if self.config.noise_init == "backward":  # equation 1: one step, from the rollout's own latents
            x = self.schedule.add_noise(torch.cat(video[start:], dim=1), x, timesteps[step])
            timesteps = timesteps[step : step + 1]
        else:  # from pure noise, down to the step that learns
            timesteps = timesteps[: step + 1]
        grad_chunks = range(self.length) if gradient else ()
        chunks = self._roll(x, text, noise, cache=past, timesteps=timesteps, grad_chunks=grad_chunks)
        return self._image_first(torch.cat(list(chunks), dim=1), video[:start])

    @torch.no_grad()
    def roll_out(self, update: Update, text: Tensor, start: int) -> tuple[list[Tensor], CacheSnapshot | None]:
        """Clean chunks up to the end of the window at chunk `start`, and the cache before the window.

        Self-Forcing's window has nothing before it.
        """
        if self.config.method == "self-forcing":
            return [], None
        sampler = self.sampler
        noise = self._video_noise(_For.ROLLOUT, update, text)
        cache = self.student.new_cache(text, self.chunk_shape[2:], context=sampler.context, sink=sampler.sink)
        needed = start + (self.length if self.config.noise_init == "backward" else 1)
        video: list[Tensor] = []
        past = None
        for x0 in self._roll(noise.chunks(0, needed), text, noise, cache=cache):
            if len(video) == start:
                # Chunk `start` is denoised but not yet cached: the ring still holds what came before it.
                past = cache.snapshot(sampler.chunk)
            video.append(x0)
        return video, past

    def draw_start(self, draws: torch.Generator) -> int:
        """The chunk at which the window starts."""
        weights = start_weights(self.starts, self.config.window)
        return int(torch.multinomial(weights, 1, generator=draws))

    def draw_step(self, draws: torch.Generator) -> int:
        """The denoising step that learns."""
        steps = len(self.sampler.steps)
        if self.config.gradient_step == "last":
            return steps - 1
        return int(torch.randint(steps, (), generator=draws))

    @torch.no_grad()
    def score_difference(self, x: Tensor, text: Tensor, negative: Tensor, update: Update) -> Tensor:
        """g = f_critic(x_t) - f_teacher(x_t) at a random noise level, normalised (arXiv 2405.14867)."""
        t, noise = self.score_noise(x, update)
        x_t = self.schedule.add_noise(x, noise, t)
        critic = self.critic(x_t, t, text)
        teacher = self.teacher.guided(x_t, t, text, negative, self.config.guidance)
        return dmd_gradient(
            x, self.schedule.x0_from_flow(critic, x_t, t), self.schedule.x0_from_flow(teacher, x_t, t)
        )

    def score_noise(self, x: Tensor, update: Update) -> tuple[Tensor, Tensor]:
        """Timesteps [B] and noise like x, at which scores are compared or learned."""
        draws = [seeded(seed) for seed in self._seeds(_For.SCORE, update)]
        uniform = torch.cat([torch.rand(1, generator=draw) for draw in draws])
        noise = torch.stack([normal(x.shape[1:], draw) for draw in draws])
        return score_timesteps(self.schedule, uniform, self.config.timesteps).to(x.device), noise.to(x)

    def texts(self, update: Update) -> tuple[Tensor, Tensor]:
        """Padded embeddings [B, L, D] of the samples' prompts, and of the negative one."""
        prompts = self.videos(update)[0] if self.videos is not None else self._draw_prompts(update)
        device = next(self.student.parameters()).device
        text = self.encode_text(prompts).to(device)
        negative = self.encode_text([self.config.negative_prompt] * len(prompts)).to(device)
        return text, negative

    def _draw_prompts(self, update: Update) -> list[str]:
        draws = [seeded(self.seed, _For.PROMPT, sample) for sample in update.samples]
        return [self.prompts[int(torch.randint(len(self.prompts), (), generator=draw))] for draw in draws]

    @torch.no_grad()
    def _given(self, latents: Tensor, text: Tensor) -> tuple[int, list[Tensor], CacheSnapshot]:
        """Clean latents in place of a rollout: the window's first chunk, all chunks, the cache before it."""
        sampler = self.sampler
        video = list(latents.split(sampler.chunk, dim=1))
        start = len(video) - self.length
        cache = self.student.new_cache(text, self.chunk_shape[2:], context=sampler.context, sink=sampler.sink)
        for clean in video[:start]:
            self.student.cache_clean(clean, cache)
        return start, video, cache.snapshot(sampler.chunk)

    def _roll(
        self, x: Tensor | Iterator[Tensor], text: Tensor, noise: VideoNoise, **options: Any
    ) -> Iterator[Tensor]:
        return self.sampler.rollout(self.student, x, text, noise.draw, **options)

    def _image_first(self, x: Tensor, before: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The window and its loss mask; its first frame as an image latent, without loss, if so wanted.

        `before` are the clean chunks before the window. Without any, it starts with an image latent anyway.
        """
        loss_mask = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        if self.config.first_frame == "reencode" and before and self.image_latent is not None:
            picture = torch.cat([before[-1], x[:, :1].detach()], dim=1)
            x = torch.cat([self.image_latent(picture), x[:, 1:]], dim=1)
            loss_mask[0] = False
        return x, loss_mask

    def _keep(self, update: Update, x: Tensor) -> None:
        """Keep a window for the critic's updates of the same step; those of earlier steps are dropped."""
        if update.step != self.step:
            self.step = update.step
            self.kept = {}
        self.kept[update.samples] = x

    def _video_noise(self, use: _For, update: Update, text: Tensor, number: int = 0) -> VideoNoise:
        return VideoNoise(self._seeds(use, update, number), self.chunk_shape, text.device)

    def _seeds(self, use: _For, update: Update, number: int = 0) -> list[int]:
        """One for each video."""
        return [
            mixed(self.seed, use, sample, update.player, update.repeat, number) for sample in update.samples
        ]


def start_weights(starts: int, window: str) -> Tensor:
    """Unnormalised probability of each start chunk, [starts]; Beta(1, 2) has density 2 (1 - u)."""
    if window == "uniform":
        return torch.ones(starts)
    return starts - torch.arange(starts) - 0.5


def score_timesteps(schedule: FlowSchedule, uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    """Uniform numbers in 0..1 to timesteps within `limits`, shifted as all others are."""
    low, high = limits
    return schedule.shift_timesteps(low + (high - low) * uniform).clamp(low, high)


def dmd_gradient(x: Tensor, critic: Tensor, teacher: Tensor) -> Tensor:
    """The distribution matching gradient, from x0 predictions [B, F, C, H, W] of critic and teacher.

    Normalised for each sample by the mean distance of x from the teacher's prediction (arXiv 2311.18828,
    equation 8).
    """
    distance = (x - teacher).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return (critic - teacher) / distance.clamp(min=torch.finfo(distance.dtype).tiny)


def dmd_loss(x: Tensor, gradient: Tensor, loss_mask: Tensor | None = None) -> Tensor:
    """0.5 mean (x - sg(x - g))^2, so that dL/dx = g / numel.

    Frames outside `loss_mask` ([F] or [B, F] of bool) do not learn: they are left out of the mean.
    """
    target = (x.double() - gradient.double()).detach()
    square = (x.double() - target).square()
    if loss_mask is None:
        return 0.5 * square.mean()
    return 0.5 * square[loss_mask.expand(square.shape[:2])].mean()


def critic_loss(flow: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """Flow matching: mean (flow - (noise - x))^2."""
    return F.mse_loss(flow.float(), noise - x)
