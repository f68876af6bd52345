"""The plan of a run: numbers by hand, activations against what autograd saves, recipes for real weights."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONFIG, WAN_1_3B, make_student, prompts
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sfpp_cli.core.adapter import add_adapters
from sfpp_cli.core.cache import BlockCausal
from sfpp_cli.core.parallel import ALONE, Ranks
from sfpp_cli.core.training_config import Training
from sfpp_cli.models.layout import Layout
from sfpp_cli.models.settings import Settings
from sfpp_cli.models.summary import Shape, summarise
from sfpp_cli.training.check import CONFIGS, check, planned_layout
from sfpp_cli.training.memory import plan, trajectory_bytes
from sfpp_cli.training.networks import Network, Trained, measure, parameters_of
from sfpp_cli.training.recipes import (
    GRPORecipe,
    MatchingRecipe,
    Pairs,
    Recipe,
    StudentRecipe,
    TeacherData,
    TeacherRecipe,
    read_recipe,
)

pytest_plugins = ["tiny_bundle"]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RECIPES = Path(__file__).parents[2] / "examples" / "wan-1.3b"
STAGES = ("ode", "self-forcing", "self-forcing-pp", "self-forcing-pp-1gpu", "self-forcing-pp-24gb", "grpo")
WAN = CONFIGS / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
PARAMETERS = 1_418_996_800
"""Of Wan 1.3B."""
TEXT = 5_680_910_336
"""Of its text encoder."""
VAE = 126_892_531
EIGHT = Ranks(0, 8, 0)


@pytest.fixture(scope="module")
def sizes() -> Network:
    return measure(WAN / "transformer", Layout(str(WAN)))


def read(stage: str, **changes: str) -> Any:
    path = RECIPES / f"{stage}.toml"
    overrides = {"model": str(WAN), **changes}
    return read_recipe(path, TeacherRecipe, StudentRecipe, MatchingRecipe, GRPORecipe, overrides=overrides)


def told(recipe: Recipe, ranks: Ranks = ALONE, device: torch.device = CUDA) -> dict[str, str]:
    """The plan's lines by name; names have a column of their own."""
    layout, _ = planned_layout(recipe)
    check(recipe, layout, ranks)
    lines = plan(recipe, layout, ranks, device, Path("runs/x")).splitlines()
    assert all(line[13] == " " and line[14] != " " for line in lines)
    by_name = {line[:13].strip(): line[14:] for line in lines}
    assert len(by_name) == len(lines)
    return by_name


def gigabytes(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) GB", text)]


def moment(lines: dict[str, str], name: str) -> float:
    """Gigabytes of a rank in one part of a run."""
    (size,) = gigabytes(re.findall(rf"{name} (~[\d.]+ GB)", lines["memory"])[0])
    return size


# Wan 1.3B, worked out by hand


def test_the_configurations_that_ship_are_wans() -> None:
    config = json.loads((WAN / "transformer" / "config.json").read_text())
    assert {key: config[key] for key in WAN_1_3B} == {**WAN_1_3B, "patch_size": [1, 2, 2]}
    assert list(WAN.rglob("*.safetensors")) == []


def test_wan_is_measured(sizes: Network) -> None:
    assert sizes.parameters == PARAMETERS
    assert sizes.matrices == 30 * (8 * 1536**2 + 2 * 1536 * 8960)
    assert sizes.linear == 30 * (6 * 1536**2 + 2 * 1536 * 8960)
    assert sizes.adapter == 30 * (8 * (1536 + 1536) + 2 * (1536 + 8960))
    assert (sizes.dim, sizes.ffn, sizes.latent) == (1536, 8960, (16, 60, 104))
    assert sizes.shape == Shape(30, 12, 128, 1560)
    assert sizes.shape.cache_bytes(1, 2) == 287_539_200
    assert parameters_of(Layout(str(WAN)), "text_encoder") == TEXT


def test_activations(sizes: Network) -> None:
    block = 32760 * (1536 * (48 + 22) + 2 * 8960 * 2)
    assert sizes.block_bytes(21, 2) == block
    kept = 32760 * 1536 * (30 * 2 + 4 + 4 + 2)
    assert sizes.activation_bytes(21, 2, 1, checkpointing=True) == kept + block
    assert sizes.activation_bytes(21, 2, 7, checkpointing=True) == kept + block // 7
    assert sizes.activation_bytes(21, 2, 7, checkpointing=False) == 30 * block + 7 * 1_250_426_880 * 2
    assert sizes.activation_bytes(21, 4, 7, checkpointing=False) == 30 * sizes.block_bytes(21, 4)


def test_a_checkpoint_holds_folders_and_state() -> None:
    assert Trained(10).checkpoint_bytes == 4 * (10 + 10 + 10 + 20 + 10)
    assert Trained(10, has_ema=False).checkpoint_bytes == 4 * (10 + 10 + 20)
    assert Trained(10, adapters=3).checkpoint_bytes == 4 * (10 + 10 + 3 + 6 + 3)


def test_trajectories() -> None:
    pairs = Pairs(prompts="p", count=16000, folder="f")
    assert trajectory_bytes(pairs, Settings(), (16, 60, 104)) == 16000 * 5 * 21 * 16 * 60 * 104 * 2


def test_what_blocks_keep_is_about_what_is_saved() -> None:
    frames, size, shape = 4, (16, 24), (1, 4, 4, 16, 24)
    student = make_student()
    estimate = Network(0, 0, 0, 0, CONFIG["ffn_dim"], (4, *size), Shape(2, 2, 12, 96)).block_bytes(frames, 4)
    memory = BlockCausal(student.embed_text(prompts(1)), tokens=student.tokens(size), chunk=frames)
    own = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    saved: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        student(torch.zeros(shape), torch.zeros(1), memory)
    assert sum(size for size, _ in saved.values()) == pytest.approx(2 * estimate, rel=0.2)


# Parameters


def test_parameters_are_those_of_the_models(tiny_bundle: Path) -> None:
    layout, parts = Layout(str(tiny_bundle)), summarise(str(tiny_bundle)).parts
    assert measure(layout.student, layout).parameters == parts["transformer"].parameters
    assert measure(layout.student, layout).shape == summarise(str(tiny_bundle)).shape
    assert parameters_of(layout, "text_encoder") == parts["text_encoder"].parameters
    assert parameters_of(layout, "vae") == parts["vae"].parameters


def test_adapters_are_those_of_training(tiny_bundle: Path) -> None:
    layout, student = Layout(str(tiny_bundle)), make_student()
    network = measure(layout.student, layout)
    add_adapters(student, 3, seed=0, float8=True)
    trainable = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    assert trainable == 3 * network.adapter
    scales = sum(p.nbytes for name, p in student.named_parameters() if name.endswith("_scale"))
    frozen = sum(parameter.nbytes for parameter in student.parameters() if not parameter.requires_grad)
    assert frozen - scales == network.frozen_bytes(4, float8=True)


# The recipes for real weights


def test_every_stage_has_its_recipe() -> None:
    assert {path.stem for path in RECIPES.glob("*.toml")} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_shipped_recipes_are_planned_and_fit_80_gb(stage: str, device: torch.device) -> None:
    lines = told(read(stage), ALONE if "gpu" in stage or "24gb" in stage else EIGHT, device)
    parts = {"student", "text encoder", "weights", "gradients", "optimizer", "EMA", "activations", "memory"}
    assert parts <= lines.keys()
    trained = {"grpo": "under adapters of 350.0 M", "self-forcing-pp-24gb": "under adapters of 87.5 M"}
    assert lines["student"] == f"1419.0 M parameters, {trained.get(stage, 'all trained')}"
    assert lines["text encoder"] == "5680.9 M parameters, freed before the first step"
    assert gigabytes(lines["memory"])[0] == max(gigabytes(lines["memory"]))
    element = 2 if device == CUDA else 4
    assert moment(lines, "embedding prompts") == round(element * TEXT / 1e9, 1)
    if device == CUDA:
        assert gigabytes(lines["memory"])[0] < 80


def test_eight_ranks() -> None:
    lines = told(read("self-forcing-pp"), EIGHT)
    weights = 4 * (2 * PARAMETERS / 8 + VAE) + 2 * PARAMETERS
    assert gigabytes(lines["weights"]) == [round(weights / 1e9, 1)], "the teacher's are bfloat16"
    assert gigabytes(lines["gathered"]) == [round(4 * 2 * PARAMETERS / 1e9, 1)]
    assert lines["gradients"] == f"{4 * PARAMETERS / 8 / 1e6:.1f} MB", "the student's or the critic's"
    assert gigabytes(lines["optimizer"]) == [round(4 * 4 * PARAMETERS / 8 / 1e9, 1)]
    assert lines["EMA"] == f"{4 * PARAMETERS / 8 / 1e6:.1f} MB"
    assert gigabytes(lines["KV caches"]) == [round((2 * 21 - 3) * 287_539_200 / 1e9, 1)]
    size, all_of_them = gigabytes(lines["checkpoints"])[:2]
    assert size == round(40 * PARAMETERS / 1e9, 1)
    assert all_of_them == round((2 + 5 + 1) * 40 * PARAMETERS / 1e9, 1)
    resident = weights + 4 * (2 * PARAMETERS + (1 + 4 + 1) * PARAMETERS / 8)
    assert moment(lines, "preview") == pytest.approx((resident + 21 * 287_539_200) / 1e9, abs=0.06)


def test_self_forcing_keeps_its_window_alone() -> None:
    assert gigabytes(told(read("self-forcing"), EIGHT)["KV caches"]) == [round(21 * 287_539_200 / 1e9, 1)]


def test_replicas_are_whole() -> None:
    alone = told(read("self-forcing-pp"))
    replica = told(read("self-forcing-pp", **{"training.parallel": "replicate"}), EIGHT)
    assert "gathered" not in replica
    assert all(alone[name] == replica[name] for name in ("weights", "gradients", "optimizer", "EMA"))


def test_one_gpu_uses_main_memory() -> None:
    stage = "self-forcing-pp-1gpu"
    lines = told(read(stage))
    assert "gathered" not in lines
    assert lines["optimizer"] == f"{16 * PARAMETERS / 1e9:.1f} GB, in main memory"
    assert lines["EMA"] == f"{4 * PARAMETERS / 1e9:.1f} GB, in main memory"
    names = ("weights", "gradients", "KV caches", "activations")
    assert moment(lines, "passes") == pytest.approx(sum(gigabytes(lines[name])[0] for name in names), abs=0.3)
    update = (4 * (2 * PARAMETERS + VAE + PARAMETERS + 2 * PARAMETERS) + 2 * PARAMETERS) / 1e9
    assert moment(lines, "update") == pytest.approx(update, abs=0.06)
    resident = told(read(stage, **{"training.offload": "false"}))
    more = moment(resident, "passes") - moment(lines, "passes")
    assert more == pytest.approx(20 * PARAMETERS / 1e9, abs=0.2)
    assert moment(resident, "passes") < 72, "80 GB hold it all, with the allocator's slack"
    plain = told(read(stage, **{"training.gradient_checkpointing": "false"}))
    assert plain["activations"].endswith("without checkpointing")
    assert gigabytes(plain["activations"])[0] > 80


def test_precision_decides_the_caches() -> None:
    stage, bf16, fp32 = "self-forcing-pp", "11.2 GB", "22.4 GB"
    assert told(read(stage), EIGHT, CUDA)["KV caches"] == bf16
    assert told(read(stage), EIGHT, CPU)["KV caches"] == fp32
    assert told(read(stage, **{"training.precision": "float32"}), EIGHT, CUDA)["KV caches"] == fp32
    assert told(read(stage, **{"training.precision": "bfloat16"}), EIGHT, CPU)["KV caches"] == bf16


def test_samples_at_once_need_memory_each() -> None:
    stage = "self-forcing-pp-1gpu"
    one, two = told(read(stage)), told(read(stage, **{"training.micro_batch": "2"}))
    assert gigabytes(two["KV caches"])[0] == pytest.approx(2 * gigabytes(one["KV caches"])[0], abs=0.1)
    assert two["weights"] == one["weights"]


def test_adapters_are_trained_alone(sizes: Network) -> None:
    lines = told(read("self-forcing-pp", lora_rank="16"), EIGHT)
    adapters = 16 * sizes.adapter
    assert lines["student"] == f"1419.0 M parameters, under adapters of {adapters / 1e6:.1f} M"
    assert lines["critic"] == lines["student"]
    assert lines["optimizer"] == f"{8 * 2 * adapters / 8 / 1e6:.1f} MB"
    assert lines["EMA"] == f"{4 * adapters / 8 / 1e6:.1f} MB"
    assert lines["precision"] == "adapters float32 over bfloat16, arithmetic bfloat16 on cuda"


def test_two_networks_rest_where_three_were(sizes: Network) -> None:
    lines = told(read("self-forcing-pp-24gb"))
    adapters = 64 * sizes.adapter
    frozen = sizes.matrices + 2 * (PARAMETERS - sizes.matrices)
    assert gigabytes(lines["weights"]) == [round((2 * frozen + 2 * 4 * adapters) / 1e9, 1)]
    bfloat16 = told(read("self-forcing-pp-24gb", lora_base="auto"))
    assert gigabytes(bfloat16["weights"]) == [round((2 * 2 * PARAMETERS + 2 * 4 * adapters) / 1e9, 1)]
    assert gigabytes(lines["memory"])[0] <= 21
    assert moment(lines, "critic") < moment(lines, "passes")


def test_pairs_are_planned() -> None:
    lines = told(read("ode"), EIGHT)
    assert lines["pairs"].startswith("16000 trajectories, 335.5 GB")
    assert lines["pairs"].endswith("in runs/wan/pairs")
    weights = 2 * PARAMETERS
    block = 21 * 1560 * (1536 * (12 * 4 + 11 * 2) + 2 * 8960 * 2)
    assert moment(lines, "making pairs") == pytest.approx((weights + block) / 1e9, abs=0.06)


@pytest.mark.parametrize("encoder", [True, False])
def test_a_teacher_is_planned(encoder: bool) -> None:
    recipe = TeacherRecipe(
        "flow-matching", str(WAN), TeacherData("l"), Training(steps=1), train_text_encoder=encoder
    )
    lines = told(recipe)
    assert lines["text encoder"] == f"5680.9 M parameters, {'all trained' if encoder else 'frozen'}"
    trainable = PARAMETERS + (TEXT if encoder else 0)
    assert gigabytes(lines["optimizer"]) == [round(8 * trainable / 1e9, 1)]
    assert gigabytes(lines["gradients"]) == [round(4 * trainable / 1e9, 1)], "both learn at once"
    assert "embedding prompts" not in lines["memory"]
    assert "embeddings" not in lines


# What there is room for


@pytest.mark.parametrize(("free", "verdict"), [(80e9, "yes"), (35e9, "no")])
def test_a_gpu_is_asked_what_it_has_free(free: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 10**11))
    recipe = read("self-forcing-pp-1gpu")
    assert told(recipe, ALONE, CUDA)["fits"].startswith(f"{verdict}, {free / 1e9:.1f} GB are free on cuda")
    assert "fits" not in told(recipe, ALONE, CPU)


def test_a_disk_is_asked_what_it_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    checkpoints = round(8 * 40 * PARAMETERS)
    for free, warned in ((checkpoints, False), (checkpoints - 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: usage(free))
        assert ("too much" in told(read("self-forcing-pp"), EIGHT)["checkpoints"]) == warned


def test_what_is_assumed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12))  # the real one changes meanwhile
    recipe = read("self-forcing-pp", model="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    layout, assumed = planned_layout(recipe)
    text = plan(recipe, layout, EIGHT, CUDA, Path("runs/x"), assumed)
    assert [line for line in text.splitlines() if line.startswith("assumed")] == [
        f"assumed       {line}" for line in assumed
    ]
    assert len(assumed) == 2
    same = dataclasses.replace(recipe, model=str(WAN))
    assert text.startswith(plan(same, planned_layout(same)[0], EIGHT, CUDA, Path("runs/x")))
