"""The norm of queries and keys, which under autocast meets weights of another precision than its input."""

from __future__ import annotations

from collections.abc import Iterable

from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn


class QueryKeyNorm(nn.RMSNorm):
    """RMSNorm in the precision of its weights, answered in its input's.

    PyTorch's fused kernels take both in one precision only; a mixture falls back to a kernel an operation.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D], shaped alike."""
        return super().forward(x.to(self.weight.dtype)).type_as(x)


def norm_in_own_precision(blocks: Iterable[WanTransformerBlock]) -> None:
    """Make every norm of queries and keys in Wan's blocks a `QueryKeyNorm`; modules and weights stay."""
    for block in blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.__class__ = QueryKeyNorm
            attention.norm_k.__class__ = QueryKeyNorm
