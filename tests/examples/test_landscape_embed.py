"""Does one command turn the road's folder into a model with named students, and refuse where it must?"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.data.landscape import FPS, parse_caption
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.settings import SETTINGS, Settings

pytest_plugins = ["tiny_bundle"]
LANDSCAPE = Path(__file__).parents[2] / "examples" / "landscape"
STUDENTS = ("ode", "self-forcing", "self-forcing-pp")


@pytest.fixture
def work(tiny_bundle: Path, tmp_path: Path) -> Path:
    """What the road leaves, of toy size; each student is told by its first weight."""
    work = tmp_path / "work"
    for part in ("vae", "tokenizer", "scheduler"):
        shutil.copytree(tiny_bundle / part, work / "init" / part)
    settings = Settings.read(tiny_bundle / SETTINGS).changed({"fps": FPS})
    settings.write(work / "init" / SETTINGS)
    shutil.copytree(tiny_bundle / "teacher", work / "teacher" / "transformer")
    shutil.copytree(tiny_bundle / "text_encoder", work / "teacher" / "text_encoder")
    student = CausalWanModel.from_pretrained(tiny_bundle / "transformer")
    for number, name in enumerate(STUDENTS):
        next(student.parameters()).data.fill_(number)
        student.save_pretrained(work / "students" / name)
        settings.write(work / "students" / name / SETTINGS)
    return work


def embed(work: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LANDSCAPE / "embed.py"), "--work", str(work), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_models_are_put_together_under_their_names(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights" / "landscape"
    done = embed(work, out)
    assert done.returncode == 0, done.stderr
    assert {folder.name for folder in out.iterdir()} == {
        *("vae", "tokenizer", "scheduler", "text_encoder", "teacher", "transformer", "students", "sfpp.json")
    }
    assert {folder.name for folder in (out / "students").iterdir()} == {"ode", "self-forcing"}
    folders = [out / "students" / "ode", out / "students" / "self-forcing", out / "transformer"]
    for number, folder in enumerate(folders):
        student = Bundle(str(out), str(folder)).load_student(torch.device("cpu"), torch.float16)
        assert next(student.parameters()).eq(number).all()
    assert Bundle(str(out)).teacher == out / "teacher"
    assert list(tmp_path.glob(".embed-*")) == []


def test_nothing_is_written_where_a_part_is_missing_or_it_grows_too_large(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights" / "landscape"
    other = tmp_path / "weights" / "other" / "vae.safetensors"
    other.parent.mkdir(parents=True)
    with other.open("wb") as file:
        file.truncate(40_000_000)
    done = embed(work, out)
    assert done.returncode == 1
    assert "40 MB at most" in done.stderr
    shutil.rmtree(work / "students" / "ode")
    done = embed(work, out)
    assert done.returncode == 1
    assert "lacks students/ode" in done.stderr
    assert not out.exists()


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(LANDSCAPE)
    return importlib.import_module("prompts")


def test_every_scene_is_told_once_and_no_caption_is_both_learned_and_measured(prompts: ModuleType) -> None:
    told = prompts.told()
    assert {name: prompts.read(name) for name in told} == told, "python examples/landscape/prompts.py"
    scenes = [parse_caption(caption) for captions in told.values() for caption in captions]
    assert len(scenes) == 320
    assert len(set(scenes)) == 320
    for name in ("validation", "test"):
        directions = [parse_caption(caption).direction for caption in told[name]]
        assert 0.25 < directions.count("left") / len(directions) < 0.75


@pytest.mark.slow
def test_one_command_measures_and_shows_the_students(work: Path, tmp_path: Path) -> None:
    assert embed(work, tmp_path / "model").returncode == 0
    shown = tmp_path / "shown"
    command = [sys.executable, str(LANDSCAPE / "measure.py"), "--quick", "--model", str(tmp_path / "model")]
    command += ["--out", str(tmp_path / "out"), "--shown", str(shown)]
    subprocess.run(command, check=True, cwd=tmp_path)
    text = (shown / "README.md").read_text()
    assert "| Self-Forcing++: in the world to 5 s, % | 82 (" in text, "the first world's own, from its rows"
    assert {path.name for path in shown.glob("*.jsonl.gz")} == {
        f"{system}.jsonl.gz" for system in ("world", "ode", "sf@320", "pp@320")
    }
    for picture in ("hero.gif", "students.gif", "claim.png", "strip.png", "sheets/00.png", "sheets/01.png"):
        Image.open(shown / picture).verify()


@pytest.mark.slow
def test_checkpoints_are_held_against_one_another(work: Path, tmp_path: Path) -> None:
    road = tmp_path / "road"
    assert embed(work, road / "model-self-forcing").returncode == 0
    for number, name in ((40, "ode"), (80, "self-forcing")):
        checkpoint = road / "runs" / "self-forcing" / f"step-{number:06d}"
        shutil.copytree(work / "students" / name, checkpoint / "student-ema")
        (checkpoint / "spent.json").write_text("60")
    command = [sys.executable, str(LANDSCAPE / "stop.py"), "sf", "--road", str(road), "--captions", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], check=True, capture_output=True, text=True
    )
    assert [line.split(" | ")[0] for line in done.stdout.splitlines() if "@" in line] == [
        *("| sf@40", "| sf@80", "| less sf@40", "| sf@80")
    ]
