"""What is written down of results.json, held against a real one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import sfpp_cli.evaluation
from sfpp_cli.evaluation import Parameters
from sfpp_cli.evaluation.metrics.verdicts import NAMES
from sfpp_cli.evaluation.run import EvaluateOptions, run
from sfpp_cli.evaluation.targets import Target
from sfpp_cli.progress import Silent
from sfpp_cli.video.writer import VideoWriter

FILE = Path(sfpp_cli.evaluation.__file__).with_name("results.schema.json")
SCHEMA: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))


def closed(part: Any) -> Any:
    """The schema without room for keys that it does not name."""
    if isinstance(part, list):
        return [closed(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    named = {"additionalProperties": False} if part.get("type") == "object" else {}
    return named | {key: closed(value) for key, value in part.items()}


def subschemas(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
    for entry in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from subschemas(entry)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """results.json of two systems with a prompt, beside an earlier report, with scenes and a broken file."""
    folder = tmp_path_factory.mktemp("schema")
    for system in ("one", "two"):
        with VideoWriter(folder / f"{system}.mp4", (64, 48), 8) as writer:
            for number in range(20):
                writer.write(np.full((1, 48, 64, 3), 5 * number, np.uint8))
    (folder / "text.mp4").write_text("no video")
    systems = [Target(folder / f"{name}.mp4", name, "fog") for name in ("one", "two")]
    before = EvaluateOptions(out=folder / "before", workers=1, cache=False, scenes=(1.0,))
    now = replace(before, out=folder / "now", baseline=folder / "before", reference=folder / "one.mp4")
    run(systems, [], Parameters(), before, Silent(), "sfpp evaluate")
    run([*systems, Target(folder / "text.mp4")], [], Parameters(), now, Silent(), "sfpp evaluate")
    result: dict[str, Any] = json.loads((folder / "now/results.json").read_text())
    return result


def test_real_results_follow_the_schema_and_hold_nothing_else(found: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert found["schema"] == SCHEMA["$id"]
    Draft202012Validator(closed(SCHEMA)).validate(found)
    assert found["baseline"]["systems"].keys() == {"one", "two"}
    assert found["reference"]["videos"] == 1
    known = SCHEMA["properties"]["videos"]["items"]["properties"]
    [video, _] = found["videos"]
    for part in ("metrics", "curves", "verdicts"):
        named = {name for name in video[part] if not name.endswith("_off_reference")}
        assert named <= known[part]["properties"].keys(), "each has its description"
    assert video["verdicts"].keys() == set(NAMES)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), "sfpp-evaluation/2"),
        (("videos", 0, "metrics", "luma"), "bright"),
        (("videos", 0, "verdicts", "flicker", "fired"), 1),
        (("videos", 0, "curves", "luma", "values"), None),
        (("comparison", "systems", "one", "videos"), 1.5),
        (("failed", 0, "error"), None),
    ],
)
def test_what_is_not_as_it_should_be_is_noticed(
    found: dict[str, Any], place: tuple[Any, ...], value: Any
) -> None:
    spoilt = copy.deepcopy(found)
    holder = spoilt
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    assert not Draft202012Validator(SCHEMA).is_valid(spoilt)
    assert Draft202012Validator(SCHEMA).is_valid(found | {"added later": 1})


def test_every_reference_leads_somewhere() -> None:
    references = {part["$ref"] for part in subschemas(SCHEMA) if "$ref" in part}
    assert {reference.removeprefix("#/$defs/") for reference in references} == SCHEMA["$defs"].keys()
