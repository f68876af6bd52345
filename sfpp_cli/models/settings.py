"""`sfpp.json`: the few numbers of a student that diffusers' folders have no place for. Importing this loads no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from sfpp_cli.errors import UserError, suggest
from sfpp_cli.files import atomic_write

SETTINGS = "sfpp.json"
TIMESTEPS = 1000
_LEAST = {"chunk": 1, "sink": 0, "horizon": 1, "fps": 1, "width": 1, "height": 1, "text_length": 1}


@dataclass(frozen=True)
class Settings:
    """How a student was trained, hence how it wants to be run. Frames are latent frames; the defaults are Wan 1.3B's."""

    chunk: int = 3
    context: int = 21
    sink: int = 0
    shift: float = 5.0
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    horizon: int = 21
    """Longest rollout seen in training."""
    fps: int = 16
    width: int = 832
    height: int = 480
    text_length: int = 512
    prompt: str = ""
    """What `sfpp generate` shows when it is given no prompt."""

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Raises UserError with all that is wrong: unknown keys, types, ranges."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): restore it, or write it anew with `sfpp weights convert`"
            ) from error
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold one JSON object, not a {type(values).__name__}")
        try:
            return cls().changed(values)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    def changed(self, values: Mapping[str, Any]) -> Settings:
        """These settings with other values, as JSON has them. Raises ValueError with all that is wrong with them."""
        hints = get_type_hints(Settings)
        fitting = {key: value for key, value in values.items() if key in hints and _fits(hints[key], value)}
        problems = [_misfit(key, value, hints) for key, value in values.items() if key not in fitting]
        as_tuple = {key: tuple(value) for key, value in fitting.items() if isinstance(value, list)}
        settings = replace(self, **(fitting | as_tuple))
        problems += settings._out_of_range()
        if problems:
            raise ValueError("; ".join(problems))
        return settings

    def write(self, path: Path) -> None:
        atomic_write(path, json.dumps(asdict(self), indent=2) + "\n")

    def _out_of_range(self) -> list[str]:
        values = asdict(self)
        problems = [
            f"'{key}' must be {least} or more, not {values[key]}"
            for key, least in _LEAST.items()
            if values[key] < least
        ]
        if self.context < self.sink + self.chunk:
            problems.append(
                f"'context' ({self.context}) must hold the sink ({self.sink}) and a chunk ({self.chunk})"
            )
        if not 0 < self.shift < math.inf:
            problems.append(f"'shift' must be above 0, not {self.shift}")
        inside = all(0 < step <= TIMESTEPS for step in self.steps)
        if not self.steps or not inside or any(later >= step for step, later in pairwise(self.steps)):
            problems.append(
                f"'steps' must descend from at most {TIMESTEPS} to at least 1, not {list(self.steps)}"
            )
        return problems


def _fits(hint: Any, value: object) -> bool:
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(type(item) is int for item in value)
    return type(value) is hint or (hint is float and type(value) is int)


def _misfit(key: str, value: object, hints: Mapping[str, Any]) -> str:
    if key in hints:
        kind = "a list of int" if get_origin(hints[key]) is tuple else hints[key].__name__
        return f"'{key}' must be {kind}, not {value!r}"
    return f"unknown key '{key}'" + (suggest(key, hints) or f" (known: {', '.join(hints)})")
