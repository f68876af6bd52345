"""Batch prompt files, checked whole before anything starts, and file names made of prompts."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from sfpp_cli.errors import UserError, reason, suggest


@dataclass(frozen=True)
class PromptLine:
    """One video to make: `seconds` is its length, `out` a path inside the output directory, `line` its place in the file."""

    prompt: str
    seed: int | None = None
    seconds: float | None = None
    out: str | None = None
    line: int = 0


def read_prompts(path: Path) -> list[PromptLine]:
    """The videos that a UTF-8 prompt file asks for, in order.

    `.txt`: a prompt a line; blank lines and lines that start with `#` are skipped. `.jsonl`: an object a line with `prompt` and,
    as wanted, `seed`, `seconds` and `out`; null means not given. UserError names all bad lines at once.
    """
    parse = {".txt": _parse_text, ".jsonl": _parse_json}.get(path.suffix.lower())
    if parse is None:
        raise UserError(f"{path}: unknown kind of prompt file {path.suffix!r}; use .txt or .jsonl")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); give the path of a prompt file") from error

    lines: list[PromptLine] = []
    problems: list[str] = []
    owners: dict[PureWindowsPath, int] = {}
    for number, raw in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            line = parse(raw.decode().strip(), number)
            if line:
                _claim(line, owners)
                lines.append(line)
        except UnicodeDecodeError:
            problems.append(f"line {number}: not UTF-8 text")
        except _BadLine as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    if not lines:
        raise UserError(f"{path} holds no prompts; write one a line")
    return lines


def slug(prompt: str, limit: int = 60) -> str:
    """A file name, without extension, that is safe everywhere: lower-case ASCII letters, digits and single hyphens between them.

    Accents are dropped, letters without a Latin form too; a prompt of nothing else becomes `prompt-` and a hash. At most `limit`
    characters, cut between words where possible; 16 or more. No underscores: VBench's tools split names there.
    """
    text = unicodedata.normalize("NFKD", prompt).casefold()
    words = "".join(_name_part(character) for character in text).split()
    name = "-".join(words)
    if len(name) > limit:
        name = name[: limit + 1].rpartition("-")[0] or name[:limit]
    if not name:
        return f"prompt-{hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return f"prompt-{name}" if _WINDOWS_DEVICE.fullmatch(name) else name


_WINDOWS_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)\d")


def _name_part(character: str) -> str:
    """The character itself, nothing for what belongs inside a word, a space for what stands between words."""
    if character.isascii() and character.isalnum():
        return character
    return "" if character.isalnum() or unicodedata.combining(character) or character in "'\u2019" else " "


class _BadLine(Exception):
    """All that is wrong with one line."""


def _parse_text(text: str, number: int) -> PromptLine | None:
    return PromptLine(text, line=number) if text and not text.startswith("#") else None


def _parse_json(text: str, number: int) -> PromptLine | None:
    if not text:
        return None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise _BadLine(f"broken JSON, {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise _BadLine("JSON that is too large to read") from error
    if not isinstance(record, dict):
        raise _BadLine('not an object such as {"prompt": "..."}')
    given = {key: value for key, value in record.items() if value is not None}
    problems = [_unknown(key) for key in given if key not in _RULES]
    problems += [
        f"{key} must be {what}"
        for key, (holds, what) in _RULES.items()
        if key in given and not holds(given[key])
    ]
    if "prompt" not in given:
        problems.append("no prompt")
    if problems:
        raise _BadLine(", ".join(problems))
    seconds = given.get("seconds")
    return PromptLine(
        prompt=given["prompt"].strip(),
        seed=given.get("seed"),
        seconds=None if seconds is None else float(seconds),
        out=given.get("out"),
        line=number,
    )


def _claim(line: PromptLine, owners: dict[PureWindowsPath, int]) -> None:
    """Refuse a second video of the same name; as Windows compares names, so that a file made on Linux works everywhere."""
    if (
        line.out is not None
        and (owner := owners.setdefault(PureWindowsPath(line.out), line.line)) != line.line
    ):
        raise _BadLine(f"out {line.out!r} is taken by line {owner}")


def _unknown(key: str) -> str:
    return f"unknown key '{key}'" + (suggest(key, _RULES) or f" (known: {', '.join(_RULES)})")


def _is_text(value: object) -> bool:
    """Not blank, and free of halves of surrogate pairs, which JSON can smuggle in and no tokenizer takes."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_duration(value: object) -> bool:
    return type(value) in (int, float) and 0 < value <= sys.float_info.max  # type: ignore[operator]


def _stays_inside(value: object) -> bool:
    if not isinstance(value, str) or not _is_text(value) or "\0" in value:
        return False
    path = PureWindowsPath(value)  # knows both kinds of slash, and drives
    return bool(path.name) and not path.anchor and ".." not in path.parts


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "prompt": (_is_text, "text that is not empty"),
    "seed": (_is_seed, "a whole number from 0 to 2^63 - 1"),
    "seconds": (_is_duration, "a number above 0"),
    "out": (_stays_inside, "a relative path that stays inside the output directory"),
}
