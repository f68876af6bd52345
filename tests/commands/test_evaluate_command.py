"""`sfpp evaluate`: what people type, what they get, and what goes wrong without taking the rest with it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Sfpp

from sfpp_cli.video.writer import VideoWriter

FPS, WIDTH, HEIGHT = 8, 64, 48


def make(path: Path, frames: int = 40, fade: float = 0.0, seed: int = 0) -> Path:
    """A bright disc on its way over a textured ground, that whitens by `fade` until the end."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    ground = (
        np.random.default_rng(seed).uniform(60, 120, (HEIGHT // 8, WIDTH // 8, 3)).repeat(8, 0).repeat(8, 1)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, (WIDTH, HEIGHT), FPS) as writer:
        for number in range(frames):
            disc = (columns - 10 - 0.9 * number % 44) ** 2 + (rows - 24) ** 2 < 64
            picture = np.where(disc[..., None], (230, 60, 40), ground)
            writer.write((picture + (255 - picture) * fade * number / frames).round().astype(np.uint8)[None])
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_table_a_report_and_json(sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")  # nothing is folded in a pipe, whatever the width of a terminal
    make(tmp_path / "videos/clean.mp4")
    make(tmp_path / "videos/faded.mp4", fade=0.95)
    options = ("evaluate", "videos", "--reference-seconds", "1", "--workers", "1")
    code, out, err = sfpp(*options)
    assert code == 0
    clean, faded = out.strip().splitlines()[1:]
    assert "over_exposure from" in faded
    assert faded.endswith("  videos/faded.mp4")
    assert "  none  " in clean
    assert "skipped" in err, "metrics that need models are not left out in silence"

    code, out, _ = sfpp(*options, "--json", "--out", "report")
    found = json.loads(out)
    assert code == 0
    assert found["report"] == "report/report.html"
    assert [Path(video["path"]).name for video in found["videos"]] == ["clean.mp4", "faded.mp4"]
    assert found["videos"][1]["verdicts"]["over_exposure"]["fired"]
    assert found["parameters"]["reference_seconds"] == 1
    assert found["command"].startswith("sfpp evaluate videos")
    assert "faded.mp4" in (tmp_path / "report/report.html").read_text()
    code, out, _ = sfpp(*options, "--metrics", "luma")
    assert out.split()[0] == "luma"


def test_what_cannot_be_measured_is_told_and_the_rest_is_measured(sfpp: Sfpp, tmp_path: Path) -> None:
    make(tmp_path / "good.mp4", 24)
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty").mkdir()
    code, out, err = sfpp("evaluate", "good.mp4", "text.mp4", "empty", "missing.mp4", "--workers", "1")
    assert code == 2
    assert "good.mp4" in out
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 3
    for name in ("text.mp4", "empty", "missing.mp4"):
        assert any(name in line for line in errors), name


def test_systems_are_compared_by_prompt(sfpp: Sfpp, tmp_path: Path) -> None:
    for system, fade in (("ours", 0.0), ("theirs", 0.9)):
        for number in range(2):
            make(tmp_path / system / f"{number}.mp4", 24, fade, seed=number)
    (tmp_path / "prompts.txt").write_text("one\ntwo\none\ntwo\n")
    places = (
        "evaluate",
        "--compare",
        "ours",
        "theirs",
        "--workers",
        "1",
        "--reference-seconds",
        "1",
        "--out",
        "report",
    )
    assert sfpp(*places, "--prompts", "prompts.txt")[0] == 0
    found = json.loads((tmp_path / "report/results.json").read_text())
    assert [(video["system"], video["prompt"]) for video in found["videos"]] == [
        ("ours", "one"),
        ("ours", "two"),
        ("theirs", "one"),
        ("theirs", "two"),
    ]
    assert set(found["comparison"]["systems"]) == {"ours", "theirs"}
    (tmp_path / "prompts.txt").write_text("one\n")
    code, _, err = sfpp(*places, "--prompts", "prompts.txt")
    assert code == 2
    assert "1 prompts for 4 videos" in err


def test_a_verdict_can_end_the_command_and_a_table_is_written(sfpp: Sfpp, tmp_path: Path) -> None:
    make(tmp_path / "videos/clean.mp4", 24)
    make(tmp_path / "videos/faded.mp4", 24, fade=0.95)
    options = ("evaluate", "videos", "--reference-seconds", "1", "--workers", "1")
    code, out, err = sfpp(*options, "--fail-on", "flicker, over_exposure", "--csv", "made/table.csv")
    assert code == 3
    assert "faded.mp4" in out
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: over_exposure in 1 of 2: videos/faded.mp4 from ")
    rows = list(csv.DictReader((tmp_path / "made/table.csv").read_text().splitlines()))
    assert [(row["path"], row["over_exposure_fired"]) for row in rows] == [
        ("videos/clean.mp4", "0"),
        ("videos/faded.mp4", "1"),
    ]
    assert (rows[0]["over_exposure_onset_seconds"], rows[0]["frames"], rows[0]["prompt"]) == ("", "24", "")
    assert 0 < float(rows[1]["over_exposure_onset_seconds"]) < 3
    assert float(rows[1]["luma"]) > float(rows[0]["luma"]) > 0
    assert sfpp(*options, "--fail-on", "flicker")[0] == 0
    assert sfpp("evaluate", "videos", "gone.mp4", *options[2:], "--fail-on", "over_exposure")[0] == 2


def test_what_is_asked_for_is_looked_at_first(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfpp_cli.evaluation.networks.find.try_to_load_from_cache", lambda name, file: None)
    for name in ("broken.mp4", "one.gif"):
        (tmp_path / name).write_text("would be an error of its own")
    for options, told in (
        (("--fail-on", "flickr"), "there is no verdict 'flickr'; did you mean 'flicker'?"),
        (("--fail-on", "x"), "there is no verdict 'x'; there are over_exposure, "),
        (("--metrics", "lumma"), "there is no metric 'lumma'; did you mean 'luma'?"),
        (("--metrics", "luma,x"), "there is no metric 'x'; there are background_consistency, border_flow"),
        (("--metrics", "visual_stability"), "visual_stability is not measured without --judge; give that"),
        (("--metrics", "luma_off_reference"), "luma_off_reference is not measured without --reference"),
        (("--metrics", "subject_consistency"), "subject_consistency is not measured without --dino"),
        (("--clip", "clop"), "--clip: 'clop' is neither a folder nor"),
        (("--dino", "dodo"), "--dino: 'dodo' is neither a folder nor"),
        (("--raft", "craft"), "raft"),
        (("--judge", "nobody"), "judge: back_end must be one of openai, gemini"),
        (("--prompts", "absent"), "absent"),
        (("--manifest", "absent"), "absent is no manifest"),
        (("--reference-seconds", "0"), "reference_seconds is 0"),
        (("--device", "gpu"), "unknown device 'gpu'"),
        (("--baseline", "absent"), "absent cannot be read"),
        (("--scenes", "soon"), "as in 20,40"),
        (("--fail-on", ""), "there is no verdict ''"),
        (("--csv", "."), "is a folder"),
        (("--csv", "other.mp4"), "would overwrite a video"),
        (("--csv", "broken.mp4/table.csv"), "cannot be written"),
        (("--vbench", "my_split_clips"), "VBench-Long takes 'split_clip' in a path"),
        (("one.gif", "--vbench", "bench"), "one.gif is not .mp4, all that VBench-Long reads"),
    ):
        code, out, err = sfpp("evaluate", "broken.mp4", *options)
        assert (code, out) == (2, "")
        [line] = err.strip().splitlines()
        assert told in line
        assert "is it a video" not in line
        assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mp4", "one.gif"]
    code, out, err = sfpp("evaluate", "broken.mp4", "--reference", "absent", "--workers", "1")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: --reference: absent")


def test_an_earlier_report_is_compared_with(sfpp: Sfpp, tmp_path: Path) -> None:
    for number in range(2):
        make(tmp_path / "videos" / f"{number}.mp4", 24, seed=number)
    options = ("evaluate", "videos", "--reference-seconds", "1", "--workers", "1", "--metrics", "luma")
    assert sfpp(*options, "--out", "report")[0] == 0
    for number in range(2):
        make(tmp_path / "videos" / f"{number}.mp4", 24, fade=0.95, seed=number)
    code, out, _ = sfpp(*options, "--baseline", "report")
    assert code == 0
    change = out.splitlines()[3:]
    assert change[0] == "all videos, change since report/results.json:"
    assert change[1].startswith("  luma +0.")
    assert "  over_exposure in 2 of 2, before in 0 of 2" in change


def test_a_manifest_gives_prompt_and_seed(sfpp: Sfpp, tmp_path: Path) -> None:
    make(tmp_path / "a/one.mp4", 24)
    (tmp_path / "a/made.json").write_text(
        json.dumps({"videos": [{"path": "one.mp4", "prompt": "a disc", "seed": 7}]})
    )
    code, out, _ = sfpp("evaluate", "--manifest", "a/made.json", "--json", "--workers", "1")
    (video,) = json.loads(out)["videos"]
    assert (code, video["prompt"], video["seed"]) == (0, "a disc", 7)
    (tmp_path / "bad.json").write_text("[1]")
    code, _, err = sfpp("evaluate", "--manifest", "bad.json")
    assert code == 2
    assert "no manifest" in err
    assert "no videos" in sfpp("evaluate")[2]


def test_nothing_is_sent_to_a_judge_without_yes(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "one.mp4", 24)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    words = (
        "evaluate",
        "one.mp4",
        "--judge",
        "openai",
        "--judge-model",
        "some",
        "--judge-url",
        "http://127.0.0.1:9",
    )
    code, _, err = sfpp(*words)
    assert code == 2
    assert "no prompt is known of one.mp4, and the judge needs it: give --prompts or --manifest" in err
    (tmp_path / "empty").mkdir()
    assert "empty holds no videos" in sfpp("evaluate", "empty", *words[2:])[2]
    (tmp_path / "prompts.txt").write_text("a disc\n")
    code, _, err = sfpp(*words, "--prompts", "prompts.txt")
    assert code == 2
    assert "--yes" in err
    assert "secret" not in err
    monkeypatch.delenv("OPENAI_API_KEY")
    words = ("evaluate", "one.mp4", "--prompts", "prompts.txt", "--judge", "openai", "--judge-model", "some")
    code, out, err = sfpp(*words, "--yes")
    assert (code, out) == (2, "")
    assert "OPENAI_API_KEY is not set" in err


def test_the_estimate_knows_prices_and_the_prompts_beside_videos(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "one.mp4", 24)
    make(tmp_path / "two.mp4", 24, seed=1)
    (tmp_path / "one.json").write_text(json.dumps({"video": "one.mp4", "prompt": "a disc"}))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    options = (
        "--judge",
        "openai",
        "--judge-model",
        "some",
        "--judge-frames",
        "3",
        "--judge-prices",
        "1000",
        "100",
    )
    code, _, err = sfpp("evaluate", "one.mp4", "two.mp4", *options)
    assert code == 2
    assert "1 to 3 requests with 3 pictures" in err
    assert "without the 1 whose prompt is unknown" in err
    assert (
        "cost about 1." in err
    )  # 3 x 258 tokens and the question at 1000 a million, 2000 tokens of answer at 100
    assert (
        "judge: requests_per_minute must be above 0"
        in sfpp("evaluate", "one.mp4", *options, "--judge-rate", "0")[2]
    )


def test_a_video_without_a_prompt_is_not_judged_and_the_rest_is_measured(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "one.mp4", 24)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    judge = ("--judge", "openai", "--judge-model", "some", "--judge-url", "http://127.0.0.1:9", "--yes")
    code, out, err = sfpp("evaluate", "one.mp4", *judge, "--workers", "1")
    assert code == 2
    assert "one.mp4" in out
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    assert line == (
        "error: one.mp4 was not judged: no prompt is known, and the judge needs it: "
        "give --prompts or --manifest"
    )


def test_without_models_torch_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor matplotlib without a report."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    make(tmp_path / "one.mp4", 24)
    code = """
import sys
from sfpp_cli.app import main
for options in ([], ["--out", "report"]):
    sys.argv = ["sfpp", "evaluate", "one.mp4", "--workers", "1", *options]
    try:
        main()
    except SystemExit as stopped:
        print(stopped.code, *({"torch", "transformers", "diffusers"} & set(sys.modules)))
    assert ("matplotlib" in sys.modules) == ("--out" in options)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines().count("0") == 2
    assert "skipped" in done.stderr


def test_videos_are_laid_out_for_vbench(sfpp: Sfpp, tmp_path: Path) -> None:
    make(tmp_path / "one_video.mp4", 24)
    code, out, _ = sfpp("evaluate", "one_video.mp4", "--vbench", "bench", "--workers", "1")
    assert code == 0
    (laid,) = (tmp_path / "bench/videos").iterdir()
    assert "_" not in laid.name
    assert "vbench" in out.lower()
