"""Text from elsewhere as it may be shown: prompts, names of files and models, what files and services say."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 1000
"""Characters of a line that are shown."""
_ENDS = 250
_JOINERS = "\u200c\u200d"
"""Invisible, and part of words and emoji; they change nothing around them."""
_PLAIN = re.compile(r"[\n\t\x20-\x7e]*")


def visible(text: str, longest: int | None = LONGEST) -> str:
    """The text with what a terminal would obey in visible form (`\\x1b`), and its lines cut in the middle.

    Control characters and escapes, marks that turn the direction of writing, halves of surrogate pairs, and
    separators that some programs take for a line's end. Line breaks stay, since what is printed has lines.
    The end of a line stays too, since an error says there what to do.
    """
    if not _PLAIN.fullmatch(text):
        text = "".join(map(_shown, text))
    if longest is None or len(text) <= longest:
        return text
    return "\n".join(
        line if len(line) <= longest else f"{line[: longest - _ENDS]} ... {line[-_ENDS:]}"
        for line in text.split("\n")
    )


def _shown(character: str) -> str:
    kind = unicodedata.category(character)
    obeyed = kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
    return ascii(character)[1:-1] if obeyed and character not in "\n\t" else character
