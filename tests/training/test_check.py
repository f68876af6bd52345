"""What cannot run is refused before anything is loaded; a plan needs no network."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sfpp_cli.core.parallel import ALONE, Ranks
from sfpp_cli.errors import UserError
from sfpp_cli.models.settings import SETTINGS, Settings
from sfpp_cli.training.check import CONFIGS, check, planned_layout
from sfpp_cli.training.memory import plan
from sfpp_cli.training.recipes import MatchingRecipe, StudentRecipe, read_recipe

RECIPES = Path(__file__).parents[2] / "examples" / "wan-1.3b"
STUDENT = "runs/wan/ode/step-006000/student-ema"
EIGHT = Ranks(0, 8, 0)
MODEL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is downloaded, whatever this machine has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def wan(tmp_path: Path) -> Path:
    """Wan 1.3B's configurations, in a folder that a test may change."""
    return Path(shutil.copytree(CONFIGS / MODEL, tmp_path / "wan"))


def read(stage: str, **changes: Any) -> Any:
    recipe: Any = read_recipe(RECIPES / f"{stage}.toml", StudentRecipe, MatchingRecipe)
    return dataclasses.replace(recipe, **changes)


def refused(recipe: Any, ranks: Ranks = ALONE) -> str:
    """What a recipe is refused for, in one line."""
    with pytest.raises(UserError) as caught:
        check(recipe, planned_layout(recipe)[0], ranks)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "stage", ["ode", "self-forcing", "self-forcing-pp", "self-forcing-pp-1gpu", "self-forcing-pp-24gb"]
)
def test_the_recipes_that_ship_pass_without_a_download(stage: str) -> None:
    recipe = read(stage)
    layout, assumed = planned_layout(recipe)
    check(recipe, layout, ALONE)
    missing = [f"{MODEL} is not downloaded: planned from its configuration"]
    if stage != "ode":
        missing.append(f"{STUDENT} is not here yet: taken to be like the model's own transformer")
    assert assumed == missing


def test_a_model_that_does_not_ship_is_asked_for() -> None:
    with pytest.raises(UserError, match="sfpp weights pull some/model"):
        planned_layout(read("self-forcing", model="some/model"))


def test_ranks_share_a_batch_evenly() -> None:
    assert "batch 8 cannot be shared out evenly over 3 ranks" in refused(
        read("self-forcing-pp"), Ranks(0, 3, 0)
    )


def test_offload_is_for_one_process() -> None:
    assert "offload is for a single process" in refused(read("self-forcing-pp-1gpu"), Ranks(0, 8, 0))


@pytest.mark.parametrize("changes", [{"horizon": 20}, {"frames": 100}, {"frames": 18}], ids=str)
def test_windows_are_whole_chunks(changes: dict[str, Any]) -> None:
    recipe = read("self-forcing-pp")
    recipe = dataclasses.replace(recipe, dmd=dataclasses.replace(recipe.dmd, **changes))
    assert "must be whole chunks of 3" in refused(recipe)


def test_the_teachers_steps_hold_the_students() -> None:
    recipe = read("ode")
    recipe = dataclasses.replace(recipe, pairs=dataclasses.replace(recipe.pairs, sampling_steps=50))
    assert "set sampling_steps to 48" in refused(recipe)


@pytest.mark.parametrize("stage", ["ode", "self-forcing", "self-forcing-pp"])
def test_students_with_other_steps_in_the_first_chunk_are_not_trained(stage: str, wan: Path) -> None:
    Settings(first_steps=(1000, 500)).write(wan / SETTINGS)
    assert "all chunks take the same steps" in refused(read(stage, model=str(wan)))


def test_a_context_holds_a_chunk() -> None:
    assert "must hold the sink" in refused(read("self-forcing-pp", context=2))


def test_eight_bits_are_not_sharded() -> None:
    recipe = read("self-forcing-pp", lora_rank=4, lora_base="float8")
    assert "lora_base 'float8' cannot be sharded" in refused(recipe, EIGHT)
    check(recipe, planned_layout(recipe)[0], ALONE)
    whole = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, parallel="replicate"))
    check(whole, planned_layout(whole)[0], EIGHT)


def test_a_student_alone_has_no_teacher(wan: Path) -> None:
    config = wan / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "CausalWanModel"}))
    assert "holds a student but no teacher" in refused(read("self-forcing-pp", model=str(wan)))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("transformer", {"num_layers": None}, "'num_layers' must be a whole number, not null"),
        ("text_encoder", {"num_heads": "many"}, "'num_heads' must be a whole number, not 'many'"),
    ],
)
def test_models_that_are_none_are_refused(part: str, change: dict[str, Any], said: str, wan: Path) -> None:
    config = wan / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    recipe = read("self-forcing-pp", model=str(wan))
    with pytest.raises(UserError, match=f"{part}.config.json: {said}"):
        plan(recipe, planned_layout(recipe)[0], ALONE, torch.device("cpu"), Path("runs/x"))


def test_a_student_that_is_here_brings_its_settings(wan: Path, tmp_path: Path) -> None:
    recipe = read("self-forcing-pp", model=str(wan), student=str(tmp_path / "student"))
    assert planned_layout(recipe)[0].settings == Settings()
    (tmp_path / "student").mkdir()
    with pytest.raises(UserError, match="holds no student"):
        planned_layout(recipe)
    config = json.loads((wan / "transformer" / "config.json").read_text())
    (tmp_path / "student" / "config.json").write_text(json.dumps({**config, "_class_name": "CausalWanModel"}))
    Settings(context=9).write(tmp_path / "student" / SETTINGS)
    layout, assumed = planned_layout(recipe)
    assert (layout.settings.context, assumed) == (9, [])
    lines = plan(recipe, layout, ALONE, torch.device("cuda"), Path("runs/x")).splitlines()
    assert f"KV caches     {(9 - 3 + 21) * 287_539_200 / 1e9:.1f} GB" in lines
    longer = dataclasses.replace(recipe, context=15)
    assert longer.settings_for(layout) == dataclasses.replace(layout.settings, context=15, horizon=402)
