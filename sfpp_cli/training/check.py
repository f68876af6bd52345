"""What a recipe is refused for before anything is loaded: the same for a dry run and for a run."""

from __future__ import annotations

from pathlib import Path

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.ode import student_step_indices
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.errors import UserError
from sfpp_cli.models.decoders import DecoderFile
from sfpp_cli.models.hub import resolve
from sfpp_cli.models.layout import Layout
from sfpp_cli.training.recipes import GRPORecipe, MatchingRecipe, Recipe, StudentRecipe, TeacherRecipe

CONFIGS = Path(__file__).parent / "configs"
"""Configuration files of models on the hub, by their id, so that their plan needs no download."""


def check(recipe: Recipe, layout: Layout, ranks: Ranks) -> None:
    """UserError if this model, loaded or not, and these ranks cannot run the recipe."""
    recipe.training.check(ranks)
    layout.require_teacher()
    if not isinstance(recipe, TeacherRecipe):
        DecoderFile.parse(recipe.preview.decoder)
    settings = layout.settings
    if settings.first_steps is not None and not isinstance(recipe, TeacherRecipe):
        raise UserError(
            f"{layout.name}: in training all chunks take the same steps, but this student has 'first_steps' "
            "for the first: start from one that has none, or take them out of its sfpp.json"
        )
    eight = (
        isinstance(recipe, MatchingRecipe | GRPORecipe) and recipe.lora_rank and recipe.lora_base == "float8"
    )
    if eight and ranks.world > 1 and recipe.training.parallel == "shard":  # collectives know no such numbers
        raise UserError(
            "lora_base 'float8' cannot be sharded over ranks: set training.parallel = 'replicate'"
        )
    if isinstance(recipe, StudentRecipe):
        student_step_indices(FlowSchedule(settings.shift), settings.steps, recipe.pairs.sampling_steps)
    if isinstance(recipe, MatchingRecipe):
        settings = recipe.settings_for(layout)
        try:
            recipe.dmd.chunks(layout.teacher_horizon, settings.chunk)
        except ValueError as error:
            raise UserError(f"dmd: {error}") from None
    if isinstance(recipe, GRPORecipe):
        try:
            recipe.grpo.chunks(layout.teacher_horizon, settings.chunk)
        except ValueError as error:
            raise UserError(f"grpo: {error}") from None
        if recipe.training.batch % recipe.grpo.group:
            raise UserError(
                f"a batch of {recipe.training.batch} is not made of groups of {recipe.grpo.group}: "
                "choose a multiple of grpo.group"
            )


def planned_layout(recipe: Recipe) -> tuple[Layout, list[str]]:
    """The recipe's model for a dry run, which downloads nothing, and what is assumed of missing parts.

    Configurations of Wan 1.3B come with the package. A student that an earlier stage is yet to make is
    taken to be like the model's own transformer. UserError that says what is missing if neither helps.
    """
    assumed = []
    model = recipe.model
    try:
        Layout(model, offline=True)
    except UserError:
        shipped = {part.parent.relative_to(CONFIGS).as_posix() for part in CONFIGS.glob("*/*/transformer")}
        if model not in shipped:
            raise
        assumed.append(f"{model} is not downloaded: planned from its configuration")
        model = str(CONFIGS / model)
    student = recipe.student if isinstance(recipe, MatchingRecipe | GRPORecipe) else None
    if student is not None:
        try:
            resolve(student, student=True, offline=True)
        except UserError:
            assumed.append(f"{student} is not here yet: taken to be like the model's own transformer")
            student = None
    return Layout(model, student, offline=True), assumed
