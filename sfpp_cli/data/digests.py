"""Digests of stored tensors, since safetensors has none: checked where a tensor is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from sfpp_cli.errors import UserError


def digest(tensor: Tensor) -> str:
    """The first half of the SHA-256 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()[:32]


def checked(tensor: Tensor, wanted: str | None, file: Path) -> Tensor:
    """The tensor. UserError if it is not the one that `wanted` was taken of; of some of before is none."""
    if wanted is not None and digest(tensor) != wanted:
        raise UserError(f"{file} is damaged: delete it, and make it again")
    return tensor
