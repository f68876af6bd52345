"""LoRA files merged into a model's weights: W + weight * (alpha / rank) * B A.

Every tensor of a file is used, or the file is refused: a LoRA merged by half shows nowhere but in the videos.
Names are those of PEFT, diffusers or ComfyUI, over Wan's names of modules or diffusers'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfpp_cli.errors import UserError
from sfpp_cli.models.convert import transformer_name
from sfpp_cli.models.layout import read_json
from sfpp_cli.models.original import LORA_PARTS, Weights, load_original

_TENSOR = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_down|lora\.down|lora_B|lora_up|lora\.up|alpha|diff|diff_b)"
    r"(\.default)?(\.weight)?"  # PEFT's name of the adapter; FastVideo leaves .weight out
)
_KINDS = {
    **dict.fromkeys(("lora_A", "lora_down", "lora.down"), "down"),
    **dict.fromkeys(("lora_B", "lora_up", "lora.up"), "up"),
}


@dataclass(frozen=True)
class Lora:
    """A LoRA to merge, as `--lora FILE[:WEIGHT]` names it."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """`lora.pt` or `lora.pt:0.8`. UserError if the weight is no finite number."""
        name, colon, number = text.rpartition(":")
        if not colon or Path(text).exists():
            return cls(Path(text))
        try:
            weight = float(number)
        except ValueError:
            return cls(Path(text))
        if not math.isfinite(weight):
            raise UserError(f"--lora {text}: its weight must be a finite number")
        return cls(Path(name), weight)


def merge(weights: Mapping[str, Tensor], lora: Lora) -> Weights:
    """The weights, under diffusers' names, with a LoRA added in float32. UserError unless all of it fits."""
    merged = dict(weights)
    done: set[str] = set()
    for name, change in _changes(lora.path):
        if name in done:
            raise UserError(f"{lora.path} changes {name} twice; merge it with the tool that made it")
        done.add(name)
        old = merged.get(name, torch.empty(0))
        matrix = old.flatten(1) if old.ndim > 1 else old
        if change.shape not in (old.shape, matrix.shape):
            raise UserError(
                f"{lora.path}: {name} is not in the model, or has another shape; use a LoRA of this model"
            )
        merged[name] = old.float() + lora.weight * change.reshape(old.shape)
    return merged


def _changes(path: Path) -> Iterator[tuple[str, Tensor]]:
    """What a LoRA adds to each parameter, one at a time for their size; convolutions as matrices."""
    file, scale = _adapter(path)
    for module, tensors in _modules(file).items():
        low_rank: Weights = {kind: tensors.pop(kind) for kind in ("down", "up", "alpha") if kind in tensors}
        if low_rank:
            yield transformer_name(f"{module}.weight"), _product(low_rank, scale, f"{path}: {module}")
        # ComfyUI's tools write differences of what a LoRA cannot hold: biases and norms
        for kind, difference in tensors.items():
            leaf = "bias" if kind == "diff_b" else "weight"
            yield transformer_name(f"{module}.{leaf}"), difference.float()


def _product(tensors: Weights, scale: Callable[[int], float], where: str) -> Tensor:
    """(alpha / rank) * B A as a matrix."""
    down, up, alpha = (tensors.get(kind, torch.empty(0)) for kind in ("down", "up", "alpha"))
    rank = down.shape[0] if down.ndim > 1 else 0
    if rank == 0 or up.shape[1:2] != (rank,) or ("alpha" in tensors and alpha.numel() != 1):
        raise UserError(f"{where} lacks a matrix of its LoRA, or the two do not fit; fetch it again")
    factor = float(alpha) / rank if "alpha" in tensors else scale(rank)
    return factor * (up.float().flatten(1) @ down.float().flatten(1))


def _modules(path: Path) -> dict[str, Weights]:
    """The tensors of a LoRA by module and kind: down, up, alpha, diff, diff_b."""
    original = load_original(path, parts=LORA_PARTS)
    if not original.lora:
        raise UserError(f"{path} holds no LoRA; give a file with lora_A and lora_B, or lora_down and lora_up")
    holds_base = "patch_embedding.weight" in original.weights
    tensors = original.lora if holds_base else original.lora | original.weights
    modules: dict[str, Weights] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        kind = match and _KINDS.get(match["kind"], match["kind"])
        if not match or not kind or kind in modules.setdefault(match["module"], {}):
            raise UserError(f"{path}: sfpp cannot merge {name}; merge this LoRA with the tool that made it")
        modules[match["module"]][kind] = tensor
    return modules


def _adapter(path: Path) -> tuple[Path, Callable[[int], float]]:
    """A LoRA's file, and the factor of a rank where no tensor says: that of PEFT's config beside it, or 1."""
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    config_file = file.with_name("adapter_config.json")
    if file.name != "adapter_model.safetensors" or not config_file.exists():
        return file, lambda rank: 1.0
    config = read_json(config_file)
    if config.get("use_dora") or config.get("alpha_pattern"):
        raise UserError(
            f"{config_file}: sfpp merges plain LoRAs, no DoRA and no alpha_pattern; merge it in PEFT"
        )
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        raise UserError(f"{config_file} has no lora_alpha; fetch it again")
    root = bool(config.get("use_rslora"))
    return file, lambda rank: alpha / (math.sqrt(rank) if root else rank)
