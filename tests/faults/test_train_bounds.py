"""Values that nobody can mean, in every key of every recipe: refused in a line, or planned.

Never a traceback, a hang, or a plan that takes more than a moment. `count_bounds` counts, for tables.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from sfpp_cli.core.parallel import ALONE
from sfpp_cli.errors import UserError
from sfpp_cli.training import run
from sfpp_cli.training.context import RunContext
from sfpp_cli.training.recipes import (
    COMMANDS,
    GRPORecipe,
    MatchingRecipe,
    StudentRecipe,
    TeacherRecipe,
    read_recipe,
)

pytest_plugins = ["tiny_bundle"]

TRAINING = "[training]\nsteps = 4\n"
TEXTS: dict[type[Any], str] = {
    TeacherRecipe: f'objective = "flow-matching"\nmodel = "MODEL"\n[data]\nlatents = "l"\n{TRAINING}',
    StudentRecipe: (
        f'objective = "ode"\nmodel = "MODEL"\n[pairs]\nprompts = "p"\ncount = 2\nfolder = "f"\n{TRAINING}'
    ),
    MatchingRecipe: (
        'objective = "dmd"\nmodel = "MODEL"\nprompts = "p"\n'
        f'[dmd]\nmethod = "self-forcing++"\nframes = 12\nhorizon = 6\n{TRAINING}'
    ),
    GRPORecipe: (
        'objective = "grpo"\nmodel = "MODEL"\nprompts = "p"\n[grpo]\nframes = 12\nhorizon = 6\n'
        f"[reward]\ntarget = 0.01\nwidth = 1.0\nspikes = 0.1\n{TRAINING}batch = 16\n"
    ),
}
VALUES = (
    *("0", "-1", "1", "7", "2147483647", "2147483648", "1" + "0" * 19, "-1" + "0" * 19, "9" * 5000),
    *("0.5", "1e308", "-1e308", "1e-308", "5e-324", "nan", "inf", "-inf", "true"),
    *(
        '""',
        '"x"',
        '"\\u0000"',
        "[]",
        "[0]",
        "[1e308, 2]",
        "[" * 400,
        "{}",
        "{a = 1}",
        "1979-05-27",
        "a.b = 3",
    ),
)
WHILE = 3.0
"""Seconds of the processor that a refusal or a plan may take."""


def keys(kind: type[Any], table: str = "") -> Iterator[str]:
    """Every dotted key that a recipe may have, tables included."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        name = f"{table}{field.name}"
        yield name
        inner = next(
            (part for part in (hints[field.name], *get_args(hints[field.name])) if is_dataclass(part)), None
        )
        if inner is not None:
            yield from keys(inner, f"{name}.")  # type: ignore[arg-type]


def told(path: Path, key: str, value: str, context: RunContext) -> str:
    """How a recipe with this value ends: "plan", "refused", or what went wrong."""
    began = time.process_time()
    try:
        recipe = read_recipe(path, *COMMANDS, overrides={key: value})
        run.dry_plan(recipe, context)
        outcome = "plan"
    except UserError as error:
        lines = str(error).split("\n")
        outcome = "refused" if all(len(line) < 400 for line in lines) else "long"
    except Exception as error:
        outcome = type(error).__name__
    return outcome if time.process_time() - began < WHILE else "slow"


def count_bounds(kind: type[Any], model: Path, folder: Path, step: int = 1) -> Counter[str]:
    """Of every `step`-th pair of key and value how it ends."""
    path = folder / "recipe.toml"
    path.write_text(TEXTS[kind].replace("MODEL", str(model)))
    context = RunContext(
        out=folder / "run",
        resume=False,
        device=torch.device("cpu"),
        ranks=ALONE,
        progress=None,  # type: ignore[arg-type]
    )
    cases = [(key, value) for key in keys(kind) for value in VALUES][::step]
    return Counter(
        outcome if outcome in ("plan", "refused") else f"{outcome}: {key} = {value[:30]}"
        for key, value in cases
        for outcome in [told(path, key, value, context)]
    )


@pytest.mark.parametrize("kind", TEXTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_every_value_is_planned_or_refused(
    step: int, kind: type[Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    counts = count_bounds(kind, tiny_bundle, tmp_path, step)
    assert counts.keys() <= {"plan", "refused"}, counts
    assert counts["refused"] > counts["plan"] > 0
