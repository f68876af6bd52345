"""Faults of a file: all at once, each with its key and line, in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, field_validator
from pydantic.dataclasses import dataclass

from sfpp_cli.schema import STRICT, Faults, line_of, validate


@dataclass(frozen=True, config=STRICT)
class Training:
    steps: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[float, float] = (0.0, 0.999)
    decay: Literal["constant", "cosine"] = "constant"
    micro_batch: int | None = None
    compile: bool = False

    @field_validator("lr")
    @classmethod
    def _check_lr(cls, lr: float) -> float:
        if lr > 1:
            raise ValueError(f"must be a small number, not {lr}")
        return lr

    def __post_init__(self) -> None:
        if self.steps == 13:
            raise ValueError("thirteen steps bring bad luck")


@dataclass(frozen=True, config=STRICT)
class Plain:
    objective: Literal["plain"]
    training: Training
    name: str = ""


PLAIN = TypeAdapter(Plain)

TOML = """objective = "plain"
nme = "a"

[training]  # how
steps = 0
"lr" = 2.0
"""


def faults(schema: TypeAdapter[Any], values: Any) -> list[str]:
    with pytest.raises(Faults) as caught:
        validate(schema, values)
    return [fault.text for fault in caught.value.faults]


def test_values_become_what_the_schema_says() -> None:
    values = {"objective": "plain", "training": {"steps": 3, "lr": 1, "betas": [0, 0.5]}}
    found = validate(PLAIN, values)
    assert found == Plain("plain", Training(3, 1.0, (0.0, 0.5)))
    assert type(found.training.lr) is float
    assert type(found.training.betas) is tuple


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, "'training.steps' is missing"),
        ({"steps": 0}, "'training.steps' must be at least 1, not 0"),
        ({"steps": "3"}, "'training.steps' must be a whole number, not '3'"),
        ({"steps": 3.0}, "'training.steps' must be a whole number, not 3.0"),
        ({"steps": True}, "'training.steps' must be a whole number, not true"),
        ({"steps": None}, "'training.steps' must be a whole number, not null"),
        ({"steps": "9" * 99}, f"'training.steps' must be a whole number, not '{'9' * 56}..."),
        ({"steps": 13}, "training: thirteen steps bring bad luck"),
        ({"steps": 3, "lr": 0}, "'training.lr' must be above 0, not 0"),
        ({"steps": 3, "lr": float("inf")}, "'training.lr' must be a finite number, not Infinity"),
        ({"steps": 3, "lr": float("nan")}, "'training.lr' must be a finite number, not NaN"),
        ({"steps": 3, "lr": "x"}, "'training.lr' must be a number, not 'x'"),
        ({"steps": 3, "lr": 2}, "'training.lr' must be a small number, not 2.0"),
        ({"steps": 3, "betas": 1}, "'training.betas' must be a list, not 1"),
        ({"steps": 3, "betas": [1]}, "'training.betas[1]' is missing"),
        ({"steps": 3, "betas": [1, 2, 3]}, "'training.betas' must have at most 2 values, not 3"),
        ({"steps": 3, "betas": [1, "x"]}, "'training.betas[1]' must be a number, not 'x'"),
        ({"steps": 3, "decay": "x"}, "'training.decay' must be 'constant' or 'cosine', not 'x'"),
        ({"steps": 3, "micro_batch": 1.5}, "'training.micro_batch' must be a whole number, not 1.5"),
        ({"steps": 3, "compile": 1}, "'training.compile' must be true or false, not 1"),
        ({"steps": 3, "stesp": 1}, "unknown key 'training.stesp'; did you mean 'steps'?"),
        (
            {"steps": 3, "zzz": 1},
            "unknown key 'training.zzz' (known: steps, lr, betas, decay, micro_batch, compile)",
        ),
        (3, "'training' must be a table of keys and values, not 3"),
    ],
)
def test_a_fault_in_plain_words(training: Any, expected: str) -> None:
    assert faults(PLAIN, {"objective": "plain", "training": training}) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "must be a table of keys and values, not []"),
        ("", "broken JSON: "),
        ("[" * 1000, "broken JSON: recursion limit exceeded"),
        ('{"objective": "plain",}', "broken JSON: trailing comma at column 23"),
    ],
    ids=["list", "empty", "deep", "comma"],
)
def test_what_is_no_table(text: str, expected: str) -> None:
    (fault,) = faults(PLAIN, text)
    assert fault.startswith(expected)


def test_all_faults_come_at_once_each_on_its_line() -> None:
    values = {"objective": "plain", "nme": "a", "training": {"steps": 0, "lr": 2.0, "decay": "x"}}
    with pytest.raises(Faults) as caught:
        validate(PLAIN, values)
    assert str(caught.value.of(Path("a.toml"), lambda keys: line_of(TOML, keys))).split("\n") == [
        "a.toml:5: 'training.steps' must be at least 1, not 0",
        "a.toml:6: 'training.lr' must be a small number, not 2.0",
        "a.toml: 'training.decay' must be 'constant' or 'cosine', not 'x'",
        "a.toml:2: unknown key 'nme'; did you mean 'name'?",
    ]


def test_lines_of_keys() -> None:
    lines = {("objective",): 1, ("training",): 4, ("training", "lr", 1): 6, ("lr",): None, (): None}
    assert {keys: line_of(TOML, keys) for keys in lines} == lines
    json_lines = '{\n  "steps": [\n    1\n  ],\n  "fps": 16\n}'
    assert line_of(json_lines, ("steps", 0)) == 2
    assert line_of(json_lines, ("fps",)) == 5
