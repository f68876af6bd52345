"""Toy-sized models whose weights are large enough to show every part; slow, obvious memories as a check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfpp_cli.core.cache import Attend, KeysValues
from sfpp_cli.core.objective import Objective, Update
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher

CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
}
SIZE = (4, 6)
IDENTITY = 1e-6
"""Tolerance of identities between models in float64, values of order 5: they agree to 1e-14, unless a norm or
a rotation, which stay float32 inside, happens to round the other way; that is 5e-7."""
WAN_1_3B: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
}


def make_student(**changes: Any) -> CausalWanModel:
    student = CausalWanModel(**{**CONFIG, **changes})
    randomize(student)
    return student


def make_teacher(**changes: Any) -> Teacher:
    teacher = Teacher(**{**CONFIG, **changes})
    randomize(teacher)
    return teacher


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Weights that keep the signal's scale: attention, gates and text all matter (fresh ones mix little)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif name.endswith("scale_shift_table"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)


def gaussian(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rounding(values: Tensor, count: int = 100) -> float:
    """Tolerance in float32: `count` roundings, each half a unit in the last place (6e-8) of the largest.

    A tiny model's answers are 2 to 6 of them off, by the CPU and its number of threads. A hundred leave room
    for any order of summation, and a mistake changes a thousand times more. What can run in float64 should:
    IDENTITY.
    """
    return count * torch.finfo(torch.float32).eps / 2 * values.abs().max().item()


def latents(batch: int, frames: int, seed: int = 1) -> Tensor:
    return gaussian(batch, frames, CONFIG["in_channels"], *SIZE, seed=seed)


def prompts(batch: int, seed: int = 2) -> Tensor:
    """Embeddings of 5 text tokens and 3 of padding."""
    return F.pad(gaussian(batch, 5, CONFIG["text_dim"], seed=seed), (0, 0, 0, 3))


class NaiveCache:
    """What `KVCache` must answer: remembers everything ever committed, and looks for the frames in sight."""

    def __init__(self, text: Sequence[KeysValues], *, tokens: int, context: int, sink: int = 0) -> None:
        self.text, self.tokens, self.context, self.sink = text, tokens, context, sink
        self.frame = 0
        self.past: list[list[KeysValues]] = [[] for _ in text]
        self.present: list[list[KeysValues]] = [[] for _ in text]

    def attention(self, layer: int) -> Attend:
        return lambda query, key, value: F.scaled_dot_product_attention(query, *self.write(layer, key, value))

    def write(self, layer: int, key: Tensor, value: Tensor) -> KeysValues:
        self.present[layer] = list(zip(key.split(self.tokens, 2), value.split(self.tokens, 2), strict=True))
        frames = self.past[layer] + self.present[layer]
        end = len(frames)
        seen = [frames[f] for f in range(end) if f < self.sink or f >= end - (self.context - self.sink)]
        return torch.cat([key for key, _ in seen], 2), torch.cat([value for _, value in seen], 2)

    def commit(self, frames: int) -> None:
        self.frame += frames
        for past, present in zip(self.past, self.present, strict=True):
            past += [(key.detach(), value.detach()) for key, value in present]


class MaskedMemory:
    """What `BlockCausal` must answer: attention under one dense mask."""

    frame = 0

    def __init__(
        self,
        text: Sequence[KeysValues],
        *,
        tokens: int,
        chunk: int,
        context: int | None = None,
        sink: int = 0,
    ) -> None:
        self.text, self.tokens, self.chunk, self.context, self.sink = text, tokens, chunk, context, sink

    def attention(self, layer: int) -> Attend:
        return self.attend

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        frames = query.shape[2] // self.tokens
        mask = torch.zeros(frames, frames, dtype=torch.bool)
        for asking in range(frames):
            end = min(frames, (asking // self.chunk + 1) * self.chunk)
            for seen in range(frames):
                near = self.context is None or seen >= end - (self.context - self.sink)
                mask[asking, seen] = seen < end and (near or seen < self.sink)
        mask = mask.repeat_interleave(self.tokens, 0).repeat_interleave(self.tokens, 1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def loss_of(objective: Objective, samples: Iterable[int]) -> tuple[Tensor, dict[str, float]]:
    """The loss of the one player's update with these samples."""
    (player,) = objective.players
    return player.loss(Update(step=0, player=0, repeat=0, samples=tuple(samples)))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients there are, taken away from the model."""
    found = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return found
