"""What files may hold: checked by pydantic, all faults told at once and in plain words. Loads no torch.

A schema is a frozen dataclass of pydantic's with `STRICT` as its configuration. A validator raises
ValueError: the key is put before a message that begins with "must"; any other is taken for a whole sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from sfpp_cli.errors import UserError, suggest

T = TypeVar("T")
Keys = tuple[str | int, ...]
"""Where a value stands: ("training", "betas", 1)."""

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
"""No unknown keys, no numbers in quotes, no infinity; fields are described by the docstrings below them."""

_PLAIN = {
    "Input should be": "must be",
    "Tuple should have": "must have",
    "items after validation": "values",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid array": "a list",
    "an object": "a table of keys and values",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}
"""pydantic's words -> ours."""


class Fault(NamedTuple):
    """One thing that is wrong, and where."""

    keys: Keys
    text: str


class Faults(ValueError):
    """All that is wrong with some values."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(fault.text for fault in faults))
        self.faults = faults

    def of(self, file: Path, line: Callable[[Keys], int | None] = lambda keys: None) -> UserError:
        """The error to raise about a file: a line a fault, `file:line: fault` where `line` knows the line."""
        places = [line(fault.keys) for fault in self.faults]
        return UserError(
            "\n".join(
                f"{file}: {fault.text}" if place is None else f"{file}:{place}: {fault.text}"
                for fault, place in zip(self.faults, places, strict=True)
            )
        )


def validate(schema: TypeAdapter[T], values: str | Mapping[str, Any]) -> T:
    """JSON text, or values as JSON and TOML have them, as what the schema describes. Raises Faults."""
    text = values if isinstance(values, str) else json.dumps(values, default=str)
    try:
        return schema.validate_json(text)
    except ValidationError as error:
        tree = schema.json_schema()
        raise Faults([_fault(detail, tree) for detail in error.errors(include_url=False)]) from None


def line_of(text: str, keys: Keys) -> int | None:
    """The line, from 1, on which TOML, or JSON with a key a line, sets a value or opens a table; or None."""
    names = [str(key) for key in keys if isinstance(key, str)]
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.fullmatch(r"\s*\[([\w\s.\"'-]+)\]\s*(#.*)?", line)
        if header:
            table = [name.strip(" \"'") for name in header[1].split(".")]
            if table == names:
                return number
        key = re.match(r"\s*[\"']?([\w-]+)[\"']?\s*[=:]", line)
        if key and [*table, key[1]] == names:
            return number
    return None


def _fault(detail: ErrorDetails, tree: Mapping[str, Any]) -> Fault:
    """A complaint of pydantic's in our words."""
    keys, known = _place(detail["loc"], tree)
    name = _dotted(keys)
    match detail["type"]:
        case "json_invalid":
            text = f"broken JSON: {detail['ctx']['error']}".replace(" at line 1 column", " at column")
        case "missing":
            text = f"'{name}' is missing"
        case "unexpected_keyword_argument":
            text = f"unknown key '{name}'" + (
                suggest(str(keys[-1]), known) or f" (known: {', '.join(known)})"
            )
        case "union_tag_invalid" | "union_tag_not_found":
            tags = ", ".join(f"'{tag}'" for tag in tree["discriminator"]["mapping"])
            keys = (tree["discriminator"]["propertyName"],)
            text = f"'{keys[0]}' must be one of {tags}, not {_shown(detail['input'].get(keys[0]))}"
        case "value_error":
            text = str(detail["ctx"]["error"])
            if text.startswith("must"):
                text = f"'{name}' {text}"
            elif isinstance(detail["input"], dict) and keys:
                text = f"{name}: {text}"
        case kind:
            text = detail["msg"]
            for theirs, ours in _PLAIN.items():
                text = text.replace(theirs, ours)
            if kind not in ("too_long", "too_short"):  # which say already how many there are
                text += f", not {_shown(detail['input'])}"
            text = f"'{name}' {text}" if keys else text
    return Fault(keys, text)


def _place(location: Keys, tree: Mapping[str, Any]) -> tuple[Keys, list[str]]:
    """The keys of a location, without the tags of unions that pydantic adds, and the keys known there."""
    keys: list[str | int] = []
    node = tree
    known: list[str] = []
    for step in location:
        tags = node.get("discriminator", {}).get("mapping", {})
        if step in tags:
            node = _resolved({"$ref": tags[step]}, tree)
            continue
        keys.append(step)
        known = list(node.get("properties", {}))
        node = _resolved(node.get("properties", {}).get(step, {}), tree)
    return tuple(keys), known


def _resolved(node: Mapping[str, Any], tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A JSON schema's node, or the definition that it refers to."""
    definition: Mapping[str, Any] = tree["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    return definition


def _dotted(keys: Keys) -> str:
    """("training", "betas", 1) -> `training.betas[1]`."""
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return name.removeprefix(".")


def _shown(value: object) -> str:
    """A value as its file has it, short enough for a line."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
