"""The experiments' own arithmetic and prompts; and, slow, that one command goes through all of them."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfpp_cli.data.landscape import FPS, parse_caption
from sfpp_cli.data.landscape.reader import read_video
from sfpp_cli.models.settings import SETTINGS, Settings
from sfpp_cli.training.recipes import GRPORecipe, MatchingRecipe, read_recipe
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.writer import VideoWriter

pytest_plugins = ["tiny_bundle"]
FOLDER = Path(__file__).parents[2] / "examples" / "experiments"
LIT = np.ones((16, 16, 3), np.uint8)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """(name) -> a module of the experiments."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def rows(values: dict[str, list[float]], metric: str = "good@50") -> list[dict[str, Any]]:
    """Measured rows: the values of each prompt, one a seed."""
    return [
        {"prompt": prompt, "seed": seed, "metrics": {metric: value}}
        for prompt, found in values.items()
        for seed, value in enumerate(found)
    ]


def test_the_curve_of_a_window_is_the_mean_inside_it(module: Any) -> None:
    curve = {"seconds": [0.5, 1.5, 2.5, 3.5], "values": [1.0, 2.0, None, 4.0]}
    over = module("study").over
    assert over(curve, 1, 4) == 3.0
    assert over(curve, 2, 3) is None


def test_the_worlds_own_videos_show_their_captions(module: Any, tmp_path: Path) -> None:
    study = module("study").Study(tmp_path)
    batch = [(prompt, 0) for prompt in study.prompts[:2]]
    scenes = study.scenes(batch)
    assert scenes.attributes() == [parse_caption(prompt) for prompt, _ in batch]
    assert scenes.salt[0] != scenes.salt[1]
    assert study.scenes([(study.prompts[0], 1)]).salt[0] != scenes.salt[0], "another scene for each seed"
    frames = (scenes.render(0, FPS, (64, 112)) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
    assert [read_video(video).attributes() for video in frames] == scenes.attributes()


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
    assert "| better | +10 (10 to 10) * |" in text
    assert "| same | +0 (0 to 0) |" in text


def test_drift_is_within_a_video(module: Any) -> None:
    report = module("report")
    found = [
        {"prompt": p, "seed": 0, "metrics": {"good@5": first, "good@50": last}}
        for p, first, last in (("a", 1, 0.5), ("b", 0.2, 0.4))
    ]
    drifts = report.drifted({"x": found}, 50)["x"]
    assert [row["metrics"]["good@50"] for row in drifts] == pytest.approx([-0.5, 0.2])
    assert drifts[0]["metrics"]["palette@50"] is None
    assert report.interval(drifts, "good@50")["mean"] == pytest.approx(-0.15)


def test_verdicts_are_counted(module: Any) -> None:
    report = module("report")
    measured = {f"fired_{name}": float(name == "flicker") for name in report.NAMES}
    found = [
        {"prompt": prompt, "metrics": {**measured, "local_stability": 90.0}, "curves": {"flow": [0.0] * 50}}
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


def test_every_system_that_is_compared_is_known_and_is_in_the_design(module: Any) -> None:
    arms, run = module("arms"), module("run")
    design = (FOLDER / "design.md").read_text()
    for comparison in (run.COMPARISONS | run.ASKED_FOR).values():
        assert comparison.reference in comparison.systems
        assert comparison.again.keys() <= comparison.systems.keys()
        for system in comparison.made:
            if system in ("world", "ode", *arms.TEACHERS):
                continue
            run_name = system.partition("@")[0]
            assert arms.System.of(system).arm in arms.ARMS
            assert f"`{run_name}`" in design or run_name.endswith("-sink")
    assert {arms.family(name) for name in ("grpo@30", "grpo-control@30", "pp@40", "pp@320")} == {"pp"}
    assert arms.family("pp4~1@60") == "pp4~1"
    assert arms.System.of("pp4-beta~1@60") == arms.System("pp4-beta", 1, 60)


def test_arms_are_recipes_that_differ_as_they_say(module: Any) -> None:
    arms = module("arms")
    for name, arm in arms.ARMS.items():
        changes = dict(change.split("=", 1) for change in arm.changes)
        recipe = FOLDER.parent / "landscape" / f"{arm.recipe}.toml"
        kind = GRPORecipe if arm.recipe == "grpo" else MatchingRecipe
        read = read_recipe(recipe, kind, overrides=changes)
        assert read.training.batch == (4 if "4" in name else 8)
        assert (arm.sink > 0) == name.endswith("-sink")
    long = read_recipe(
        FOLDER.parent / "landscape" / "self-forcing-pp.toml",
        MatchingRecipe,
        overrides=dict(change.split("=", 1) for change in arms.ARMS["pp4-renoised"].changes),
    )
    assert (long.dmd.frames, long.dmd.noise_init, long.dmd.gradient_step) == (201, "renoised", "last")


def test_a_start_with_a_sink_has_other_settings_and_the_same_weights(
    module: Any, model: Path, tmp_path: Path
) -> None:
    study = module("study").Study(tmp_path, model=str(model))
    start = study._start("ode", 3)
    settings = Settings.read(start / SETTINGS)
    assert (settings.sink, settings.sink_positions) == (3, "relative")
    weights = "diffusion_pytorch_model.safetensors"
    assert (start / weights).read_bytes() == (model / "students" / "ode" / weights).read_bytes()
    assert study._start("ode", 0) == model / "students" / "ode"


def test_the_roads_students_are_taken_where_they_have_come_so_far(module: Any, tmp_path: Path) -> None:
    road = tmp_path / "road"
    (road / "runs" / "self-forcing-pp" / "step-000320").mkdir(parents=True)
    (road / "runs" / "self-forcing-pp" / "step-000320" / "spent.json").write_text("7200")
    study = module("study").Study(tmp_path / "out", road=road)
    assert study.run_of("pp@320") == road / "runs" / "self-forcing-pp"
    assert study.minutes("pp@320") == 120
    for system in ("pp@40", "pp~1@320", "sf@320"):
        assert study.run_of(system) == tmp_path / "out" / "students" / system.partition("@")[0]


def test_the_model_brings_some_students_but_the_road_comes_first(
    module: Any, model: Path, tmp_path: Path
) -> None:
    study = module("study").Study(tmp_path / "out", model=str(model))
    assert study.student("ode") == model / "students" / "ode"
    assert study.student("sf@320") == model / "students" / "self-forcing"
    assert study.student("pp@320") == model / "transformer"
    assert study.minutes("pp@320") is None
    run = tmp_path / "road" / "runs" / "self-forcing-pp" / "step-000320"
    shutil.copytree(model / "students" / "ode", run / "student-ema")
    study = module("study").Study(tmp_path / "out", model=str(model), road=tmp_path / "road")
    assert study.student("pp@320") == tmp_path / "out" / "weights" / "pp@320"


def test_a_grid_may_end_before_its_videos_do(module: Any, tmp_path: Path) -> None:
    grid, video = module("grid"), tmp_path / "seconds.mp4"
    with VideoWriter(video, (16, 16), 4) as writer:
        writer.write(np.repeat(np.arange(6, dtype=np.uint8) * 40, 4)[:, None, None, None] * LIT)
    x, y = 2 * grid.MARGIN + 16 + 8, 2 * grid.LINE + 8  # the middle of the second column
    for end, shown in ((None, 200), (3.0, 80)):
        out = tmp_path / f"{end}.mp4"
        grid.draw([video], ["one"], out, moments=2, seconds=1, every=1, tile=16, end=end)
        assert abs(int(next(read_frames(out))[y, x, 0]) - shown) < 10


def test_a_verdict_is_right_where_half_of_a_later_stretch_is_so(module: Any) -> None:
    judge = module("judge")

    def row(system: str, curve: list[float], fired: bool) -> dict[str, Any]:
        metrics = {f"fired_{name}": 0.0 for name in judge.NAMES} | {"fired_darkening": float(fired)}
        return {
            "system": system,
            "metrics": metrics,
            "curves": dict.fromkeys(judge.TRUTH.values(), curve),
        }

    still = [0.0] * 20
    late = [0.0] * 10 + [1.0] * 3 + [0.0] * 7
    brief = [0.0] * 10 + [1.0] * 2 + [0.0] * 8
    early = [1.0] * 20
    assert [judge.truly(row("", curve, False), "darkening") for curve in (still, late, brief, early)] == [
        *(False, True, False, None)
    ]
    rows = [row("world", still, True), row("pp", late, True), row("pp", late, False), row("pp", early, True)]
    lines = {line.split(" | ")[0]: line for line in judge.table(rows).splitlines()}
    assert lines["| darkening"] == "| darkening | 3 | 2 | 2 | 50 | 50 | 100 |"
    assert lines["| flicker"] == "| flicker |  |  |  |  |  | 0 |"


def test_training_seeds_have_their_own_spread(module: Any) -> None:
    runs = {"++": [rows({"a": [0.5], "b": [0.7]}), rows({"a": [0.9], "b": [0.9]})]}
    text = module("report").seeds_table(runs, (5, 50))
    assert text.splitlines()[-1] == "| ++ | 2 | - | 75 (60 to 90) |"


def test_the_caches_formula_is_what_is_allocated(module: Any, model: Path) -> None:
    memory = module("memory")
    for context in memory.CONTEXTS:
        for sizes in (memory.own_cache(str(model), context), memory.wan_cache(context)):
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


def test_a_tint_moves_colour_and_not_luma(module: Any) -> None:
    faults = module("faults")
    grey = torch.zeros(1, 5, 3, 2, 2)
    tinted = faults.inject(grey, "tint", 1.0, 16)[0, -1, :, 0, 0] / 2
    assert torch.allclose(tinted, torch.tensor(faults.TINT))
    assert abs(float(tinted @ torch.tensor(faults.LUMA_WEIGHTS))) < 0.001


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
    scale = module("study").Scale(prompts=2)
    study = module("study").Study(tmp_path / "first", scale)
    found = [
        {
            "system": "pp4@60",
            "prompt": prompt,
            "seed": 0,
            "metrics": {"good@5": 0.5},
            "curves": {"flow": [0.2]},
        }
        for prompt in study.prompts
    ]
    study._keep("pp4@60", study.prompts[0], 0, json.dumps(found[0]))
    study.pack(tmp_path / "rows")
    assert not (tmp_path / "rows").exists(), "it is not finished"
    study._keep("pp4@60", study.prompts[1], 0, json.dumps(found[1]))
    study.pack(tmp_path / "rows")
    other = module("study").Study(tmp_path / "second", scale)
    assert not other.finished("pp4@60")
    other.unpack(tmp_path / "rows")
    assert other.finished("pp4@60")
    assert other.rows("pp4@60") == found


@pytest.mark.skipif(not (FOLDER / "results").exists(), reason="nothing is measured yet")
def test_the_tables_shown_are_those_of_the_rows_measured(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, study = module("run"), module("study").Study(tmp_path)
    shown = FOLDER / "results"
    study.unpack(shown / "rows")
    for drawing in ("draw_claim", "draw_curves", "draw_flow", "draw_filmstrips"):
        monkeypatch.setattr(run, drawing, lambda *what: None)
    made = [name for name in run.COMPARISONS if (shown / f"{name}.md").exists()]
    for name in made:
        assert run.compare(study, name, run.COMPARISONS[name]) + "\n" == (shown / f"{name}.md").read_text()


@pytest.fixture
def model(own_bundle: Path) -> Path:
    """A model laid out as the embedded one, of toy size."""
    settings = Settings.read(own_bundle / SETTINGS).changed({"fps": FPS})
    settings.write(own_bundle / SETTINGS)
    for name in ("ode", "self-forcing"):
        shutil.copytree(own_bundle / "transformer", own_bundle / "students" / name)
        settings.write(own_bundle / "students" / name / SETTINGS)
    return own_bundle


@pytest.mark.slow
def test_one_command_rebuilds_every_table(module: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--out", str(out), "--model", str(model)]
    subprocess.run(command, check=True, cwd=FOLDER.parent.parent)
    results, run = out / "results", module("run")
    for name in run.COMPARISONS:
        text = (results / f"{name}.md").read_text()
        assert "2 captions x 1 seeds" in text
        assert "Seconds 0 to 5" in text
        assert "Cut" not in text
        assert "nan" not in text
        for picture in (f"{name}.png", f"{name}-strip.png"):
            Image.open(results / picture).verify()
    assert "Wan 1.3B, bfloat16 | 9 | 2.588 GB | 2.588 GB" in (results / "memory.md").read_text()
    assert (results / "judge.md").read_text().count("|") > 20
    assert (results / "correction.md").read_text().count("|") > 20
    for picture in ("correction.png", "claim.png", "flow-seconds.png"):
        Image.open(results / picture).verify()
    systems = {system for comparison in run.COMPARISONS.values() for system in comparison.made}
    assert {file.name.removesuffix(".jsonl.gz") for file in (results / "rows").iterdir()} == systems
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("videos/*/*.mp4")}
    assert len(stamps) == 2 * len(systems)
    subprocess.run([*command, "rollout"], check=True, cwd=FOLDER.parent.parent)
    assert {path: path.stat().st_mtime_ns for path in out.glob("videos/*/*.mp4")} == stamps, (
        "nothing is made twice"
    )
