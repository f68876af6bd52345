"""Weights as others publish them: a file, shards with an index, a folder. Nothing in a file is executed."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from sfpp_cli.errors import UserError, reason
from sfpp_cli.models.layout import indexed_files, read_config, weight_files
from sfpp_cli.models.settings import SETTINGS, Settings

Weights = dict[str, Tensor]

EXPORTED = "sfpp"
"""Key of a file's header under which `sfpp weights export` tells of the model."""
PICKLES = (".pt", ".pth", ".bin")
PARTS = (
    *("generator_ema", "ema", "ema_model", "model_ema", "params_ema"),
    *("generator", "critic", "state_dict", "model"),
)
"""Top-level keys under which training scripts store weights, in order of preference."""
LORA_PARTS = ("generator_lora", "lora", "state_dict", "model", "generator")
FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)

_scalar = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd")),
]
"""What numpy's numbers are pickled with: scripts store a step or a loss as one. It executes nothing."""

_WRAPPERS = re.compile(
    # FSDP, checkpointing, compile; PEFT's layers that carry a LoRA
    r"\b(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|base_layer)\.|"
    # modules that hold the transformer: Self-Forcing, ComfyUI, diffusers, PEFT
    r"^((model|module|generator|diffusion_model|transformer|base_model)\.)+"
)
_DERIVED = re.compile(r"(rope\.)?freqs(_\w+)?")
"""Tables of rotary angles, which are computed and which some scripts store all the same."""
_SCALES = re.compile(
    r"(^|\.)(weight_scale\w*|scale_weight|input_scale|scale_input|scaled_fp8|comfy_quant|\w*zero_point|absmax)\b"
)
_LORA = re.compile(r"(^|[._])(lora|lokr|hada)_|\.lora\.(up|down)\.|\.(alpha|diff|diff_b)$")


@dataclass(frozen=True)
class Original:
    """A state dict, and what lies around it."""

    path: Path
    weights: Weights
    """Without the prefixes that module wrappers leave in names, and without tables that can be computed."""
    lora: Weights
    """LoRA tensors found among the weights."""
    part: str
    """The key of a training checkpoint that they were taken from."""
    others: Sequence[str]
    """Other keys that hold weights or a LoRA."""
    config: Mapping[str, Any]
    """`config.json` of a folder, or what `sfpp weights export` wrote of it into its file."""
    settings: Settings | None
    """`sfpp.json`, likewise."""


def load_original(path: str | Path, which: str | None = None, parts: Sequence[str] = PARTS) -> Original:
    """Read a .pt, .pth, .bin or .safetensors file, an index of shards, or a folder of safetensors.

    Of a training checkpoint, `which` names the part to take ("generator", "generator_ema"); by default the
    first of `parts` that is there. Tensors may be mapped from the file. Raises UserError if anything is
    missing, damaged, no plain floating-point tensor (told by name), or if `which` is not there.
    """
    path = Path(path)
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if (path / "transformer_2").is_dir():
        raise UserError(f"{path} holds two transformers that take turns, as Wan 2.2's; sfpp runs Wan 2.1's")
    weights, part, others = _take(_read_shards(folder), which, parts, path)
    weights = rename(weights, lambda name: _WRAPPERS.sub("", _WRAPPERS.sub("", name)))
    weights = {name: tensor for name, tensor in weights.items() if not _DERIVED.fullmatch(name)}
    _check_tensors(weights, path)
    lora = {name: tensor for name, tensor in weights.items() if _LORA.search(name)}
    plain = {name: tensor for name, tensor in weights.items() if name not in lora}
    config, settings = _exported(path) if path.suffix == ".safetensors" else _around(folder, path)
    return Original(path, plain, lora, part, others, config, settings)


def exported(config: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """What a file of weights says in its header of their model, where there is no folder to say it."""
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    return {"format": "pt", EXPORTED: json.dumps({"config": own, "settings": asdict(settings)})}


def _exported(path: Path) -> tuple[Mapping[str, Any], Settings | None]:
    """The config and the settings in a file's header, if sfpp wrote it."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(EXPORTED)
    if text is None:
        return {}, None
    try:
        told = json.loads(text)
        return dict(told["config"]), Settings().changed(told["settings"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: what its header says of the model is damaged ({reason(error)})") from error


def _around(*places: Path) -> tuple[Mapping[str, Any], Settings | None]:
    """The config of the first folder, and the settings in any of them."""
    config = read_config(places[0]) if (places[0] / "config.json").exists() else {}
    settings = next((place / SETTINGS for place in places if (place / SETTINGS).exists()), None)
    return config, Settings.read(settings) if settings else None


def no_model(path: Path) -> str:
    """What to tell someone who takes a LoRA for a model."""
    return f"{path} holds a LoRA, no model: convert the model it was made for, with --lora {path}"


def rename(weights: Mapping[str, Tensor], new_name: Callable[[str], str]) -> Weights:
    """The same tensors under other names. UserError if two get the same."""
    renamed = {new_name(name): tensor for name, tensor in weights.items()}
    if len(renamed) < len(weights):
        raise UserError("the weights name some parameters twice, in two naming schemes; keep one of them")
    return renamed


def _read_shards(path: Path) -> object:
    """What a file holds; of a folder or an index, the tensors of all its files."""
    if path.is_dir():
        files = weight_files(path)
    elif path.name.endswith(".index.json"):
        files = indexed_files(path)
    elif (shard := re.search(r"-of-0*(\d+)\.\w+$", path.name)) and int(shard[1]) > 1:
        raise UserError(f"{path} is one of {shard[1]} shards; give their folder or index")
    else:
        return _read(path)
    tensors: dict[Any, Any] = {}
    for file in files:
        shard_tensors = _read(file)
        if not isinstance(shard_tensors, Mapping) or tensors.keys() & shard_tensors.keys():
            fault = f"{file.name} holds what another file holds too, or no weights"
            raise UserError(f"{path}: {fault}; give one file")
        tensors.update(shard_tensors)
    return tensors


def _read(path: Path) -> object:
    if not path.is_file():
        raise UserError(f"{path} is not there; give a checkpoint's file or folder")
    if path.suffix not in (*PICKLES, ".safetensors"):
        raise UserError(f"{path} is of no known kind; give a {', '.join(PICKLES)} or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a hostile file can make the restricted unpickler fail in any way
        held = re.search(r"GLOBAL (\S+)", str(error))
        cause = f"it holds {held[1]} besides tensors" if held else f"it is damaged: {reason(error)}"
        raise UserError(
            f"{path} cannot be read ({cause}; code is never executed): fetch it again, "
            "or save its weights alone as .safetensors"
        ) from error


def _take(
    tree: object, which: str | None, parts: Sequence[str], path: Path
) -> tuple[Weights, str, list[str]]:
    """Descend to the first mapping of nothing but tensors: it, its key, and the keys of weights passed by."""
    offered: list[str] = []
    taken: list[str] = []
    while isinstance(tree, Mapping) and not _is_weights(tree):
        here = [name for name, value in tree.items() if isinstance(name, str) and isinstance(value, Mapping)]
        offered += here
        name = next((name for name in (which, *parts) if name in here and name not in taken), None)
        if name is None:
            break
        taken.append(name)
        tree = tree[name]
    if which is not None and which not in taken:
        has = ", ".join(offered) or "one set of weights without a name"
        raise UserError(f"{path} has no part {which!r}, only {has}; choose another")
    if not isinstance(tree, Mapping) or not _is_weights(tree):
        if any("lora" in name for name in offered):
            raise UserError(no_model(path))
        raise UserError(
            f"{path} holds no state dict; give a checkpoint with weights, or under one of {', '.join(parts)}"
        )
    others = [name for name in offered if name not in taken and (name in PARTS or "lora" in name)]
    return dict(tree), taken[-1] if taken else "", others


def _is_weights(tree: Mapping[Any, Any]) -> bool:
    return bool(tree) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tree.items())


def _check_tensors(weights: Weights, path: Path) -> None:
    for name, tensor in weights.items():
        if name.endswith(".alpha") and tensor.dtype == torch.int64:
            continue  # of a LoRA
        fault = "the scale of a quantised tensor" if _SCALES.search(name) else _fault(tensor)
        if fault:
            raise UserError(
                f"{path}: {name} is {fault}, and sfpp takes plain floating-point weights; "
                "use the release in bfloat16 or float32"
            )


def _fault(tensor: Tensor) -> str:
    """Why a tensor is no plain array of numbers, or nothing."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse"
    if tensor.is_complex():
        return "complex"
    if not tensor.is_floating_point() or (tensor.itemsize == 1 and tensor.dtype not in FP8):
        return f"quantised ({tensor.dtype})"
    if tensor.is_meta or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return "without values of its own"
    return ""
