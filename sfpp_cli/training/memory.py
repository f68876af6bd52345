"""What a run needs, from configuration files alone: parameters, memory of a rank, files. No weights are read.

Sizes of weights, caches and files follow from shapes. Activations are estimates, and so is every sum that
holds them: a ~ says so.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from sfpp_cli.core.geometry import tokens_per_frame
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.trainer import Training
from sfpp_cli.errors import UserError
from sfpp_cli.models.layout import Layout, read_config
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.settings import Settings
from sfpp_cli.models.summary import ELEMENT_BYTES, Shape, readable
from sfpp_cli.training.recipes import MatchingRecipe, Pairs, Recipe, StudentRecipe, TeacherRecipe

WEIGHT = ELEMENT_BYTES["float32"]
"""Bytes of a weight, a gradient, a moment of the optimiser, an average: always float32."""
STORED = 2
"""Bytes of a number in a stored trajectory (float16)."""


@dataclass(frozen=True)
class Network:
    """A transformer's sizes."""

    parameters: int
    linear: int
    """Parameters of the linear layers that every video token passes: what autocast casts in every pass."""
    adapter: int
    """Parameters of adapters of rank 1."""
    ffn: int
    """Width of the feed-forward layers."""
    latent: tuple[int, int, int]
    """A latent frame's [C, H, W] at the native size."""
    shape: Shape

    @property
    def dim(self) -> int:
        return self.shape.heads * self.shape.head_dim

    def block_bytes(self, frames: int, element: int) -> int:
        """What one block keeps of a pass over `frames` latent frames for its backward pass. An estimate.

        For a token: 12 vectors of `dim` in float32 (norms, gates), 11 of `dim` and 2 of `ffn` in the
        precision of the arithmetic, as counted by hooks on the tensors that autograd saves in the blocks of
        student and teacher.
        """
        per_token = self.dim * (12 * WEIGHT + 11 * element) + 2 * self.ffn * element
        return frames * self.shape.tokens * per_token

    def activation_bytes(self, frames: int, element: int, passes: int, *, checkpointing: bool) -> int:
        """What `passes` passes over `frames` latent frames in all keep for the backward pass. An estimate.

        With checkpointing the input of every block, and the activations of one block at a time. Without it
        the activations of all blocks, and the casts of the weights that autocast makes in every pass.
        """
        if checkpointing:
            inputs = self.shape.layers * frames * self.shape.tokens * self.dim * element
            return inputs + self.block_bytes(frames, element)
        casts = passes * self.linear * element if element < WEIGHT else 0
        return self.shape.layers * self.block_bytes(frames, element) + casts


@dataclass(frozen=True)
class Trained:
    """A network that is trained."""

    parameters: int
    trainable: int
    has_ema: bool = True

    def __str__(self) -> str:
        part = "all" if self.trainable == self.parameters else f"{self.trainable / 1e6:.1f} M"
        return f"{self.parameters / 1e6:.1f} M parameters, {part} trained"

    @property
    def checkpoint_bytes(self) -> int:
        """The folders of its weights and EMA, and the state to resume from: both again, and the moments.

        Adapters are folded into the weights of the folders.
        """
        copies = 2 if self.has_ema else 1
        adapters = self.trainable if self.trainable < self.parameters else 0
        folder = self.parameters - adapters
        return WEIGHT * (copies * (folder + self.parameters) + 2 * self.trainable)


@dataclass(frozen=True)
class Needs:
    """What an objective needs; the rest follows from `training` and the ranks."""

    trained: dict[str, Trained]
    frozen: dict[str, int]
    """Parameters that every rank holds whole."""
    activations: float
    """Bytes of a sample that runs."""
    caches: float = 0.0
    """Bytes of keys and values of a sample that runs."""
    text_encoder: int = 0
    """Parameters of the text encoder, if it is freed before the first step."""
    preview: float = 0.0
    """Bytes that a preview needs beside the weights."""
    pairs: float = 0.0
    """Bytes that the teacher needs to make trajectories, before the first step."""
    lines: dict[str, str] = field(default_factory=dict)
    """What else the plan says."""


def plan(
    recipe: Recipe,
    layout: Layout,
    ranks: Ranks,
    device: torch.device,
    out: Path,
    assumed: Sequence[str] = (),
) -> str:
    """The plan of a run as aligned lines: networks, memory of a rank and whether it fits, files in `out`.

    `assumed` is said at the end: what the plan takes for granted.
    """
    quiet_libraries()
    training = recipe.training
    share = training.batch // ranks.world
    samples = min(training.micro_batch or share, share)
    precision = str(training.dtype(device)).removeprefix("torch.")
    needs = _needs(recipe, layout, ELEMENT_BYTES[precision])
    lines = {
        "recipe": f"{recipe.objective}, {training.steps} steps of {training.batch} samples",
        "ranks": f"{ranks.world}, samples at once on each: {samples}",
        "precision": f"weights float32, arithmetic {precision} on {device.type}",
        **{name: str(network) for name, network in needs.trained.items()},
        **{name: f"{count / 1e6:.1f} M parameters, frozen" for name, count in needs.frozen.items()},
    }
    if needs.text_encoder:
        lines["text encoder"] = f"{needs.text_encoder / 1e6:.1f} M parameters, freed before the first step"
    lines |= _memory(needs, training, ranks, samples, device)
    lines |= needs.lines
    lines |= _files(recipe, needs.trained.values(), layout, out)
    lines["time"] = "measured in the first step, and said then"
    text = [f"{name:<13} {line}" for name, line in lines.items()]
    text += [f"{'assumed':<13} {line}" for line in assumed]
    return "\n".join(text)


def measure(folder: Path, layout: Layout) -> Network:
    """The transformer that a folder's config.json describes, for videos of the model's native size."""

    def one_layer(config: dict[str, Any]) -> tuple[CausalWanModel, int]:
        return CausalWanModel.from_config({**config, "num_layers": 1}), int(config["num_layers"])

    # All layers are alike, so one is made and counted as often as there are layers.
    model, layers = _skeleton(folder, one_layer)
    config = model.config
    block = model.blocks[0]
    matrices = {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}
    once_a_prompt = ("attn2.to_k", "attn2.to_v")  # the text's keys and values, which no video token passes
    size = layout.latent_size
    tokens = tokens_per_frame(*size, config.patch_size)
    return Network(
        parameters=count_parameters(model) + (layers - 1) * count_parameters(block),
        linear=layers
        * sum(part.weight.numel() for name, part in matrices.items() if name not in once_a_prompt),
        adapter=layers * sum(part.in_features + part.out_features for part in matrices.values()),
        ffn=config.ffn_dim,
        latent=(config.in_channels, *size),
        shape=Shape(layers, config.num_attention_heads, config.attention_head_dim, tokens),
    )


def text_parameters(layout: Layout) -> int:
    """Parameters of the text encoder."""

    def encoder(config: dict[str, Any]) -> UMT5EncoderModel:
        return UMT5EncoderModel(UMT5Config.from_dict(config))

    return count_parameters(_skeleton(layout.folder / "text_encoder", encoder))


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, weights or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def trajectory_bytes(pairs: Pairs, settings: Settings, latent: tuple[int, int, int]) -> int:
    """All trajectories on disk: at every student step and the end, `horizon` latent frames [C, H, W]."""
    return pairs.count * (len(settings.steps) + 1) * settings.horizon * math.prod(latent) * STORED


def _skeleton(folder: Path, make: Callable[[dict[str, Any]], Any]) -> Any:
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


def _needs(recipe: Recipe, layout: Layout, element: int) -> Needs:
    """`element`: bytes of a number in the arithmetic's precision."""
    if isinstance(recipe, TeacherRecipe):
        return _flow_matching(recipe, layout, element)
    if isinstance(recipe, StudentRecipe):
        return _regression(recipe, layout, element)
    return _matching(recipe, layout, element)


def _flow_matching(recipe: TeacherRecipe, layout: Layout, element: int) -> Needs:
    teacher = _teacher(layout)
    encoder = text_parameters(layout)
    trained = {"transformer": Trained(teacher.parameters, teacher.parameters)}
    frozen = {}
    if recipe.train_text_encoder:
        trained["text encoder"] = Trained(encoder, encoder)
    else:
        frozen["text encoder"] = encoder
    checkpointing = recipe.training.gradient_checkpointing
    activations = teacher.activation_bytes(layout.teacher_horizon, element, 1, checkpointing=checkpointing)
    return Needs(trained, frozen, activations)


def _regression(recipe: StudentRecipe, layout: Layout, element: int) -> Needs:
    student = _teacher(layout)
    settings = recipe.settings_for(layout)
    pairs = recipe.pairs
    size = trajectory_bytes(pairs, settings, student.latent)
    checkpointing = recipe.training.gradient_checkpointing
    return Needs(
        {"student": Trained(student.parameters, student.parameters)},
        _frozen_vae(layout) if recipe.preview.every else {},
        student.activation_bytes(settings.horizon, element, 1, checkpointing=checkpointing),
        text_encoder=text_parameters(layout),
        preview=_preview_bytes(recipe, student, settings, element),
        pairs=WEIGHT * student.parameters + pairs.batch * student.block_bytes(settings.horizon, WEIGHT),
        lines={
            "pairs": f"{pairs.count} trajectories, {_on_disk(size, Path(pairs.folder))} in {pairs.folder}"
        },
    )


def _matching(recipe: MatchingRecipe, layout: Layout, element: int) -> Needs:
    student = measure(layout.student, layout)
    teacher = _teacher(layout)
    settings = recipe.settings_for(layout)
    adapters = recipe.lora_rank * student.adapter
    frozen = {"teacher": teacher.parameters}
    if recipe.preview.every or recipe.dmd.first_frame == "reencode":
        frozen |= _frozen_vae(layout)
    window, starts = recipe.dmd.chunks(layout.teacher_horizon, settings.chunk)
    caches, activations = _matching_bytes(recipe, student, settings, window, starts, element)
    return Needs(
        {
            "student": Trained(student.parameters + adapters, adapters or student.parameters),
            "critic": Trained(teacher.parameters, teacher.parameters, has_ema=False),
        },
        frozen,
        activations,
        caches=caches,
        text_encoder=text_parameters(layout),
        preview=_preview_bytes(recipe, student, settings, element),
    )


def _matching_bytes(
    recipe: MatchingRecipe, student: Network, settings: Settings, window: int, starts: int, element: int
) -> tuple[int, int]:
    """Of caches and activations.

    Self-Forcing++ holds the rolling cache of the rollout, and its snapshot before the window with the
    window's own keys and values; Self-Forcing only the latter. Without checkpointing every pass keeps all
    the keys and values that it saw.
    """
    frames = window * settings.chunk
    checkpointing = recipe.training.gradient_checkpointing
    activations = student.activation_bytes(frames, element, window, checkpointing=checkpointing)
    if not checkpointing:
        seen = [min((starts + chunk) * settings.chunk, settings.context) for chunk in range(window)]
        activations += student.shape.cache_bytes(sum(seen), element)
    held = frames if recipe.dmd.method == "self-forcing" else 2 * settings.context + frames
    return student.shape.cache_bytes(held, element), activations


def _teacher(layout: Layout) -> Network:
    assert layout.teacher is not None, "refused by check()"
    return measure(layout.teacher, layout)


def _frozen_vae(layout: Layout) -> dict[str, int]:
    return {"vae": count_parameters(_skeleton(layout.folder / "vae", AutoencoderKLWan.from_config))}


def _preview_bytes(
    recipe: StudentRecipe | MatchingRecipe, student: Network, settings: Settings, element: int
) -> float:
    """The rolling caches of all videos of a preview."""
    if not recipe.preview.every:
        return 0.0
    return recipe.preview.count * student.shape.cache_bytes(settings.context, element)


def _memory(
    needs: Needs, training: Training, ranks: Ranks, samples: int, device: torch.device
) -> dict[str, str]:
    """What a rank holds, part by part, and at most."""
    trained = needs.trained.values()
    shards = ranks.world if training.parallel == "shard" else 1
    weights = WEIGHT * sum(network.parameters for network in trained)
    gradients = WEIGHT * sum(network.trainable for network in trained) / shards
    ema = WEIGHT * sum(network.parameters for network in trained if network.has_ema) / shards
    caches = samples * needs.caches
    activations = samples * needs.activations
    resident = weights / shards + WEIGHT * sum(needs.frozen.values()) + gradients
    where = ", in main memory" if training.offload else ""
    checkpointing = "with" if training.gradient_checkpointing else "without"
    lines = {"weights": _bytes(resident - gradients), "gradients": _bytes(gradients)}
    if shards > 1:
        # What FSDP2 gathers for a step's first pass stays until its backward pass.
        resident += weights
        lines["gathered"] = _bytes(weights)
    lines["optimizer"] = _bytes(2 * gradients) + where
    lines["EMA"] = _bytes(ema) + where
    if caches:
        lines["KV caches"] = _bytes(caches)
    lines["activations"] = f"~{_bytes(activations)}, {checkpointing} checkpointing"
    if not training.offload:
        resident += 2 * gradients + ema
    moments = {
        "passes": resident + caches + activations,
        "update": resident + _update_bytes(trained, training, shards, device),
    }
    if needs.preview:
        moments["preview"] = resident + needs.preview
    if needs.text_encoder:
        moments["embedding prompts"] = WEIGHT * needs.text_encoder
    if needs.pairs:
        moments["making pairs"] = needs.pairs
    most = max(moments.values())
    parts = ", ".join(f"{moment} ~{_bytes(size)}" for moment, size in moments.items())
    lines["memory"] = f"~{_bytes(most)} a rank at most ({parts})"
    return lines | _fits(most, device)


def _update_bytes(trained: Iterable[Trained], training: Training, shards: int, device: torch.device) -> float:
    """What an optimiser's step takes beside what is resident."""
    largest = WEIGHT * max(network.trainable for network in trained) / shards
    # On CUDA, PyTorch updates all weights at once, with a temporary of their size; offloaded moments come
    # back for the step.
    temporary = largest if device.type == "cuda" else 0.0
    return temporary + (2 * largest if training.offload else 0.0)


def _fits(needed: float, device: torch.device) -> dict[str, str]:
    """Whether that fits into what the GPU has free, if there is one here."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return {}
    free, _ = torch.cuda.mem_get_info(device)
    if needed < free:
        return {"fits": f"yes, {_bytes(free)} are free on {device}"}
    remedy = "try gradient_checkpointing, offload, a smaller micro_batch or more ranks"
    return {"fits": f"no, {_bytes(free)} are free on {device}: {remedy}"}


def _files(recipe: Recipe, trained: Iterable[Trained], layout: Layout, out: Path) -> dict[str, str]:
    """What is written, and where."""
    training = recipe.training
    size = sum(network.checkpoint_bytes for network in trained)
    saved = -(-training.steps // training.save_every)
    rounds = training.steps // training.keep_every if training.keep_every else 0
    # One more than are kept exists while it is written.
    count = min(saved, training.keep + rounds + 1)
    lines = {"checkpoints": f"{_bytes(size)} each in {out}, {count} at most: {_on_disk(count * size, out)}"}
    if isinstance(recipe, TeacherRecipe):
        return lines
    width = UMT5Config.from_dict(read_config(layout.folder / "text_encoder")).d_model
    most = _bytes(WEIGHT * layout.settings.text_length * width)
    place = f"in {recipe.text_store}" if recipe.text_store else "in memory (text_store: on disk)"
    lines["embeddings"] = f"{most} for each prompt at most, {place}"
    return lines


def _on_disk(size: float, folder: Path) -> str:
    """A size, and a warning if the disk that `folder` is or will be on has less room."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    return _bytes(size) + (f" (too much: {_bytes(free)} are free)" if size > free else "")


def _bytes(size: float) -> str:
    return readable(round(size))
