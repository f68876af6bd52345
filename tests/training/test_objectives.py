"""From a recipe to networks: which precision each is held in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfpp_cli.core.dmd import DistributionMatching, DMDConfig
from sfpp_cli.core.objective import Update
from sfpp_cli.core.training_config import Training
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.training.objectives import matching_objective
from sfpp_cli.training.recipes import MatchingRecipe

pytest_plugins = ["tiny_bundle"]

CPU = torch.device("cpu")
PROMPTS = ["a red circle"]


def objective_in(precision: str, folder: Path) -> tuple[DistributionMatching, Training]:
    training = Training(steps=1, precision=precision)  # type: ignore[arg-type]
    config = DMDConfig(method="self-forcing++", frames=9, horizon=6)
    recipe = MatchingRecipe("dmd", str(folder), "prompts.txt", config, training)
    bundle = Bundle(str(folder))
    text = EmbeddedPrompts(bundle.load_text(CPU, torch.float32), ["", *PROMPTS])
    return matching_objective(recipe, bundle, PROMPTS, text, CPU), training


def score_difference(precision: str, folder: Path, teacher: torch.dtype | None = None) -> Tensor:
    objective, training = objective_in(precision, folder)
    if teacher is not None:
        objective.teacher = Bundle(str(folder)).load_teacher(CPU, teacher)
    update = Update(0, 0, 0, (0,))
    shape = (1, 6, *objective.chunk_shape[1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with training.autocast(CPU):
        return objective.score_difference(x, *objective.texts(update), update)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_frozen_has_the_precision_of_the_arithmetic(precision: str, tiny_bundle: Path) -> None:
    objective, _ = objective_in(precision, tiny_bundle)
    for model in (objective.student, objective.critic):
        assert {p.dtype for p in model.parameters()} == {torch.float32}, "or small steps would be lost"
    largest = max(objective.teacher.parameters(), key=Tensor.numel)
    assert largest.dtype == getattr(torch, precision)


def test_a_teacher_in_the_precision_of_the_arithmetic_says_the_same(tiny_bundle: Path) -> None:
    """Autocast would round its weights in every pass; and that is less than what the arithmetic rounds."""
    exact = score_difference("float32", tiny_bundle)
    cast = score_difference("bfloat16", tiny_bundle, teacher=torch.float32)
    ours = score_difference("bfloat16", tiny_bundle)
    rounded = (cast - exact).norm()
    assert 0 < rounded < 0.1 * exact.norm()
    assert (ours - exact).norm() < 1.5 * rounded
