"""`objective = "grpo"`, mostly on the embedded model, from the recipe to weights, and what ends it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Sfpp
from safetensors.torch import load_file

import sfpp_cli
from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.training.preview import Previewer

pytest_plugins = ["tiny_bundle"]
pytestmark = pytest.mark.usefixtures("no_curves")

GRPO = f"""
objective = "grpo"
model = "{DEFAULT_MODEL}"
prompts = "prompts.txt"
[grpo]
frames = 12
horizon = 6
group = 2
[reward]
target = 0.015
width = 0.5
spikes = 1e-5
[training]
steps = 2
batch = 2
micro_batch = 1
lr = 1e-4
ema_start = 1
save_every = 1
"""


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle bouncing over a blue background\n")
    (tmp_path / "grpo.toml").write_text(GRPO)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_a_run_resumes_bitwise_and_says_what_it_watches(
    sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path
) -> None:
    more = ("--set", "grpo.kl=0.1", "--set", f"model={tiny_bundle}")
    assert sfpp("train", "grpo.toml", "--out", "whole", *more)[0] == 0
    assert sfpp("train", "grpo.toml", "--out", "parts", "--steps", "1", *more)[0] == 0
    worker = ("--set", "reward.workers=1")  # no number depends on it
    assert sfpp("train", "grpo.toml", "--out", "parts", "--resume", *more, *worker)[0] == 0
    for name in ("student", "student-ema"):
        whole, parts = (weights(tmp_path / run / "step-000002" / name) for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    started = weights(tiny_bundle / "transformer")
    assert any(not torch.equal(whole[key], started[key]) for key in whole)
    record = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[1])
    watched = "reward reward_std reward_min reward_max flow exposure motion flow_variance still over_moving"
    assert set(f"{watched} luma saturation groups_left_out kl".split()) <= record.keys()
    assert record["reward_min"] <= record["reward"] <= record["reward_max"]
    assert record["reward"] == pytest.approx(record["flow"] + 0.5 * record["exposure"])
    settings = json.loads((tmp_path / "whole/step-000002/student/sfpp.json").read_text())
    assert settings["horizon"] == 12


def test_adapters_alone_may_learn(sfpp: Sfpp, tmp_path: Path) -> None:
    """They are folded into a student of the plain layout; what has no adapter stays as it was."""
    options = ("--set", "lora_rank=2", "--set", "training.gradient_checkpointing=true", "--steps", "1")
    assert sfpp("train", "grpo.toml", "--out", "run", *options)[0] == 0
    before = weights(Path(sfpp_cli.__file__).parents[1] / "weights" / DEFAULT_MODEL / "transformer")
    after = weights(tmp_path / "run/step-000001/student")
    assert after.keys() == before.keys()
    changed = {key for key in before if not torch.equal(after[key].float(), before[key].float())}
    adapted = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "proj.weight", "net.2.weight")
    assert changed
    assert all(key.startswith("blocks.") and key.endswith(adapted) for key in changed)


def test_what_does_not_fit_is_refused(sfpp: Sfpp) -> None:
    code, _, err = sfpp("train", "grpo.toml", "--set", "training.batch=3", "--dry-run")
    assert code == 2
    assert "a batch of 3 is not made of groups of 2" in err
    code, _, err = sfpp("train", "grpo.toml", "--set", "grpo.horizon=7", "--dry-run")
    assert code == 2
    assert "grpo: rollouts of 12 latent frames and windows of 7 must be whole chunks of 3" in err
    code, _, err = sfpp("train", "grpo.toml", "--set", 'stop_on=["fading"]', "--dry-run")
    assert code == 2
    assert "stop_on" in err


def test_the_band_is_measured_in_the_recipes_own_words(sfpp: Sfpp) -> None:
    code, out, _ = sfpp("train", "grpo.toml", "--flow-band", "2", "--set", "reward.sampling_steps=4")
    assert code == 0
    assert [line.split(" = ")[0] for line in out.splitlines()] == ["target", "width", "spikes"]
    assert all(float(line.split(" = ")[1]) > 0 for line in out.splitlines())


def test_a_verdict_on_a_preview_stops_the_run(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos that fade to white from the second preview on: nothing of that step is saved."""
    decoded = Previewer._decode
    made: list[int] = []

    def fading(self: Previewer, latents: torch.Tensor) -> np.ndarray:
        frames = decoded(self, latents).astype(np.float32)
        made.append(len(frames))
        white = np.linspace(0, 1, len(frames))[:, None, None, None] if len(made) > 1 else 0
        return (frames + (255 - frames) * white).astype(np.uint8)

    monkeypatch.setattr(Previewer, "_decode", fading)
    preview = ("--set", "preview.every=1", "--set", "preview.seconds=6", "--set", "preview.count=1")
    stop = ("--set", 'stop_on=["over_exposure"]')
    code, _, err = sfpp("train", "grpo.toml", "--out", "run", *preview, *stop)
    assert code == 2
    assert "stopped at step 2, before it was saved: over_exposure from" in err
    assert "the last checkpoint stands" in err
    assert [path.name for path in sorted((tmp_path / "run").glob("step-*"))] == ["step-000001"]
    assert (tmp_path / "run/previews/step-000002.png").exists()
