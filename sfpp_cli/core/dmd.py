"""Distribution matching on the student's own rollouts: Self-Forcing (arXiv 2506.08009) and Self-Forcing++ (arXiv 2510.02283).

Algorithm 1 of Self-Forcing++, line by line, in `DistributionMatching`:

    V <- rollout(G, N frames, rolling cache of L), no gradient      windows
    i ~ Unif{0 .. N-K};  W <- V[i : i+K]                            draw_starts: drawn first, the rollout stops behind the window
    t ~ student steps;  x_t(W) <- (1-sigma_t) W + sigma_t eps       predict: backward noise initialisation, equation 1
    L <- DMD(G(x_t(W), t | cache before i), T)                      predict, student_losses: extended DMD, equation 2
    update G;  critic as above, on windows                          players, in this order; critic_losses
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.core.cache import UnrolledCache
from sfpp_cli.core.flow import TRAIN_STEPS, FlowSchedule
from sfpp_cli.core.noise import VideoNoise, mixed, normal, seeded
from sfpp_cli.core.objective import Losses, Player, Turn
from sfpp_cli.core.rollout import rollout
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher


@dataclass(frozen=True)
class Choices:
    """What the method leaves open. Frames are latent frames; the defaults are the paper's."""

    method: Literal["self-forcing", "self-forcing++"]
    """A rollout of K frames, all of it the window; or windows of K frames out of rollouts of N."""
    frames: int | None = None
    """N, how far rollouts may go."""
    horizon: int | None = None
    """K, what the teacher can judge; the model's if not given."""
    window: Literal["uniform", "beta(1,2)"] = "uniform"
    """Where windows start; Beta(1, 2) prefers early ones."""
    noise_init: Literal["backward", "random"] = "backward"
    """A window starts from its own clean rollout, re-noised (equation 1), or from pure noise."""
    gradient_step: Literal["last", "uniform"] = "last"
    """The student step that learns; one is drawn a turn, for all chunks, if uniform."""
    first_frame: Literal["none", "reencode"] = "none"
    """Whether a window's first frame is turned into an image latent, which is what a teacher's first frame is."""
    context_noise: float = 0.0
    """Timestep to which clean chunks are re-noised before they are remembered."""
    windows_per_rollout: int = 1
    shared_rollout: bool = True
    """The critic learns from the student's windows of the same step; or else from a new rollout in every update."""
    guidance: float = 4.0
    """Of the teacher, in the usual convention; 4 is the reference's cond + 3 (cond - uncond)."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    timesteps: tuple[float, float] = (20.0, 980.0)
    """Range of the noise at which teacher and critic are compared, drawn uniformly and then shifted."""
    critic_updates: int = 5
    critic_lr: float = 4e-7

    def __post_init__(self) -> None:
        problems = []
        if self.method == "self-forcing" and (self.frames, self.noise_init) != (None, "random"):
            problems.append(
                "Self-Forcing's rollout is its window, from noise: set noise_init = 'random' and leave 'frames' out"
            )
        if self.method == "self-forcing++" and self.frames is None:
            problems.append("'frames' is missing: how many latent frames rollouts may go")
        for name in ("windows_per_rollout", "critic_updates"):
            if getattr(self, name) < 1:
                problems.append(f"'{name}' must be 1 or more, not {getattr(self, name)}")
        if not self.critic_lr > 0:
            problems.append(f"'critic_lr' must be above 0, not {self.critic_lr}")
        if not 0 <= self.timesteps[0] < self.timesteps[1] <= TRAIN_STEPS:
            problems.append(f"'timesteps' must ascend within 0..{TRAIN_STEPS}, not {list(self.timesteps)}")
        if not 0 <= self.context_noise < TRAIN_STEPS:
            problems.append(f"'context_noise' must lie in [0, {TRAIN_STEPS}), not {self.context_noise}")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True)
class Rolling:
    """How the student is rolled out, in training as at inference."""

    steps: tuple[int, ...]
    chunk: int
    context: int
    sink: int
    horizon: int
    """K, if the choices do not say."""
    shape: tuple[int, int, int]
    """A latent frame's [C, H, W]."""


class _For(IntEnum):
    """What a random number is for."""

    PROMPT, TURN, ROLLOUT, WINDOW, SCORE = range(5)


class DistributionMatching:
    """The student learns from teacher and critic on windows of its own rollouts; the critic learns to follow the student."""

    def __init__(
        self,
        student: CausalWanModel,
        critic: Teacher,
        teacher: Teacher,
        encode_text: Callable[[list[str]], Tensor],
        prompts: Sequence[str],
        *,
        schedule: FlowSchedule,
        rolling: Rolling,
        choices: Choices,
        seed: int,
        image_latent: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`image_latent` turns the picture in which latents [B, F, C, H, W] end into one image latent [B, 1, C, H, W].

        `schedule` is the only one: of rollouts, teacher, critic and noise. Raises ValueError if windows are not made of chunks.
        """
        self.student, self.critic, self.teacher = student, critic, teacher
        self.encode_text, self.prompts, self.image_latent = encode_text, prompts, image_latent
        self.schedule, self.rolling, self.choices, self.seed = schedule, rolling, choices, seed
        horizon = choices.horizon or rolling.horizon
        frames = choices.frames or horizon
        if horizon % rolling.chunk or frames % rolling.chunk or frames < horizon:
            raise ValueError(
                f"rollouts of {frames} latent frames and windows of {horizon} must be whole chunks of {rolling.chunk}"
            )
        self.window, self.starts = horizon // rolling.chunk, (frames - horizon) // rolling.chunk + 1
        if choices.windows_per_rollout > self.starts:
            raise ValueError(
                f"a rollout has {self.starts} windows, not 'windows_per_rollout' = {choices.windows_per_rollout}"
            )
        self.levels = schedule.warp(rolling.steps)
        self.step, self.made = -1, dict[tuple[int, ...], list[Tensor]]()
        self.roll = partial(
            rollout,
            student,
            schedule=schedule,
            chunk=rolling.chunk,
            context=rolling.context,
            sink=rolling.sink,
            context_noise=choices.context_noise,
        )
        self.players = (
            Player({"student": student}, self.student_losses),
            Player(
                {"critic": critic},
                self.critic_losses,
                name="critic",
                updates=choices.critic_updates,
                lr=choices.critic_lr,
                averaged=False,
            ),
        )

    def student_losses(self, turn: Turn) -> Losses:
        """Extended DMD (equation 2): the loss of every window, and the mean size of its gradient."""
        made = self._keep(turn)
        text, negative = self._texts(turn)
        for number, (x, learning) in enumerate(self.windows(turn, text, gradient=True)):
            gradient = self.score_difference(x.detach(), text, negative, turn, number)
            made.append(x.detach())
            loss = dmd_loss(x, gradient, learning) / self.choices.windows_per_rollout
            yield loss, {"dmd_gradient": gradient.abs().mean().item()}

    def critic_losses(self, turn: Turn) -> Losses:
        """Flow matching on the student's windows, detached."""
        text, _ = self._texts(turn)
        windows = (
            self.made[turn.samples]
            if self.choices.shared_rollout
            else [x for x, _ in self.windows(turn, text)]
        )
        for number, x in enumerate(windows):
            timestep, noise = self._noise(x, turn, number)
            flow = self.critic(self.schedule.add_noise(x, noise, timestep), timestep, text)
            yield critic_loss(flow, x, noise) / len(windows), {}

    def windows(self, turn: Turn, text: Tensor, *, gradient: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows x0 [B, K, C, H, W] as the student predicts them amid its rollout, and which of their frames learn, [K]."""
        draws = seeded(self.seed, _For.TURN, turn.step, turn.player, turn.repeat)
        starts = self.draw_starts(draws)
        step = self._draw_step(draws)
        if self.choices.method == "self-forcing":
            yield self.predict([], 0, None, step, turn, text, gradient)
            return
        rolling = self.rolling
        noise = VideoNoise(self._seeds(_For.ROLLOUT, turn), (rolling.chunk, *rolling.shape), text.device)
        with torch.no_grad():
            cache = self.student.new_cache(
                text, rolling.shape[1:], context=rolling.context, sink=rolling.sink
            )
        ahead = self.window - 1 if self.choices.noise_init == "backward" else 0
        chunks = noise.chunks(0, starts[-1] + ahead + 1)
        video: list[Tensor] = []
        pasts: dict[int, UnrolledCache] = {}
        for index, x0 in enumerate(
            self.roll(chunks, text, steps=rolling.steps, draw=noise.draw, cache=cache)
        ):
            video.append(x0)
            if index in starts:
                pasts[index] = cache.unroll(rolling.chunk)
            if index - ahead in pasts:
                start = index - ahead
                yield self.predict(video, start, pasts.pop(start), step, turn, text, gradient)

    def draw_starts(self, draws: torch.Generator) -> list[int]:
        """The chunks at which windows start, ascending, none twice."""
        weights = start_weights(self.starts, self.choices.window)
        return sorted(torch.multinomial(weights, self.choices.windows_per_rollout, generator=draws).tolist())

    def predict(
        self,
        video: list[Tensor],
        start: int,
        past: UnrolledCache | None,
        step: int,
        turn: Turn,
        text: Tensor,
        gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """The window at chunk `start` of a clean rollout, predicted anew from `past`; and which of its frames learn."""
        rolling = self.rolling
        noise = VideoNoise(
            self._seeds(_For.WINDOW, turn, start), (rolling.chunk, *rolling.shape), text.device
        )
        begin = torch.cat(list(noise.chunks(0, self.window)), dim=1)
        level = self.levels[step]
        if self.choices.noise_init == "backward":
            begin = self.schedule.add_noise(
                torch.cat(video[start : start + self.window], dim=1), begin, level
            )
            steps: Tensor = level[None]
        else:
            steps = self.levels[: step + 1]
        learning = range(self.window) if gradient else ()
        chunks = self.roll(begin, text, steps=steps, draw=noise.draw, cache=past, gradient=learning)
        x = torch.cat(list(chunks), dim=1)
        learns = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        if self.choices.first_frame == "reencode" and start > 0 and self.image_latent is not None:
            before = torch.cat([*video[max(0, start - 1) : start], x[:, :1].detach()], dim=1)
            x = torch.cat([self.image_latent(before), x[:, 1:]], dim=1)
            learns[0] = False
        return x, learns

    @torch.no_grad()
    def score_difference(self, x: Tensor, text: Tensor, negative: Tensor, turn: Turn, number: int) -> Tensor:
        """g = f_critic(x_t) - f_teacher(x_t) at a random noise level, normalised (arXiv 2405.14867)."""
        timestep, noise = self._noise(x, turn, number)
        x_t = self.schedule.add_noise(x, noise, timestep)
        critic = self.schedule.x0_from_flow(self.critic(x_t, timestep, text), x_t, timestep)
        flow = self.teacher(x_t, timestep, text)
        if self.choices.guidance != 1.0:
            unguided = self.teacher(x_t, timestep, negative)
            flow = unguided + self.choices.guidance * (flow - unguided)
        return dmd_gradient(x, critic, self.schedule.x0_from_flow(flow, x_t, timestep))

    def _draw_step(self, draws: torch.Generator) -> int:
        """The student step that learns."""
        last = len(self.levels) - 1
        return (
            last
            if self.choices.gradient_step == "last"
            else int(torch.randint(last + 1, (), generator=draws))
        )

    def _noise(self, x: Tensor, turn: Turn, number: int) -> tuple[Tensor, Tensor]:
        """Timesteps [B] and noise like x, at which scores are compared or learned."""
        draws = [seeded(seed) for seed in self._seeds(_For.SCORE, turn, number)]
        uniform = torch.cat([torch.rand(1, generator=draw) for draw in draws])
        noise = torch.stack([normal(x.shape[1:], draw) for draw in draws])
        return score_timesteps(self.schedule, uniform, self.choices.timesteps).to(x.device), noise.to(x)

    def _texts(self, turn: Turn) -> tuple[Tensor, Tensor]:
        """Padded embeddings [B, L, D] of the samples' prompts, and of the negative one."""
        draws = (seeded(self.seed, _For.PROMPT, sample) for sample in turn.samples)
        prompts = [self.prompts[int(torch.randint(len(self.prompts), (), generator=draw))] for draw in draws]
        device = next(self.student.parameters()).device
        return self.encode_text(prompts).to(device), self.encode_text(
            [self.choices.negative_prompt] * len(prompts)
        ).to(device)

    def _keep(self, turn: Turn) -> list[Tensor]:
        """Where this turn's windows go, for the critic's turns of the same step."""
        if turn.step != self.step:
            self.step, self.made = turn.step, {}
        return self.made.setdefault(turn.samples, [])

    def _seeds(self, use: _For, turn: Turn, number: int = 0) -> list[int]:
        """One for each video."""
        return [mixed(self.seed, use, sample, turn.player, turn.repeat, number) for sample in turn.samples]


def start_weights(starts: int, window: str) -> Tensor:
    """How likely each of `starts` chunks is to be where a window starts, but for a factor; Beta(1, 2) has density 2 (1 - u)."""
    return torch.ones(starts) if window == "uniform" else starts - torch.arange(starts) - 0.5


def score_timesteps(schedule: FlowSchedule, uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    """Uniform numbers in 0..1 to timesteps within `limits`, shifted as all others are, and clamped to the same limits."""
    low, high = limits
    return schedule.shift_timesteps(low + (high - low) * uniform).clamp(low, high)


def dmd_gradient(x: Tensor, critic: Tensor, teacher: Tensor) -> Tensor:
    """The gradient of the distribution matching loss, from x0 predictions [B, F, C, H, W] of critic and teacher.

    Normalised for each sample by the mean distance of x from the teacher's prediction (arXiv 2311.18828, equation 8).
    """
    distance = (x - teacher).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return (critic - teacher) / distance.clamp(min=torch.finfo(distance.dtype).tiny)


def dmd_loss(x: Tensor, gradient: Tensor, learns: Tensor | None = None) -> Tensor:
    """0.5 mean (x - sg(x - g))^2, so that dL/dx = g / numel. Frames that do not learn ([F] or [B, F] of bool) are left out."""
    target = (x.double() - gradient.double()).detach()
    square = (x.double() - target).square()
    if learns is None:
        return 0.5 * square.mean()
    return 0.5 * square[learns.expand(square.shape[:2])].mean()


def critic_loss(flow: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """Flow matching: mean (flow - (noise - x))^2."""
    return F.mse_loss(flow.float(), noise - x)
