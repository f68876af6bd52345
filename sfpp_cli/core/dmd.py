"""Distribution matching on the student's own rollouts: Self-Forcing and Self-Forcing++.

arXiv 2506.08009 and arXiv 2510.02283. Algorithm 1 of Self-Forcing++ is `student_loss` and `window`:

    V <- rollout(G, N frames, rolling cache of L), no gradient
    i ~ Unif{0 .. N-K};  W <- V[i : i+K]                          drawn first: nothing after W is rolled out
    t ~ student steps;  x_t(W) <- (1-sigma_t) W + sigma_t eps     backward noise initialisation, equation 1
    L <- DMD(G(x_t(W), t | cache before i), T)                    extended DMD, equation 2
    update G;  critic as above, on windows                        `players`, in this order

The third line can be read in several ways, and the paper does not settle which is meant. `noise_init` says:

    simulated   Equation 1 is the sampler's own transition from one denoising step to the next, so x_t is what
                the rollout itself denoises at step t. W stays as it is; the pass that predicted it carries
                gradient. That is the backward simulation of DMD2 and Self-Forcing, on a longer rollout.
    renoised    To the letter: the finished W is noised to t and denoised anew. At the last step that makes a
                fifth pass over what four have made, on inputs that no rollout ever has.
    random      No coupling: W is denoised from noise of its own, after the past that was rolled out.

The first is the default, since it trains what `generate` shows on inputs that `generate` meets. For it speak
equation 7, whose x0 of a denoising step is "computed following equation (1)"; section 3.2, which finds
similar techniques in Self-Forcing, DMD2 and CausVid; and figure 2, which draws it for Self-Forcing too.
Against it speaks line 5 of the algorithm, which noises a slice of the clean V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.core.cache import CacheSnapshot
from sfpp_cli.core.dmd_config import DMDConfig
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import VideoNoise, mixed, normal, seeded
from sfpp_cli.core.objective import Loss, Player, Update
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher

Videos = Callable[[Update], tuple[list[str], Tensor]]
"""An update's prompts, and clean videos [B, F, C, H, W] in whole chunks that end in the window."""


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
        room = (sampler.context, sampler.sink, sampler.sink_positions)
        cache = self.student.new_cache(text, self.chunk_shape[2:], *room)
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
