"""What a scene of the landscape is called, in several ways, and how to read such a sentence back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sfpp_cli.data.landscape.palette import BALLOONS, LANDS, TIMES

DIRECTIONS = ("left", "right")
PACES = ("slowly", "fast")

SYNONYMS = {
    "dawn": ("at dawn", "at sunrise", "in the early morning"),
    "noon": ("at noon", "at midday", "in bright daylight"),
    "sunset": ("at sunset", "at dusk", "in the evening sun"),
    "night": ("at night", "under the moon", "in the moonlight"),
    "spring": ("green hills", "green spring hills", "green meadows"),
    "autumn": ("autumn hills", "golden autumn hills", "hills in autumn"),
    "snow": ("snowy mountains", "snow-covered mountains", "winter mountains"),
    "desert": ("a desert", "desert dunes", "sand dunes"),
    "slowly": ("slowly", "gently"),
    "fast": ("fast", "quickly"),
}
TEMPLATES = (
    "a {balloon} hot-air balloon drifts over {land} {time}, the camera pans {pace} to the {direction}",
    "a {balloon} balloon over {land} {time}, panning {pace} to the {direction}",
    "{land} {time} with a {balloon} hot-air balloon, the camera moves {pace} to the {direction}",
    "the camera glides {pace} to the {direction} past {land} {time}, a {balloon} balloon floats in the sky",
)
VARIANTS = 72
"""So many sentences there are for one scene: variants 0 to 71."""


@dataclass(frozen=True)
class Attributes:
    """All that a caption tells of a scene, in the words of the tables."""

    time: str
    land: str
    balloon: str
    direction: str
    pace: str


def caption(scene: Attributes, variant: int = 0) -> str:
    """The scene in a sentence; `variant` chooses its form and the synonyms, 0 is the plain one."""
    form, rest = _split(variant, len(TEMPLATES))
    words = {}
    for name, value in (("land", scene.land), ("time", scene.time), ("pace", scene.pace)):
        choices = SYNONYMS[value]
        choice, rest = _split(rest, len(choices))
        words[name] = choices[choice]
    return TEMPLATES[form].format(balloon=scene.balloon, direction=scene.direction, **words)


def parse_caption(text: str) -> Attributes:
    """What a caption, in any of its forms, tells. Raises ValueError for a sentence of another world."""
    return Attributes(
        time=_find(text, "time of day", {name: SYNONYMS[name] for name in TIMES}),
        land=_find(text, "land", {name: SYNONYMS[name] for name in LANDS}),
        # "green" may name the hills as well, so the balloon's colour is read beside the balloon.
        balloon=_find(
            text, "balloon", {name: (f"{name} balloon", f"{name} hot-air balloon") for name in BALLOONS}
        ),
        direction=_find(text, "direction", {name: (f"to the {name}",) for name in DIRECTIONS}),
        pace=_find(text, "pace", {name: SYNONYMS[name] for name in PACES}),
    )


def _find(text: str, what: str, names: dict[str, tuple[str, ...]]) -> str:
    found = [
        name
        for name, words in names.items()
        if any(re.search(rf"\b{re.escape(word)}\b", text) for word in words)
    ]
    if len(found) != 1:
        raise ValueError(f"{what}: {len(found)} found in {text!r}, one expected of {', '.join(names)}")
    return found[0]


def _split(number: int, count: int) -> tuple[int, int]:
    return number % count, number // count
