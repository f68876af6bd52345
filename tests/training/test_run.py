"""`sfpp train` and `sfpp distill`, mostly on the embedded model: from a recipe to weights that generate."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Sfpp
from embedded import latent_shape
from killed import Forked, command
from safetensors import safe_open
from safetensors.torch import load_file
from toy_training import untimed

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.core.noise import seeded
from sfpp_cli.core.parallel import ALONE, Ranks
from sfpp_cli.core.training_config import Training
from sfpp_cli.data import latents, trajectories
from sfpp_cli.devices import cpu_threads, threads_for
from sfpp_cli.errors import UserError
from sfpp_cli.models.hub import resolve
from sfpp_cli.models.layout import Layout
from sfpp_cli.training.recipes import MatchingRecipe, read_recipe
from sfpp_cli.training.run import duration, operations, overrides, sharing_out
from sfpp_cli.video.reader import probe

pytest_plugins = ["tiny_bundle"]

EXAMPLES = Path(__file__).parents[2] / "examples"
WAN = EXAMPLES / "wan-1.3b"
STUDENT = f"""
objective = "ode"
model = "{DEFAULT_MODEL}"
[pairs]
prompts = "prompts.txt"
count = 3
folder = "pairs"
guidance = 2.0
sampling_steps = 4
batch = 2
[training]
steps = 2
batch = 2
lr = 1e-3
ema_start = 1
save_every = 1
"""

TEACHER = f"""
objective = "flow-matching"
model = "{DEFAULT_MODEL}"
train_text_encoder = true
[data]
latents = "latents"
mid_stream = 0.5
[training]
steps = 2
batch = 2
lr = 1e-3
save_every = 1
"""


MATCHING = f"""
objective = "dmd"
model = "{DEFAULT_MODEL}"
prompts = "prompts.txt"
[dmd]
method = "self-forcing++"
frames = 12
horizon = 6
critic_updates = 2
critic_lr = 1e-3
[training]
steps = 4
batch = 2
micro_batch = 1
lr = 1e-3
ema_start = 1
save_every = 2
[preview]
every = 4
seconds = 1
count = 2
"""


def write_recipes(folder: Path) -> None:
    (folder / "prompts.txt").write_text(
        "a red circle bouncing over a blue background\na white square sliding on grey\n"
    )
    (folder / "student.toml").write_text(STUDENT)
    (folder / "teacher.toml").write_text(TEACHER)
    (folder / "matching.toml").write_text(MATCHING)


@pytest.fixture(autouse=True)
def recipes(tmp_path: Path) -> None:
    write_recipes(tmp_path)


@pytest.fixture(scope="module")
def made_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sfpp distill student.toml --pairs-only` makes."""
    folder = tmp_path_factory.mktemp("made")
    write_recipes(folder)
    distill = command(
        "distill", "student.toml", "--out", "run", "--pairs-only", before=lambda: os.chdir(folder)
    )
    code, _, err = Forked.start(distill).end()
    assert code == 0, err
    assert not (folder / "run").exists()
    return folder / "pairs"


@pytest.fixture
def pairs(made_pairs: Path, tmp_path: Path) -> Path:
    """A copy, in the place where the recipe has them."""
    return Path(shutil.copytree(made_pairs, tmp_path / "pairs"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.usefixtures("no_curves")
def test_distill_makes_pairs_and_a_student_that_generates(sfpp: Sfpp, tmp_path: Path) -> None:
    code, _, err = sfpp("distill", "student.toml", "--out", "run")
    assert code == 0
    assert re.search(r"^pairs +3 trajectories, [0-9.]+ [kM]B in pairs$", err, re.MULTILINE)
    assert "3 trajectories in pairs: 2 of 2 shards to do" in err
    assert re.search(r"^the first step took [0-9.]+ s: about [0-9.]+ s for the 1 left$", err, re.MULTILINE)
    with safe_open(tmp_path / "pairs/pairs-00000.safetensors", framework="pt") as shard:
        assert shard.get_slice("trajectories").get_shape() == [2, 5, 21, *latent_shape()]
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    for name in ("student", "student-ema"):
        assert (tmp_path / "run/step-000002" / name / "config.json").exists()
    code, _, _ = sfpp("generate", "--student", "run/step-000002/student-ema", "--frames", "9", "-o", "v.mp4")
    assert code == 0
    assert probe(tmp_path / "v.mp4").frames == 9


def test_pairs_continue_with_the_missing_shard_and_are_the_same(
    sfpp: Sfpp, pairs: Path, tmp_path: Path
) -> None:
    first, second = (trajectories.shard_path(pairs, number) for number in range(2))
    kept, made = first.stat().st_mtime_ns, load_file(second)["trajectories"]
    second.unlink()
    assert "1 of 2 shards to do" in sfpp("distill", "student.toml", "--out", "run", "--pairs-only")[2]
    assert first.stat().st_mtime_ns == kept
    assert torch.equal(load_file(second)["trajectories"], made)
    assert not (tmp_path / "run").exists()


def test_more_pairs_fill_the_short_shard_and_the_index_knows_all(sfpp: Sfpp, pairs: Path) -> None:
    first, second = (trajectories.shard_path(pairs, number) for number in range(2))
    kept = first.stat().st_mtime_ns
    (short,) = load_file(second)["trajectories"]
    assert (
        "1 of 2 shards"
        in sfpp("distill", "student.toml", "--out", "run", "--pairs-only", "--set", "pairs.count=4")[2]
    )
    assert first.stat().st_mtime_ns == kept
    grown = load_file(second)["trajectories"]
    assert len(grown) == 2
    torch.testing.assert_close(grown[0], short, atol=2e-2, rtol=0)  # float16: 4e-3 between neighbours above 4
    store = trajectories.TrajectoryStore(pairs)
    assert [prompt[:5] for prompt in store.prompts] == ["a red", "a whi"] * 2
    index = json.loads((pairs / "index.json").read_text())
    assert list(index["shards"]) == [first.name, second.name]
    assert index["origin"]["guidance"] == 2.0


def test_pairs_that_are_not_complete_are_not_trained_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete trajectories"):
        trajectories.TrajectoryStore(tmp_path)


@pytest.mark.usefixtures("pairs")
def test_pairs_made_otherwise_are_not_mixed_in(sfpp: Sfpp, tmp_path: Path) -> None:
    code, _, err = sfpp("distill", "student.toml", "--out", "run", "--set", "pairs.guidance=1.0")
    assert code == 2
    assert "another guidance" in err
    (tmp_path / "prompts.txt").write_text("a green triangle\n")
    assert "another prompts" in sfpp("distill", "student.toml", "--out", "run")[2]


@pytest.mark.usefixtures("no_curves")
def test_a_resumed_distillation_equals_an_uninterrupted_one(
    sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path
) -> None:
    distill = ("distill", "student.toml", "--set", f"model={tiny_bundle}", "--out")
    assert sfpp(*distill, "whole", "--steps", "2")[0] == 0
    assert sfpp(*distill, "parts", "--steps", "1")[0] == 0
    code, _, err = sfpp(*distill, "parts", "--steps", "2")
    assert code == 2
    assert "--resume" in err
    assert sfpp(*distill, "parts", "--steps", "2", "--resume")[0] == 0
    for name in ("student", "student-ema"):
        whole, parts = (weights(tmp_path / run / "step-000002" / name) for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_grid_that_misses_the_students_steps_is_refused(sfpp: Sfpp, tmp_path: Path) -> None:
    code, _, err = sfpp("distill", "student.toml", "--out", "run", "--set", "pairs.sampling_steps=50")
    assert code == 2
    assert "48" in err
    assert not (tmp_path / "pairs").exists()


@pytest.mark.usefixtures("no_curves")
def test_train_moves_the_teacher_and_its_text_encoder(sfpp: Sfpp, tmp_path: Path) -> None:
    clips = torch.randn(2, 23, *latent_shape(), generator=seeded(1))
    latents.write_shard(tmp_path / "latents", 0, clips, [["a red circle"], ["a white square", "a square"]])
    code, _, err = sfpp("train", "teacher.toml", "--out", "run", "-v")
    assert code == 0
    assert "CPU threads for an operation: 1\n" in err
    assert (tmp_path / "run/recipe.toml").exists()
    one, two = (weights(tmp_path / f"run/step-{step:06d}/transformer") for step in (1, 2))
    assert any(not torch.equal(one[key], two[key]) for key in one)
    assert (tmp_path / "run/step-000002/text_encoder/model.safetensors").exists()


def records(run: Path) -> list[dict[str, float]]:
    """What was logged, without what a clock and the memory say."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [untimed({key: value for key, value in line.items() if key != "peak_mb"}) for line in lines]


def test_matching_trains_a_student_that_generates(sfpp: Sfpp, tmp_path: Path) -> None:
    code, _, err = sfpp("train", "matching.toml", "--out", "run", "--preview-seconds", "2")
    assert code == 0
    assert "curves in run/curves.png" in err
    seen = records(tmp_path / "run")
    assert [record["step"] for record in seen] == [1, 2, 3, 4]
    for record in seen:
        assert record.keys() >= {
            "loss",
            "critic_loss",
            "grad_norm",
            "critic_grad_norm",
            "dmd_gradient",
            "ratio",
        }
        assert record["ratio"] == pytest.approx(record["loss"] / record["critic_loss"])
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["preview_s"] > 0
    assert [step for step, record in enumerate(seen, 1) if "preview_luma" in record] == [4]
    assert 0.05 < seen[-1]["preview_luma"] < 0.95
    assert (tmp_path / "run/previews/step-000004.png").exists()
    settings = json.loads((tmp_path / "run/step-000004/student-ema/sfpp.json").read_text())
    assert settings["horizon"] == 12, "a student knows how long it was trained"
    before, after = (weights(tmp_path / f"run/step-00000{step}/critic") for step in (2, 4))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    code, _, _ = sfpp("generate", "--student", "run/step-000004/student-ema", "--frames", "9", "-o", "v.mp4")
    assert code == 0
    assert probe(tmp_path / "v.mp4").frames == 9
    code, out, _ = sfpp("train", "--plot", "run")
    assert (code, out) == (0, "run/curves.png\n")


@pytest.mark.slow
def test_a_killed_run_resumes_bitwise(sfpp: Sfpp, tmp_path: Path) -> None:
    """SIGKILL between two checkpoints, or so shortly after one that it comes in the midst of anything."""
    assert sfpp("train", "matching.toml", "--out", "whole")[0] == 0
    command = [sys.executable, "-m", "sfpp_cli", "train", "matching.toml", "--out", "run", "--steps", "1000"]
    log = tmp_path / "run/metrics.jsonl"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=one_thread()) as process:
        while not (log.exists() and len(log.read_text().splitlines()) >= 3):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    for later in (tmp_path / "run").glob("step-*"):
        if int(later.name[5:]) > 2:
            shutil.rmtree(later)
    assert sfpp("train", "matching.toml", "--out", "run", "--resume")[0] == 0
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    for name in ("student", "student-ema", "critic"):
        whole, parts = (weights(tmp_path / run / "step-000004" / name) for run in ("whole", "run"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.usefixtures("no_curves")
def test_adapters_alone_learn_and_are_folded_in(sfpp: Sfpp, tmp_path: Path) -> None:
    code, _, _ = sfpp(
        "train",
        "matching.toml",
        "--out",
        "run",
        "--set",
        "lora_rank=2",
        "--steps",
        "2",
        "--set",
        "preview.every=0",
    )
    assert code == 0
    trained = weights(tmp_path / "run/step-000002/student")
    base = weights(Path(resolve(DEFAULT_MODEL)) / "transformer")
    assert trained.keys() == base.keys(), "a plain student again"
    moved = {key for key in base if not torch.equal(base[key].float(), trained[key])}
    assert moved
    assert all(
        re.search(r"attn[12]\.to_(q|k|v|out\.0)\.weight|ffn\.net\.(0\.proj|2)\.weight", key) for key in moved
    )
    for key in moved:
        assert torch.linalg.matrix_rank(trained[key] - base[key].float(), rtol=1e-3) <= 2
    assert (
        sfpp("train", "matching.toml", "--out", "run", "--set", "lora_rank=2", "--steps", "3", "--resume")[0]
        == 0
    )
    assert sfpp("generate", "--student", "run/step-000003/student", "--frames", "9", "-o", "v.mp4")[0] == 0


@pytest.mark.parametrize("recipe", ["teacher.toml", "student.toml", "matching.toml"])
def test_a_dry_run_answers_the_plan_and_writes_nothing(recipe: str, sfpp: Sfpp, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, err = sfpp(
        "distill" if recipe == "student.toml" else "train", recipe, "--dry-run", "--device", "cuda"
    )
    assert code == 0
    assert re.search(r"^memory +~[0-9.]+ [kMG]B a rank", out, re.MULTILINE)
    assert "bfloat16 on cuda" in out
    assert "runs/" in out
    assert err == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("no_curves")
def test_stored_embeddings_change_nothing(sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--steps", "1", "--set", "preview.every=0", "--set", f"model={tiny_bundle}")
    assert sfpp("train", "matching.toml", "--out", "memory", *options)[0] == 0
    assert sfpp("train", "matching.toml", "--out", "disk", *options, "--set", "text_store=store")[0] == 0
    assert records(tmp_path / "memory") == records(tmp_path / "disk")
    assert list((tmp_path / "store").glob("text-*.safetensors"))


@pytest.mark.usefixtures("no_curves")
def test_a_run_is_not_written_over_and_nothing_is_made_before_that_is_said(
    sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path
) -> None:
    distill = ("distill", "student.toml", "--set", f"model={tiny_bundle}", "--out", "run")
    assert sfpp(*distill, "--steps", "1")[0] == 0
    code, _, err = sfpp(*distill, "--set", "pairs.folder=others")
    assert code == 2
    assert "run holds a run already: continue it with --resume" in err
    assert not (tmp_path / "others").exists()


@pytest.mark.parametrize("path", sorted(WAN.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_for_wan_are_planned_without_wan(path: Path, sfpp: Sfpp) -> None:
    code, out, err = sfpp(
        "distill" if path.stem == "ode" else "train", str(path), "--dry-run", "--device", "cuda"
    )
    assert (code, err) == (0, "")
    assert re.search(r"^assumed +Wan-AI/Wan2.1-T2V-1.3B-Diffusers is not downloaded", out, re.MULTILINE)


def test_the_schema_is_printed(sfpp: Sfpp) -> None:
    code, out, _ = sfpp("train", "--schema")
    assert code == 0
    assert "MatchingRecipe" in json.loads(out)["$defs"]


def test_a_recipe_is_refused_in_a_line_for_each_fault(sfpp: Sfpp, tmp_path: Path) -> None:
    code, _, err = sfpp("train", "student.toml", "--out", "run")
    assert code == 2
    assert "sfpp distill student.toml" in err
    code, _, err = sfpp("train", "matching.toml", "--set", "dmd.widow=uniform", "--set", "training.lr=inf")
    assert code == 2
    assert "did you mean 'window'" in err
    assert "'training.lr' must be a finite number" in err
    assert len(err.splitlines()) == 2
    code, _, err = sfpp("train")
    assert code == 2
    assert "no recipe" in err


def test_windows_start_mid_stream_as_often_as_asked_and_say_so(tmp_path: Path) -> None:
    frames = torch.arange(10.0).view(1, 10, 1, 1, 1).expand(1, 10, 2, 2, 2)
    latents.write_shard(tmp_path, 0, frames, [["a ball"]])
    windows = latents.LatentWindows(tmp_path, frames=4, mid_stream=0.5)
    drawn = [windows.draw(seeded(7, number)) for number in range(200)]
    starts = [int(window[0, 0, 0, 0]) for window, _ in drawn]
    assert all(window.shape == (4, 2, 2, 2) for window, _ in drawn)
    assert set(starts) == {0, 1, 2, 3, 4, 5, 6}
    assert 0.4 < sum(start > 0 for start in starts) / 200 < 0.6
    assert all(
        (caption == "a ball") == (start == 0) for (_, caption), start in zip(drawn, starts, strict=True)
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.123456, "0.123 s"),
        (59.4, "59.4 s"),
        (60, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (5 * 3600 + 7 * 60 + 59, "5 h 7 min"),
        (2 * 86400 + 3 * 3600, "2 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_small_runs_use_one_thread_and_large_ones_what_there_is() -> None:
    ranks = Ranks(rank=0, world=1, local=0)
    recipe = read_recipe(
        EXAMPLES / "landscape" / "self-forcing-pp.toml", MatchingRecipe, overrides={"training.batch": "8"}
    )
    layout = Layout(DEFAULT_MODEL)
    toy = operations(recipe, layout, ranks)
    _, height, width = latent_shape()
    blocks = 0.75 * sum(tensor.numel() for tensor in weights(layout.student).values())
    assert toy == pytest.approx(2 * blocks * 8 * 21 * height * width / 4, rel=0.1)
    with cpu_threads(7):
        assert threads_for(toy / 8) == 1, "one sample"
        assert threads_for(1000 * toy) == 7


@pytest.mark.parametrize(
    ("batch", "cores", "count"), [(8, 2, 2), (8, 3, 2), (6, 4, 3), (8, 64, 8), (8, 1, 1), (1, 64, 1)]
)
def test_cores_that_would_idle_are_told_how_to_help(batch: int, cores: int, count: int) -> None:
    """By processes, since the model is too small for threads."""
    training = Training(steps=1, batch=batch)
    said = sharing_out(training, ALONE, cores)
    assert (said is not None) == (count > 1)
    assert said is None or f"torchrun --nproc-per-node {count} -m sfpp_cli" in said
    assert sharing_out(training, Ranks(0, 2), cores) is None
    assert sharing_out(replace(training, offload=True), ALONE, cores) is None


def test_overrides() -> None:
    assert overrides(["training.lr=1e-4", "model = x"], 5, 3, 2.5) == {
        "training.lr": "1e-4",
        "model": "x",
        "training.steps": "5",
        "seed": "3",
        "preview.seconds": "2.5",
    }
    with pytest.raises(UserError, match="key=value"):
        overrides(["lr"])
