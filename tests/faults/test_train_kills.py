"""A run killed at every touch of a file, once or twice, ends as the run that nothing disturbed.

All its files: weights, optimiser, averages, log; and nothing else is left in its folder. The quick suite
takes every eleventh touch, `-m slow` all of them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from typing import Literal

import pytest
from killed import kill_at_touch
from toy_training import TRAINING, assert_equal, contents, metrics, train

from sfpp_cli.core import checkpoint

Saving = Literal["waiting", "background"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole")
    train(run)
    return run


def check_kill(run: Path, whole: Path, touch: int, saving: Saving, again: bool = False) -> bool:
    """Whether the run was killed at that touch, and went on to the same end."""
    training = replace(TRAINING, saving=saving)
    if not kill_at_touch(touch, lambda: train(run, training)):
        return False
    if again:
        kill_at_touch(touch, lambda: train(run, training))
    train(run, training)
    assert metrics(run) == metrics(whole)
    for step in checkpoint.saved_steps(whole):
        assert_equal(contents(run, step), contents(whole, step))
    assert names(run) == names(whole)
    return True


def names(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*")}


@pytest.mark.parametrize("saving", ["waiting", "background"])
def test_killed_at_some_touches(saving: Saving, tmp_path: Path, whole: Path) -> None:
    touches = count(3, 11)
    kills = list(takewhile(lambda touch: check_kill(tmp_path / str(touch), whole, touch, saving), touches))
    assert len(kills) > 5


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("saving", ["waiting", "background"])
def test_killed_at_every_touch(saving: Saving, again: bool, tmp_path: Path, whole: Path) -> None:
    kills = 0
    while check_kill(tmp_path / str(kills), whole, kills, saving, again):
        kills += 1
    assert kills > 60
