"""What is forecast is what is done: passes counted in a real step, numbers worked out by hand, the recipes for real weights."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tiny import CONFIG, SIZE, WAN_1_3B, make_student, make_teacher, prompts
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sfpp_cli.core.cache import BlockCausal
from sfpp_cli.core.dmd import DistributionMatching, DMDConfig
from sfpp_cli.core.objective import Update
from sfpp_cli.core.trainer import Training
from sfpp_cli.errors import UserError
from sfpp_cli.models.layout import Layout
from sfpp_cli.models.settings import SETTINGS, Settings
from sfpp_cli.models.summary import Shape, summarise
from sfpp_cli.training import run as trained
from sfpp_cli.training.costs import (
    Learner,
    Sizes,
    matching_flop,
    measure,
    rolled,
    start_chances,
    text_parameters,
    trajectory_bytes,
    trajectory_passes,
    windows_of,
)
from sfpp_cli.training.memory import forecast, layout_of
from sfpp_cli.training.recipes import (
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
WAN = sorted((Path(__file__).parents[2] / "examples" / "wan-1.3b").glob("*.toml"))
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {"_class_name": "WanTransformer3DModel", **WAN_1_3B},
    "vae": {
        "_class_name": "AutoencoderKLWan",
        "base_dim": 96,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
    },
    "text_encoder": {
        "model_type": "umt5",
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_heads": 64,
        "num_layers": 24,
        "vocab_size": 256384,
        "feed_forward_proj": "gated-gelu",
    },
    "tokenizer": {},
}
PARAMETERS = 1_418_996_800
"""Of Wan 1.3B."""
PLUS = DMDConfig(method="self-forcing++", frames=252, horizon=21)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wan 1.3B's configuration files, and not one weight."""
    folder = tmp_path_factory.mktemp("wan")
    for part, config in CONFIGS.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def sizes(wan: Path) -> Sizes:
    return measure(wan / "transformer", Layout(str(wan)))


def read(path: Path, model: Path, **changes: str) -> Any:
    return read_recipe(
        path, TeacherRecipe, StudentRecipe, MatchingRecipe, overrides={"model": str(model), **changes}
    )


def shipped(name: str) -> Path:
    return next(path for path in WAN if path.stem == name)


def told(recipe: Recipe, world: int = 1, device: torch.device = CUDA) -> dict[str, str]:
    """The forecast's lines by name; names have a column of their own."""
    lines = forecast(recipe, layout_of(recipe), world, device, Path("runs/x")).splitlines()
    assert all(line[13] == " " and line[14] != " " for line in lines)
    found = {line[:13].strip(): line[14:] for line in lines}
    assert len(found) == len(lines)
    return found


def gigabytes(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) GB", text)]


def one_line(pattern: str) -> Any:
    return pytest.raises(UserError, match=rf"\A(?=.*(?:{pattern})).*\Z")


# Wan 1.3B, worked out by hand


def test_wan_is_measured(sizes: Sizes, wan: Path) -> None:
    assert sizes.parameters == PARAMETERS
    assert sizes.linear == 30 * (6 * 1536**2 + 2 * 1536 * 8960)
    assert sizes.sides == 30 * (8 * (1536 + 1536) + 2 * (1536 + 8960))
    assert (sizes.dim, sizes.ffn, sizes.latent, sizes.shape) == (
        1536,
        8960,
        (16, 60, 104),
        Shape(30, 12, 128, 1560),
    )
    assert sizes.shape.cache_bytes(1, 2) == 287_539_200
    assert text_parameters(Layout(str(wan))) == 5_680_910_336


def test_a_chunk_with_a_full_window_takes_40_tflop(sizes: Sizes) -> None:
    linear, attention = 2 * 1_250_426_880 * 4680, 4 * 30 * 1536 * 4680 * 32760
    assert sizes.flop(3, 21) == linear + attention
    assert (round(linear / 1e12, 1), round(attention / 1e12, 1)) == (11.7, 28.3)


def test_activations(sizes: Sizes) -> None:
    block = 32760 * (1536 * (48 + 22) + 2 * 8960 * 2)
    assert sizes.block_bytes(21, 2) == block
    assert sizes.activation_bytes(21, 2, 7, checkpointing=True) == 30 * 32760 * 1536 * 2 + block
    assert sizes.activation_bytes(21, 2, 7, checkpointing=False) == 30 * block + 7 * 1_250_426_880 * 2
    assert sizes.activation_bytes(21, 4, 7, checkpointing=False) == 30 * sizes.block_bytes(21, 4)


def test_a_checkpoint_holds_folders_and_state() -> None:
    assert Learner(10, 10).checkpoint_bytes == 4 * (10 + 10 + 10 + 20 + 10)
    assert Learner(10, 10, averaged=False).checkpoint_bytes == 4 * (10 + 10 + 20)
    assert Learner(10, 3).checkpoint_bytes == 4 * (7 + 7 + 10 + 6 + 10)


def test_trajectories() -> None:
    pairs = Pairs(prompts="p", count=16000, folder="f", guidance=6.0, sampling_steps=48)
    assert trajectory_passes(pairs) == 96
    assert trajectory_passes(dataclasses.replace(pairs, guidance=1.0)) == 48
    assert trajectory_bytes(pairs, Settings(), (16, 60, 104)) == 16000 * 5 * 21 * 16 * 60 * 104 * 2


# How far rollouts go


def mean_chunks(choices: DMDConfig) -> float:
    windows = windows_of(choices, Settings())
    assert sum(windows.last) == pytest.approx(1)
    return sum(windows.chunks(start) * chance for start, chance in enumerate(windows.last))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 38.5 + 7),  # 78 starts, and the window's 7 chunks
        ({"noise_init": "random"}, 38.5 + 1),  # up to the window's start and its chunk
        ({"window": "beta(1,2)"}, 77577.5 / 3042 + 7),  # sum of s (77.5 - s) over that of 77.5 - s
        ({"frames": 21}, 7),
    ],
)
def test_the_mean_rollout(changes: dict[str, Any], expected: float) -> None:
    assert mean_chunks(dataclasses.replace(PLUS, **changes)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "beta(1,2)"])
@pytest.mark.parametrize("windows", [1, 2, 3])
def test_chances_are_those_of_every_order_of_draws(
    windows: int, kind: Literal["uniform", "beta(1,2)"]
) -> None:
    weights = [1.0] * 5 if kind == "uniform" else [4.5, 3.5, 2.5, 1.5, 0.5]
    expected = [0.0] * 5
    for order in permutations(range(5), windows):
        chance, left = 1.0, sum(weights)
        for start in order:
            chance *= weights[start] / left
            left -= weights[start]
        expected[max(order)] += chance
    exact = windows == 1 or kind == "uniform"
    assert start_chances(5, windows, kind) == pytest.approx(expected, abs=1e-6 if exact else 0.03)


@pytest.mark.parametrize("changes", [{}, {"window": "beta(1,2)"}])
def test_chances_are_those_of_training(changes: dict[str, Any]) -> None:
    choices = dataclasses.replace(PLUS, frames=18, horizon=6, **changes)
    objective, settings = matching(choices)
    draws = torch.Generator().manual_seed(1)
    drawn = torch.tensor([objective.draw_start(draws) for _ in range(3000)])
    found = drawn.bincount(minlength=objective.starts) / 3000
    assert found.tolist() == pytest.approx(windows_of(choices, settings).last, abs=0.03)


# Passes, counted in a real step


def matching(choices: DMDConfig) -> tuple[DistributionMatching, Settings]:
    settings = Settings(chunk=2, context=6, sink=1, steps=(1000, 750, 500), horizon=6, text_length=8)
    objective = DistributionMatching(
        make_student(),
        make_teacher(),
        make_teacher(),
        lambda texts: prompts(len(texts)),
        ["a", "b"],
        sampler=settings.sampler(),
        horizon=6,
        latent=(CONFIG["in_channels"], *SIZE),
        config=choices,
        seed=0,
    )
    return objective, settings


@dataclasses.dataclass
class Count:
    """Stands for a network's sizes, or counts what a network does, in one unit."""

    total: float = 0.0

    def flop(self, frames: int, seen: int) -> float:
        return frames + 1000.0 * frames * seen

    def watch(
        self, monkeypatch: pytest.MonkeyPatch, model: Any, method: str, context: int | None = None
    ) -> None:
        inner = getattr(model, method)

        def counted(latents: Tensor, *rest: Any) -> Any:
            frames = latents.shape[1]
            memory = next((part for part in rest if hasattr(part, "frame")), None)
            self.total += self.flop(
                frames, frames if memory is None else min(memory.frame + frames, context or 0)
            )
            return inner(latents, *rest)

        monkeypatch.setattr(model, method, counted)


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": 6},
        {"frames": 6, "guidance": 1.0},
        {"frames": 6, "noise_init": "random"},
        {"frames": 6, "shared_rollout": False},
        {"method": "self-forcing", "frames": None, "noise_init": "random"},
        {"method": "self-forcing", "frames": None, "noise_init": "random", "shared_rollout": False},
    ],
    ids=str,
)
def test_passes_are_those_of_a_step(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    choices = dataclasses.replace(PLUS, horizon=6, critic_updates=2, **changes)
    objective, settings = matching(choices)
    student, others = Count(), Count()
    for method in ("forward", "cache_clean"):
        student.watch(monkeypatch, objective.student, method, settings.context)
    for model in (objective.critic, objective.teacher):
        others.watch(monkeypatch, model, "forward")
    for number, player in enumerate(objective.players):
        for repeat in range(player.updates):
            player.loss(Update(0, number, repeat, (0,)))[0].backward()
    stand_in: Any = Count()
    flop = matching_flop(stand_in, stand_in, windows_of(choices, settings), choices, settings, trained=1)
    assert flop["rollouts"] + flop["windows"] == pytest.approx(student.total)
    assert flop["scores"] + flop["critic"] == pytest.approx(others.total)


def test_a_pass_with_gradient_costs_more() -> None:
    stand_in: Any = Count()
    settings = Settings(chunk=2, context=6, steps=(1000, 750, 500))
    choices = dataclasses.replace(PLUS, frames=12, horizon=6)
    forward, more = (
        matching_flop(stand_in, stand_in, windows_of(choices, settings), choices, settings, trained)
        for trained in (1, 4)
    )
    assert more["critic"] == 4 * forward["critic"]
    assert (more["rollouts"], more["scores"]) == (forward["rollouts"], forward["scores"])
    starts = [rolled(stand_in, settings, start, 3, 1, remembered=False) for start in range(4)]
    assert more["windows"] - forward["windows"] == pytest.approx(3 * sum(starts) / 4)


def test_what_blocks_keep_is_about_what_is_saved() -> None:
    frames, size, shape = 4, (16, 24), (1, 4, 4, 16, 24)
    student = make_student()
    estimate = Sizes(0, 0, 0, CONFIG["ffn_dim"], (4, *size), Shape(2, 2, 12, 96)).block_bytes(frames, 4)
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
    assert text_parameters(layout) == parts["text_encoder"].parameters


def test_adapters_are_those_of_training(tiny_bundle: Path) -> None:
    pytest.importorskip("peft")
    layout, student = Layout(str(tiny_bundle)), make_student()
    trained.add_adapter(student, 3)
    learning = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    assert learning == 3 * measure(layout.student, layout).sides


# The recipes for real weights


@pytest.mark.parametrize("path", WAN, ids=lambda path: path.stem)
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_shipped_recipes_are_forecast_and_fit_80_gb(path: Path, device: torch.device, wan: Path) -> None:
    recipe = read(path, wan)
    lines = told(recipe, 1 if "1gpu" in path.stem else 8, device)
    assert {
        "student",
        "text encoder",
        "weights",
        "gradients",
        "moments",
        "average",
        "activations",
        "memory",
        "work",
    } <= lines.keys()
    assert lines["student"] == "1419.0 M parameters, all learn"
    assert lines["text encoder"] == "5680.9 M parameters, gone before the first step"
    estimates = ("activations", "memory", "work", "formula", "encoding text", "preview")
    assert all(lines[name].startswith("~") for name in estimates)
    if device == CUDA:
        assert (
            max(gigabytes(lines["memory"]) + gigabytes(lines["preview"]) + gigabytes(lines["encoding text"]))
            < 80
        )
    assert list(wan.rglob("*.safetensors")) == []


def test_every_stage_has_its_recipe() -> None:
    assert {path.stem for path in WAN} == {"ode", "self-forcing", "self-forcing-pp", "self-forcing-pp-1gpu"}


def test_eight_ranks(wan: Path) -> None:
    lines = told(read(shipped("self-forcing-pp"), wan), 8)
    vae = 126_892_531
    assert gigabytes(lines["weights"]) == [round(4 * (2 * PARAMETERS / 8 + PARAMETERS + vae) / 1e9, 1)]
    assert gigabytes(lines["gathered"]) == [round(4 * 2 * PARAMETERS / 1e9, 1)]
    assert gigabytes(lines["gradients"]) == [round(4 * 2 * PARAMETERS / 8 / 1e9, 1)]
    assert gigabytes(lines["moments"]) == [round(4 * 4 * PARAMETERS / 8 / 1e9, 1)]
    assert lines["average"] == f"{4 * PARAMETERS / 8 / 1e6:.1f} MB"
    assert gigabytes(lines["ring"]) == [round(21 * 287_539_200 / 1e9, 1)]
    assert gigabytes(lines["past"]) == [round(42 * 287_539_200 / 1e9, 1)]
    assert lines["rollout"].startswith("~70.5 of 134 chunks of 3 latent frames in the mean, 4 passes")
    assert gigabytes(lines["checkpoints"]) == [round(40 * PARAMETERS / 1e9, 1)]
    beside = 4 * (2 * PARAMETERS + 8 * PARAMETERS / 8 + PARAMETERS + PARAMETERS / 8 + vae) + 21 * 287_539_200
    assert gigabytes(lines["preview"])[0] == pytest.approx(beside / 1e9, abs=0.06)


def test_replicas_are_whole(wan: Path) -> None:
    path = shipped("self-forcing-pp")
    alone, replica = told(read(path, wan)), told(read(path, wan, **{"training.parallel": "replicate"}), 8)
    assert "gathered" not in replica
    assert all(alone[name] == replica[name] for name in ("weights", "gradients", "moments", "average"))


def test_one_gpu_needs_main_memory(wan: Path) -> None:
    path = shipped("self-forcing-pp-1gpu")
    lines = told(read(path, wan))
    assert "gathered" not in lines
    assert lines["moments"] == f"{16 * PARAMETERS / 1e9:.1f} GB, in main memory"
    assert lines["average"] == f"{4 * PARAMETERS / 1e9:.1f} GB, in main memory"
    parts = sum(gigabytes(lines[name])[0] for name in ("weights", "gradients", "ring", "past", "activations"))
    assert gigabytes(lines["memory"])[0] == pytest.approx(parts, abs=0.3)
    update = 4 * (3 * PARAMETERS + 126_892_531 + 2 * PARAMETERS + 3 * PARAMETERS) / 1e9
    assert gigabytes(lines["memory"])[1] == pytest.approx(update, abs=0.06)
    kept = told(read(path, wan, **{"training.offload": "false"}))
    assert gigabytes(kept["memory"])[0] == pytest.approx(
        gigabytes(lines["memory"])[0] + 20 * PARAMETERS / 1e9, abs=0.2
    )
    assert gigabytes(kept["memory"])[0] > 80
    forgetful = told(read(path, wan, **{"training.gradient_checkpointing": "false"}))
    assert forgetful["activations"].endswith("without checkpointing")
    assert gigabytes(forgetful["activations"])[0] > 80


def test_precision_decides_the_cache(wan: Path) -> None:
    path = shipped("self-forcing-pp")
    bf16, fp32 = "~6.0 GB", "~12.1 GB"
    assert told(read(path, wan), 8, CUDA)["ring"] == bf16
    assert told(read(path, wan), 8, CPU)["ring"] == fp32
    assert told(read(path, wan, **{"training.precision": "float32"}), 8, CUDA)["ring"] == fp32
    assert told(read(path, wan, **{"training.precision": "bfloat16"}), 8, CPU)["ring"] == bf16


def test_micro_batches_share_memory_not_work(wan: Path) -> None:
    path = shipped("self-forcing-pp-1gpu")
    one, two = told(read(path, wan)), told(read(path, wan, **{"training.micro_batch": "2"}))
    assert gigabytes(two["ring"])[0] == pytest.approx(2 * gigabytes(one["ring"])[0], abs=0.1)
    assert two["work"] == one["work"]


def test_adapters_learn_alone(wan: Path, sizes: Sizes) -> None:
    lines = told(read(shipped("self-forcing-pp"), wan, lora_rank="16"), 8)
    adapters = 16 * sizes.sides
    assert (
        lines["student"] == f"{(PARAMETERS + adapters) / 1e6:.1f} M parameters, {adapters / 1e6:.1f} M learn"
    )
    assert lines["gradients"] == f"{4 * (PARAMETERS + adapters) / 8 / 1e6:.1f} MB"


def test_odes_are_told_before_they_are_solved(wan: Path, sizes: Sizes) -> None:
    lines = told(read(shipped("ode"), wan), 8)
    flop = 96 * sizes.flop(21, 21)
    assert (
        lines["pairs"]
        == f"16000 of 96 teacher passes each, ~{flop / 1e15:.1f} PFLOP; ~{16000 * flop / 1e18:.0f} EFLOP in all"
    )
    assert lines["trajectories"] == "335.5 GB in runs/wan/pairs"
    assert "making pairs" in lines
    with one_line("48"):
        told(read(shipped("ode"), wan, **{"pairs.sampling_steps": "50"}), 8)


@pytest.mark.parametrize("encoder", [True, False])
def test_a_teacher_is_forecast(encoder: bool, wan: Path) -> None:
    recipe = TeacherRecipe(
        "flow-matching", str(wan), TeacherData("l"), Training(steps=1), train_text_encoder=encoder
    )
    lines = told(recipe)
    assert lines["text encoder"] == f"5680.9 M parameters, {'all learn' if encoder else 'frozen'}"
    learning = PARAMETERS + (5_680_910_336 if encoder else 0)
    assert gigabytes(lines["moments"]) == [round(8 * learning / 1e9, 1)]
    assert "encoding text" not in lines
    assert "embeddings" not in lines


# Devices, layouts and refusals


@pytest.mark.parametrize(("free", "verdict"), [(80e9, "enough"), (50e9, "too little")])
def test_a_gpu_is_asked_what_it_has_left(
    free: float, verdict: str, wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 10**11))
    recipe = read(shipped("self-forcing-pp-1gpu"), wan)
    assert told(recipe, 1, CUDA)["free"].startswith(f"{free / 1e9:.1f} GB on cuda, {verdict}")
    assert "free" not in told(recipe, 1, CPU)


@pytest.fixture
def own_wan(wan: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(wan, tmp_path / "wan"))


def test_a_student_that_is_here_brings_its_settings(wan: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(read(shipped("self-forcing-pp"), wan), student=str(tmp_path / "student"))
    assert layout_of(recipe).settings == Settings()
    (tmp_path / "student").mkdir()
    with one_line("holds no student"):
        layout_of(recipe)
    (tmp_path / "student" / "config.json").write_text(
        json.dumps({**CONFIGS["transformer"], "_class_name": "CausalWanModel"})
    )
    Settings(context=9).write(tmp_path / "student" / SETTINGS)
    assert layout_of(recipe).settings.context == 9
    assert told(recipe)["ring"] == f"~{9 * 287_539_200 / 1e9:.1f} GB"
    longer = dataclasses.replace(recipe, context=15)
    assert layout_of(longer).settings == dataclasses.replace(layout_of(recipe).settings, context=15)
    with one_line("must hold the sink"):
        layout_of(dataclasses.replace(recipe, context=2))


def test_what_cannot_run_is_refused(wan: Path) -> None:
    recipe = read(shipped("self-forcing-pp"), wan)
    with one_line("batch 8 cannot be shared out evenly over 3 ranks"):
        told(recipe, 3)
    with one_line("offload is for a single process"):
        told(read(shipped("self-forcing-pp-1gpu"), wan), 8)
    for changes in (
        {"horizon": 20},
        {"frames": 100},
        {"frames": 18},
    ):
        with one_line("do not come out in chunks of 3: change dmd.frames"):
            told(dataclasses.replace(recipe, dmd=dataclasses.replace(recipe.dmd, **changes)))


@pytest.mark.parametrize(
    ("part", "change", "complaint"),
    [
        ("transformer", {"num_layers": None}, "transformer.config.json describes no model"),
        ("transformer", {"_class_name": "CausalWanModel"}, "holds a student but no teacher"),
        ("text_encoder", {"num_heads": "many"}, "text_encoder.config.json describes no model"),
    ],
)
def test_models_that_are_none_are_refused(
    part: str, change: dict[str, Any], complaint: str, own_wan: Path
) -> None:
    (own_wan / part / "config.json").write_text(json.dumps({**CONFIGS[part], **change}))
    with one_line(complaint):
        told(read(shipped("self-forcing-pp"), own_wan))
