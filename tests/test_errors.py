"""The phrases that messages share."""

from __future__ import annotations

import errno
import os

import pytest

from sfpp_cli.errors import reason, suggest


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.mp4"), "No space left on device"),
        (OSError("ffmpeg stopped"), "ffmpeg stopped"),
        (ValueError("First sentence. Second one.\nAnother line."), "First sentence"),
        (ValueError("version 5.1 is needed:\n"), "version 5.1 is needed"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_reason_is_short(error: Exception, expected: str) -> None:
    assert reason(error) == expected


def test_only_a_near_word_is_suggested() -> None:
    assert suggest("contxt", {"chunk": 1, "context": 2}) == "; did you mean 'context'?"
    assert suggest("zzz", ["chunk", "context"]) == ""
