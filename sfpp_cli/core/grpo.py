"""Group relative policy optimisation of a few-step student by rewards of its videos.

arXiv 2510.02283, section 3.3, equations 5 to 7; GRPO is arXiv 2402.03300. The sampler is a Gaussian policy:
from one denoising step to the next

    x' = (1 - s') x0 + s' eps,    so    log p = -(x' - (1 - s') x0)^2 / (2 s'^2) - log s' - log(2 pi) / 2,

with x0 the student's prediction and s' the next step's sigma. The last step is deterministic and has no
log p. G videos of one prompt are a group; a video's advantage A is its reward against the group's.

    R  <- rewards of G rollouts, no gradient                     `prepare`
    A  <- (R - mean R) / std R                                   `advantages`
    update G by -A log p ("score") or -min(rho A, clip(rho) A)   `loss`

Log-probabilities are means over dimensions, never sums: a chunk of Wan's has 299,520 of them, and the ratio
of sums would be 0 or infinite after any update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from sfpp_cli.core.grpo_config import GRPOConfig
from sfpp_cli.core.noise import VideoNoise, mixed, seeded
from sfpp_cli.core.objective import Loss, Player, Update
from sfpp_cli.core.parallel import ALONE, Ranks
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.errors import UserError

LEAST_STD = 1e-4
"""Groups whose rewards spread less than this say nothing, and are left out."""
LARGEST_ADVANTAGE = 5.0

Decode = Callable[[Iterable[Tensor]], Iterator[Tensor]]
"""Chunks of clean latents [B, F, C, H, W], from any on -> of each its frames uint8 [B, T, H, W, 3]."""

Score = Callable[[Tensor, Tensor], list[dict[str, float]]]
"""Frames of windows and of their videos' first windows, uint8 [B, T, H, W, 3] -> what is known of each.

Every video gets the same names, among them `reward`.
"""


def log_prob(x_next: Tensor, x0: Tensor, sigma_next: Tensor | float) -> Tensor:
    """Log-probability [B] of a transition to `x_next` [B, ...] (equation 5), a mean over dimensions.

    `x0` is the student's prediction before it, `sigma_next` the sigma after it.
    """
    sigma = torch.as_tensor(sigma_next, dtype=torch.float64, device=x0.device)
    mean = (1 - sigma) * x0.double()
    squares = (x_next.double() - mean).square() / (2 * sigma.square())
    return -squares.flatten(1).mean(1) - sigma.log() - math.log(2 * math.pi) / 2


def advantages(rewards: Tensor) -> Tensor:
    """(r - mean) / std of one group's rewards [G], within -5..5; zeros if they spread less than 1e-4."""
    std = rewards.std() if len(rewards) > 1 else rewards.new_zeros(())
    if not std >= LEAST_STD:
        return torch.zeros_like(rewards)
    return ((rewards - rewards.mean()) / std).clamp(-LARGEST_ADVANTAGE, LARGEST_ADVANTAGE)


def surrogate(log_prob: Tensor, log_prob_old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """- mean min(rho A, clip(rho, 1 - clip, 1 + clip) A), to be minimised (equation 6); all [B]."""
    ratio = (log_prob - log_prob_old).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


def score_loss(x_next: Tensor, x0: Tensor, sigma_next: Tensor | float, advantage: Tensor) -> Tensor:
    """0.5 mean (x0 - sg(x0 - g))^2 with g the gradient of -A log p in x0, so that dL/dx0 = g / numel.

    g = -A (1 - s') (x' - mu) / s'^2: the policy gradient where the policy has not moved since the rollout.
    """
    sigma = torch.as_tensor(sigma_next, dtype=torch.float64, device=x0.device)
    x = x0.double()
    off_mean = x_next.double() - (1 - sigma) * x
    weight = advantage.double().view(-1, *[1] * (x.ndim - 1))
    gradient = -weight * (1 - sigma) * off_mean / sigma.square()
    return 0.5 * (x - (x - gradient).detach()).square().mean()


def kl_divergence(x0: Tensor, reference: Tensor, sigma_next: Tensor | float) -> Tensor:
    """Mean of (mu - mu_ref)^2 / (2 s'^2): the divergence of two policies of the same deviation s'."""
    sigma = torch.as_tensor(sigma_next, dtype=torch.float64, device=x0.device)
    apart = (1 - sigma) * (x0.double() - reference.double())
    return (apart.square() / (2 * sigma.square())).mean()


def natural_sizes(sigmas: Tensor) -> Tensor:
    """Size of each transition's gradient in the network's flow, s (1 - s') / s', from the steps' sigmas.

    Wan's students have 0.067, 0.188 and 0.5: undivided, the last transition outweighs the first 7 to 1, and
    detail is tuned, not motion.
    """
    return sigmas[:-1] * (1 - sigmas[1:]) / sigmas[1:]


class _For(IntEnum):
    """What a random number is for."""

    PROMPT, NOISE, SHARED, WINDOW, TRANSITION, SHUFFLE = range(10, 16)


@dataclass
class _Rollouts:
    """What is kept of some rollouts until their updates are made: latents, in main memory."""

    text: Tensor
    noise: VideoNoise
    past: list[Tensor]
    """Clean chunks before those that learn."""
    clean: list[Tensor]
    """Clean chunks that learn."""
    inputs: list[list[Tensor]]
    """Of each of them, what its denoising passes were given."""
    old: list[Tensor]
    """Log-probabilities [B] of the transitions, by the student that rolled out; only a ratio needs them."""
    advantage: Tensor


class GRPO:
    """The student learns from the rewards of groups of its own rollouts. Sample n is of group n // G."""

    def __init__(
        self,
        student: CausalWanModel,
        encode_text: Callable[[list[str]], Tensor],
        prompts: Sequence[str],
        *,
        decode: Decode,
        score: Score,
        sampler: Sampler,
        horizon: int,
        latent: tuple[int, int, int],
        config: GRPOConfig,
        seed: int,
        reference: CausalWanModel | None = None,
        ranks: Ranks = ALONE,
        save_extra: Callable[[Path], None] | None = None,
    ) -> None:
        """`horizon` is K in latent frames where the config has none, `latent` one latent frame's [C, H, W].

        `reference`, on the CPU, is the student that training starts from; `config.kl` needs it. ValueError
        without it, or if windows are not whole chunks.
        """
        if config.kl and reference is None:
            raise ValueError("kl needs a reference")
        self.student = student
        self.encode_text = encode_text
        self.prompts = prompts
        self.decode = decode
        self.score = score
        self.sampler = sampler
        self.config = config
        self.seed = seed
        self.reference = reference
        self.ranks = ranks
        self.chunk_shape = (sampler.chunk, *latent)
        self.length, self.starts = config.chunks(horizon, sampler.chunk)
        self.sigmas = sampler.schedule.sigma(sampler.timesteps).double()
        self.kept: dict[tuple[int, ...], _Rollouts] = {}
        self.watched: dict[str, float] = {}
        """What is known of the step's videos, of all ranks."""
        self.players = (
            Player(
                {"student": student},
                self.loss,
                updates=config.updates,
                save_extra=save_extra,
                prepare=self.prepare,
            ),
        )

    # --- rollouts and rewards

    @torch.no_grad()
    def prepare(self, parts: Sequence[Update]) -> None:
        """Roll out, reward and compare the videos of a step."""
        self.kept = {}
        rows = []
        for part in parts:
            self.kept[part.samples], scores = self._roll_out(part)
            rows += scores
        names = list(rows[0])
        mine = torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64)
        columns = dict(zip(names, self.ranks.gather(mine).T, strict=True))
        rewards = columns["reward"].view(-1, self.config.group)
        found = torch.stack([advantages(group) for group in rewards])
        self.watched = self._watch(columns, found)
        if self.config.shuffle_advantages:
            found = torch.stack([self._shuffled(group, parts[0].step, i) for i, group in enumerate(found)])
        share = iter(found.flatten()[self.ranks.share(found.numel())])
        for rollouts in self.kept.values():
            rollouts.advantage = torch.stack([next(share) for _ in range(len(rollouts.text))])

    def _watch(self, columns: Mapping[str, Tensor], found: Tensor) -> dict[str, float]:
        rewards = columns["reward"]
        left_out = (found == 0).all(1).double().mean().item()
        return {
            **{name: column.mean().item() for name, column in columns.items()},
            "reward_std": rewards.std().item(),
            "reward_max": rewards.max().item(),
            "reward_min": rewards.min().item(),
            "groups_left_out": left_out,
        }

    def _shuffled(self, group: Tensor, step: int, number: int) -> Tensor:
        draws = seeded(self.seed, _For.SHUFFLE, step, number)
        return group[torch.randperm(len(group), generator=draws)]

    def _roll_out(self, update: Update) -> tuple[_Rollouts, list[dict[str, float]]]:
        """Videos up to the end of what learns, and what is known of each."""
        start, end = self.span(update.step)
        groups = [sample // self.config.group for sample in update.samples]
        device = next(self.student.parameters()).device
        text = self.encode_text([self._draw_prompt(group) for group in groups]).to(device)
        noise = self._noise(_For.NOISE, update.samples, device)
        first = noise if self.config.initial_noise == "own" else self._noise(_For.SHARED, groups, device)
        inputs: list[list[Tensor]] = [[] for _ in range(start, end)]
        predictions: list[list[Tensor]] = [[] for _ in range(start, end)]

        def record(chunk: int, step: int, x: Tensor, x0: Tensor) -> None:
            if chunk >= start:
                inputs[chunk - start].append(x.cpu())
                if self.config.surrogate == "clipped":
                    predictions[chunk - start].append(x0.cpu())

        chunks = self.sampler.rollout(self.student, first.chunks(0, end), text, noise.draw, record=record)
        video = [x0.cpu() for x0 in chunks]
        old = []
        if self.config.surrogate == "clipped":
            for step in self.transitions:
                x0 = torch.cat([x[step] for x in predictions], dim=1).to(device)
                old.append(log_prob(self._next(step, inputs).to(device), x0, self.sigmas[step + 1]))
        nothing = torch.zeros(len(text), dtype=torch.float64)
        kept = _Rollouts(text, noise, video[:start], video[start:], inputs, old, nothing)
        return kept, self._rewards(video, start)

    def _rewards(self, video: Sequence[Tensor], start: int) -> list[dict[str, float]]:
        """Of each video the means over its windows that learn. No more than two windows are ever decoded."""
        frames = self.decode(video)
        beginning = torch.cat(list(islice(frames, self.length)), dim=1)
        scored = [] if start else [self.score(beginning, beginning)]
        if start:
            # The decoder looks back; a window's length of past is enough.
            past = min(self.length, start)
            frames = islice(self.decode(video[start - past :]), past, None)
        while pieces := list(islice(frames, self.length)):
            scored.append(self.score(torch.cat(pieces, dim=1), beginning))
        return [
            {name: fmean(each[i][name] for each in scored) for name in scored[0][i]}
            for i in range(len(video[0]))
        ]

    # --- updates

    def loss(self, update: Update) -> Loss:
        """The mean surrogate of the transitions of a part's videos, and what was seen of all videos."""
        kept = self.kept[update.samples]
        steps = self.draw_transitions(update.step)
        predictions = self._replay(self.student, kept, steps)
        sizes = natural_sizes(self.sigmas)
        weights = torch.ones_like(sizes) if self.config.step_weights == "natural" else 1 / sizes
        metrics = dict(self.watched)
        terms = []
        for step, x0 in zip(steps, predictions, strict=True):
            if self.config.surrogate == "score":
                x_next = self._next(step, kept.inputs).to(x0.device)
                term = score_loss(x_next, x0, self.sigmas[step + 1], kept.advantage.to(x0.device))
            else:
                term = self._clipped(update, kept, step, x0, metrics)
            terms.append(weights[step].to(x0.device) * term)
        total = torch.stack(terms).mean()
        if self.config.kl:
            kl = self._kl(kept, steps, predictions)
            metrics["kl"] = kl.item()
            total = total + self.config.kl * kl
        return total, metrics

    def _clipped(
        self, update: Update, kept: _Rollouts, step: int, x0: Tensor, metrics: dict[str, float]
    ) -> Tensor:
        """The clipped surrogate of one transition; the ratio's extremes go to the metrics."""
        now = log_prob(self._next(step, kept.inputs).to(x0.device), x0, self.sigmas[step + 1])
        old = kept.old[step]
        if update.repeat == 0 and not torch.equal(now, old):
            raise UserError(
                f"log-probabilities of step {update.step + 1} are not those of its rollout (by up to "
                f"{(now - old).abs().max().item():.1e}), so ratios would be wrong: "
                "leave training.compile out, or choose the surrogate 'score'"
            )
        ratio = (now - old).exp()
        metrics["ratio_min"] = min(ratio.min().item(), metrics.get("ratio_min", math.inf))
        metrics["ratio_max"] = max(ratio.max().item(), metrics.get("ratio_max", -math.inf))
        return surrogate(now, old, kept.advantage.to(x0.device), self.config.clip)

    def _kl(self, kept: _Rollouts, steps: Sequence[int], predictions: Sequence[Tensor]) -> Tensor:
        """The mean divergence over transitions. The reference leaves the CPU for that time only."""
        assert self.reference is not None
        device = predictions[0].device
        self.reference.to(device)
        with torch.no_grad():
            references = self._replay(self.reference, kept, steps)
        self.reference.to("cpu")
        terms = [
            kl_divergence(x0, other, self.sigmas[step + 1])
            for step, x0, other in zip(steps, predictions, references, strict=True)
        ]
        return torch.stack(terms).mean()

    def _replay(self, student: CausalWanModel, kept: _Rollouts, steps: Sequence[int]) -> list[Tensor]:
        """x0 [B, K, C, H, W] at each of `steps`, predicted by the weights of now."""
        device = kept.text.device
        chunks = self.sampler.replay(
            student,
            [[x.to(device) for x in passes] for passes in kept.inputs],
            [x.to(device) for x in kept.clean],
            kept.text,
            kept.noise.draw,
            past=(x.to(device) for x in kept.past),
            steps=steps,
        )
        return [torch.cat(pieces, dim=1) for pieces in zip(*chunks, strict=True)]

    def _next(self, step: int, inputs: Sequence[Sequence[Tensor]]) -> Tensor:
        """x' [B, K, C, H, W], to which denoising step `step` led."""
        return torch.cat([passes[step + 1] for passes in inputs], dim=1)

    # --- what is drawn

    @property
    def transitions(self) -> range:
        """The denoising steps after which noise is added."""
        return range(len(self.sampler.steps) - 1)

    def span(self, step: int) -> tuple[int, int]:
        """First chunk and end of what learns; nothing after it is rolled out."""
        if self.config.credit == "rollout":
            return 0, self.starts - 1 + self.length
        draws = seeded(self.seed, _For.WINDOW, step)
        start = int(torch.randint(self.starts, (), generator=draws))
        return start, start + self.length

    def draw_transitions(self, step: int) -> list[int]:
        """Those that learn in a step."""
        if self.config.step_weights != "one":
            return list(self.transitions)
        draws = seeded(self.seed, _For.TRANSITION, step)
        return [int(torch.randint(len(self.transitions), (), generator=draws))]

    def _draw_prompt(self, group: int) -> str:
        draws = seeded(self.seed, _For.PROMPT, group)
        return self.prompts[int(torch.randint(len(self.prompts), (), generator=draws))]

    def _noise(self, use: _For, numbers: Iterable[int], device: torch.device) -> VideoNoise:
        return VideoNoise([mixed(self.seed, use, number) for number in numbers], self.chunk_shape, device)
