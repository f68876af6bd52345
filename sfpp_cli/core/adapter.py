"""Low-rank adapters (arXiv 2106.09685): linear layers that answer for W + B A, W frozen, A and B trained.

A layer stays where it is, with its weight's name, so a model with adapters is still the model; without them
it answers as before. So one network can be two: a teacher, and the critic that began as it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfpp_cli.core.noise import seeded

FLOAT8 = torch.float8_e4m3fn
_PARTS = ("lora_A", "lora_B", "weight_scale")


class Adapted(nn.Linear):
    """A linear layer with a frozen weight and an adapter; its weight may rest in eight bits."""

    lora_A: nn.Parameter
    """[rank, in], Gaussian at first."""
    lora_B: nn.Parameter
    """[out, rank], zero at first, so that an adapter begins by changing nothing."""
    weight_scale: nn.Parameter | None
    """[out, 1] of a weight in eight bits."""
    adapting: bool

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        weight = self.weight
        if self.weight_scale is not None:
            weight = weight.to(x.dtype) * self.weight_scale.to(x.dtype)
        out = F.linear(x, weight, self.bias)
        if not self.adapting:
            return out
        return out + F.linear(F.linear(x, self.lora_A), self.lora_B)


def add_adapters(model: nn.Module, rank: int, seed: int, *, float8: bool = False) -> None:
    """Freeze a transformer and give every linear layer of its blocks an adapter, float32, to be trained.

    `float8` lets the adapted weights rest in eight bits, with a scale for each row.
    """
    model.requires_grad_(False)
    draws = seeded(seed, rank)
    for layer in _linear_layers(model):
        device = layer.weight.device
        start = torch.randn(rank, layer.in_features, generator=draws) / rank
        layer.__class__ = Adapted  # the module stays, so names and weights do too
        assert isinstance(layer, Adapted)
        layer.lora_A = nn.Parameter(start.to(device))
        layer.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))
        layer.weight_scale = None
        layer.adapting = True
        if float8:
            weight, scale = _eight_bits(layer.weight)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.weight_scale = nn.Parameter(scale, requires_grad=False)


def remove_adapters(model: nn.Module) -> None:
    """Make a model plain again; what its adapters had learned is in `folded`."""
    for layer in _adapted(model):
        layer.__class__ = nn.Linear  # type: ignore[assignment]
        for part in _PARTS:
            delattr(layer, part)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The network as it is without its adapters, for passes that carry no gradient.

    A backward pass that computes activations again would find the adapters back on.
    """
    layers = list(_adapted(model))
    for layer in layers:
        layer.adapting = False
    try:
        yield
    finally:
        for layer in layers:
            layer.adapting = True


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a plain model in float32 that answers as the one of this state, W + B A for W.

    A state without adapters is answered as it is.
    """
    if not any(key.endswith(_PARTS) for key in state):
        return dict(state)
    plain = {key: value.float() for key, value in state.items() if not key.endswith(_PARTS)}
    for key in state:
        layer, _, part = key.rpartition(".")
        if part == "lora_A":
            scale = state.get(f"{layer}.weight_scale", torch.ones(()))
            change = state[f"{layer}.lora_B"].float() @ state[key].float()
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] * scale.float() + change
    return plain


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The part of a model's state dict that training changes: all but its frozen parameters."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {key: value for key, value in model.state_dict().items() if key not in frozen}


def _eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, in] in eight bits and its rows' scales [out, 1].

    Scales are powers of two, which multiply without rounding in whatever precision the arithmetic has.
    """
    largest = weight.float().abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.exp2(torch.ceil(torch.log2(largest / torch.finfo(FLOAT8).max)))
    return (weight.float() / scale).to(FLOAT8), scale


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.blocks.modules() if isinstance(layer, nn.Linear)]  # type: ignore[union-attr]


def _adapted(model: nn.Module) -> list[Adapted]:
    return [layer for layer in model.modules() if isinstance(layer, Adapted)]
