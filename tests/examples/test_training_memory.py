"""The counted peak of an update does not depend on how far the rollout has come."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from sfpp_cli.training.check import planned_layout
from sfpp_cli.training.recipes import MatchingRecipe, read_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_where_a_window_starts_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    from training_memory import count

    overrides = {"training.precision": "bfloat16", "training.batch": "1"}
    path = EXAMPLES / "wan-1.3b" / "self-forcing-pp-24gb.toml"
    recipe = read_recipe(path, MatchingRecipe, overrides=overrides)
    layout, _ = planned_layout(recipe)
    peaks = [
        count(recipe, layout, Namespace(start=start, steps=steps, layers=1))
        for start, steps in ((8, 1), (9, 1), (8, 2))
    ]
    assert peaks[0] == pytest.approx(4.9e9, rel=0.02), "one layer; a block of the critic's is most of it"
    assert peaks[1:] == pytest.approx(peaks[:1] * 2, rel=1e-3)
