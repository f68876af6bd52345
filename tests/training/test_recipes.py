"""Recipes: what is written is what is read, every problem is told at once, and the recipes that are shipped parse."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from sfpp_cli.core.trainer import Training
from sfpp_cli.errors import UserError
from sfpp_cli.training import recipes
from sfpp_cli.training.recipes import (
    Pairs,
    StudentRecipe,
    TeacherData,
    TeacherRecipe,
    read_recipe,
    write_recipe,
)

SHIPPED = sorted((Path(__file__).parents[2] / "examples").rglob("*.toml"))
TEACHER = """
objective = "flow-matching"
model = "some/model"

[data]
latents = "runs/latents"

[training]
steps = 10
"""
STUDENT = StudentRecipe(
    objective="ode",
    model="toyworld",
    pairs=Pairs(prompts='with "quotes", \\ and\ttabs', count=8, folder="Ordner/Übung", guidance=2.5),
    training=Training(steps=10, lr=3e-7, betas=(0.5, 0.999), decay="cosine"),
    init="runs/x/step-000010/student",
    seed=7,
)


def parse(text: str, path: Path, overrides: dict[str, str] | None = None) -> TeacherRecipe:
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, TeacherRecipe, overrides=overrides)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.toml"


def one_line(pattern: str) -> Any:
    """A UserError that matches and has one line (`.` does not match a line break)."""
    return pytest.raises(UserError, match=rf"\A(?=.*(?:{pattern})).*\Z")


def kinds() -> dict[str, Any]:
    """Every kind of recipe by its objective."""
    found = {}
    for kind in vars(recipes).values():
        objective = get_type_hints(kind).get("objective") if dataclasses.is_dataclass(kind) else None
        if get_origin(objective) is Literal:
            found[get_args(objective)[0]] = kind
    return found


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_parse(shipped: Path, path: Path) -> None:
    kind = kinds()[tomllib.loads(shipped.read_text(encoding="utf-8"))["objective"]]
    recipe = read_recipe(shipped, kind)
    write_recipe(recipe, path)
    assert read_recipe(path, kind) == recipe


def test_recipes_are_shipped() -> None:
    assert {"teacher.toml", "student.toml"} <= {path.name for path in SHIPPED}


def test_what_is_left_out_is_the_default(path: Path) -> None:
    recipe = parse(TEACHER, path)
    assert recipe == TeacherRecipe(
        "flow-matching", "some/model", TeacherData("runs/latents"), Training(steps=10)
    )
    assert recipe.training.betas == (0.0, 0.999)


@pytest.mark.parametrize(
    "recipe", [STUDENT, dataclasses.replace(STUDENT, init=None)], ids=["init", "no init"]
)
def test_a_written_recipe_is_read_as_the_same(recipe: StudentRecipe, path: Path) -> None:
    write_recipe(recipe, path.parent / "deep" / "er" / path.name)
    again = read_recipe(path.parent / "deep" / "er" / path.name, StudentRecipe)
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
        ("training.betas", "[0, 1]", (0.0, 1.0)),
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
        (TEACHER.replace("latents =", "latent ="), "unknown key 'data.latent', did you mean 'latents'"),
        ("sed = 1\n" + TEACHER, "unknown key 'sed', did you mean 'seed'"),
        ("zzz = 1\n" + TEACHER, r"unknown key 'zzz' \(known: objective, model, "),
        (TEACHER + "[trainings]\n", "unknown key 'trainings', did you mean 'training'"),
        (TEACHER.replace("steps = 10", ""), "'training.steps' is missing"),
        (TEACHER.replace('model = "some/model"', ""), "'model' is missing"),
        (TEACHER.split("[training]")[0], "'training' is missing"),
        (TEACHER.replace("flow-matching", "ode"), "'objective' must be one of 'flow-matching', not 'ode'"),
        (TEACHER + "decay = 'linear'", "'training.decay' must be one of 'constant', 'cosine', not 'linear'"),
        (TEACHER.replace("steps = 10", "steps = '10'"), "'training.steps' must be int, not '10'"),
        (TEACHER.replace("steps = 10", "steps = 10.0"), "'training.steps' must be int, not 10.0"),
        (TEACHER.replace("steps = 10", "steps = true"), "'training.steps' must be int, not True"),
        (TEACHER + "lr = true", "'training.lr' must be float, not True"),
        (TEACHER + "lr = '1e-4'", "'training.lr' must be float, not '1e-4'"),
        (TEACHER + "betas = 0.9", "'training.betas' must be .*, not 0.9"),
        (TEACHER + "betas = [0.9, 'x']", r"'training.betas\[1\]' must be float, not 'x'"),
        ("train_text_encoder = 1\n" + TEACHER, "'train_text_encoder' must be bool, not 1"),
        ("shift = [1.0]\n" + TEACHER, "'shift' must be float"),
        (
            TEACHER.replace("[training]\nsteps", "training"),
            "'training' must be Training, not 10|'data.training'",
        ),
    ],
)
def test_what_is_wrong_is_told(text: str, complaint: str, path: Path) -> None:
    with one_line(f"{path.name}: .*{complaint}"):
        parse(text, path)


def test_all_problems_are_told_at_once(path: Path) -> None:
    text = "sede = 1\nshift = 'x'\n" + TEACHER.replace("steps = 10", "stesp = 10\nlr = 'y'").replace(
        "latents", "latnets"
    )
    with one_line("recipe.toml") as caught:
        parse(text, path, {"training.betas": "[1, 'z']"})
    for problem in (
        "'sede'",
        "'shift'",
        "'training.stesp'",
        "'training.steps' is missing",
        "'training.lr'",
        "'data.latnets'",
    ):
        assert problem in str(caught.value)
    assert "'data.latents' is missing" in str(caught.value)
    assert "'training.betas[1]'" in str(caught.value)


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"[training\n", b"a = 1\na = 2\n"])
def test_what_is_no_toml_is_told(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with one_line("recipe.toml is not TOML"):
        read_recipe(path, TeacherRecipe)


def test_a_missing_recipe_is_told(path: Path) -> None:
    with one_line("no recipe at .*recipe.toml"):
        read_recipe(path, TeacherRecipe)


@pytest.mark.parametrize("key", ["sede", "training.step", "data.x.y", "", "training."])
def test_an_override_of_an_unknown_key_is_told(key: str, path: Path) -> None:
    with one_line("unknown key"):
        parse(TEACHER, path, {key: "1"})


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with one_line("no recipe at"):
        read_recipe(tmp_path, TeacherRecipe)


@pytest.mark.parametrize("key", ["model.x.y", "training.steps.x"])
def test_an_override_below_a_value_is_told(key: str, path: Path) -> None:
    with one_line(f"'{key.rpartition('.')[0]}' is a value|'{key.split('.')[0]}' is a value"):
        parse(TEACHER, path, {key: "1"})


@pytest.mark.parametrize("betas", ["[0.9]", "[]", "[0.9, 0.99, 0.999]"])
def test_a_pair_has_two(betas: str, path: Path) -> None:
    with one_line("'training.betas' must have 2 values"):
        parse(TEACHER, path, {"training.betas": betas})


def test_any_character_survives(path: Path) -> None:
    recipe = dataclasses.replace(STUDENT, model="🎬\x7f\n圆")
    write_recipe(recipe, path)
    assert read_recipe(path, StudentRecipe) == recipe


def test_values_out_of_range_are_named_together(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        'objective = "ode"\nmodel = "m"\n[pairs]\nprompts = "p"\ncount = 1\nfolder = "f"\n[training]\nsteps = 0\nlr = -1.0\n'
    )
    with pytest.raises(
        UserError, match=r"training: 'steps' must be 1 or more, not 0; 'lr' must be above 0, not -1.0"
    ):
        read_recipe(path, StudentRecipe)
