"""What files may hold: checked by pydantic, all faults told at once and in plain words. Loads no torch.

A schema is a frozen dataclass of pydantic's with `STRICT` as its configuration. A validator raises
ValueError: the key is put before a message that begins with "must"; any other is taken for a whole sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from sfpp_cli.errors import UserError, suggest

T = TypeVar("T")
Keys = tuple[str | int, ...]
"""Where a value stands: ("training", "betas", 1)."""

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
"""No unknown keys, no numbers in quotes, no infinity; fields are described by the docstrings below them."""

Count = Annotated[int, Field(ge=1, lt=2**31)]
"""How many of something: steps, frames."""
Number = Annotated[int, Field(ge=0, lt=2**31)]
"""A count that may be none."""
AtOnce = Annotated[int, Field(ge=1, le=2**20)]
"""How many of something that is held, or listed, at once."""
Rate = Annotated[float, Field(gt=0, le=1e6)]
"""A learning rate, or what else is small and above 0."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
Guidance = Annotated[float, Field(ge=-1e3, le=1e3)]


def _path(name: str) -> str:
    if "\0" in name or any(len(part.encode("utf-8", "replace")) > 255 for part in name.split("/")):
        raise ValueError("must be a path, without NUL, of names of at most 255 bytes")
    return name


Name = Annotated[str, AfterValidator(_path)]
"""A path, or what else names a model."""
Place = Annotated[Name, Field(min_length=1)]
"""A file or a folder."""

LARGEST_JSON = 2**26
"""Bytes of a JSON file that is read whole: no settings, index or description comes near."""

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
        names = [str(file) if place is None else f"{file}:{place}" for place in places]
        pairs = zip(names, self.faults, strict=True)
        return UserError("\n".join(f"{name}: {fault.text}" for name, fault in pairs))


def validate(schema: TypeAdapter[T], values: str | Mapping[str, Any]) -> T:
    """JSON text, or values as JSON and TOML have them, as what the schema describes. Raises Faults."""
    text = values if isinstance(values, str) else json.dumps(values, default=str)
    try:
        return schema.validate_json(text)
    except ValidationError as error:
        tree = schema.json_schema()
        raise Faults([_fault(detail, tree) for detail in error.errors(include_url=False)]) from None


def load_json(path: Path) -> Any:
    """What a JSON file from elsewhere holds. OSError or ValueError, whose text says what is wrong with it."""
    if path.stat().st_size > LARGEST_JSON or not path.is_file():
        raise ValueError(f"no regular file of at most {LARGEST_JSON} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
    keys = detail["loc"]
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
    match detail["type"]:
        case "json_invalid":
            text = f"broken JSON: {detail['ctx']['error']}".replace(" at line 1 column", " at column")
        case "missing":
            text = f"'{name}' is missing"
        case "unexpected_keyword_argument":
            known = _known(keys, tree)
            near = suggest(str(keys[-1]), known)
            text = f"unknown key '{name}'" + (near or f" (known: {', '.join(known)})")
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


def _known(keys: Keys, tree: Mapping[str, Any]) -> list[str]:
    """The keys that a JSON schema knows where the last of these stands."""
    node = tree
    known: Mapping[str, Any] = {}
    for key in keys:
        known = node.get("properties", {})
        node = node.get("items", {}) if isinstance(key, int) else known.get(str(key), {})
        node = node.get("anyOf", [node])[0]  # the other is null
        if "$ref" in node:
            node = tree["$defs"][node["$ref"].rpartition("/")[2]]
    return list(known)


def _shown(value: object) -> str:
    """A value as its file has it, short enough for a line."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
