"""What a run needs, from configuration files alone: parameters, memory of a rank, files. No weights are read.

Sizes of weights, caches and files follow from shapes. Activations are estimates, and so is every sum that
holds them: a ~ says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import UMT5Config

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.training_config import Training
from sfpp_cli.devices import pick_dtype, total_memory
from sfpp_cli.errors import UserError
from sfpp_cli.files import check_writable, free_space
from sfpp_cli.models.layout import Layout, read_config
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.settings import Settings
from sfpp_cli.models.summary import ELEMENT_BYTES, readable
from sfpp_cli.training.networks import WEIGHT, Frozen, Network, Trained, measure, parameters_of
from sfpp_cli.training.recipes import GRPORecipe, MatchingRecipe, Pairs, Recipe, StudentRecipe, TeacherRecipe

_REMEDY = "try gradient_checkpointing, offload, a smaller micro_batch or more ranks"
STORED = 2
"""Bytes of a number in a stored trajectory (float16)."""


@dataclass(frozen=True)
class Needs:
    """What an objective needs; the rest follows from `training` and the ranks."""

    trained: dict[str, Trained]
    frozen: dict[str, Frozen]
    activations: float
    """Bytes of a sample that runs."""
    caches: float = 0.0
    """Bytes of keys and values of a sample that runs."""
    critic: float = 0.0
    """Bytes of activations of a sample from which the critic learns."""
    text_encoder: int = 0
    """Parameters of the text encoder, if it is freed before the first step."""
    together: bool = False
    """Whether all that is trained learns in the same updates; else gradients are there of one at a time."""
    preview: float = 0.0
    """Bytes that a preview needs beside the weights."""
    pairs: float = 0.0
    """Bytes that the teacher needs to make trajectories, before the first step."""
    lines: dict[str, str] = field(default_factory=dict)
    """What else the plan says."""


def plan(
    recipe: Recipe, layout: Layout, ranks: Ranks, device: torch.device, out: Path, assumed: Sequence[str] = ()
) -> str:
    """The plan of a run as aligned lines: networks, memory of a rank, files in `out`, what is `assumed`."""
    quiet_libraries()
    training = recipe.training
    samples = _samples(training, ranks)
    precision = str(training.dtype(device)).removeprefix("torch.")
    needs = _needs(recipe, layout, ELEMENT_BYTES[precision])
    lines = {
        "recipe": f"{recipe.objective}, {training.steps} steps of {training.batch} samples",
        "ranks": f"{ranks.world}, samples at once on each: {samples}",
        "precision": f"{_weights(recipe, precision)}, arithmetic {precision} on {device.type}",
        **{name: str(network) for name, network in (needs.trained | needs.frozen).items()},
    }
    if needs.text_encoder:
        lines["text encoder"] = f"{needs.text_encoder / 1e6:.1f} M parameters, freed before the first step"
    memory, most = _memory(needs, training, ranks, device)
    lines |= memory | _fits(most, device)
    lines |= needs.lines
    lines |= _files(recipe, needs.trained.values(), layout, out)
    lines["time"] = "measured in the first step, and said then"
    text = [f"{name:<13} {line}" for name, line in lines.items()]
    text += [f"{'assumed':<13} {line}" for line in assumed]
    return "\n".join(text)


def _weights(recipe: Recipe, precision: str) -> str:
    if not _rank(recipe):
        return "weights float32"
    return f"adapters float32 over {'float8' if _float8(recipe) else precision}"


def _rank(recipe: Recipe) -> int:
    return recipe.lora_rank if isinstance(recipe, MatchingRecipe | GRPORecipe) else 0


def _float8(recipe: Recipe) -> bool:
    return isinstance(recipe, MatchingRecipe | GRPORecipe) and recipe.lora_base == "float8"


def _student(recipe: MatchingRecipe | GRPORecipe, student: Network, element: int) -> Trained:
    if not recipe.lora_rank:
        return Trained(student.parameters)
    resting = student.frozen_bytes(element, float8=_float8(recipe))
    return Trained(student.parameters, adapters=recipe.lora_rank * student.adapter, frozen_bytes=resting)


def refuse_excess(recipe: Recipe, layout: Layout, ranks: Ranks, device: torch.device, out: Path) -> None:
    """UserError, with the figure, if a run needs twice the machine's memory, or more disk than there is.

    Twice, since activations are estimates.
    """
    training = recipe.training
    needs = _needs(recipe, layout, training.dtype(device).itemsize)
    _, most = _memory(needs, training, ranks, device)
    there = total_memory(device)
    if there is not None and most > 2 * there:
        raise UserError(
            f"it takes ~{readable(most)} of memory a rank, {device} has {readable(there)}: {_REMEDY}"
        )
    size, count = _checkpoints(training, needs.trained.values())
    sizes: dict[Path, float] = {out: size * count}
    if isinstance(recipe, StudentRecipe):
        latent = measure(layout.require_teacher(), layout).latent
        pairs = trajectory_bytes(recipe.pairs, recipe.settings_for(layout), latent)
        sizes[Path(recipe.pairs.folder)] = pairs
    if isinstance(recipe, StudentRecipe | MatchingRecipe | GRPORecipe) and recipe.text_store:
        sizes[Path(recipe.text_store)] = 0
    for folder, needed in sizes.items():
        check_writable(folder)
        room = free_space(folder) + sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if needed > room:
            raise UserError(
                f"{folder} will take {readable(needed)}, and there is room for {readable(room)}: free space, "
                "or see training.keep, training.save_every and pairs.count"
            )


def trajectory_bytes(pairs: Pairs, settings: Settings, latent: tuple[int, int, int]) -> int:
    """All trajectories on disk: at every student step and the end, `horizon` latent frames [C, H, W]."""
    return pairs.count * (len(settings.steps) + 1) * settings.horizon * math.prod(latent) * STORED


def _needs(recipe: Recipe, layout: Layout, element: int) -> Needs:
    """`element`: bytes of a number in the arithmetic's precision."""
    teacher = measure(layout.require_teacher(), layout)
    if isinstance(recipe, TeacherRecipe):
        return _flow_matching(recipe, layout, teacher, element)
    if isinstance(recipe, StudentRecipe):
        return _regression(recipe, layout, teacher, element)
    if isinstance(recipe, GRPORecipe):
        return _grpo(recipe, layout, element)
    return _matching(recipe, layout, teacher, element)


def _flow_matching(recipe: TeacherRecipe, layout: Layout, teacher: Network, element: int) -> Needs:
    encoder = parameters_of(layout, "text_encoder")
    trained = {"transformer": Trained(teacher.parameters)}
    frozen: dict[str, Frozen] = {}
    if recipe.train_text_encoder:
        trained["text encoder"] = Trained(encoder)
    else:
        frozen["text encoder"] = Frozen(encoder, WEIGHT * encoder)
    checkpointing = recipe.training.gradient_checkpointing
    activations = teacher.activation_bytes(layout.teacher_horizon, element, 1, checkpointing=checkpointing)
    return Needs(trained, frozen, activations, together=True)


def _regression(recipe: StudentRecipe, layout: Layout, student: Network, element: int) -> Needs:
    settings = recipe.settings_for(layout)
    pairs = recipe.pairs
    on_disk = _on_disk(trajectory_bytes(pairs, settings, student.latent), Path(pairs.folder))
    checkpointing = recipe.training.gradient_checkpointing
    return Needs(
        {"student": Trained(student.parameters)},
        {"vae": _vae(layout)} if recipe.preview.every else {},
        student.activation_bytes(settings.horizon, element, 1, checkpointing=checkpointing),
        text_encoder=parameters_of(layout, "text_encoder"),
        preview=_preview_bytes(recipe, student, settings, element),
        pairs=element * student.parameters + pairs.batch * student.block_bytes(settings.horizon, element),
        lines={"pairs": f"{pairs.count} trajectories, {on_disk} in {pairs.folder}"},
    )


def _matching(recipe: MatchingRecipe, layout: Layout, teacher: Network, element: int) -> Needs:
    student = measure(layout.student, layout)
    settings = recipe.settings_for(layout)
    adapters = recipe.lora_rank * teacher.adapter  # over the teacher's own weights
    frozen = {"teacher": Frozen(teacher.parameters, teacher.frozen_bytes(element, float8=_float8(recipe)))}
    if recipe.preview.every or recipe.dmd.first_frame == "reencode":
        frozen["vae"] = _vae(layout)
    span = recipe.dmd.chunks(layout.teacher_horizon, settings.chunk)
    horizon = span[0] * settings.chunk
    rolled = recipe.dmd.method == "self-forcing++"
    checkpointing = recipe.training.gradient_checkpointing
    caches, activations = _window_bytes(
        student, settings, span, element, rolled=rolled, checkpointing=checkpointing
    )
    # The teacher judges a window while its activations wait, before the first block of them is made again.
    judging = teacher.pass_bytes(horizon, element)
    if checkpointing:
        judging = max(0, judging - _block_again(student, settings, element))
    return Needs(
        {
            "student": _student(recipe, student, element),
            "critic": Trained(teacher.parameters, has_ema=False, adapters=adapters),
        },
        frozen,
        activations + judging,
        caches=caches,
        critic=teacher.activation_bytes(horizon, element, 1, checkpointing=checkpointing),
        text_encoder=parameters_of(layout, "text_encoder"),
        preview=_preview_bytes(recipe, student, settings, element),
    )


def _grpo(recipe: GRPORecipe, layout: Layout, element: int) -> Needs:
    student = measure(layout.student, layout)
    settings = recipe.settings_for(layout)
    frozen = {"vae": _vae(layout)}
    if recipe.grpo.kl:
        frozen["reference"] = Frozen(student.parameters, WEIGHT * student.parameters)
    window, starts = recipe.grpo.chunks(layout.teacher_horizon, settings.chunk)
    span = (window, starts) if recipe.grpo.credit == "window" else (window + starts - 1, 1)
    caches, activations = _window_bytes(
        student,
        settings,
        span,
        element,
        rolled=True,
        checkpointing=recipe.training.gradient_checkpointing,
        passes=1 if recipe.grpo.step_weights == "one" else len(settings.steps) - 1,
    )
    return Needs(
        {"student": _student(recipe, student, element)},
        frozen,
        activations,
        caches=caches,
        text_encoder=parameters_of(layout, "text_encoder"),
        preview=_preview_bytes(recipe, student, settings, element),
    )


def _block_again(student: Network, settings: Settings, element: int) -> int:
    """Of a block of a chunk's pass in the backward pass, with the keys and values that it sees."""
    seen = student.shape.cache_bytes(settings.context, element) // student.shape.layers
    return student.block_bytes(settings.chunk, element) + seen


def _vae(layout: Layout) -> Frozen:
    parameters = parameters_of(layout, "vae")
    return Frozen(parameters, WEIGHT * parameters)


def _window_bytes(
    student: Network,
    settings: Settings,
    span: tuple[int, int],
    element: int,
    *,
    rolled: bool,
    checkpointing: bool,
    passes: int = 1,
) -> tuple[int, int]:
    """Of caches and activations, for a window's chunks and starts, with `passes` that learn a chunk.

    After a rollout, the rolling cache is held while a snapshot is taken of what the window's first chunk
    sees of it, and after that the snapshot with the window's own keys and values; Self-Forcing has only the
    latter. Every pass puts together the keys and values that it sees: with checkpointing one layer's at a
    time; without it all are kept.
    """
    window, starts = span
    frames = window * settings.chunk
    activations = student.activation_bytes(
        passes * frames, element, passes * window, checkpointing=checkpointing
    )
    if checkpointing:
        block = student.block_bytes(settings.chunk, element)
        activations += _block_again(student, settings, element) - block
    else:
        # In sight of chunk i are (starts + i) chunks, but never more than the context.
        growing = max(0, min(window, settings.context // settings.chunk - starts + 1))
        seen = settings.chunk * (growing * starts + growing * (growing - 1) // 2)
        seen += (window - growing) * settings.context
        activations += student.shape.cache_bytes(passes * seen, element)
    past = settings.context - settings.chunk
    held = past + max(settings.context, frames) if rolled else frames
    return student.shape.cache_bytes(held, element), activations


def _preview_bytes(
    recipe: StudentRecipe | MatchingRecipe | GRPORecipe, student: Network, settings: Settings, element: int
) -> float:
    """The rolling caches of all videos of a preview."""
    if not recipe.preview.every:
        return 0.0
    return recipe.preview.count * student.shape.cache_bytes(settings.context, element)


def _samples(training: Training, ranks: Ranks) -> int:
    """How many a rank runs at once."""
    share = training.batch // ranks.world
    return min(training.micro_batch or share, share)


def _memory(
    needs: Needs, training: Training, ranks: Ranks, device: torch.device
) -> tuple[dict[str, str], float]:
    """What a rank holds, part by part, and the bytes at most."""
    samples = _samples(training, ranks)
    trained = needs.trained.values()
    averaged = [n for n in trained if n.has_ema and training.ema_start <= training.steps]
    trainable = [network.trainable for network in trained]
    learning = sum(trainable) if needs.together else max(trainable)
    shards = ranks.world if training.parallel == "shard" else 1
    weights = sum(network.nbytes for network in trained)
    gradients = WEIGHT * learning / shards
    parts = {
        "weights": weights / shards + sum(network.nbytes for network in needs.frozen.values()),
        "gradients": gradients,
        # What FSDP2 gathers for a step's first pass stays until its backward pass.
        "gathered": weights if shards > 1 else 0.0,
        "optimizer": 2 * WEIGHT * sum(trainable) / shards,
        "EMA": WEIGHT * sum(network.trainable for network in averaged) / shards,
        "KV caches": samples * needs.caches,
        "activations": samples * needs.activations,
    }
    offloaded = ("optimizer", "EMA") if training.offload else ()
    lines = {name: readable(size) for name, size in parts.items() if size}
    for name in lines.keys() & offloaded:
        lines[name] += ", in main memory"
    if not averaged:
        lines["EMA"] = f"none: it would begin at step {training.ema_start} (training.ema_start)"
    checkpointing = "with" if training.gradient_checkpointing else "without"
    lines["activations"] = f"~{lines['activations']}, {checkpointing} checkpointing"
    passes = sum(size for name, size in parts.items() if name not in offloaded)
    resident = passes - parts["KV caches"] - parts["activations"]
    encoding = str(pick_dtype(None, device)).removeprefix("torch.")
    moments = {
        "passes": passes,
        "critic": resident + samples * needs.critic if needs.critic else 0.0,
        # Moments that rest in main memory come back for their own update.
        "update": resident + (2 * gradients if training.offload else 0.0),
        "preview": resident + needs.preview if needs.preview else 0.0,
        "embedding prompts": ELEMENT_BYTES[encoding] * needs.text_encoder,
        "making pairs": needs.pairs,
    }
    most = max(moments.values())
    each = ", ".join(f"{moment} ~{readable(size)}" for moment, size in moments.items() if size)
    lines["memory"] = f"~{readable(most)} a rank at most ({each})"
    return lines, most


def _fits(needed: float, device: torch.device) -> dict[str, str]:
    """Whether that fits into what the GPU has free, if there is one here."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return {}
    free, _ = torch.cuda.mem_get_info(device)
    if needed < free:
        return {"fits": f"yes, {readable(free)} are free on {device}"}
    return {"fits": f"no, {readable(free)} are free on {device}: {_REMEDY}"}


def _checkpoints(training: Training, trained: Iterable[Trained]) -> tuple[int, int]:
    """Bytes of a checkpoint, and how many there are at most: one more than are kept while it is written."""
    saved = -(-training.steps // training.save_every)
    rounds = training.steps // training.keep_every if training.keep_every else 0
    return sum(network.checkpoint_bytes for network in trained), min(saved, training.keep + rounds + 1)


def _files(recipe: Recipe, trained: Iterable[Trained], layout: Layout, out: Path) -> dict[str, str]:
    training = recipe.training
    size, count = _checkpoints(training, trained)
    lines = {"checkpoints": f"{readable(size)} each in {out}, {count} at most: {_on_disk(count * size, out)}"}
    if isinstance(recipe, TeacherRecipe):
        return lines
    width = UMT5Config.from_dict(read_config(layout.folder / "text_encoder")).d_model
    most = readable(WEIGHT * layout.settings.text_length * width)
    place = f"in {recipe.text_store}" if recipe.text_store else "in memory (text_store: on disk)"
    lines["embeddings"] = f"{most} for each prompt at most, {place}"
    return lines


def _on_disk(size: float, folder: Path) -> str:
    """A size, and a warning if the disk that `folder` is or will be on has less room."""
    free = free_space(folder)
    return readable(size) + (f" (too much: {readable(free)} are free)" if size > free else "")
