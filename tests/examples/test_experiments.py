"""The experiments' own arithmetic and prompts; and, slow, that one command goes through all of them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.data.toyworld.reader import speed

FOLDER = Path(__file__).parents[2] / "examples" / "experiments"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """(name) -> a module of the experiments; forgotten afterwards, since their names are everyday words."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


def rows(values: dict[str, list[float]], metric: str = "good@50") -> list[dict[str, Any]]:
    """Measured rows: the values of each prompt, one a seed."""
    return [
        {"prompt": prompt, "seed": seed, "metrics": {metric: value}}
        for prompt, found in values.items()
        for seed, value in enumerate(found)
    ]


def test_no_prompt_is_both_learned_and_tested() -> None:
    train, test = (
        {line.prompt for line in read_prompts(FOLDER / f"{name}_prompts.txt")} for name in ("train", "test")
    )
    everything = {line.prompt for line in read_prompts(FOLDER.parent / "toyworld" / "prompts.txt")}
    assert not train & test
    assert train | test == everything
    assert len(test) == 24


def test_the_curve_of_a_window_is_the_mean_inside_it(module: Any) -> None:
    curve = {"seconds": [0.5, 1.5, 2.5, 3.5], "values": [1.0, 2.0, None, 4.0]}
    over = module("study").over
    assert over(curve, 1, 4) == 3.0
    assert over(curve, 2, 3) is None


def test_scenes_have_the_caption_and_speeds_are_the_worlds(module: Any, tmp_path: Path) -> None:
    study = module("study").Study(tmp_path)
    prompt = study.prompts[0]
    scenes = study.scenes_of(prompt)
    assert scenes.captions([0] * len(scenes)) == [prompt] * 3
    assert len({float(x) for x in scenes.x}) == 3, "another scene for each seed"
    tracks = study.scenes_of(prompt).positions(torch.arange(80))
    ratios = [speed(*track.unbind(-1)) / study.world_speed[int(scenes.motion[0])] for track in tracks]
    assert all(0.3 < ratio < 2 for ratio in ratios)


def test_intervals_count_prompts_not_videos(module: Any) -> None:
    report = module("report")
    apart = report.interval(rows({"a": [0.0] * 3, "b": [1.0] * 3}), "good@50")
    assert (apart["mean"], apart["count"], apart["clusters"]) == (0.5, 6, 2)
    assert (apart["low"], apart["high"]) == (0.0, 1.0), (
        "two prompts that disagree say nothing, however many seeds"
    )
    assert report.interval(rows({"a": [0.0]}), "good@5") is None
    assert report.shown(apart, percent=True) == "50 (0 to 100)"
    assert report.shown(None, percent=True) == "-"


def test_differences_are_paired_and_marked_where_clear(module: Any) -> None:
    spread = {name: [place / 20] for place, name in enumerate("abcdefghijkl")}
    better = {name: [value[0] + 0.1] for name, value in spread.items()}
    text = module("report").differences_table(
        {"base": rows(spread), "better": rows(better), "same": rows(spread)}, "base", 50
    )
    assert "| better | - | +10 (10 to 10) * |" in text
    assert "| same | - | +0 (0 to 0) |" in text


def test_drift_is_within_a_video(module: Any) -> None:
    report = module("report")
    found = [
        {"prompt": p, "seed": 0, "metrics": {"good@5": first, "good@50": last}}
        for p, first, last in (("a", 1, 0.5), ("b", 0.2, 0.4))
    ]
    drifts = report.drifted({"x": found}, 50)["x"]
    assert [row["metrics"]["good@50"] for row in drifts] == pytest.approx([-0.5, 0.2])
    assert drifts[0]["metrics"]["object@50"] is None
    assert report.interval(drifts, "good@50")["mean"] == pytest.approx(-0.15)


def test_verdicts_are_counted(module: Any) -> None:
    report = module("report")
    measured = {f"fired_{name}": float(name == "flicker") for name in report.NAMES}
    found = [
        {"prompt": prompt, "metrics": {**measured, "local_stability": 90.0}, "flow": [0.0] * 50}
        for prompt in "ab"
    ]
    found[1]["metrics"]["fired_flicker"] = 0.0
    line = report.verdicts_table({"student": found}).splitlines()[-1].split(" | ")
    shares = dict(zip(report.NAMES, line[2:], strict=False))
    assert line[:2] == ["| student", "50"]
    assert shares["flicker"] == "50 (0 to 100)"
    assert shares["stagnation"] == "0 (0 to 0)"


@pytest.mark.parametrize(
    ("values", "lasting"),
    [((1.0, 0.95, 0.91), "50 s, all of it"), ((1.0, 0.95, 0.89), "25 s"), ((0.5, 0.2, 0.5), "5 s")],
)
def test_a_budget_lasts_until_a_tenth_is_lost(
    values: tuple[float, ...], lasting: str, module: Any, tmp_path: Path
) -> None:
    metrics = {f"good@{end}": value for end, value in zip((5, 25, 50), values, strict=True)}
    found = [{"prompt": "a", "seed": 0, "metrics": {**metrics, "local_stability": 90.0}}]
    study = module("study").Study(tmp_path)
    assert f"| 1x | {lasting} | 90.00 |" in module("run").longest(study, {"1x": found})


def test_every_system_that_is_compared_is_known(module: Any) -> None:
    known = module("study").STUDENTS
    for comparison in module("run").COMPARISONS.values():
        assert comparison.reference in comparison.systems
        for system in comparison.systems.values():
            assert system in ("world", "teacher", "ode") or system.split("@")[0] in known


def test_the_caches_formula_is_what_is_allocated(module: ModuleType) -> None:
    memory = module("memory")  # type: ignore[operator]
    for context in memory.CONTEXTS:
        for sizes in (memory.toy_cache(context), memory.wan_cache(context)):
            assert sizes[0] == sizes[1]
    assert memory.wan_cache(21)[0] == 21 * 287_539_200


def test_drifts_grow_to_their_strength_and_stay(module: Any) -> None:
    inject, frames = module("faults").inject, torch.full((1, 9, 3, 2, 2), 0.5)
    white = inject(frames, "to white", 1.0, 16, grown=5)[0, :, 0, 0, 0]
    assert torch.allclose(white[:5], 0.5 + 0.5 * 0.4 * torch.arange(5) / 4)
    assert torch.allclose(white[4:], white[4].expand(5)), "grown, it stays"
    assert torch.allclose(inject(frames, "to black", 0.5, 16)[0, -1], torch.tensor(0.5 - 1.5 * 0.2))
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(1, 4, 3, 2, 2)
    grey = inject(red, "desaturation", 1.0, 16)[0, -1, :, 0, 0]
    assert torch.allclose(grey, grey[0].expand(3), atol=1e-6)
    assert torch.equal(inject(red, "desaturation", 0.0, 16), red)


def test_motion_faults_show_frames_at_other_times(module: Any) -> None:
    inject, counted = (
        module("faults").inject,
        torch.arange(81.0)[None, :, None, None, None].expand(1, 81, 3, 2, 2),
    )
    frozen = inject(counted, "frozen stretch", 0.5, 16)[0, :, 0, 0, 0]
    assert frozen.tolist() == [*range(20), *[20] * 40, *range(60, 81)], "half of five seconds, in the middle"
    glitch = inject(counted, "motion glitch", 0.5, 16)[0, :, 0, 0, 0]
    assert glitch.tolist() == [*range(20), *range(28, 69), *range(61, 81)], "half a second ahead, and back"


def test_shares_weigh_large_faults_more_and_verdicts_need_an_interval(module: Any) -> None:
    report = module("correction_report")
    rows = [
        {"prompt": number, "size": size, "share": share}
        for number, (size, share) in enumerate([(1.0, -1.0), (3.0, 1.0)])
    ]
    assert report.pooled(rows, "share")["mean"] == pytest.approx(0.5)
    for low, high, verdict in ((0.1, 0.3, "undoes"), (-0.1, 0.3, "no direction"), (-0.3, -0.1, "wrong way")):
        assert report.verdict({"mean": (low + high) / 2, "low": low, "high": high}) == verdict


def test_a_training_undoes_a_share_of_the_gap(module: Any) -> None:
    def behind(value: float) -> list[dict[str, float]]:
        return [{"luma": value + place / 1000, "astray": 0.0} for place in range(6)]

    watched = {
        "before": {"clean": behind(0.4), "to white": behind(0.6)},
        "control": {"clean": behind(0.4), "to white": behind(0.6)},
        "to white": {"to white": behind(0.45)},
    }
    luma, astray = module("correction_report").training(watched)
    assert luma["gap"]["mean"] == pytest.approx(0.2)
    assert luma["control_undone"]["mean"] == pytest.approx(0, abs=1e-9)
    assert luma["trained_undone"]["mean"] == pytest.approx(0.75)
    assert luma["verdict"] == "undoes"
    assert astray["verdict"] == "no gap to undo"


def test_what_was_measured_is_packed_and_unpacked(module: Any, tmp_path: Path) -> None:
    study = module("study").Study(tmp_path / "first")
    row = {
        "system": "pp@50",
        "prompt": study.prompts[3],
        "seed": 1,
        "metrics": {"good@5": 0.5},
        "flow": [0.25],
    }
    study._keep("pp@50", study.prompts[3], 1, json.dumps(row))
    study.pack(tmp_path / "rows.gz")
    other = module("study").Study(tmp_path / "second")
    other.unpack(tmp_path / "rows.gz")
    assert json.loads(other._kept("pp@50", study.prompts[3], 1).read_text()) == row


@pytest.mark.parametrize("name", ["horizon", "ablation", "context", "flow", "budget"])
def test_the_tables_shown_are_those_of_the_rows_measured(
    name: str, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, study = module("run"), module("study").Study(tmp_path)
    study.unpack(FOLDER / "results" / "measured.jsonl.gz")
    monkeypatch.setattr(study, "make_videos", lambda *what: pytest.fail(f"{what} was not measured"))
    for drawing in ("draw_curves", "draw_flow", "draw_filmstrips"):
        monkeypatch.setattr(run, drawing, lambda *what: None)
    assert (
        run.compare(study, name, run.COMPARISONS[name]) + "\n"
        == (FOLDER / "results" / f"{name}.md").read_text()
    )


@pytest.mark.slow
def test_one_command_rebuilds_every_table(module: Any, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=FOLDER.parent.parent)
    results = tmp_path / "results"
    for name in ("horizon", "ablation", "context", "flow", "budget", "minutes"):
        text = (results / f"{name}.md").read_text()
        assert "2 prompts x 1 seeds" in text
        assert "Seconds 0 to 5" in text
        assert "nan" not in text
        for picture in (f"{name}.png", f"{name}-strip.png"):
            Image.open(results / picture).verify()
    assert "2.150 MB | 2.150 MB" in (results / "memory.md").read_text()
    assert (results / "correction.md").read_text().count("|") > 20
    Image.open(results / "correction.png").verify()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("videos/*/*.mp4")}
    systems = {
        system for comparison in module("run").COMPARISONS.values() for system in comparison.systems.values()
    }
    assert len(stamps) == 2 * len(systems)
    subprocess.run([*command, "ablation"], check=True, cwd=FOLDER.parent.parent)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("videos/*/*.mp4")} == stamps, (
        "nothing is made twice"
    )
