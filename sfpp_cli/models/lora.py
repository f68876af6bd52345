"""LoRA files merged into a model's weights: W + weight * (alpha / rank) * B A.

Every tensor of a file is used, or the file is refused: a LoRA merged by half shows nowhere but in the videos.
Names are those of PEFT, diffusers, ComfyUI or musubi-tuner, over Wan's names of modules or diffusers'.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sfpp_cli.errors import NOT_FINITE, UserError, reason
from sfpp_cli.files import file_digest
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

_FLAT = "lora_unet_"
"""What musubi-tuner puts before names whose dots are underscores."""


@dataclass(frozen=True)
class Lora:
    """A LoRA to merge, as `--lora FILE[:WEIGHT]` names it."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """`lora.pt` or `lora.pt:0.8`. UserError if it is not there, or the weight is no finite number."""
        lora = cls(Path(text))
        name, colon, number = text.rpartition(":")
        if colon and not lora.path.exists():
            with suppress(ValueError):
                lora = cls(Path(name), float(number))
        if not math.isfinite(lora.weight):
            raise UserError(f"--lora {text}: its weight must be a finite number")
        if not _adapter(lora.path)[0].is_file():
            raise UserError(
                f"--lora {lora.path} is not there: give a LoRA's file, or a folder that PEFT wrote"
            )
        return lora

    def described(self) -> dict[str, Any]:
        """What of it decides a video's content."""
        digests = "".join(file_digest(file) for file in _adapter(self.path) if file is not None)
        return {"sha256": hashlib.sha256(digests.encode()).hexdigest(), "weight": self.weight}


def merge(weights: Mapping[str, Tensor], loras: Sequence[Lora]) -> Iterator[tuple[str, Tensor]]:
    """The parameters that LoRAs change, under diffusers' names: W + sum of weight * scale * B A, in float32.

    One at a time, for their size. UserError, before the first, unless all of the LoRAs fits `weights`, which
    have diffusers' names; it names the first tensor that does not.
    """
    changes: dict[str, list[tuple[float, _Change]]] = {}
    for lora in loras:
        done: set[str] = set()
        for name, change in _changes(lora.path):
            if name in done:
                raise UserError(f"{lora.path} changes {name} twice; merge it with the tool that made it")
            done.add(name)
            old = weights.get(name, torch.empty(0))
            matrix = old.flatten(1) if old.ndim > 1 else old
            if change.shape not in (old.shape, matrix.shape):
                raise UserError(
                    f"{lora.path}: {name} is not in the model, or has another shape; use a LoRA of this model"
                )
            changes.setdefault(name, []).append((lora.weight, change))
    for name, parts in changes.items():
        merged = weights[name].float()
        for weight, change in parts:
            merged = merged + weight * change.compute(merged.device).reshape(merged.shape)
        yield name, merged


@torch.no_grad()
def fold(model: nn.Module, loras: Sequence[Lora]) -> None:
    """Add LoRAs to the weights of a transformer, where these are. UserError as of `merge`."""
    state = model.state_dict()
    for name, tensor in merge(state, loras):
        state[name].copy_(tensor)
        if not state[name].isfinite().all():
            raise UserError(NOT_FINITE.format(f"{name} with its LoRA is"))


@dataclass(frozen=True)
class _Change:
    """What a LoRA adds to a parameter; of convolutions maybe as a matrix."""

    shape: tuple[int, ...]
    compute: Callable[[torch.device], Tensor]


def _changes(path: Path) -> Iterator[tuple[str, _Change]]:
    """What a LoRA adds to each parameter, by name."""
    file, config = _adapter(path)
    modules = _modules(file)
    scale = _pefts_scale(file, config)
    for module, tensors in modules.items():
        low_rank: Weights = {kind: tensors.pop(kind) for kind in ("down", "up", "alpha") if kind in tensors}
        if low_rank:
            yield transformer_name(f"{module}.weight"), _product(low_rank, scale, f"{path}: {module}")
        # ComfyUI's tools write differences of what a LoRA cannot hold: biases and norms
        for kind, difference in tensors.items():
            leaf = "bias" if kind == "diff_b" else "weight"
            added = partial(difference.to, dtype=torch.float32)
            yield transformer_name(f"{module}.{leaf}"), _Change(difference.shape, added)


def _product(tensors: Weights, scale: Callable[[int], float], where: str) -> _Change:
    """(alpha / rank) * B A as a matrix."""
    down, up, alpha = (tensors.get(kind, torch.empty(0)) for kind in ("down", "up", "alpha"))
    rank = down.shape[0] if down.ndim > 1 else 0
    if rank == 0 or up.shape[1:2] != (rank,) or ("alpha" in tensors and alpha.numel() != 1):
        raise UserError(f"{where} lacks a matrix of its LoRA, or the two do not fit; fetch it again")
    factor = float(alpha) / rank if "alpha" in tensors else scale(rank)
    first, second = up.flatten(1), down.flatten(1)

    def compute(device: torch.device) -> Tensor:
        return factor * (first.to(device).float() @ second.to(device).float())

    return _Change((first.shape[0], second.shape[1]), compute)


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
    return {_dotted(module): kinds for module, kinds in modules.items()}


def _dotted(module: str) -> str:
    """musubi-tuner's lora_unet_blocks_0_self_attn_q -> blocks.0.self_attn.q; all others stay."""
    if not module.startswith(_FLAT):
        return module
    block = re.sub(r"^blocks_(\d+)_", r"blocks.\1.", module.removeprefix(_FLAT))
    parts = "self_attn|cross_attn|ffn|text_embedding|time_embedding|time_projection|head"
    return re.sub(rf"\b({parts})_", r"\1.", block, count=1)


def _adapter(path: Path) -> tuple[Path, Path | None]:
    """A LoRA's file, and PEFT's config beside it if there is one."""
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    config = file.with_name("adapter_config.json")
    return file, config if file.name == "adapter_model.safetensors" and config.exists() else None


def _pefts_scale(file: Path, beside: Path | None) -> Callable[[int], float]:
    """The factor of a rank where no tensor says it: that of PEFT's config, or 1."""
    where = beside or file
    config = read_json(beside) if beside else _header(file)
    if config is None:
        return lambda rank: 1.0
    if config.get("use_dora") or config.get("alpha_pattern"):
        raise UserError(f"{where}: sfpp merges plain LoRAs, no DoRA and no alpha_pattern; merge it in PEFT")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        raise UserError(f"{where} has no lora_alpha; fetch it again")
    root = bool(config.get("use_rslora"))
    return lambda rank: alpha / (math.sqrt(rank) if root else rank)


def _header(file: Path) -> dict[str, Any] | None:
    """The transformer's PEFT config that diffusers' `save_lora_weights` leaves in a file's header, if any."""
    if file.suffix != ".safetensors":
        return None
    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get("lora_adapter_metadata")
    if text is None:
        return None
    try:
        told = json.loads(text)
        config = {name.removeprefix("transformer."): value for name, value in told.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: its header is damaged ({reason(error)}); fetch it again") from error
    return config
