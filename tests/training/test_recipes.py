"""Recipes: what is written is what is read, all faults are told at once, the shipped recipes parse."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.core.dmd_config import DMDConfig
from sfpp_cli.core.training_config import Training
from sfpp_cli.errors import UserError
from sfpp_cli.models.layout import Layout
from sfpp_cli.training.recipes import (
    COMMANDS,
    MatchingRecipe,
    Pairs,
    StudentRecipe,
    TeacherData,
    TeacherRecipe,
    read_recipe,
    schema,
    write_recipe,
)

pytest_plugins = ["tiny_bundle"]

SHIPPED = sorted((Path(__file__).parents[2] / "examples").rglob("*.toml"))
TEACHER = """
objective = "flow-matching"
model = "some/model"

[data]
latents = "runs/latents"

[training]
steps = 10
"""
MATCHING = """
objective = "dmd"
model = "some/model"
prompts = "prompts.txt"

[dmd]
method = "self-forcing++"
frames = 42

[training]
steps = 10
"""
STUDENT = StudentRecipe(
    objective="ode",
    model=DEFAULT_MODEL,
    pairs=Pairs(prompts='with "quotes", \\ and\ttabs', count=8, folder="Ordner/Übung", guidance=2.5),
    training=Training(steps=10, lr=3e-7, betas=(0.5, 0.999), decay="cosine"),
    init="runs/x/step-000010/student",
    seed=7,
)


def parse(text: str, path: Path, overrides: dict[str, str] | None = None) -> TeacherRecipe:
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, TeacherRecipe, overrides=overrides)


def told(text: str, path: Path, overrides: dict[str, str] | None = None) -> list[str]:
    """The faults of a recipe of any kind, without the file's name."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_recipe(path, TeacherRecipe, MatchingRecipe, StudentRecipe, overrides=overrides)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    return [line.removeprefix(str(path)) for line in lines]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.toml"


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_parse(shipped: Path, path: Path) -> None:
    recipe = read_recipe(shipped, *COMMANDS)
    write_recipe(recipe, path)
    assert read_recipe(path, *COMMANDS) == recipe


def test_recipes_are_shipped() -> None:
    assert {"teacher.toml", "student.toml"} <= {path.name for path in SHIPPED}


def test_what_is_left_out_is_the_default(path: Path) -> None:
    recipe = parse(TEACHER, path)
    expected = TeacherRecipe("flow-matching", "some/model", TeacherData("runs/latents"), Training(steps=10))
    assert recipe == expected
    assert recipe.training.betas == (0.0, 0.999)


@pytest.mark.parametrize(
    "recipe", [STUDENT, dataclasses.replace(STUDENT, init=None)], ids=["init", "no init"]
)
def test_a_written_recipe_is_read_as_the_same(recipe: StudentRecipe, path: Path) -> None:
    deeper = path.parent / "deep" / "er" / path.name
    write_recipe(recipe, deeper)
    again = read_recipe(deeper, StudentRecipe)
    assert again == recipe
    assert isinstance(again.training.betas, tuple)


def test_recipes_cannot_be_changed(path: Path) -> None:
    recipe = parse(TEACHER, path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "3", 3),
        ("shift", "3", 3.0),
        ("shift", "1e-3", 0.001),
        ("model", "runs/init", "runs/init"),
        ("model", "'quoted'", "quoted"),
        ("model", "a b = c", "a b = c"),
        ("model", "", ""),
        ("train_text_encoder", "true", True),
        ("data.latents", "elsewhere", "elsewhere"),
        ("data.mid_stream", "1", 1.0),
        ("training.betas", "[0.5, 0.9]", (0.5, 0.9)),
        ("training.betas", "[0, 1e-1]", (0.0, 0.1)),
        ("training.decay", "cosine", "cosine"),
    ],
)
def test_overrides(key: str, value: str, expected: object, path: Path) -> None:
    recipe: Any = parse(TEACHER, path, {key: value})
    for part in key.split("."):
        recipe = getattr(recipe, part)
    assert recipe == expected
    assert type(recipe) is type(expected)


def test_an_override_may_bring_what_the_file_lacks(path: Path) -> None:
    short = TEACHER.replace("[data]\nlatents", "#").replace("[training]\nsteps", "#")
    recipe = parse(short, path, {"data.latents": "x", "training.steps": "5"})
    assert (recipe.data.latents, recipe.training.steps) == ("x", 5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sed = 1\n" + TEACHER, ":1: unknown key 'sed'; did you mean 'seed'?"),
        (TEACHER + "[trainings]\n", ":10: unknown key 'trainings'; did you mean 'training'?"),
        (TEACHER.replace("steps = 10", ""), ": 'training.steps' is missing"),
        (TEACHER.replace('model = "some/model"', ""), ": 'model' is missing"),
        (TEACHER.split("[training]")[0], ": 'training' is missing"),
        (
            TEACHER + "decay = 'linear'",
            ":10: 'training.decay' must be 'constant' or 'cosine', not 'linear'",
        ),
        (TEACHER.replace("10", "'10'"), ":9: 'training.steps' must be a whole number, not '10'"),
        (TEACHER.replace("10", "10.0"), ":9: 'training.steps' must be a whole number, not 10.0"),
        (TEACHER.replace("10", "true"), ":9: 'training.steps' must be a whole number, not true"),
        (TEACHER.replace("10", "0"), ":9: 'training.steps' must be at least 1, not 0"),
        (TEACHER + "lr = true", ":10: 'training.lr' must be a number, not true"),
        (TEACHER + "lr = '1e-4'", ":10: 'training.lr' must be a number, not '1e-4'"),
        (TEACHER + "lr = inf", ":10: 'training.lr' must be a finite number, not Infinity"),
        (TEACHER + "betas = 0.9", ":10: 'training.betas' must be a list, not 0.9"),
        (TEACHER + "betas = [0.9, 'x']", ":10: 'training.betas[1]' must be a number, not 'x'"),
        (TEACHER + "betas = [0.9, nan]", ":10: 'training.betas[1]' must be a finite number, not NaN"),
        ("train_text_encoder = 1\n" + TEACHER, ":1: 'train_text_encoder' must be true or false, not 1"),
        ("shift = [1.0]\n" + TEACHER, ":1: 'shift' must be a number, not [1.0]"),
        ("seed = -1\n" + TEACHER, ":1: 'seed' must be at least 0, not -1"),
        (MATCHING + "[preview]\nevery = -1", ":13: 'preview.every' must be at least 0, not -1"),
        (
            MATCHING + "[preview]\nseconds = inf",
            ":13: 'preview.seconds' must be a finite number, not Infinity",
        ),
        ("lora_rank = -1\n" + MATCHING, ":1: 'lora_rank' must be at least 0, not -1"),
    ],
)
def test_what_is_wrong_is_told(text: str, complaint: str, path: Path) -> None:
    assert told(text, path) == [complaint]


def test_a_misspelt_key_is_answered_with_the_right_one(path: Path) -> None:
    lines = told(TEACHER.replace("latents =", "latent ="), path)
    assert lines == [": 'data.latents' is missing", ":6: unknown key 'data.latent'; did you mean 'latents'?"]


def test_a_students_noise_is_its_own_unless_the_recipe_has_another(tiny_bundle: Path) -> None:
    layout = Layout(str(tiny_bundle))
    layout.settings = layout.settings.changed({"context_noise": 30.0, "context_noise_on": "keys"})
    for changes, expected in (
        ({}, (30.0, "keys")),
        ({"context_noise": 0.0}, (0.0, "keys")),
        ({"context_noise": 50.0, "context_noise_on": "latents"}, (50.0, "latents")),
    ):
        config = DMDConfig(method="self-forcing++", frames=24, **changes)
        settings = MatchingRecipe("dmd", "m", "p", config, Training(1)).settings_for(layout)
        assert (settings.context_noise, settings.context_noise_on) == expected
        sampler = settings.sampler()
        assert (sampler.context_noise, sampler.context_noise_on) == expected


def test_a_value_that_is_renamed_is_told(path: Path) -> None:
    path.write_text(
        'objective = "dmd"\nmodel = "m"\nprompts = "p"\n[training]\nsteps = 1\n'
        '[dmd]\nmethod = "self-forcing++"\nframes = 42\nnoise_init = "backward"\n'
    )
    with pytest.raises(
        UserError, match=r":9: 'dmd.noise_init' must be 'renoised', as 'backward' is called now"
    ):
        read_recipe(path, MatchingRecipe)


def test_a_key_that_is_gone_is_told_why(path: Path) -> None:
    lines = told(MATCHING.replace("frames = 42", "frames = 42\nwindows_per_rollout = 1"), path)
    assert lines == [":9: 'dmd.windows_per_rollout' is gone, every rollout has one window: remove it"]


def test_an_unknown_key_is_answered_with_those_there_are(path: Path) -> None:
    (line,) = told("zzz = 1\n" + TEACHER, path)
    assert line.startswith(":1: unknown key 'zzz' (known: objective, model, data, training, ")


def test_all_faults_are_told_at_once(path: Path) -> None:
    text = "seed = 'a'\n" + MATCHING.replace("frames = 42", "widow = 3\ncritic_updates = 0\ncritic_lr = inf")
    lines = told(text, path, {"training.lr": "-1", "training.stesp": "3", "training.betas": "[1, 'z']"})
    assert {re.findall(r"'([\w.\[\]]+)'", line)[0] for line in lines} == {
        "seed",
        "dmd.widow",
        "dmd.critic_updates",
        "dmd.critic_lr",
        "dmd.frames",
        "training.lr",
        "training.stesp",
        "training.betas[0]",
        "training.betas[1]",
    }


def test_an_override_has_no_line(path: Path) -> None:
    assert told(TEACHER, path, {"training.steps": "0"}) == [": 'training.steps' must be at least 1, not 0"]


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"[training\n", b"a = 1\na = 2\n"])
def test_what_is_no_toml_is_told(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe.toml is not TOML"):
        read_recipe(path, TeacherRecipe)


def test_a_missing_recipe_is_told(path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe at .*recipe.toml"):
        read_recipe(path, TeacherRecipe)


@pytest.mark.parametrize("key", ["sede", "training.step", "data.x.y", "", "training."])
def test_an_override_of_an_unknown_key_is_told(key: str, path: Path) -> None:
    (line,) = told(TEACHER, path, {key: "1"})
    assert "unknown key" in line


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe at"):
        read_recipe(tmp_path, TeacherRecipe)


@pytest.mark.parametrize("key", ["model.x.y", "training.steps.x"])
def test_an_override_below_a_value_is_told(key: str, path: Path) -> None:
    path.write_text(TEACHER)
    with pytest.raises(UserError, match=r"'(model|training.steps)' is a value"):
        read_recipe(path, TeacherRecipe, overrides={key: "1"})


@pytest.mark.parametrize("betas", ["[0.9]", "[]", "[0.9, 0.99, 0.999]"])
def test_a_pair_has_two(betas: str, path: Path) -> None:
    lines = told(TEACHER, path, {"training.betas": betas})
    assert all("'training.betas" in line for line in lines)


def test_a_command_names_the_other_one(path: Path) -> None:
    path.write_text(TEACHER)
    with pytest.raises(UserError, match=f"'flow-matching' is for another command: sfpp train {path}"):
        read_recipe(path, StudentRecipe)
    write_recipe(STUDENT, path)
    with pytest.raises(UserError, match=f"'ode' is for another command: sfpp distill {path}"):
        read_recipe(path, TeacherRecipe, MatchingRecipe)


@pytest.mark.parametrize("value", ["dmdd", "[]", "1"])
def test_an_unknown_objective_is_answered_with_those_there_are(value: str, path: Path) -> None:
    (line,) = told(TEACHER, path, {"objective": value})
    assert "'objective' must be one of 'flow-matching', 'dmd', 'ode', not " in line
    assert ("did you mean 'dmd'?" in line) == (value == "dmdd")
    (line,) = told(TEACHER.replace("objective", "#"), path)
    assert "'objective' is missing" in line


def test_any_character_survives(path: Path) -> None:
    recipe = dataclasses.replace(STUDENT, model="🎬\x7f\n圆")
    write_recipe(recipe, path)
    assert read_recipe(path, StudentRecipe) == recipe


def test_the_schema_describes_every_key() -> None:
    described = json.loads(schema())
    kinds = {name: described["$defs"][name] for name in ("TeacherRecipe", "StudentRecipe", "MatchingRecipe")}
    assert described["discriminator"]["propertyName"] == "objective"
    for name, kind in kinds.items():
        assert kind["additionalProperties"] is False, name
    for name, definition in described["$defs"].items():
        silent = [
            key
            for key, value in definition["properties"].items()
            if not value.keys() & {"description", "$ref"}
        ]
        assert not silent, name
    keys = set(described["$defs"]["Training"]["properties"])
    assert keys == {field.name for field in dataclasses.fields(Training)}


def test_shipped_recipes_name_only_keys_of_the_schema() -> None:
    described = json.loads(schema())["$defs"]
    by_objective = {
        kind["properties"]["objective"]["const"]: kind
        for kind in described.values()
        if "objective" in kind["properties"]
    }
    for shipped in SHIPPED:
        table = tomllib.loads(shipped.read_text(encoding="utf-8"))
        assert table.keys() <= by_objective[table["objective"]]["properties"].keys(), shipped.name
