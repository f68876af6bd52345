"""Results as JSON text: what is not JSON made so, and laid out so that people can look at it and curves take little space."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """JSON without NaN, which is not JSON, and without numpy's scalars."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any, indent: str = "") -> str:
    """Indented, an entry a line; but a list that holds neither lists nor objects, such as a curve, is one line without spaces."""
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
