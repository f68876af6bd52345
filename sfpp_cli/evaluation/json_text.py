"""Results as JSON text: plain values, laid out for people to look at, with curves on one line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def plain(value: Any, digits: int | None = None) -> Any:
    """The value as JSON has it: no NaN, which becomes null, no tuples, paths or numpy scalars. `digits`:
    significant digits that are kept of numbers, all by default."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, digits) for entry in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), digits)
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if digits is None else float(f"{value:.{digits}g}")


def json_text(value: Any, indent: str = "") -> str:
    """Indented, a line for each entry; but a list of plain values, such as a curve, is one dense line."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        entries = [f"{json.dumps(key)}: {json_text(entry, inner)}" for key, entry in value.items()]
    elif isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        entries = [json_text(entry, inner) for entry in value]
    else:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = f",\n{inner}".join(entries)
    return f"{opening}\n{inner}{lines}\n{indent}{closing}"
