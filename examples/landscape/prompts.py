"""The captions that students learn on, and those that are kept from them.

    python examples/landscape/prompts.py        # writes the three files beside it anew

Every scene that can be told, once, shuffled, each in a form of its own: 272 to learn on, 16 to tell when to
stop (`validation.txt`), and 32 to measure with (`test.txt`), which nothing is chosen by. The teacher has seen
all of these scenes told, in other forms and with other terrain.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from sfpp_cli.data.landscape import Attributes
from sfpp_cli.data.landscape.captions import DIRECTIONS, PACES, VARIANTS, caption
from sfpp_cli.data.landscape.palette import BALLOONS, LANDS, TIMES

HERE = Path(__file__).parent
SEED = 3
"""Of the shuffle."""
COUNTS = {"prompts": 272, "validation": 16, "test": 32}


def told() -> dict[str, list[str]]:
    """The captions of each file."""
    dice = random.Random(SEED)
    scenes = [Attributes(*words) for words in itertools.product(TIMES, LANDS, BALLOONS, DIRECTIONS, PACES)]
    dice.shuffle(scenes)
    captions = iter([caption(scene, dice.randrange(VARIANTS)) for scene in scenes])
    return {name: list(itertools.islice(captions, count)) for name, count in COUNTS.items()}


def read(name: str) -> list[str]:
    """The captions in one of the files."""
    return (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    for name, captions in told().items():
        (HERE / f"{name}.txt").write_text("".join(f"{line}\n" for line in captions), encoding="utf-8")
