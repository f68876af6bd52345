"""A picture without contrast is a fault of its own, since nothing in it can drift, freeze or repeat."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_calibration import ball, pan, written

from sfpp_cli.evaluation.metrics.measure import measure
from sfpp_cli.evaluation.metrics.verdicts import NAMES

SIZE = (96, 64)
FPS = 16
SECONDS = 13


def judged(folder: Path, change: Callable[[Any, float], Any], content: Any = ball) -> dict[str, Any]:
    """What is measured where `change` makes each picture of a content, at its second, another."""
    pictures = content(SECONDS * FPS, FPS, SIZE, 0)
    changed = (change(picture, index / FPS) for index, picture in enumerate(pictures))
    return measure(written(folder / "video.mp4", changed, SIZE, FPS))


def fired(found: dict[str, Any]) -> list[str]:
    return [name for name in NAMES if found["verdicts"][name]["fired"]]


def plain(*color: float) -> np.ndarray:
    return np.broadcast_to(np.array(color), (SIZE[1], SIZE[0], 3))


@pytest.mark.parametrize(
    ("color", "word"),
    [((0, 0, 0), "black"), ((0.5, 0.5, 0.5), "grey"), ((1, 1, 1), "white"), ((0.1, 0.2, 0.8), "colour")],
)
def test_a_video_without_a_picture_is_blank_from_the_start(
    tmp_path: Path, color: tuple[float, ...], word: str
) -> None:
    found = judged(tmp_path, lambda picture, second: plain(*color))
    assert fired(found) == ["blank"]
    entry = found["verdicts"]["blank"]
    assert entry["onset_seconds"] == 0
    assert entry["sentence"] == f"The picture is blank, plain {word}, from 0.0 s on."
    assert entry["measure"] < 0.002 < 0.006 == entry["threshold"]
    assert entry["blank_seconds"] == SECONDS
    assert found["metrics"]["local_stability"] < 5


@pytest.mark.parametrize("content", [ball, pan])
def test_a_video_that_turns_black_is_blank_from_then_on(tmp_path: Path, content: Any) -> None:
    found = judged(tmp_path, lambda picture, second: picture * (second < 10), content)
    entry = found["verdicts"]["blank"]
    assert entry["onset_seconds"] == pytest.approx(10, abs=0.1)
    assert entry["sentence"].startswith("The picture is blank, plain black, from 10.")
    assert fired(found) == ["blank"]
    curve = found["curves"]["local_stability"]
    after = [value for at, value in zip(curve["seconds"], curve["values"], strict=True) if at > 10.2]
    assert max(after) < 5


def fog(picture: np.ndarray, second: float) -> np.ndarray:
    """An eighth of the picture's contrast is left."""
    return 0.75 + 0.125 * (picture - 0.5)


def night(picture: np.ndarray, second: float) -> np.ndarray:
    """Black but for a lamp and what it shows, dimly."""
    lit = picture * 0.1
    cv2.circle(lit, (20, 14), 2, (0.9, 0.8, 0.5), -1, cv2.LINE_AA)
    return lit


def dip(picture: np.ndarray, second: float) -> np.ndarray:
    """A fade through black: half a second down, half a second black, half a second up."""
    return picture * np.clip(abs(second - 8) * 2 - 0.5, 0, 1)


def card(picture: np.ndarray, second: float) -> np.ndarray:
    """A second of black between two pictures."""
    return picture * (not 8 <= second < 9)


def title(picture: np.ndarray, second: float) -> np.ndarray:
    """Three seconds of white writing on black."""
    if not 8 <= second < 11:
        return picture
    page = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    cv2.putText(page, "THE END", (14, 38), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(page / 255)


@pytest.mark.parametrize("change", [fog, night, dip, card, title])
def test_pictures_with_little_contrast_or_for_a_moment_without_are_not_blank(
    tmp_path: Path, change: Callable[[Any, float], Any]
) -> None:
    found = judged(tmp_path, change)
    assert not found["verdicts"]["blank"]["fired"]


def test_a_flat_video_shorter_than_the_time_it_takes_is_blank(tmp_path: Path) -> None:
    found = measure(written(tmp_path / "short.mp4", repeat(plain(0, 0, 0), 8), SIZE, FPS))
    assert found["verdicts"]["blank"]["onset_seconds"] == 0
