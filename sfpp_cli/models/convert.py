"""Weights under Wan's original names, as Self-Forcing and its relatives have them, into models of sfpp.

One side is named as in github.com/Wan-Video/Wan2.1 (`wan/modules/model.py` and `vae.py`), the other as in
diffusers. A tensor has the same shape on both sides, so a conversion is a renaming; names that are diffusers'
already pass through unchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan
from diffusers.models.modeling_utils import no_init_weights
from torch import Tensor, nn

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.errors import UserError
from sfpp_cli.models.original import Weights, rename

Model = TypeVar("Model", bound=nn.Module)

WAN_HEAD_DIM = 128
SMALLEST_WAN_DIM = 1024
WAN_2_2_CHANNELS = 48

_OTHER_MODELS = {
    r"img_emb\.|\.(k_img|v_img|add_k_proj)\.|image_embedder": "an image-to-video Wan",
    r"vace_": "a VACE model",
    r"fps_(embedding|projection)": "SkyReels-V2",
}
"""Names by which weights are known that no text-to-video Wan transformer has."""

_TRANSFORMER_NAMES = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_ATTENTION_NAMES = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"} | {
    name: name for name in ("norm_q", "norm_k")
}
_BLOCK_NAMES = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION_NAMES.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION_NAMES.items()},
}
_ORIGINAL_NAMES = {theirs: ours for ours, theirs in _TRANSFORMER_NAMES.items()}
_ORIGINAL_BLOCK_NAMES = {theirs: ours for ours, theirs in _BLOCK_NAMES.items()}
_VAE_NAMES = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{half}.conv1": f"{half}.conv_in" for half in ("encoder", "decoder")},
    **{f"{half}.head.0": f"{half}.norm_out" for half in ("encoder", "decoder")},
    **{f"{half}.head.2": f"{half}.conv_out" for half in ("encoder", "decoder")},
}
_RESIDUAL_NAMES = {
    **{"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"},
    "shortcut": "conv_shortcut",
}


def infer_config(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """A transformer's configuration, in Wan's words, from the shapes of its weights.

    Heads leave no trace in shapes: they have 128 channels in all released Wan models; a smaller model must
    state `num_heads`. Raises UserError if the weights are no Wan 2.1 text-to-video transformer's, or if
    `num_heads` is needed.
    """
    weights = transformer_keys(state_dict)
    takes = "sfpp takes text-to-video students of Wan 2.1"
    for pattern, kind in _OTHER_MODELS.items():
        if any(re.search(pattern, name) for name in weights):
            raise UserError(f"the weights are of {kind}; {takes}")
    dim, in_dim, *patch = _shape(weights, "patch_embedding.weight", 5)
    if in_dim == WAN_2_2_CHANNELS:
        raise UserError(f"the weights have {in_dim} latent channels, as Wan 2.2 5B's; sfpp takes Wan 2.1's")
    out_dim = _shape(weights, "proj_out.weight", 2)[0] // math.prod(patch)
    if in_dim != out_dim:
        kind = f"take {in_dim} channels and return {out_dim}, as an image-to-video Wan"
        raise UserError(f"the weights {kind}; {takes}")
    if num_heads is None:
        if dim < SMALLEST_WAN_DIM or dim % WAN_HEAD_DIM:
            raise UserError(
                f"the weights do not tell how many heads a transformer of width {dim} has; state num_heads"
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
        "out_dim": out_dim,
        "patch_size": patch,
        "qk_norm": "blocks.0.attn1.norm_q.weight" in weights,
        "cross_attn_norm": "blocks.0.norm2.weight" in weights,
    }


def student_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> CausalWanModel:
    """The causal student, with these very tensors as its weights. UserError unless weights and config fit."""
    student: CausalWanModel = build(CausalWanModel, transformer_config(config), transformer_keys(state_dict))
    return student


def teacher_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Teacher:
    """The bidirectional teacher or critic, as `student_from_original` makes a student."""
    teacher: Teacher = build(Teacher, transformer_config(config), transformer_keys(state_dict))
    return teacher


def vae_from_original(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> AutoencoderKLWan:
    """Wan's VAE, as `student_from_original` makes a student."""
    return build(AutoencoderKLWan, vae_config(config), vae_keys(state_dict, config))


def transformer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Wan's configuration -> the arguments of diffusers' `WanTransformer3DModel`.

    Sizes that differ between Wan's models must be there, the rest defaults to Wan's. Other keys (attention
    window, sink, length of the text) say how the weights are used, and are ignored. Raises UserError naming
    the key at fault.
    """
    dim = _size(config, "dim")
    heads = _size(config, "num_heads")
    if dim % (2 * heads):
        fault = f"num_heads {heads} does not divide dim {dim} into heads of even width"
        raise UserError(f"{fault}; correct the config")
    if not config.get("qk_norm", True):
        fault = "qk_norm is off, but diffusers' Wan normalises queries and keys"
        raise UserError(f"{fault}; use weights trained with it")
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
    """Wan's VAE configuration -> the arguments of diffusers' `AutoencoderKLWan`; Wan2.1's by default.

    Without `latents_mean` and `latents_std`, 16 channels get Wan's statistics and any other number gets none
    (mean 0, deviation 1). Raises UserError naming the key at fault.
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
    return rename(state_dict, transformer_name)


def transformer_name(name: str) -> str:
    """A parameter's name in diffusers' transformer, from Wan's name or diffusers' own."""
    stem, leaf = _split(name)
    if block := re.match(r"blocks\.\d+\.", stem):
        inner = stem[block.end() :]
        return block[0] + _BLOCK_NAMES.get(inner, inner) + leaf
    return _TRANSFORMER_NAMES.get(stem, stem) + leaf


def original_name(name: str) -> str:
    """A parameter's name in Wan's transformer, from its name in diffusers'."""
    stem, leaf = _split(name)
    if block := re.match(r"blocks\.\d+\.", stem):
        inner = stem[block.end() :]
        return block[0] + _ORIGINAL_BLOCK_NAMES.get(inner, inner) + leaf
    return _ORIGINAL_NAMES.get(stem, stem) + leaf


def vae_keys(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weights:
    """The same tensors under diffusers' names; `config` tells how many layers a stage of the decoder has."""
    residuals = _size(config, "num_res_blocks", 2)
    return rename(state_dict, lambda name: _vae_name(name, residuals))


def _vae_name(name: str, residuals: int) -> str:
    stem, leaf = _split(name)
    if layer := re.fullmatch(r"(encoder|decoder)\.(middle|downsamples|upsamples)\.(\d+)\.(.+)", stem):
        half, group, index, inner = layer.groups()
        return f"{half}.{_vae_layer(group, int(index), residuals)}.{_RESIDUAL_NAMES.get(inner, inner)}{leaf}"
    return _VAE_NAMES.get(stem, stem) + leaf


def _vae_layer(group: str, index: int, residuals: int) -> str:
    """Where diffusers keeps layer `index` of one of Wan's flat lists; only the decoder's breaks into stages.

    A stage of the decoder has one residual block more than one of the encoder, then a resampler (which the
    last stage lacks).
    """
    if group == "downsamples":
        return f"down_blocks.{index}"
    if group == "middle":
        return f"mid_block.{'attentions' if index % 2 else 'resnets'}.{index // 2}"
    stage, position = divmod(index, residuals + 2)
    return f"up_blocks.{stage}." + (f"resnets.{position}" if position <= residuals else "upsamplers.0")


def _split(name: str) -> tuple[str, str]:
    """Module and parameter: a.b.weight -> (a.b, .weight). A module's own tables (a.modulation) stay whole."""
    stem, _, leaf = name.rpartition(".")
    return (stem, f".{leaf}") if leaf in ("weight", "bias", "gamma") else (name, "")


def build(
    model_class: Callable[..., Model], config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> Model:
    """A model with these weights. UserError, with names, unless they are all that it has and no more."""
    with no_init_weights(), init_empty_weights():  # tables that are computed are there, parameters are not
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
            f"the weights do not fit a {type(model).__name__} of this config ({found}); "
            "check the file and its config"
        )
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


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
    fits = isinstance(values, Sequence) and len(values) == (count or len(values))
    if not fits or not all(map(_is_size, values)):
        wanted = f"a list of {count or 'some'} positive integers"
        raise UserError(f"{key} must be {wanted}, not {values!r}; correct the config")
    return tuple(values)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= 2**20


def _statistics(config: Mapping[str, Any], channels: int) -> dict[str, list[float]]:
    defaults = {} if channels == 16 else {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    given = {key: list(config[key]) for key in ("latents_mean", "latents_std") if config.get(key) is not None}
    for key, values in given.items():
        if len(values) != channels:
            fault = f"{len(values)} entries for {channels} latent channels"
            raise UserError(f"{key} has {fault}; correct the config")
    return defaults | given


def _shape(weights: Weights, name: str, rank: int) -> tuple[int, ...]:
    shape = tuple(weights[name].shape) if name in weights else ()
    if len(shape) != rank:
        fault = f"no {name} with {rank} dimensions"
        raise UserError(f"the weights are no Wan transformer's: {fault}; check the file")
    return shape
