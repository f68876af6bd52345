"""What networks and objectives cost, counted from configurations: parameters, bytes, floating-point operations.

Activations, and means over what is drawn, are estimates; everything else follows from shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from sfpp_cli.core.dmd import DMDConfig, start_weights
from sfpp_cli.core.geometry import tokens_per_frame
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.errors import UserError
from sfpp_cli.models.layout import Layout, read_config
from sfpp_cli.models.settings import Settings
from sfpp_cli.models.summary import ELEMENT_BYTES, Shape
from sfpp_cli.training.recipes import Pairs

WEIGHT = ELEMENT_BYTES["float32"]
"""Bytes of a weight, a gradient, a moment, an average: float32 always."""
STORED = 2
"""Bytes of a number in a stored trajectory (float16)."""
BACKWARD = 2
"""A backward pass costs as much as so many forward passes."""
DRAWS = 4096
"""Rollouts drawn to see where the last of several windows starts, where no formula tells."""


@dataclass(frozen=True)
class Sizes:
    """A transformer, measured."""

    parameters: int
    linear: int
    """Of them, those that every video token is multiplied with."""
    sides: int
    """Rows and columns of all matrices in the blocks: what adapters of rank 1 hold."""
    ffn: int
    latent: tuple[int, int, int]
    """A latent frame's [C, H, W] at the native size."""
    shape: Shape

    @property
    def dim(self) -> int:
        return self.shape.heads * self.shape.head_dim

    def flop(self, frames: int, seen: int) -> float:
        """A forward pass over `frames` latent frames that see `seen`.

        2 x weights x tokens for the linear layers, 4 x layers x dim x queries x keys for self-attention.
        """
        tokens = frames * self.shape.tokens
        return 2 * self.linear * tokens + 4 * self.shape.layers * self.dim * tokens * seen * self.shape.tokens

    def block_bytes(self, frames: int, element: int) -> int:
        """What one block keeps of a pass for its backward pass. An estimate.

        Of a token, 12 vectors of `dim` in float32 (norms, gates), 11 of `dim` and 2 of `ffn` in the precision of the arithmetic: as
        counted by hooks on saved tensors in the blocks of student and teacher.
        """
        return frames * self.shape.tokens * (self.dim * (12 * WEIGHT + 11 * element) + 2 * self.ffn * element)

    def activation_bytes(self, frames: int, element: int, passes: int, *, checkpointing: bool) -> int:
        """What `passes` passes over `frames` latent frames in all keep for the backward pass. An estimate.

        With checkpointing every block's input, and the insides of one block; without it the insides of all, and the casts of the
        weights that autocast makes anew in every pass.
        """
        if checkpointing:
            inputs = self.shape.layers * frames * self.shape.tokens * self.dim * element
            return inputs + self.block_bytes(frames, element)
        casts = passes * self.linear * element if element < WEIGHT else 0
        return self.shape.layers * self.block_bytes(frames, element) + casts


@dataclass(frozen=True)
class Learner:
    """A network that is trained."""

    parameters: int
    learning: int
    averaged: bool = True

    @property
    def checkpoint_bytes(self) -> int:
        """Its folder and its average's (adapters folded in), and what to resume from: both whole, and the optimiser's moments."""
        copies = 2 if self.averaged else 1
        folder = self.parameters - (self.learning if self.learning < self.parameters else 0)
        return WEIGHT * (copies * (folder + self.parameters) + 2 * self.learning)


@dataclass(frozen=True)
class Windows:
    """Where a rollout's windows lie, in chunks."""

    length: int
    count: int
    starts: int
    """Chunks at which a window may start."""
    ahead: int
    """Chunks rolled out behind a window's start before it is predicted."""
    passes: float
    """Denoising passes over a window's chunk."""
    last: list[float]
    """Chances of every start to be the last window's ..."""
    any: list[float]
    """... and to be a window's."""

    def chunks(self, start: int) -> int:
        """Length of the rollout whose last window starts there."""
        return start + self.ahead + 1


def windows_of(choices: DMDConfig, settings: Settings) -> Windows:
    """As `DistributionMatching` draws them. UserError if they are not whole chunks, or do not fit the rollout."""
    horizon, steps, count = choices.horizon or settings.horizon, len(settings.steps), 1
    frames, chunk = choices.frames or horizon, settings.chunk
    length, starts = horizon // chunk, (frames - horizon) // chunk + 1
    if horizon % chunk or frames % chunk or starts < count:
        raise UserError(
            f"rollouts of {frames} latent frames with {count} windows of {horizon} do not come out in chunks of {chunk}: "
            "change dmd.frames or dmd.horizon"
        )
    backward = choices.noise_init == "backward"
    passes = 1 if backward else steps if choices.gradient_step == "last" else (1 + steps) / 2
    last, any_ = start_chances(starts, count, choices.window), start_chances(starts, 1, choices.window)
    return Windows(length, count, starts, length - 1 if backward else 0, passes, last, any_)


def start_chances(starts: int, windows: int, kind: Literal["uniform", "beta(1,2)"]) -> list[float]:
    """The probability of each of `starts` chunks to be where the last of a rollout's windows starts.

    Exact for one window and for uniform starts; for more windows under Beta(1, 2) the frequencies of seeded draws.
    """
    if kind == "uniform":
        return [math.comb(start, windows - 1) / math.comb(starts, windows) for start in range(starts)]
    weights = start_weights(starts, kind)
    if windows == 1:
        return (weights / weights.sum()).tolist()
    drawn = torch.multinomial(weights.expand(DRAWS, -1), windows, generator=torch.Generator().manual_seed(0))
    return (drawn.amax(1).bincount(minlength=starts) / DRAWS).tolist()


def matching_flop(
    student: Sizes, teacher: Sizes, windows: Windows, choices: DMDConfig, settings: Settings, trained: float
) -> dict[str, float]:
    """FLOP of a sample's step, in the mean over what is drawn; a pass with gradient costs `trained` forward passes."""

    def mean(chances: Iterable[float], flop: Callable[[int], float]) -> float:
        return sum(chance * flop(start) for start, chance in enumerate(chances))

    steps, length = len(settings.steps), windows.length
    rollout = mean(windows.last, lambda start: rolled(student, settings, 0, windows.chunks(start), steps))
    look = mean(windows.any, lambda start: rolled(student, settings, start, length, windows.passes))
    learn = mean(windows.any, lambda start: rolled(student, settings, start, length, 1, remembered=False))
    clip = windows.count * teacher.flop(length * settings.chunk, length * settings.chunk)
    rollouts = 1 if choices.shared_rollout else 1 + choices.critic_updates
    return {
        "rollouts": 0.0 if choices.method == "self-forcing" else rollouts * rollout,
        "windows": windows.count * (rollouts * look + (trained - 1) * learn),
        "scores": score_passes(choices) * clip,
        "critic": choices.critic_updates * trained * clip,
    }


def rolled(
    student: Sizes, settings: Settings, first: int, chunks: int, passes: float, *, remembered: bool = True
) -> float:
    """FLOP of `chunks` chunks from number `first` on, `passes` over each; all but the last are `remembered` in one pass more."""
    flop = 0.0
    for index in range(first, first + chunks):
        more = 1 if remembered and index < first + chunks - 1 else 0
        flop += (passes + more) * student.flop(settings.chunk, seen_frames(index, settings))
    return flop


def trajectory_passes(pairs: Pairs) -> int:
    """Of the teacher, for one trajectory; guidance takes two a step."""
    return pairs.sampling_steps * (1 if pairs.guidance == 1.0 else 2)


def trajectory_bytes(pairs: Pairs, settings: Settings, latent: tuple[int, int, int]) -> int:
    """All trajectories on disk: at every student step and the end, `horizon` latent frames [C, H, W]."""
    return pairs.count * (len(settings.steps) + 1) * settings.horizon * math.prod(latent) * STORED


def measure(folder: Path, layout: Layout) -> Sizes:
    """The transformer that a folder's config.json describes, for videos of the model's native size."""

    def one_layer(config: dict[str, Any]) -> tuple[CausalWanModel, int]:
        return CausalWanModel.from_config({**config, "num_layers": 1}), int(config["num_layers"])

    model, layers = blank(folder, one_layer)
    sizes, block = model.config, model.blocks[0]
    matrices = {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}
    once = (
        "attn2.to_k",
        "attn2.to_v",
    )  # the text's keys and values: once a prompt, not for every video token
    size = layout.compression.latent_size(layout.settings.width, layout.settings.height)
    tokens = tokens_per_frame(*size, sizes.patch_size)
    return Sizes(
        parameters=count_parameters(model) + (layers - 1) * count_parameters(block),
        linear=layers * sum(part.weight.numel() for name, part in matrices.items() if name not in once),
        sides=layers * sum(part.in_features + part.out_features for part in matrices.values()),
        ffn=sizes.ffn_dim,
        latent=(sizes.in_channels, *size),
        shape=Shape(layers, sizes.num_attention_heads, sizes.attention_head_dim, tokens),
    )


def text_parameters(layout: Layout) -> int:
    return count_parameters(
        blank(layout.folder / "text_encoder", lambda config: UMT5EncoderModel(UMT5Config.from_dict(config)))
    )


def blank(folder: Path, make: Callable[[dict[str, Any]], Any]) -> Any:
    """A component without weights, from its configuration."""
    config = read_config(folder)
    try:
        with torch.device("meta"):
            return make(config)
    except Exception as error:  # a config that makes no sense can fail in any way there is
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{folder / 'config.json'} describes no model ({reason}): fetch or convert it again"
        ) from error


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def seen_frames(index: int, settings: Settings) -> int:
    """Latent frames that chunk number `index` sees, its own included."""
    return min((index + 1) * settings.chunk, settings.context)


def trained_cost(checkpointing: bool) -> float:
    """What a pass with gradient costs, in forward passes."""
    return 1 + BACKWARD + (1 if checkpointing else 0)


def score_passes(choices: DMDConfig) -> int:
    """Passes over a window to compare critic and teacher; guidance takes one more."""
    return 2 if choices.guidance == 1.0 else 3
