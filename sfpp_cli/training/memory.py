"""What a recipe is going to cost, from configuration files alone: no weights and no prompts are read, nothing is downloaded.

Parameters, caches and files follow from shapes. Activations, arithmetic and means over what is drawn are estimates: a ~ marks them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from transformers import UMT5Config

from sfpp_cli.core.dmd import DMDConfig
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.ode import student_step_indices
from sfpp_cli.core.trainer import Training
from sfpp_cli.errors import UserError
from sfpp_cli.models.hub import resolve
from sfpp_cli.models.layout import Layout, read_config
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.settings import Settings
from sfpp_cli.models.summary import ELEMENT_BYTES, readable
from sfpp_cli.training.costs import (
    BACKWARD,
    WEIGHT,
    Learner,
    Sizes,
    Windows,
    blank,
    count_parameters,
    matching_flop,
    measure,
    rolled,
    score_passes,
    seen_frames,
    text_parameters,
    trained_cost,
    trajectory_bytes,
    trajectory_passes,
    windows_of,
)
from sfpp_cli.training.recipes import MatchingRecipe, Preview, Recipe, StudentRecipe, TeacherRecipe

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"))


@dataclass(frozen=True)
class Costs:
    """What objectives differ in."""

    learners: dict[str, Learner]
    frozen: dict[str, int]
    """Parameters that stay on every rank, whole."""
    held: dict[str, float]
    """Bytes a sample needs while passes run."""
    flop: dict[str, float]
    """Of a sample's step."""
    lines: dict[str, str]
    """What else there is to say."""
    gone: int = 0
    """Parameters of the text encoder, if it is gone before the first step."""
    before: dict[str, float] = field(default_factory=dict)
    """Bytes of what else comes before the first step."""
    preview: float = 0.0
    """Bytes that a preview needs beside what stays."""


def forecast(recipe: Recipe, layout: Layout, world: int, device: torch.device, out: Path) -> str:
    """The plan of a run on `world` ranks as aligned lines: parameters, memory of a rank, cost of a step, what is written.

    `layout` is the recipe's (see `layout_of`), `out` its run folder. UserError if the run would be refused for its sizes.
    """
    quiet_libraries()
    training = recipe.training
    if training.batch % world:
        raise UserError(
            f"batch {training.batch} cannot be shared out evenly over {world} ranks: choose a multiple"
        )
    if training.offload and world > 1:
        raise UserError(
            "offload is for a single process: over several ranks the states are sharded, so leave it out"
        )
    micro = min(training.micro_batch or training.batch, training.batch // world)
    lower = device.type == "cuda" if training.precision == "auto" else training.precision == "bfloat16"
    precision = "bfloat16" if lower else "float32"
    costs = _costs(recipe, layout, ELEMENT_BYTES[precision])
    samples = f"{training.batch} samples; ranks: {world}, samples at once on each: {micro}"
    lines = {
        "recipe": f"{recipe.objective}, {training.steps} steps of {samples}",
        "precision": f"weights float32, arithmetic {precision} on {device.type}",
        **{name: _learns(learner) for name, learner in costs.learners.items()},
        **{name: f"{count / 1e6:.1f} M parameters, frozen" for name, count in costs.frozen.items()},
        **(
            {"text encoder": f"{costs.gone / 1e6:.1f} M parameters, gone before the first step"}
            if costs.gone
            else {}
        ),
        **_memory(costs, training, world, micro, device),
        **costs.lines,
        **_arithmetic(costs.flop, training.batch, world),
        **_files(recipe, costs.learners.values(), layout, out),
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
    layout = Layout(recipe.model, student, offline=True)
    if isinstance(recipe, MatchingRecipe):
        layout.settings = recipe.rolled(layout.settings)
    return layout


def _costs(recipe: Recipe, layout: Layout, element: int) -> Costs:
    if isinstance(recipe, TeacherRecipe):
        return _flow_matching(recipe, layout, element)
    if isinstance(recipe, StudentRecipe):
        return _regression(recipe, layout, element)
    return _matching(recipe, layout, element)


def _flow_matching(recipe: TeacherRecipe, layout: Layout, element: int) -> Costs:
    teacher, text = measure(_teacher(layout), layout), text_parameters(layout)
    frames, checkpointing = layout.teacher_horizon, recipe.training.gradient_checkpointing
    trained = {"text encoder": Learner(text, text)} if recipe.train_text_encoder else {}
    return Costs(
        {"transformer": Learner(teacher.parameters, teacher.parameters), **trained},
        {} if trained else {"text encoder": text},
        {"activations": teacher.activation_bytes(frames, element, 1, checkpointing=checkpointing)},
        {"transformer": teacher.flop(frames, frames) * trained_cost(checkpointing)},
        {
            "a step": f"1 pass with gradient over {frames} latent frames a sample",
            "formula": _formula(teacher, checkpointing),
        },
    )


def _regression(recipe: StudentRecipe, layout: Layout, element: int) -> Costs:
    student, settings, pairs = measure(_teacher(layout), layout), _judged(layout), recipe.pairs
    student_step_indices(FlowSchedule(settings.shift), settings.steps, pairs.sampling_steps)
    frames, checkpointing = settings.horizon, recipe.training.gradient_checkpointing
    passes, size = trajectory_passes(pairs), trajectory_bytes(pairs, settings, student.latent)
    flop = passes * student.flop(frames, frames)
    clip = rolled(student, settings, 0, -(-frames // settings.chunk), 1, remembered=False)
    making = WEIGHT * student.parameters + pairs.batch * student.block_bytes(frames, WEIGHT)
    return Costs(
        {"student": Learner(student.parameters, student.parameters)},
        _frozen_vae(layout) if recipe.preview.every else {},
        {"activations": student.activation_bytes(frames, element, 1, checkpointing=checkpointing)},
        {"student": clip * trained_cost(checkpointing)},
        {
            "pairs": f"{pairs.count} of {passes} teacher passes each, ~{_flop(flop)}; ~{_flop(pairs.count * flop)} in all",
            "a step": f"1 block-causal pass with gradient over {frames} latent frames a sample",
            "formula": _formula(student, checkpointing),
            "trajectories": f"{_bytes(size)} in {pairs.folder}",
        },
        gone=text_parameters(layout),
        before={"making pairs": making},
        preview=_preview_bytes(recipe.preview, student, settings, element),
    )


def _matching(recipe: MatchingRecipe, layout: Layout, element: int) -> Costs:
    student, teacher = measure(layout.student, layout), measure(_teacher(layout), layout)
    choices, settings, checkpointing = recipe.dmd, _judged(layout), recipe.training.gradient_checkpointing
    windows = windows_of(choices, settings)
    adapters = recipe.lora_rank * student.sides
    looks = recipe.preview.every or choices.first_frame == "reencode"
    return Costs(
        {
            "student": Learner(student.parameters + adapters, adapters or student.parameters),
            "critic": Learner(teacher.parameters, teacher.parameters, averaged=False),
        },
        {"teacher": teacher.parameters, **(_frozen_vae(layout) if looks else {})},
        _matching_bytes(student, windows, choices, settings, element, checkpointing),
        matching_flop(student, teacher, windows, choices, settings, trained_cost(checkpointing)),
        {**_matching_lines(windows, choices, settings), "formula": _formula(student, checkpointing)},
        gone=text_parameters(layout),
        preview=_preview_bytes(recipe.preview, student, settings, element),
    )


def _matching_bytes(
    student: Sizes,
    windows: Windows,
    choices: DMDConfig,
    settings: Settings,
    element: int,
    checkpointing: bool,
) -> dict[str, float]:
    """The ring, the past of the window, and activations. Without checkpointing a pass keeps all the keys it saw."""
    frames, bytes_of = windows.length * settings.chunk, student.shape.cache_bytes
    activations = student.activation_bytes(frames, element, windows.length, checkpointing=checkpointing)
    if not checkpointing:
        seen = sum(seen_frames(windows.starts - 1 + chunk, settings) for chunk in range(windows.length))
        activations += bytes_of(seen, element)
    if choices.method == "self-forcing":
        return {"past": bytes_of(frames, element), "activations": activations}
    return {
        "ring": bytes_of(settings.context, element),
        "past": bytes_of(settings.context + frames, element),
        "activations": activations,
    }


def _matching_lines(windows: Windows, choices: DMDConfig, settings: Settings) -> dict[str, str]:
    whole, scores = windows.starts + windows.length - 1, score_passes(choices)
    mean = sum(windows.chunks(start) * chance for start, chance in enumerate(windows.last))
    chunks = f"~{mean:.1f} of {whole} chunks of {settings.chunk} latent frames in the mean"
    rollout = f"{chunks}, {len(settings.steps)} passes a chunk and 1 to remember it"
    passes = f"{windows.passes:g} passes a chunk, 1 with gradient, and 1 to remember it"
    critic = "the same windows" if choices.shared_rollout else "windows of a new rollout"
    return {
        "rollout": "the window is all of it" if choices.method == "self-forcing" else rollout,
        "window": f"{windows.count} of {windows.length} chunks, {passes}",
        "scores": f"{scores} passes a window: 1 of the critic, {scores - 1} of the teacher",
        "updates": f"1 of the student, {choices.critic_updates} of the critic: 1 pass with gradient each, over {critic}",
    }


def _teacher(layout: Layout) -> Path:
    if layout.teacher is None:
        raise UserError(
            f"{layout.name} holds a student but no teacher: name a bundle with a teacher, such as Wan's own"
        )
    return layout.teacher


def _judged(layout: Layout) -> Settings:
    """The student's settings, with the length that the teacher can judge."""
    return layout.settings.changed({"horizon": layout.teacher_horizon})


def _frozen_vae(layout: Layout) -> dict[str, int]:
    return {"vae": count_parameters(blank(layout.folder / "vae", AutoencoderKLWan.from_config))}


def _preview_bytes(preview: Preview, student: Sizes, settings: Settings, element: int) -> float:
    """The rings of all its videos."""
    return preview.count * student.shape.cache_bytes(settings.context, element) if preview.every else 0.0


def _memory(costs: Costs, training: Training, world: int, micro: int, device: torch.device) -> dict[str, str]:
    """What a rank holds. Sharded learners (FSDP2) are gathered whole in every step, and stay so until its backward pass."""
    learners, shards = costs.learners.values(), world if training.parallel == "shard" else 1
    weights = WEIGHT * sum(learner.parameters for learner in learners)
    gradients = WEIGHT * sum(learner.learning for learner in learners) / shards
    largest = WEIGHT * max(learner.learning for learner in learners) / shards
    stays = {"weights": weights / shards + WEIGHT * sum(costs.frozen.values()), "gradients": gradients}
    if shards > 1:
        stays["gathered"] = weights
    rests = {
        "moments": 2 * gradients,
        "average": WEIGHT * sum(learner.parameters for learner in learners if learner.averaged) / shards,
    }
    base = sum(stays.values()) + (0 if training.offload else sum(rests.values()))
    held = {name: micro * size for name, size in costs.held.items()}
    passes = base + sum(held.values())
    temporary = largest if device.type == "cuda" else 0  # PyTorch updates all weights at once there
    update = base + temporary + (2 * largest if training.offload else 0)
    after = {"preview": base + costs.preview} if costs.preview else {}
    before = ({"encoding text": WEIGHT * costs.gone} if costs.gone else {}) | costs.before
    where = ", in main memory" if training.offload else ""
    checkpointing = f", {'with' if training.gradient_checkpointing else 'without'} checkpointing"
    return {
        **{name: _bytes(size) for name, size in stays.items()},
        **{name: _bytes(size) + where for name, size in rests.items()},
        **{
            name: f"~{_bytes(size)}{checkpointing if name == 'activations' else ''}"
            for name, size in held.items()
        },
        "memory": f"~{_bytes(passes)} a rank while passes run, ~{_bytes(update)} while an optimiser steps",
        **{name: f"~{_bytes(size)} a rank, between steps" for name, size in after.items()},
        **{name: f"~{_bytes(size)} a rank, before the first step" for name, size in before.items()},
        **_free(max(passes, update, *before.values(), *after.values()), device),
    }


def _free(needed: float, device: torch.device) -> dict[str, str]:
    """What the GPU has left, if there is one."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return {}
    free, _ = torch.cuda.mem_get_info(device)
    remedy = "too little: try gradient_checkpointing, offload, a smaller micro_batch or more ranks"
    return {"free": f"{_bytes(free)} on {device}, {'enough' if needed < free else remedy}"}


def _arithmetic(flop: dict[str, float], batch: int, world: int) -> dict[str, str]:
    total = sum(flop.values())
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in flop.items() if value)
    return {"work": f"~{_flop(batch * total)} a step, ~{_flop(batch * total / world)} a rank: {shares}"}


def _files(recipe: Recipe, learners: Iterable[Learner], layout: Layout, out: Path) -> dict[str, str]:
    """What is written where."""
    training = recipe.training
    size = _bytes(sum(learner.checkpoint_bytes for learner in learners))
    rounds = f" and every {training.keep_every}th step's" if training.keep_every else ""
    lines = {
        "checkpoints": f"{size} each in {out}/step-NNNNNN; the newest {training.keep}{rounds} stay, 1 more while one is written",
        "beside them": f"{out}/recipe.toml, metrics.jsonl (a line a step), curves.png",
    }
    if isinstance(recipe, TeacherRecipe):
        return lines
    if recipe.preview.every:
        lines["previews"] = f"{training.steps // recipe.preview.every} pictures in {out}/previews"
    width = UMT5Config.from_dict(read_config(layout.folder / "text_encoder")).d_model
    most = _bytes(WEIGHT * layout.settings.text_length * width)
    place = (
        f"in {recipe.text_store}" if recipe.text_store else "in memory; 'text_store' would keep them on disk"
    )
    return {**lines, "embeddings": f"{most} a prompt at most, {place}"}


def _learns(learner: Learner) -> str:
    learns = (
        "all learn" if learner.learning == learner.parameters else f"{learner.learning / 1e6:.1f} M learn"
    )
    return f"{learner.parameters / 1e6:.1f} M parameters, {learns}"


def _formula(sizes: Sizes, checkpointing: bool) -> str:
    more = " and 1 for checkpointing" if checkpointing else ""
    linear, attention = (
        f"2 x {sizes.linear / 1e6:.1f} M x tokens",
        f"4 x {sizes.shape.layers} x {sizes.dim} x queries x keys",
    )
    return f"~{linear} + {attention} FLOP a forward pass; {BACKWARD} more backward{more}"


def _bytes(size: float) -> str:
    return readable(round(size))


def _flop(flop: float) -> str:
    size, unit = next(((size, unit) for size, unit in UNITS if flop >= size), UNITS[-1])
    return f"{flop / size:.3g} {unit}FLOP"
