"""Weights under Wan's original names, as Self-Forcing and its relatives publish them, into the house's models.

One side is named as in github.com/Wan-Video/Wan2.1 (`wan/modules/model.py` and `vae.py`), the other as in diffusers. A tensor has
the same shape on both sides, so a conversion is a renaming; names that are diffusers' already pass through unchanged.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.modeling_utils import no_init_weights
from safetensors.torch import load_file
from torch import Tensor, nn

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.errors import UserError

Weights = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

PICKLES = (".pt", ".pth", ".bin")
WRAPPERS = ("generator_ema", "generator", "critic", "state_dict", "model")
"""Top-level keys under which training scripts store weights, in order of preference."""

WAN_HEAD_DIM = 128
SMALLEST_WAN_DIM = 1024

_TRANSFORMER_NAMES = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_ATTENTION_NAMES = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
_BLOCK_NAMES = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION_NAMES.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION_NAMES.items()},
}
_VAE_NAMES = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{half}.conv1": f"{half}.conv_in" for half in ("encoder", "decoder")},
    **{f"{half}.head.0": f"{half}.norm_out" for half in ("encoder", "decoder")},
    **{f"{half}.head.2": f"{half}.conv_out" for half in ("encoder", "decoder")},
}
_RESIDUAL_NAMES = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}


def load_original(path: str | Path, which: str | None = None) -> Weights:
    """Read a state dict from a .pt, .pth, .bin or .safetensors file; nothing in the file is ever executed.

    Of a training checkpoint, `which` names the part to take ("generator", "generator_ema"); by default the first of `WRAPPERS` that
    is there. Prefixes that FSDP, compile and module wrappers leave in names are dropped. Tensors may be mapped from the file.
    Raises UserError if the file is missing, damaged, holds anything but weights, or lacks `which`.
    """
    path = Path(path)
    return _rename(_unwrap(_read(path), which, path), _unwrapped_name)


def infer_config(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """A transformer's configuration, in Wan's words, from the shapes of its weights.

    Heads leave no trace in shapes: they have 128 channels in all released Wan models; a smaller model must state `num_heads`.
    Raises UserError if the weights are no Wan transformer's, or if `num_heads` is needed.
    """
    weights = transformer_keys(state_dict)
    dim, in_dim, *patch = _shape(weights, "patch_embedding.weight", 5)
    if num_heads is None:
        if dim < SMALLEST_WAN_DIM or dim % WAN_HEAD_DIM:
            raise UserError(
                f"the weights do not tell the number of heads of a transformer of width {dim}; state num_heads"
            )
        num_heads = dim // WAN_HEAD_DIM
    return {
        "dim": dim,
        "num_heads": num_heads,
        "num_layers": len({match[0] for name in weights if (match := re.match(r"blocks\.\d+\.", name))}),
        "ffn_dim": _shape(weights, "blocks.0.ffn.net.2.weight", 2)[1],
        "text_dim": _shape(weights, "condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": _shape(weights, "condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "in_dim": in_dim,
        "out_dim": _shape(weights, "proj_out.weight", 2)[0] // math.prod(patch),
        "patch_size": patch,
        "qk_norm": "blocks.0.attn1.norm_q.weight" in weights,
        "cross_attn_norm": "blocks.0.norm2.weight" in weights,
    }


def student_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> CausalWanModel:
    """The causal student, in float32, its weights copied. Raises UserError if weights and config do not fit each other."""
    student: CausalWanModel = _build(CausalWanModel, transformer_config(config), transformer_keys(state_dict))
    return student


def teacher_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Teacher:
    """The bidirectional teacher or critic, in float32, its weights copied. Raises UserError as `student_from_original` does."""
    return _build(Teacher, transformer_config(config), transformer_keys(state_dict))


def vae_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> AutoencoderKLWan:
    """Wan's VAE, in float32, its weights copied. Raises UserError if weights and config do not fit each other."""
    arguments = vae_config(config)
    return _build(AutoencoderKLWan, arguments, vae_keys(state_dict, config))


def transformer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Wan's configuration -> the arguments of diffusers' `WanTransformer3DModel`.

    Sizes that differ between Wan's models must be there, the rest defaults to Wan's. Other keys (attention window, sink, length of
    the text) say how the weights are used, and are ignored. Raises UserError naming the key at fault.
    """
    dim, heads = _size(config, "dim"), _size(config, "num_heads")
    if dim % (2 * heads):
        raise UserError(
            f"num_heads {heads} does not divide dim {dim} into heads of even width; correct the config"
        )
    if not config.get("qk_norm", True):
        raise UserError(
            "qk_norm is off, but diffusers' Wan always normalises queries and keys; use weights trained with it"
        )
    return {
        "patch_size": _sizes(config, "patch_size", (1, 2, 2), count=3),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": _size(config, "in_dim", 16),
        "out_channels": _size(config, "out_dim", 16),
        "text_dim": _size(config, "text_dim", 4096),
        "freq_dim": _size(config, "freq_dim", 256),
        "ffn_dim": _size(config, "ffn_dim"),
        "num_layers": _size(config, "num_layers"),
        "cross_attn_norm": bool(config.get("cross_attn_norm", True)),
        "eps": config.get("eps", 1e-6),
    }


def vae_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Wan's VAE configuration -> the arguments of diffusers' `AutoencoderKLWan`; what is missing defaults to Wan2.1's.

    Without `latents_mean` and `latents_std`, 16 channels get Wan's statistics and any other number gets none (mean 0, deviation 1).
    Raises UserError naming the key at fault.
    """
    channels = _size(config, "z_dim", 16)
    widths = _sizes(config, "dim_mult", (1, 2, 4, 4))
    temporal = [bool(flag) for flag in config.get("temperal_downsample", (False, True, True))]
    if len(temporal) != len(widths) - 1:
        raise UserError(
            f"temperal_downsample must have one entry less than dim_mult ({len(widths)}), not {len(temporal)}"
        )
    if config.get("attn_scales"):
        raise UserError("attn_scales must be empty: diffusers' Wan decoder has attention in its middle only")
    return {
        "base_dim": _size(config, "dim", 96),
        "z_dim": channels,
        "dim_mult": list(widths),
        "num_res_blocks": _size(config, "num_res_blocks", 2),
        "temperal_downsample": temporal,
        "dropout": config.get("dropout", 0.0),
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": 2 ** len(temporal),
        **_statistics(config, channels),
    }


def transformer_keys(state_dict: Mapping[str, Tensor]) -> Weights:
    """The same tensors under diffusers' names."""
    return _rename(state_dict, _transformer_name)


def vae_keys(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weights:
    """The same tensors under diffusers' names. `config` tells where the decoder's flat list of layers breaks into stages."""
    residuals = _size(config, "num_res_blocks", 2)
    return _rename(state_dict, lambda name: _vae_name(name, residuals))


def _transformer_name(name: str) -> str:
    stem, leaf = _split(name)
    if block := re.match(r"blocks\.\d+\.", stem):
        inner = stem[block.end() :]
        return block[0] + _BLOCK_NAMES.get(inner, inner) + leaf
    return _TRANSFORMER_NAMES.get(stem, stem) + leaf


def _vae_name(name: str, residuals: int) -> str:
    stem, leaf = _split(name)
    if layer := re.fullmatch(r"(encoder|decoder)\.(middle|downsamples|upsamples)\.(\d+)\.(.+)", stem):
        half, group, index, inner = layer.groups()
        return f"{half}.{_vae_layer(group, int(index), residuals)}.{_RESIDUAL_NAMES.get(inner, inner)}{leaf}"
    return _VAE_NAMES.get(stem, stem) + leaf


def _vae_layer(group: str, index: int, residuals: int) -> str:
    """Where diffusers keeps layer `index` of one of Wan's flat lists; only the decoder's is broken into stages.

    A stage of the decoder has one residual block more than one of the encoder, then a resampler (which the last stage lacks).
    """
    if group == "downsamples":
        return f"down_blocks.{index}"
    if group == "middle":
        return f"mid_block.{'attentions' if index % 2 else 'resnets'}.{index // 2}"
    stage, position = divmod(index, residuals + 2)
    return f"up_blocks.{stage}." + (f"resnets.{position}" if position <= residuals else "upsamplers.0")


def _split(name: str) -> tuple[str, str]:
    """Module and parameter: a.b.weight -> (a.b, .weight). What a module holds itself (a.modulation) is not split."""
    stem, _, leaf = name.rpartition(".")
    return (stem, f".{leaf}") if leaf in ("weight", "bias", "gamma") else (name, "")


def _rename(weights: Mapping[str, Tensor], new_name: Callable[[str], str]) -> Weights:
    renamed = {new_name(name): tensor for name, tensor in weights.items()}
    if len(renamed) < len(weights):
        raise UserError("the weights name some parameters twice, in two naming schemes; keep one of them")
    return renamed


def _build(model_class: Callable[..., Model], config: Mapping[str, Any], weights: Weights) -> Model:
    with no_init_weights():
        model = model_class(**config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    faults = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(given[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if given.get(name, shape) != shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{fault}: {_first(names)}" for fault, names in faults.items() if names)
        raise UserError(
            f"the weights do not fit a {type(model).__name__} of this config ({found}); check the file and its config"
        )
    model.load_state_dict(weights)
    return model.eval()


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if value is None:
        raise UserError(f"the config lacks {key!r}, which differs between models; add it")
    if not _is_size(value):
        raise UserError(f"{key} must be a positive integer, not {value!r}; correct the config")
    return int(value)


def _sizes(
    config: Mapping[str, Any], key: str, default: Sequence[int], count: int | None = None
) -> tuple[int, ...]:
    values = config.get(key, default)
    if (
        not isinstance(values, Sequence)
        or len(values) != (count or len(values))
        or not all(map(_is_size, values))
    ):
        raise UserError(
            f"{key} must be a list of {count or 'some'} positive integers, not {values!r}; correct the config"
        )
    return tuple(values)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _statistics(config: Mapping[str, Any], channels: int) -> dict[str, list[float]]:
    defaults = {} if channels == 16 else {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    given = {key: list(config[key]) for key in ("latents_mean", "latents_std") if config.get(key) is not None}
    for key, values in given.items():
        if len(values) != channels:
            raise UserError(
                f"{key} has {len(values)} entries for {channels} latent channels; correct the config"
            )
    return defaults | given


def _shape(weights: Weights, name: str, rank: int) -> tuple[int, ...]:
    shape = tuple(weights[name].shape) if name in weights else ()
    if len(shape) != rank:
        raise UserError(
            f"the weights are no Wan transformer's: no {name} with {rank} dimensions; check the file"
        )
    return shape


def _read(path: Path) -> object:
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a checkpoint")
    if path.suffix not in (*PICKLES, ".safetensors"):
        raise UserError(f"{path} is of no known kind; give a {', '.join(PICKLES)} or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a hostile file can make the restricted unpickler fail in any way
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or holds more than tensors (code is never executed); "
            "fetch it again, or save its weights as .safetensors"
        ) from error


def _unwrap(tree: object, which: str | None, path: Path) -> Weights:
    """Descend to the first mapping that holds nothing but tensors."""
    offered: list[str] = []
    taken: list[str] = []
    while isinstance(tree, Mapping) and not _is_weights(tree):
        parts = [name for name, value in tree.items() if isinstance(name, str) and isinstance(value, Mapping)]
        offered += parts
        name = next((name for name in (which, *WRAPPERS) if name in parts and name not in taken), None)
        if name is None:
            break
        taken.append(name)
        tree = tree[name]
    if which is not None and which not in taken:
        has = ", ".join(offered) or "one set of weights without a name"
        raise UserError(f"{path} has no part {which!r}, only {has}; choose another")
    if not isinstance(tree, Mapping) or not _is_weights(tree):
        raise UserError(
            f"{path} holds no state dict; give a checkpoint with weights, or under one of {', '.join(WRAPPERS)}"
        )
    return dict(tree)


def _is_weights(tree: Mapping[Any, Any]) -> bool:
    return bool(tree) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tree.items()
    )


def _unwrapped_name(name: str) -> str:
    name = re.sub(r"\b(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.", "", name)
    return re.sub(r"^((model|module)\.)+", "", name)
