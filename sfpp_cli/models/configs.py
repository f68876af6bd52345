"""What the config.json of a model's parts may say. Bounds are far beyond any Wan model. Loads no torch.

A number outside them can only be a damaged or hostile file's: it would build a network for hours, or fill
memory, before its weights are found not to fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from sfpp_cli.schema import STRICT, Faults, line_of, validate

_OPEN = ConfigDict(**{**STRICT, "extra": "ignore"})
"""As strict, but libraries write keys of their own, too."""

Layers = Annotated[int, Field(ge=1, le=1000)]
Width = Annotated[int, Field(ge=1, le=2**20)]
Channels = Annotated[int, Field(ge=1, le=4096)]
Few = Annotated[int, Field(ge=1, le=64)]
Tiny = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1e6)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]


@dataclass(frozen=True, config=_OPEN)
class Transformer:
    num_layers: Layers
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)]
    attention_head_dim: Annotated[int, Field(ge=2, le=4096, multiple_of=2)]
    """Even, for rotations."""
    patch_size: tuple[Few, Few, Few]
    in_channels: Channels = 16
    out_channels: Channels | None = 16
    text_dim: Width = 4096
    freq_dim: Annotated[int, Field(ge=2, le=2**16)] = 256
    ffn_dim: Width = 13824
    eps: Tiny = 1e-6
    cross_attn_norm: bool = True
    qk_norm: str | None = None
    rope_max_seq_len: Annotated[int, Field(ge=1, le=2**16)] = 1024
    image_dim: None = None
    """Of image-to-video models, which sfpp does not run; so are the next two."""
    added_kv_proj_dim: None = None
    pos_embed_seq_len: None = None


@dataclass(frozen=True, config=_OPEN)
class Vae:
    base_dim: Channels = 96
    decoder_base_dim: Channels | None = None
    z_dim: Channels = 16
    dim_mult: Annotated[tuple[Few, ...], Field(min_length=2, max_length=8)] = (1, 2, 4, 4)
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    num_res_blocks: Few = 2
    attn_scales: tuple[float, ...] = ()
    dropout: Share = 0.0
    in_channels: Channels = 3
    out_channels: Channels = 3
    patch_size: Few | None = None
    latents_mean: tuple[Mean, ...] | None = None
    latents_std: tuple[Deviation, ...] | None = None

    @field_validator("temperal_downsample")
    @classmethod
    def _one_a_step(cls, flags: tuple[bool, ...], info: ValidationInfo) -> tuple[bool, ...]:
        stages = len(info.data.get("dim_mult", ()))
        if stages and len(flags) != stages - 1:
            raise ValueError(f"must have {stages - 1} entries, one less than 'dim_mult', not {len(flags)}")
        return flags

    @field_validator("latents_mean", "latents_std")
    @classmethod
    def _one_a_channel(
        cls, values: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        channels = info.data.get("z_dim")
        if values is not None and channels is not None and len(values) != channels:
            raise ValueError(f"must have {channels} entries, as many as 'z_dim', not {len(values)}")
        return values


@dataclass(frozen=True, config=_OPEN)
class TextEncoder:
    d_model: Width
    num_layers: Layers
    num_heads: Annotated[int, Field(ge=1, le=1024)]
    d_kv: Annotated[int, Field(ge=1, le=4096)]
    d_ff: Width
    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    relative_attention_num_buckets: Annotated[int, Field(ge=4, le=2**16)] = 32
    relative_attention_max_distance: Annotated[int, Field(ge=4, le=2**20)] = 128
    dropout_rate: Share = 0.1
    layer_norm_epsilon: Tiny = 1e-6


_SCHEMAS: dict[str, TypeAdapter[Any]] = {
    **dict.fromkeys(("CausalWanModel", "Teacher", "WanTransformer3DModel"), TypeAdapter(Transformer)),
    "AutoencoderKLWan": TypeAdapter(Vae),
    "umt5": TypeAdapter(TextEncoder),
}


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """UserError with all that is wrong with the config in `path`, if it is of a part that sfpp knows."""
    schema = _SCHEMAS.get(str(config.get("_class_name") or config.get("model_type")))
    if schema is not None:
        try:
            validate(schema, config)
        except Faults as faults:
            text = path.read_text(encoding="utf-8")
            raise faults.of(path, lambda keys: line_of(text, keys)) from None
