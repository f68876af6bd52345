"""The exceptions that people are meant to read, and the phrases that their messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NOT_FINITE = (
    "{} not finite (NaN or infinity), which would be black pictures: the precision is too small for these "
    "weights, or they are damaged; try --dtype bfloat16 or float32"
)


class UserError(Exception):
    """Something the user can fix, in one line: what is wrong, why, and what to do. Exit code 2."""


class InUse(UserError):
    """Another living process works on it."""


class Interrupted(Exception):
    """Ctrl-C during work that can be continued; the line says how. Exit code 130."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's or the GPU's memory was asked for more than it has."""
    # By name: torch need not be loaded to know its error, and has none of its own for the CPU's memory.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def reason(error: BaseException) -> str:
    """Why something failed, short enough for brackets: the system's words, or a library's first sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    sentence = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".: ")
    return sentence or type(error).__name__


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the known word nearest to a misspelt one, or nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
