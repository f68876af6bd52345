"""How the benchmark of long videos counts what verdicts say; no video is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    import long_faults

    return long_faults


def silent(module: Any) -> dict[str, Any]:
    """Results in which nothing fires and no verdict on noise exists."""
    names = ("over_exposure", "stagnation", "scene_change", "blur", "flicker")
    verdict = {"fired": False, "onset_seconds": None, "cuts_seconds": []}
    return {case.file: {"verdicts": {name: dict(verdict) for name in names}} for case in module.cases()}


def test_what_is_named_missed_early_and_false(module: Any) -> None:
    cases = list(module.cases())
    videos = silent(module)
    assert (len(cases), len({case.file for case in cases})) == (43, 43)
    fired = {"fired": True, "cuts_seconds": []}
    videos["over-exposure-tree.mp4"]["verdicts"]["over_exposure"] = fired | {"onset_seconds": 10.5}
    videos["over-exposure-snow-run.mp4"]["verdicts"]["over_exposure"] = fired | {"onset_seconds": 8.9}
    videos["over-exposure-talk-near.mp4"]["verdicts"]["flicker"] = fired | {"onset_seconds": 12.0}
    cut = {"fired": True, "onset_seconds": 10.0, "cuts_seconds": [10.2, 17.0]}
    videos["cut-tree.mp4"]["verdicts"]["scene_change"] = cut
    videos["unharmed-tree.mp4"]["verdicts"]["blur"] = fired | {"onset_seconds": 3.0}

    assert str(module.tally("over-exposure", videos)) == "1 of 3, 10.5 s"
    assert str(module.tally("noise", videos)) == "0 of 2, no verdict"
    assert str(module.tally("freeze", videos)) == "0 of 4"
    assert str(module.tally("cut", videos)) == "1 of 11, 10.2 s"
    false = {case.file: wrong for case in cases if (wrong := module.false_alarms(case, videos[case.file]))}
    assert false == {
        "over-exposure-snow-run.mp4": ["over_exposure"],
        "over-exposure-talk-near.mp4": ["flicker"],
        "cut-tree.mp4": ["scene_change"],
        "unharmed-tree.mp4": ["blur"],
    }
    last = module.table({"before": videos, "now": silent(module)}).splitlines()[-1]
    assert last == "| in zooms and unharmed | 1 of 9: blur in 1 | 0 of 9 |"
