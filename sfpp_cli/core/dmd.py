"""Distribution matching on the student's own rollouts: Self-Forcing and Self-Forcing++.

arXiv 2506.08009 and arXiv 2510.02283. Algorithm 1 of Self-Forcing++ is `student_loss` and `window`:

    V <- rollout(G, N frames, rolling cache of L), no gradient
    i ~ Unif{0 .. N-K};  W <- V[i : i+K]                          drawn first: nothing after W is rolled out
    t ~ student steps;  x_t(W) <- (1-sigma_t) W + sigma_t eps     backward noise initialisation, equation 1
    L <- DMD(G(x_t(W), t | cache before i), T)                    extended DMD, equation 2
    update G;  critic as above, on windows                        `players`, in this order

The third line can be read in several ways, and the paper does not settle which is meant. `noise_init` is one
of

    simulated   Equation 1 is the sampler's own transition from one denoising step to the next, so x_t is what
                the rollout itself denoises at step t. W stays as it is; the pass that predicted it carries
                gradient. That is the backward simulation of DMD2 and Self-Forcing, on a longer rollout.
    renoised    To the letter: the finished W is noised to t and denoised anew. At the last step that makes a
                fifth pass over what four have made, on inputs that no rollout ever has.
    random      No coupling: W is denoised from noise of its own, after the past that was rolled out.

The first is the default, since it trains what `generate` shows on inputs that `generate` meets. For it speak
equation 7, which computes x0 "following equation 1 conditioned on the previously generated samples"; section
3.2, which names Self-Forcing, DMD2 and CausVid for the same technique; and figure 2, which draws it for
Self-Forcing too. Against it speaks line 5 of the algorithm, which noises a slice of the clean V.
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
    noise_init: Literal["simulated", "renoised", "random"] = "simulated"
    """What the step that learns denoises.

    The rollout's own input of that step; the finished window, re-noised; or what noise of its own has become
    by then. Self-Forcing has no choice: its window is its rollout.
    """
    gradient_step: Literal["last", "uniform"] = "last"
    """The denoising step that learns; if uniform, one is drawn an update, for all chunks."""
    first_frame: Literal["none", "reencode"] = "none"
    """Whether a window's first frame becomes an image latent, as a teacher's first frame is.

    As in Self-Forcing's code, the whole first chunk is then without loss.
    """
    context_noise: Annotated[float, Field(ge=CLEAN, lt=TRAIN_STEPS)] | None = None
    """Noise in the cached past, see `Sampler`; the student's own if not given."""
    context_noise_on: Literal["latents", "keys"] | None = None
    """What that noise is added to, see `Sampler`; the student's own if not given."""
    shared_rollout: bool = True
    """Whether the critic learns from the student's windows.

    It then sees the window of the student's last update in all its own updates of the step; otherwise each
    of them has a rollout and prompts of its own, as in Self-Forcing. Sharing leaves out most rollouts. Its
    price: the critic sees fewer samples, and made by the student before its update.
    """
    guidance: float = 4.0
    """Of the teacher, in the usual convention; 4 is the reference's cond + 3 (cond - uncond)."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    timesteps: tuple[int, int] = (0, TRAIN_STEPS)
    """Whole timesteps, from the first to below the second, of which scores are drawn; shifted afterwards."""
    clamp: tuple[int, int] = (20, 980)
    """Least and greatest timestep of scores after the shift; those beyond are moved here."""
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

    @field_validator("noise_init", mode="before")
    @classmethod
    def _backward_is_renoised(cls, noise_init: object) -> object:
        if noise_init == "backward":
            raise ValueError(
                "must be 'renoised', as 'backward' is called now, or 'simulated', the new default"
            )
        return noise_init

    @field_validator("noise_init")
    @classmethod
    def _self_forcing_renoises_nothing(cls, noise_init: str, info: ValidationInfo) -> str:
        if info.data.get("method") == "self-forcing" and noise_init == "renoised":
            raise ValueError("must not be 'renoised' for self-forcing, whose window is its rollout")
        return noise_init

    @field_validator("timesteps", "clamp")
    @classmethod
    def _timesteps_ascend(cls, timesteps: tuple[int, int]) -> tuple[int, int]:
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
        given, take the place of rollouts. `save_extra` writes beside saved students. Raises ValueError if
        windows are not whole chunks, or if there is nothing in `videos` to simulate.
        """
        if videos is not None and config.noise_init == "simulated":
            raise ValueError("videos have no denoising steps: set noise_init to 'renoised' or 'random'")
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
        self.kept: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        """By samples the windows that the student learned from in training step `step`, and their text."""
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
        x, loss_mask = self.window(update, text)
        self._keep(update, x.detach(), text)
        g = self.score_difference(x.detach(), text, negative, update)
        return dmd_loss(x, g, loss_mask), {"dmd_gradient": g.abs().mean().item()}

    def critic_loss(self, update: Update) -> Loss:
        """Flow matching on a window of the student, detached."""
        if self.config.shared_rollout:
            x, text = self.kept[update.samples]
        else:
            text, _ = self.texts(update)
            with torch.no_grad():
                x, _ = self.window(update, text)
        t, noise = self.score_noise(x, update)
        flow = self.critic(self.schedule.add_noise(x, noise, t), t, text)
        return critic_loss(flow, x, noise), {}

    def window(self, update: Update, text: Tensor) -> tuple[Tensor, Tensor]:
        """A window x0 [B, K, C, H, W] as the step that learns predicts it, and its loss mask [K] of bool."""
        draws = seeded(self.seed, _For.UPDATE, update.step, update.player, update.repeat)
        start = self.draw_start(draws)
        step = self.draw_step(draws)
        if self.config.method == "self-forcing" or self.config.noise_init == "simulated":
            before, window = self._simulate(update, text, start, step)
        else:
            before, window = self._predict_anew(update, text, start, step)
        return self._image_first(torch.cat(window, dim=1), before)

    def _simulate(
        self, update: Update, text: Tensor, start: int, step: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The chunks before the window, and the window's, as the rollout itself predicts them at `step`.

        Self-Forcing denoises no further than `step`, so that its prediction is the context of later chunks.
        """
        end = start + self.length
        timesteps = self.sampler.timesteps
        if self.config.method == "self-forcing":
            timesteps = timesteps[: step + 1]
        noise = self._video_noise(_For.ROLLOUT, update, text)
        chunks = self._roll(
            noise.chunks(0, end),
            text,
            noise,
            timesteps=timesteps,
            grad_step=step,
            grad_chunks=range(start, end),
        )
        video = list(chunks)
        return video[:start], video[start:]

    def _predict_anew(
        self, update: Update, text: Tensor, start: int, step: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The chunks before the window, and the window's, denoised anew after the past of the rollout."""
        before, own, past = self._roll_out(update, text, start)
        noise = self._video_noise(_For.WINDOW, update, text, len(before))
        x = torch.cat(list(noise.chunks(0, self.length)), dim=1)
        timesteps = self.sampler.timesteps[: step + 1]
        if self.config.noise_init == "renoised":
            timesteps = timesteps[-1:]
            x = self.schedule.add_noise(torch.cat(own, dim=1), x, timesteps[0])
        grad_chunks = range(self.length)
        chunks = self._roll(x, text, noise, cache=past, timesteps=timesteps, grad_chunks=grad_chunks)
        return before, list(chunks)

    @torch.no_grad()
    def _roll_out(
        self, update: Update, text: Tensor, start: int
    ) -> tuple[list[Tensor], list[Tensor], CacheSnapshot]:
        """Clean chunks before the window, and of it if it is re-noised, and the cache before the window."""
        sampler = self.sampler
        cache = self.student.new_cache(text, self.chunk_shape[2:], context=sampler.context, sink=sampler.sink)
        if self.videos is not None:
            video = list(self.videos(update)[1].split(sampler.chunk, dim=1))
            for clean in video[: -self.length]:
                self.student.cache_clean(clean, cache)
            return video[: -self.length], video[-self.length :], cache.snapshot(sampler.chunk)
        noise = self._video_noise(_For.ROLLOUT, update, text)
        needed = start + (self.length if self.config.noise_init == "renoised" else 1)
        video = []
        for x0 in self._roll(noise.chunks(0, needed), text, noise, cache=cache):
            if len(video) == start:
                # Chunk `start` is denoised but not yet cached: the ring still holds what came before it.
                past = cache.snapshot(sampler.chunk)
            video.append(x0)
        return video[:start], video[start:], past

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
        low, high = self.config.timesteps
        drawn = torch.cat([torch.randint(low, high, (1,), generator=draw) for draw in draws])
        noise = torch.stack([normal(x.shape[1:], draw) for draw in draws])
        return score_timesteps(self.schedule, drawn, self.config.clamp).to(x.device), noise.to(x)

    def texts(self, update: Update) -> tuple[Tensor, Tensor]:
        """Padded embeddings [B, L, D] of the samples' prompts, and of the negative one."""
        prompts = self.videos(update)[0] if self.videos is not None else self._draw_prompts(update)
        device = next(self.student.parameters()).device
        text = self.encode_text(prompts).to(device)
        negative = self.encode_text([self.config.negative_prompt] * len(prompts)).to(device)
        return text, negative

    def _draw_prompts(self, update: Update) -> list[str]:
        """Every update has its own, so the critic's prompts are not the student's."""
        draws = [seeded(seed) for seed in self._seeds(_For.PROMPT, update)]
        return [self.prompts[int(torch.randint(len(self.prompts), (), generator=draw))] for draw in draws]

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
            # The VAE's decoder looks back. A window's length of past is enough: the embedded model's picture
            # is then right to 1e-7, where a chunk of past leaves an error of 0.02 (root mean square, of 2).
            past = torch.cat([*before[-self.length :], x[:, :1].detach()], dim=1)
            x = torch.cat([self.image_latent(past), x[:, 1:]], dim=1)
            loss_mask[: self.sampler.chunk] = False
        return x, loss_mask

    def _keep(self, update: Update, x: Tensor, text: Tensor) -> None:
        """Keep a window for the critic's updates of the same step; those of earlier steps are dropped."""
        if update.step != self.step:
            self.step = update.step
            self.kept = {}
        self.kept[update.samples] = x, text

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


def score_timesteps(schedule: FlowSchedule, drawn: Tensor, clamp: tuple[int, int]) -> Tensor:
    """Timesteps drawn uniformly are shifted as all others, then clamped, as in Self-Forcing's code."""
    return schedule.shift_timesteps(drawn.float()).clamp(*clamp)


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
