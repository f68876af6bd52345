"""Typed recipes: frozen dataclasses read from TOML. An unknown key is an error that suggests the right one; all come at once."""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sfpp_cli.core.dmd import DMDConfig
from sfpp_cli.core.trainer import Training
from sfpp_cli.errors import UserError
from sfpp_cli.models.settings import Settings

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class TeacherData:
    """Captioned latents for flow matching."""

    latents: str
    mid_stream: float = 0.0
    text_dropout: float = 0.1


@dataclass(frozen=True)
class TeacherRecipe:
    """`sfpp train` by flow matching: a teacher from a store of latents."""

    objective: Literal["flow-matching"]
    model: str
    data: TeacherData
    training: Training
    shift: float = 3.0
    train_text_encoder: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """ODE trajectories of the teacher (arXiv 2510.02283, section 3.1)."""

    prompts: str
    count: int
    folder: str
    guidance: float = 4.0
    negative_prompt: str = ""
    """What guidance leads away from."""
    sampling_steps: int = 48
    batch: int = 8


@dataclass(frozen=True)
class Preview:
    """What is made of the same prompts and seeds again and again, to see a student change."""

    every: int = 0
    """Steps between two previews; none if 0."""
    seconds: float = 10.0
    count: int = 4
    """So many prompts, the first of the recipe's."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.count < 1 or not self.seconds > 0:
            raise ValueError("'every' must be 0 or more, 'count' 1 or more, 'seconds' above 0")


@dataclass(frozen=True)
class StudentRecipe:
    """`sfpp distill`: ODE pairs from a teacher, then trajectory regression of a causal student."""

    objective: Literal["ode"]
    model: str
    pairs: Pairs
    training: Training
    init: str | None = None
    """Causal weights to start from; the teacher's if not given."""
    text_store: str | None = None
    preview: Preview = Preview()
    seed: int = 0


@dataclass(frozen=True)
class MatchingRecipe:
    """`sfpp train` by distribution matching on the student's own rollouts: Self-Forcing and Self-Forcing++."""

    objective: Literal["dmd"]
    model: str
    prompts: str
    dmd: DMDConfig
    training: Training
    student: str | None = None
    """Causal weights to start from; the model's own if not given."""
    context: int | None = None
    """Latent frames that the rolling cache holds (the paper's L); as many as the student's settings say if not given."""
    lora_rank: int = 0
    """Train adapters of this rank instead of all weights, if above 0."""
    text_store: str | None = None
    """Folder for the prompts' embeddings, computed once; in memory if not given."""
    preview: Preview = Preview()
    seed: int = 0

    def rolled(self, settings: Settings) -> Settings:
        """The student's settings, with what the recipe changes about its rollouts. UserError if they do not fit together."""
        try:
            return settings if self.context is None else settings.changed({"context": self.context})
        except ValueError as error:
            raise UserError(f"context: {error}") from None


Recipe = TeacherRecipe | StudentRecipe | MatchingRecipe


def read_recipe(
    path: Path, kind: type[T], *others: type[U], overrides: dict[str, str] | None = None
) -> T | U:
    """Parse a TOML file into `kind`, or the one of it and `others` whose objective it names; UserError with all that is wrong.

    `overrides` are dotted keys with values in TOML's (or plain text) form.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"no recipe at {path} ({error.strerror}): give the path of a TOML file, such as those in examples/"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    for key, value in (overrides or {}).items():
        _set(table, key.split("."), _value(value))
    problems: list[str] = []
    objectives = {get_args(get_type_hints(kind)["objective"])[0]: kind for kind in (kind, *others)}
    if others and table.get("objective") not in objectives:
        raise UserError(
            f"{path}: 'objective' must be one of {', '.join(map(repr, objectives))}, not {table.get('objective')!r}"
        )
    recipe = _build(objectives.get(table.get("objective"), kind), table, "", problems)
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return recipe  # type: ignore[no-any-return]


def write_recipe(recipe: Any, path: Path) -> None:
    """The resolved recipe as TOML, so that a run folder tells how it was made."""
    top: list[str] = []
    tables: list[str] = []
    for key, value in asdict(recipe).items():
        if isinstance(value, dict):
            tables += ["", f"[{key}]", *(_line(k, v) for k, v in value.items() if v is not None)]
        elif value is not None:
            top.append(_line(key, value))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(top + tables) + "\n", encoding="utf-8")


def _line(key: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"{key} = {text}"


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(table: dict[str, Any], keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UserError(
                f"--set {'.'.join(keys)}: '{'.'.join(keys[:depth])}' is a value, no key is below it"
            )
    table[keys[-1]] = value


def _build(kind: Any, table: dict[str, Any], where: str, problems: list[str]) -> Any:
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in sorted(table.keys() - known.keys()):
        near = difflib.get_close_matches(key, known, n=1)
        problems.append(
            f"unknown key '{where}{key}'"
            + (f", did you mean '{near[0]}'?" if near else f" (known: {', '.join(known)})")
        )
    values = {}
    for name, spec in known.items():
        if name in table:
            values[name] = _check(hints[name], table[name], where + name, problems)
        elif spec.default is MISSING and spec.default_factory is MISSING:
            problems.append(f"'{where}{name}' is missing")
    if problems:
        return None
    try:
        return kind(**values)
    except ValueError as error:
        problems.append(f"{where.rstrip('.') or 'recipe'}: {error}")
        return None


def _check(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if is_dataclass(hint):
        if isinstance(value, dict):
            return _build(hint, value, f"{where}.", problems)
    elif get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        problems.append(f"'{where}' must be one of {', '.join(map(repr, get_args(hint)))}, not {value!r}")
        return None
    elif get_origin(hint) is tuple:
        if isinstance(value, list):
            inner = [a for a in get_args(hint) if a is not Ellipsis]
            if Ellipsis not in get_args(hint) and len(value) != len(inner):
                problems.append(f"'{where}' must have {len(inner)} values, not {value!r}")
                return None
            return tuple(
                _check(inner[min(i, len(inner) - 1)], v, f"{where}[{i}]", problems)
                for i, v in enumerate(value)
            )
    elif get_origin(hint) is UnionType:
        return _check(next(a for a in get_args(hint) if a is not type(None)), value, where, problems)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    problems.append(f"'{where}' must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return None
