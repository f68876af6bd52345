"""Recipes: what a TOML file may say, checked whole before anything is loaded."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import tomli_w
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from sfpp_cli.core.constants import TRAIN_STEPS
from sfpp_cli.core.dmd_config import DMDConfig
from sfpp_cli.core.grpo_config import GRPOConfig
from sfpp_cli.core.training_config import Training
from sfpp_cli.errors import UserError, reason, suggest
from sfpp_cli.files import atomic_write
from sfpp_cli.models.layout import Layout
from sfpp_cli.models.settings import Settings
from sfpp_cli.schema import (
    STRICT,
    AtOnce,
    Count,
    Fault,
    Faults,
    Guidance,
    Keys,
    Name,
    Number,
    Place,
    line_of,
    validate,
)
from sfpp_cli.training.reward_config import RewardConfig

REMOVED = {("dmd", "windows_per_rollout"): "every rollout has one window"}
"""Keys that recipes once had, and why they are gone."""

Seed = Annotated[int, Field(ge=0, lt=2**63, description="Seed of everything random.")]
Verdict = Literal["over_exposure", "darkening", "stagnation", "repetition", "flicker", "scene_change"]
"""What `sfpp evaluate` can find wrong with a video."""
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class TeacherData:
    """Captioned latents for flow matching."""

    latents: Place
    """Folder of encoded videos with their captions."""
    mid_stream: Share = 0.0
    """Share of the windows that start after a video's first frame."""
    text_dropout: Share = 0.1
    """Share of the captions that are left out, so that guidance is possible later."""


@dataclass(frozen=True, config=STRICT)
class TeacherRecipe:
    """`sfpp train` by flow matching: a teacher from stored latents."""

    objective: Literal["flow-matching"]
    """What is trained, and by which loss."""
    model: Name
    """The model to start from: an embedded name, a folder or a hub id."""
    data: TeacherData
    training: Training
    shift: Annotated[float, Field(gt=0, le=1e3)] = 3.0
    """Shift of the noise schedule: above 1, training spends more time at high noise."""
    train_text_encoder: bool = False
    """Train the text encoder too."""
    seed: Seed = 0


@dataclass(frozen=True, config=STRICT)
class Pairs:
    """ODE trajectories of the teacher (arXiv 2510.02283, section 3.1)."""

    prompts: Place
    """File of prompts, .txt or .jsonl."""
    count: Count
    """Trajectories to make; prompts are used again where there are fewer."""
    folder: Place
    """Folder for the trajectories."""
    guidance: Guidance = 4.0
    """Guidance scale of the teacher: negative + guidance (prompt - negative)."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    sampling_steps: Annotated[int, Field(ge=1, le=TRAIN_STEPS)] = 48
    """Steps of the teacher from noise to video; their grid must hold the student's steps."""
    batch: AtOnce = 8
    """Trajectories made at once, and in one file."""


@dataclass(frozen=True, config=STRICT)
class Preview:
    """Videos of the same prompts and seeds, made again and again to see a student change."""

    every: Number = 0
    """Steps between two previews; 0 makes none."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Length of a preview."""
    count: Annotated[int, Field(ge=1, le=1000)] = 4
    """How many prompts, from the start of the recipe's file."""
    decoder: Place = "wan"
    """What makes the pictures: the model's own VAE, or a file as `sfpp generate --decoder` takes it."""


@dataclass(frozen=True, config=STRICT)
class StudentRecipe:
    """`sfpp distill`: ODE trajectories from a teacher, then a causal student by regression on them."""

    objective: Literal["ode"]
    """What is trained, and by which loss."""
    model: Name
    """The teacher: an embedded name, a folder or a hub id."""
    pairs: Pairs
    training: Training
    init: Place | None = None
    """Causal weights to start from, instead of the teacher's."""
    text_store: Place | None = None
    """Folder for the prompts' embeddings, computed once; they stay in memory without one."""
    preview: Preview = Preview()
    seed: Seed = 0

    def settings_for(self, layout: Layout) -> Settings:
        """The trained student's settings: its trajectories are as long as the teacher can judge."""
        return layout.settings.changed({"horizon": layout.teacher_horizon})


@dataclass(frozen=True, config=STRICT)
class MatchingRecipe:
    """`sfpp train` by distribution matching on the student's own rollouts: Self-Forcing, Self-Forcing++."""

    objective: Literal["dmd"]
    """What is trained, and by which loss."""
    model: Name
    """The model that teaches, and encodes text: an embedded name, a folder or a hub id."""
    prompts: Place
    """File of prompts, .txt or .jsonl."""
    dmd: DMDConfig
    training: Training
    student: Place | None = None
    """Causal weights to start from, instead of the model's own."""
    context: Count | None = None
    """Latent frames in the rolling cache (the paper's L), instead of what the student's settings say."""
    lora_rank: Annotated[int, Field(ge=0, le=4096)] = 0
    """Rank of adapters to train instead of all weights, the critic's over the teacher's; 0 trains all."""
    lora_base: Literal["auto", "float8"] = "auto"
    """What the weights under adapters rest in: auto is the arithmetic's precision, float8 half of that."""
    text_store: Place | None = None
    """Folder for the prompts' embeddings, computed once; they stay in memory without one."""
    preview: Preview = Preview()
    seed: Seed = 0

    def settings_for(self, layout: Layout) -> Settings:
        """The trained student's settings, as the recipe has them. UserError if they do not fit together."""
        wanted = {
            "horizon": self.dmd.frames or self.dmd.horizon or layout.teacher_horizon,
            "context": self.context,
            "context_noise": self.dmd.context_noise,
            "context_noise_on": self.dmd.context_noise_on,
        }
        changes = {key: value for key, value in wanted.items() if value is not None}
        try:
            return layout.settings.changed(changes)
        except ValueError as error:
            raise UserError(f"context: {error}") from None


@dataclass(frozen=True, config=STRICT)
class GRPORecipe:
    """`sfpp train` by rewards of the student's own videos: GRPO, after Self-Forcing++."""

    objective: Literal["grpo"]
    """What is trained, and by which loss."""
    model: Name
    """The model that decodes, and encodes text: an embedded name, a folder or a hub id."""
    prompts: Place
    """File of prompts, .txt or .jsonl."""
    grpo: GRPOConfig
    reward: RewardConfig
    training: Training
    student: Place | None = None
    """Causal weights to start from, instead of the model's own."""
    lora_rank: Annotated[int, Field(ge=0, le=4096)] = 0
    """Rank of adapters to train instead of all weights; 0 trains all weights."""
    lora_base: Literal["auto", "float8"] = "auto"
    """What the weights under adapters rest in: auto is the arithmetic's precision, float8 half of that."""
    text_store: Place | None = None
    """Folder for the prompts' embeddings, computed once; they stay in memory without one."""
    preview: Preview = Preview()
    stop_on: tuple[Verdict, ...] = get_args(Verdict)
    """Verdicts of `sfpp evaluate` on a preview that stop the run."""
    seed: Seed = 0

    def settings_for(self, layout: Layout) -> Settings:
        """The trained student's settings: as long as its rollouts were."""
        return layout.settings.changed({"horizon": self.grpo.frames})


Recipe = TeacherRecipe | StudentRecipe | MatchingRecipe | GRPORecipe
COMMANDS = {TeacherRecipe: "train", MatchingRecipe: "train", GRPORecipe: "train", StudentRecipe: "distill"}
"""Which command runs which recipe."""

T = TypeVar("T")
U = TypeVar("U")


def read_recipe(
    path: Path, kind: type[T], *others: type[U], overrides: Mapping[str, str] | None = None
) -> T | U:
    """The recipe in a TOML file, which is of `kind` or one of `others`. UserError with all that is wrong.

    `overrides` are dotted keys with values in TOML's form, or plain text.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise UserError(
            f"no recipe at {path} ({reason(error)}): give the path of a TOML file, such as those in examples/"
        ) from None
    except (ValueError, RecursionError) as error:  # TOML, UTF-8, a number of thousands of digits, a deep nest
        raise UserError(f"{path} is not TOML: {error}") from None
    changes = overrides or {}
    for key, value in changes.items():
        _set(table, key.split("."), _value(value))
    chosen: type[T] | type[U] = _kind_of(table.get("objective"), (kind, *others), path)

    def line(keys: Keys) -> int | None:
        """Where the file sets a key, unless an override does."""
        names = [str(key) for key in keys if isinstance(key, str)]
        return None if ".".join(names) in changes else line_of(text, keys)

    gone = _take_removed(table)
    try:
        recipe = validate(TypeAdapter[T | U](chosen), table)
    except Faults as faults:
        raise Faults([*gone, *faults.faults]).of(path, line) from None
    if gone:
        raise Faults(gone).of(path, line)
    return recipe


def write_recipe(recipe: Recipe, path: Path) -> None:
    """The resolved recipe as TOML, so that a run folder tells how it was made."""
    atomic_write(path, tomli_w.dumps(_without_none(asdict(recipe))))


def schema() -> str:
    """The JSON schema of all recipes, for editors."""
    described = TypeAdapter(Annotated[Recipe, Field(discriminator="objective")]).json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **described}, indent=2)


def _kind_of(objective: Any, kinds: tuple[type[Any], ...], path: Path) -> Any:
    """The kind of recipe with this objective, or a UserError that says which command or word is right."""
    known = {_objective(kind): kind for kind in kinds}
    if isinstance(objective, str) and objective in known:
        return known[objective]
    for kind, verb in COMMANDS.items():
        if objective == _objective(kind):
            raise UserError(f"{path}: 'objective' {objective!r} is for another command: sfpp {verb} {path}")
    names = ", ".join(f"'{name}'" for name in known)
    if objective is None:
        raise UserError(f"{path}: 'objective' is missing: it is one of {names}")
    near = suggest(str(objective), known)
    raise UserError(f"{path}: 'objective' must be one of {names}, not {objective!r}{near}")


def _take_removed(table: dict[str, Any]) -> list[Fault]:
    """A fault for every key that is no longer one; the keys are taken out."""
    faults = []
    for (name, key), reason_why in REMOVED.items():
        inner = table.get(name)
        if isinstance(inner, dict) and key in inner:
            del inner[key]
            faults.append(Fault((name, key), f"'{name}.{key}' is gone, {reason_why}: remove it"))
    return faults


def _objective(kind: type[Any]) -> str:
    return str(get_args(get_type_hints(kind)["objective"])[0])


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: what is None is left out, which reads as None again."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _set(table: dict[str, Any], keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UserError(
                f"--set {'.'.join(keys)}: '{'.'.join(keys[:depth])}' is a value, no key is below it"
            )
    table[keys[-1]] = value
