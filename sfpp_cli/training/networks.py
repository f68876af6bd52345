"""What networks weigh, counted from their configurations. No weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from sfpp_cli.core.geometry import tokens_per_frame
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.errors import UserError, reason
from sfpp_cli.models.layout import Layout, read_config
from sfpp_cli.models.summary import ELEMENT_BYTES, Shape

WEIGHT = ELEMENT_BYTES["float32"]
"""Bytes of a weight, a gradient, a moment of the optimiser, an average: always float32."""


@dataclass(frozen=True)
class Network:
    """A transformer's sizes."""

    parameters: int
    matrices: int
    """Parameters of the blocks' linear layers, which adapters may adapt."""
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

    def frozen_bytes(self, element: int, *, float8: bool) -> int:
        """Its weights where none of them learns; `float8`: the adapted ones in eight bits."""
        return self.parameters * element - (self.matrices * (element - 1) if float8 else 0)

    def pass_bytes(self, frames: int, element: int) -> int:
        """What a pass without gradient over `frames` latent frames takes at most. An estimate.

        For a token: 4 vectors of `dim` in float32, 2 of `dim` and 2 of `ffn` in the precision of the
        arithmetic, as counted in the teacher's passes.
        """
        per_token = self.dim * (4 * WEIGHT + 2 * element) + 2 * self.ffn * element
        return frames * self.shape.tokens * per_token

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

        With checkpointing the input of every block, what the head keeps (two float32 vectors and one more
        of `dim` for a token), and the activations of one block of one pass at a time.
        Without it the activations of all blocks, and the casts of the weights that autocast makes in every
        pass.
        """
        if checkpointing:
            vector = frames * self.shape.tokens * self.dim
            kept = vector * (self.shape.layers * element + 2 * WEIGHT + element)
            return kept + self.block_bytes(frames // passes, element)
        casts = passes * self.linear * element if element < WEIGHT else 0
        return self.shape.layers * self.block_bytes(frames, element) + casts


@dataclass(frozen=True)
class Frozen:
    """A network that learns nothing; every rank holds it whole."""

    parameters: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.1f} M parameters, frozen"


@dataclass(frozen=True)
class Trained:
    """A network that is trained: all of it, or adapters over its weights."""

    parameters: int
    has_ema: bool = True
    adapters: int = 0
    """Parameters of the adapters, if they alone are trained."""
    frozen_bytes: int = 0
    """Of the weights under them, unless another network holds these."""

    def __str__(self) -> str:
        how = f"under adapters of {self.adapters / 1e6:.1f} M" if self.adapters else "all trained"
        return f"{self.parameters / 1e6:.1f} M parameters, {how}"

    @property
    def trainable(self) -> int:
        return self.adapters or self.parameters

    @property
    def nbytes(self) -> int:
        return WEIGHT * self.trainable + self.frozen_bytes

    @property
    def checkpoint_bytes(self) -> int:
        """Folders of its weights and EMA, adapters folded in, and the state to resume from.

        That holds what learns, its EMA, and the moments.
        """
        copies = 2 if self.has_ema else 1
        return WEIGHT * (copies * (self.parameters + self.trainable) + 2 * self.trainable)


_MAKERS = {
    "vae": AutoencoderKLWan.from_config,
    "text_encoder": lambda config: UMT5EncoderModel(UMT5Config.from_dict(config)),
}


def measure(folder: Path, layout: Layout) -> Network:
    """The transformer that a folder's config.json describes, for videos of the model's native size."""

    def one_layer(config: dict[str, Any]) -> tuple[CausalWanModel, int]:
        return CausalWanModel.from_config({**config, "num_layers": 1}), int(config["num_layers"])

    # All layers are alike, so one is made and counted as often as there are layers.
    model, layers = _skeleton(folder, one_layer)
    config = model.config
    block = model.blocks[0]
    matrices = [part for part in block.modules() if isinstance(part, nn.Linear)]
    once_a_prompt = (block.attn2.to_k, block.attn2.to_v)  # the text's, which no video token passes
    size = layout.latent_size
    tokens = tokens_per_frame(*size, config.patch_size)
    return Network(
        parameters=_count(model) + (layers - 1) * _count(block),
        matrices=layers * sum(part.weight.numel() for part in matrices),
        linear=layers * sum(part.weight.numel() for part in matrices if part not in once_a_prompt),
        adapter=layers * sum(part.in_features + part.out_features for part in matrices),
        ffn=config.ffn_dim,
        latent=(config.in_channels, *size),
        shape=Shape(layers, config.num_attention_heads, config.attention_head_dim, tokens),
    )


def parameters_of(layout: Layout, part: Literal["vae", "text_encoder"]) -> int:
    """How many a part of the model has."""
    return _count(_skeleton(layout.folder / part, _MAKERS[part]))


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _skeleton(folder: Path, make: Callable[[dict[str, Any]], Any]) -> Any:
    """A component without weights, from its configuration."""
    config = read_config(folder)
    try:
        with torch.device("meta"):
            return make(config)
    except Exception as error:  # a config that makes no sense can fail in any way there is
        raise UserError(
            f"{folder / 'config.json'} describes no model ({reason(error)}): fetch or convert it again"
        ) from error
