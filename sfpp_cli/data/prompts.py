"""Prompt files, checked whole before anything starts, and file names made of prompts. Loads no torch."""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from sfpp_cli.errors import UserError, reason
from sfpp_cli.schema import STRICT, Faults, validate

LONGEST = 10_000
"""Characters of a prompt. Encoders read 512 tokens of it, and systems limit what a program can be told."""


def _words(text: str) -> str:
    if not text.strip():
        raise ValueError("must be text that is not empty")
    if len(text) > LONGEST:
        raise ValueError(f"must have at most {LONGEST} characters, not {len(text)}")
    return text.strip()


def _path_inside(text: str) -> str:
    path = PureWindowsPath(text)  # knows both kinds of slash, and drives
    if not path.name.strip() or path.anchor or ".." in path.parts or "\0" in text:
        raise ValueError("must be a relative path that stays inside the output folder")
    return text


How = Literal["switch", "recache", "cut"]
"""What a new prompt does to the context: `sfpp_cli.core.rollout` says what each is."""


class Scene(NamedTuple):
    """A prompt and the second from which it holds."""

    at: float
    prompt: str
    how: How


@dataclass(frozen=True, config=STRICT)
class SceneLine:
    """A scene as a prompt file has it."""

    prompt: Annotated[str, AfterValidator(_words)]
    at: Annotated[float, Field(ge=0)] | None = None
    """The second at which it begins, unless the scene before it says how long that is."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Its length."""
    how: How | None = None
    """What becomes of the context; `recache` if it says nothing."""


def _some(scenes: list[SceneLine]) -> list[SceneLine]:
    if not scenes:
        raise ValueError("must hold a scene or more")
    return scenes


@dataclass(frozen=True, config=STRICT)
class PromptLine:
    """One video to make, as a line of a prompt file asks for it; None where it says nothing."""

    prompt: Annotated[str, AfterValidator(_words)]
    """Of scenes, the first one's."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Its length; it ends the last scene."""
    out: Annotated[str, AfterValidator(_path_inside)] | None = None
    """Its file, as a path inside the output folder."""
    scenes: Annotated[list[SceneLine], AfterValidator(_some)] | None = None
    """Prompts that follow each other, instead of one."""
    start: Annotated[str, AfterValidator(_words)] | None = None
    """A picture or video to go on from; its path begins at the prompt file's folder."""
    drop_start: bool | None = None
    """Whether the video begins after it."""

    @model_validator(mode="before")
    @classmethod
    def _one_prompt(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "scenes" not in values:
            return values
        if "prompt" in values:
            raise ValueError("'prompt' and 'scenes' exclude each other: put the prompt into the first scene")
        match values["scenes"]:
            case [{"prompt": str(first)}, *_] if first.strip():
                return {**values, "prompt": first}
        return {**values, "prompt": "wrong, as its scenes are, which is said of them"}

    @model_validator(mode="after")
    def _scenes_in_order(self) -> Self:
        self.timed()
        return self

    def timed(self) -> tuple[list[Scene], float | None]:
        """The scenes after the first, and the length in seconds if it is said. ValueError if they clash."""
        begins, ends = 0.0, None
        later = []
        for number, scene in enumerate(self.scenes or ()):
            name = f"'scenes[{number}]'"
            at = scene.at if scene.at is not None else ends
            if number == 0:
                if at or scene.how:
                    raise ValueError(f"{name} is the first: it begins at 0 and has no 'how'")
                at = 0.0
            elif at is None:
                raise ValueError(
                    f"{name} has no 'at', and the scene before it no 'seconds': say when it begins"
                )
            elif ends is not None and at != ends:
                raise ValueError(f"{name} begins at {at:g} s, but the scene before it ends at {ends:g} s")
            elif at <= begins:
                raise ValueError(f"{name} begins at {at:g} s, not after the one before it ({begins:g} s)")
            else:
                later.append(Scene(at, scene.prompt, scene.how or "recache"))
            begins = at
            ends = None if scene.seconds is None else at + scene.seconds
        if None not in (ends, self.seconds) and ends != self.seconds:
            raise ValueError(f"'seconds' ({self.seconds:g}) is not where the last scene ends ({ends:g} s)")
        return later, ends if self.seconds is None else self.seconds


def scenes_line(prompt: str, then: Sequence[str], how: str) -> PromptLine:
    """A line of scenes as `--then "SECONDS: PROMPT"` gives them."""
    scenes: list[dict[str, Any]] = [{"prompt": prompt}]
    for text in then:
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*s?\s*:\s*(\S.*)", text, re.DOTALL)
        if match is None:
            raise UserError(f'--then {text!r}: write it as "SECONDS: PROMPT", such as "20: the sun sets"')
        scenes.append({"prompt": match[2], "at": float(match[1]), "how": how})
    try:
        return validate(_SCHEMA, {"scenes": scenes})
    except Faults as faults:
        raise UserError("\n".join(f"--then: {fault.text}" for fault in faults.faults)) from None


_SCHEMA = TypeAdapter(PromptLine)
_COMMENT = re.compile(r"#+(\s|$)")
"""Without the blank it is a prompt, such as `#1 fan cheering`."""


def read_prompts(path: Path) -> list[PromptLine]:
    """The videos that a UTF-8 prompt file asks for, in order.

    `.txt`: a prompt a line; blank lines and comments, which begin with `#` and a blank, are skipped.
    `.jsonl`: an object a line with `prompt` and, as wanted, `seed`, `seconds` and `out`. UserError names all
    faults, a line a fault.
    """
    kind = path.suffix.lower()
    if kind not in (".txt", ".jsonl"):
        raise UserError(f"{path}: unknown kind of prompt file '{path.suffix}'; use .txt or .jsonl")
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); give the path of a prompt file") from error

    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16, as PowerShell writes text: save it as UTF-8")
    lines: dict[int, PromptLine] = {}
    faults: list[tuple[int, str]] = []
    for number, raw in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            text = raw.decode().strip()
            if text and kind == ".jsonl":
                lines[number] = validate(_SCHEMA, text)
            elif text and not _COMMENT.match(text):
                lines[number] = validate(_SCHEMA, {"prompt": text})
        except UnicodeDecodeError:
            faults.append((number, "not UTF-8 text"))
        except Faults as found:
            faults += [(number, fault.text) for fault in found.faults]
    faults += _shared_names(lines)
    if faults:
        raise UserError("\n".join(f"{path}:{number}: {text}" for number, text in sorted(faults)))
    if not lines:
        raise UserError(f"{path} holds no prompts; write one a line")
    return list(lines.values())


def _shared_names(lines: Mapping[int, PromptLine]) -> Iterator[tuple[int, str]]:
    """Second videos of a name; as Windows compares names, so that a file made on Linux works everywhere."""
    owners: dict[PureWindowsPath, int] = {}
    for number, line in lines.items():
        if line.out is None:
            continue
        owner = owners.setdefault(PureWindowsPath(line.out), number)
        if owner != number:
            yield number, f"'out' '{line.out}' is taken by line {owner}"


def slug(prompt: str, limit: int = 60) -> str:
    """A file name, without extension, that is safe everywhere: lower-case ASCII letters, digits, hyphens.

    Accents are dropped, letters without a Latin form too; a prompt of nothing else becomes `prompt-` and a
    hash. At most `limit` characters (16 or more), cut between words where possible. No underscores: VBench's
    tools split names there.
    """
    text = unicodedata.normalize("NFKD", prompt).casefold()
    name = "-".join("".join(map(_name_part, text)).split())
    if len(name) > limit:
        name = name[: limit + 1].rpartition("-")[0] or name[:limit]
    if not name:
        return f"prompt-{hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    reserved = re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", name)  # names of devices on Windows
    return f"prompt-{name}" if reserved else name


def _name_part(character: str) -> str:
    """The character itself, nothing for what belongs inside a word, a space for what stands between words."""
    if character.isascii() and character.isalnum():
        return character
    return "" if character.isalnum() or unicodedata.combining(character) or character in "'\u2019" else " "
