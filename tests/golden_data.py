"""Golden tensors of the reference implementation (`tests/golden/README.md`)."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"
ATOL = 5e-5
"""Tolerance of golden tensors, values up to 5. Wan's differ by 1.3e-5 in float32 as in float64, for diffusers
takes the sinusoids of time in float32, the reference in float64. Rounding adds 3e-6 on either side."""
SIGMA = 2e-6
"""Tolerance of sigmas: both tables are float32, and a shift of 8 makes 8 of a rounding near 0."""
TIMESTEP = 1000 * SIGMA
"""Neighbours on the grid are 0.1 and more apart."""


def load(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A case's configuration and its tensors: `input.*`, `output.*`, weights under Wan's original names."""
    case = json.loads((FOLDER / "cases.json").read_text())[name]
    tensors = {}
    for file in case["files"]:
        tensors |= load_file(FOLDER / f"{file}.safetensors")
    if "prompts" in case:
        tensors["input.prompt_embeds"] = _padded_prompts(case["prompts"], case["config"]["text_len"])
    if "weights" in case:
        tensors |= weights(case["weights"])
    return case["config"], tensors


@cache
def weights(kind: str) -> dict[str, Tensor]:
    """The state dict of all "transformer" or all "vae" cases."""
    recipe = json.loads((FOLDER / "weights.json").read_text())[kind]
    distribution = {"transformer": _transformer_distribution, "vae": _vae_distribution}[kind]
    generator = torch.Generator().manual_seed(recipe["seed"])
    drawn = {}
    for name, shape in recipe["shapes"].items():
        mean, std = distribution(name, shape)
        drawn[name] = mean + std * torch.randn(shape, generator=generator)
    total = sum(tensor.sum(dtype=torch.float64).item() for tensor in drawn.values())
    assert math.isclose(total, recipe["sum"], abs_tol=0.01), (
        "torch draws other random numbers than when the golden tensors were made"
    )
    return drawn


def _transformer_distribution(name: str, shape: list[int]) -> tuple[float, float]:
    table = {
        r"modulation$": (0.0, 0.1),
        r"norm\w+\.weight$": (1.0, 0.1),
        r"\.bias$": (0.0, 0.05),
        r"\.[vo]\.weight$": (0.0, 0.12),
        r"^head\.": (0.0, 0.08),
        r"^time_projection\.": (0.0, 0.05),
        r"": (0.0, 0.07),
    }
    return next(distribution for pattern, distribution in table.items() if re.search(pattern, name))


def _vae_distribution(name: str, shape: list[int]) -> tuple[float, float]:
    if name.endswith(".gamma"):
        return 1.0, 0.1
    if name.endswith(".bias"):
        return 0.0, 0.05
    return 0.0, (0.35 if name == "decoder.head.2.weight" else 1.0) * 1.25 / math.sqrt(math.prod(shape[1:]))


def _padded_prompts(count: int, length: int) -> Tensor:
    """[count, length, text_dim], zeros behind each prompt."""
    prompts = load_file(FOLDER / "text.safetensors")
    rows = [prompts[str(index)] for index in range(count)]
    return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])
