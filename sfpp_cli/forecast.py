"""What a recipe is going to cost, from configuration files alone: no weights and no prompts are read, nothing is downloaded.

Parameters, caches and files follow from shapes. Activations, arithmetic and means over what is drawn are estimates: a ~ marks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from sfpp_cli.core.dmd import Choices
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.geometry import tokens_per_frame
from sfpp_cli.core.ode import kept_indices
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.trainer import Training
from sfpp_cli.errors import UserError
from sfpp_cli.models.hub import resolve
from sfpp_cli.models.layout import Layout, read_config
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.settings import Settings
from sfpp_cli.models.summary import ELEMENT_BYTES, Shape, readable
from sfpp_cli.recipes import MatchingRecipe, Pairs, Recipe, StudentRecipe, TeacherRecipe

WEIGHT = ELEMENT_BYTES["float32"]
"""Bytes of a weight, a gradient, a moment, an average: float32 always."""
STORED = 2
"""Bytes of a number in a stored trajectory (float16)."""
BACKWARD = 2
"""A backward pass costs as much as so many forward passes."""
DRAWS = 4096
"""Rollouts drawn to see where the last of several windows starts, if no formula tells."""


@dataclass(frozen=True)
class Work:
    """What passes have to do: latent frames through the blocks, and pairs of latent frames (asking, seen) in self-attention."""

    frames: float = 0.0
    pairs: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.frames + other.frames, self.pairs + other.pairs)

    def __mul__(self, times: float) -> Work:
        return Work(self.frames * times, self.pairs * times)


@dataclass(frozen=True)
class Sizes:
    """A transformer, measured."""

    parameters: int
    linear: int
    """Of them, those that every video token is multiplied with."""
    sides: int
    """Rows and columns of all matrices in the blocks: what adapters of rank 1 hold."""
    ffn: int
    shape: Shape

    @property
    def dim(self) -> int:
        return self.shape.heads * self.shape.head_dim

    def flop(self, work: Work) -> float:
        """2 x weights x tokens for the linear layers, 4 x layers x dim x queries x keys for self-attention."""
        tokens = self.shape.tokens
        return 2 * self.linear * tokens * work.frames + 4 * self.shape.layers * self.dim * tokens**2 * work.pairs

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
        """Its folder and its average's, and the state to resume from: both once more, and the optimiser's two moments."""
        copies = 2 if self.averaged else 1
        return WEIGHT * (2 * copies * self.parameters + 2 * self.learning)


@dataclass(frozen=True)
class Costs:
    """What objectives differ in. Bytes are those of a rank, work is that of one sample in one step."""

    learners: dict[str, Learner]
    frozen: dict[str, int]
    """Parameters that stay on every rank, whole."""
    held: dict[str, float]
    """Bytes a sample needs while passes run."""
    flop: dict[str, float]
    lines: dict[str, str]
    """What else there is to say."""
    others: dict[str, float] = field(default_factory=dict)
    """Bytes needed at other times: before the first step, or between steps beside the weights."""


def forecast(recipe: Recipe, layout: Layout, world: int, device: torch.device, out: Path) -> str:
    """The plan of a run on `world` ranks as aligned lines: parameters, memory of a rank, cost of a step, what is written.

    `layout` is the recipe's (see `layout_of`), `out` its run folder. UserError if the trainer would refuse the sizes.
    """
    quiet_libraries()
    training = recipe.training
    if training.batch % world:
        raise UserError(f"batch {training.batch} cannot be shared out evenly over {world} ranks: choose a multiple")
    micro = min(training.micro_batch or training.batch, training.batch // world)
    precision = {"auto": "bfloat16" if device.type == "cuda" else "float32"}.get(training.precision, training.precision)
    costs = _costs(recipe, layout, ELEMENT_BYTES[precision])
    lines = {
        "recipe": f"{recipe.objective}, {training.steps} steps of {training.batch} samples; {world} ranks, {micro} at once on each",
        "precision": f"weights float32, arithmetic {precision} on {device.type}",
        **{name: _learns(learner) for name, learner in costs.learners.items()},
        **{name: f"{count / 1e6:.1f} M parameters, frozen" for name, count in costs.frozen.items()},
        **_memory(costs, training, world, micro, device),
        **costs.lines,
        **_arithmetic(costs.flop, training.batch, world),
        **_files(recipe, costs.learners, layout, out),
    }
    return "\n".join(f"{name:<13} {text}" for name, text in lines.items())


def layout_of(recipe: Recipe) -> Layout:
    """The recipe's model as it lies here; a student that is yet to be made is taken to be like the model's own transformer."""
    student = recipe.student if isinstance(recipe, MatchingRecipe) else None
    try:
        if student is not None:
            resolve(student, student=True, offline=True)
    except UserError:
        student = None
    return Layout(recipe.model, student, offline=True)


# The three objectives


def _costs(recipe: Recipe, layout: Layout, element: int) -> Costs:
    if isinstance(recipe, TeacherRecipe):
        return _flow_matching(recipe, layout, element)
    if isinstance(recipe, StudentRecipe):
        return _regression(recipe, layout, element)
    return _matching(recipe, layout, element)


def _flow_matching(recipe: TeacherRecipe, layout: Layout, element: int) -> Costs:
    teacher, text = measure(_teacher(layout), layout), text_parameters(layout)
    frames, checkpointing = layout.settings.horizon, recipe.training.gradient_checkpointing
    learners = {"transformer": Learner(teacher.parameters, teacher.parameters)}
    if recipe.train_text_encoder:
        learners["text encoder"] = Learner(text, text)
    return Costs(
        learners,
        {} if recipe.train_text_encoder else {"text encoder": text},
        {"activations": teacher.activation_bytes(frames, element, 1, checkpointing=checkpointing)},
        {"transformer": teacher.flop(clip_work(frames) * _trained(checkpointing))},
        {"a step": f"1 pass with gradient over {frames} latent frames a sample", "formula": _formula(teacher, checkpointing)},
    )


def _regression(recipe: StudentRecipe, layout: Layout, element: int) -> Costs:
    student, settings, pairs = measure(_teacher(layout), layout), layout.settings, recipe.pairs
    kept_indices(FlowSchedule(settings.shift), settings.steps, pairs.sampling_steps)
    frames, checkpointing = settings.horizon, recipe.training.gradient_checkpointing
    chunks = -(-frames // settings.chunk)
    passes, size = trajectory_passes(pairs), trajectory_bytes(pairs, settings, latent_shape(layout))
    work = student.flop(clip_work(frames) * passes)
    making = WEIGHT * student.parameters + pairs.batch * student.block_bytes(frames, WEIGHT)
    return Costs(
        {"student": Learner(student.parameters, student.parameters)},
        _previewing(recipe, layout),
        {"activations": student.activation_bytes(frames, element, 1, checkpointing=checkpointing)},
        {"student": student.flop(rolled(0, chunks, 1, settings, context_passes=False) * _trained(checkpointing))},
        {
            "pairs": f"{pairs.count} trajectories, {passes} teacher passes each (~{_flop(work)}, ~{_flop(work * pairs.count)} in all), "
            f"{readable(size)} in {pairs.folder}",
            "a step": f"1 block-causal pass with gradient over {frames} latent frames a sample",
            "formula": _formula(student, checkpointing),
        },
        {"making pairs": making, **_elsewhen(recipe, layout, student, student.parameters)},
    )


def _matching(recipe: MatchingRecipe, layout: Layout, element: int) -> Costs:
    student, teacher = measure(layout.student, layout), measure(_teacher(layout), layout)
    choices, settings, checkpointing = recipe.dmd, layout.settings, recipe.training.gradient_checkpointing
    horizon = choices.horizon or settings.horizon
    plus, windows = choices.method == "self-forcing++", choices.windows_per_rollout
    window, starts = extent(choices, settings)
    ahead = window - 1 if choices.noise_init == "backward" else 0
    chances = start_chances(starts, windows, choices.window)
    denoising = len(settings.steps)
    passes = 1 if choices.noise_init == "backward" else denoising if choices.gradient_step == "last" else (denoising + 1) / 2
    chunks = sum(chance * (start + ahead + 1) for start, chance in enumerate(chances))

    rollout = _mean(chances, lambda start: rolled(0, start + ahead + 1, denoising, settings)) if plus else Work()
    likely = start_chances(starts, 1, choices.window)
    looked = _mean(likely, lambda start: rolled(start, window, passes, settings)) * windows
    backward = _mean(likely, lambda start: rolled(start, window, 1, settings, context_passes=False)) * windows
    clip = clip_work(horizon) * windows
    scores = 2 if choices.guidance == 1.0 else 3
    again = 0 if choices.shared_rollout else choices.critic_updates

    adapters = recipe.lora_rank * student.sides
    flying = min(windows, ahead + 1) * settings.context if plus else 0
    seen = sum(min((starts + i) * settings.chunk, settings.context) for i in range(window))
    activations = student.activation_bytes(horizon, element, window, checkpointing=checkpointing)
    held = {
        "KV ring": student.shape.cache_bytes(settings.context if plus else 0, element),
        "window's past": student.shape.cache_bytes(flying + horizon, element),
        "activations": activations + (0 if checkpointing else student.shape.cache_bytes(seen, element)),
    }
    return Costs(
        {
            "student": Learner(student.parameters + adapters, adapters or student.parameters),
            "critic": Learner(teacher.parameters, teacher.parameters, averaged=False),
        },
        {"teacher": teacher.parameters, **_previewing(recipe, layout, vae=choices.first_frame == "reencode")},
        {name: size for name, size in held.items() if size},
        {
            "rollout": student.flop(rollout * (1 + again)),
            "window": student.flop(looked * (1 + again) + backward * (_trained(checkpointing) - 1)),
            "scores": teacher.flop(clip * scores),
            "critic": teacher.flop(clip * (_trained(checkpointing) * choices.critic_updates)),
        },
        {
            "rollout": f"~{chunks:.1f} of {starts + window - 1} chunks of {settings.chunk} latent frames in the mean, "
            f"{denoising + 1} passes a chunk, {1 + again} a step and sample"
            if plus
            else "none: the window is all of it",
            "window": f"{windows} of {horizon} latent frames: {passes:g} passes a chunk, 1 with gradient, and one for the context",
            "scores": f"{scores} passes over each window: critic, teacher" + ("" if scores == 2 else ", teacher without text"),
            "critic": f"{choices.critic_updates} updates, 1 pass with gradient over each window "
            + ("of the student's" if choices.shared_rollout else "of a rollout of its own"),
            "formula": _formula(student, checkpointing),
        },
        _elsewhen(recipe, layout, student, student.parameters + adapters + 2 * teacher.parameters),
    )
