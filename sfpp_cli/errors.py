"""The exceptions that people are meant to read, and the phrases that their messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix, in one line: what is wrong, why, and what to do. Exit code 2."""


class InUse(UserError):
    """Another living process works on it."""


class Interrupted(Exception):
    """Ctrl-C during work that can be continued; the line says how. Exit code 130."""


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
