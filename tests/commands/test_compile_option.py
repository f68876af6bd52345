"""`--compile` and `training.compile` change no number. The compiler does everything but generate code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Sfpp
from safetensors.torch import load_file
from tiny import rounding

from sfpp_cli import DEFAULT_MODEL

pytestmark = pytest.mark.usefixtures("no_curves")
RECIPE = f"""
objective = "dmd"
model = "{DEFAULT_MODEL}"
prompts = "prompts.txt"
[dmd]
method = "self-forcing"
noise_init = "random"
horizon = 6
critic_updates = 1
[training]
steps = 1
batch = 1
lr = 1e-3
save_every = 1
"""


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was compiled."""
    torch.compiler.reset()
    plain = torch.compile
    names = []

    def compile(function, **options):  # type: ignore[no-untyped-def]
        names.append(function.__name__)
        return plain(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile)
    return names


def test_a_compiled_video_is_the_same(sfpp: Sfpp, tmp_path: Path, compiled: list[str]) -> None:
    for name, options in (("plain", []), ("fast", ["--compile"])):
        assert not compiled
        arguments = ["generate", "--frames", "33", "--save-latents", "-o", f"{name}.mp4", *options]
        assert sfpp(*arguments)[0] == 0
    assert compiled
    plain, fast = (load_file(tmp_path / f"{name}.safetensors")["latents"] for name in ("plain", "fast"))
    torch.testing.assert_close(fast, plain, atol=rounding(plain), rtol=0)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # the compiler looks at it
def test_a_compiled_run_is_the_same(sfpp: Sfpp, tmp_path: Path, compiled: list[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle bouncing over a blue background\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    records = []
    for name, options in (("plain", []), ("fast", ["--set", "training.compile=true"])):
        assert not compiled
        assert sfpp("train", "recipe.toml", "--out", name, *options)[0] == 0
        records.append(json.loads((tmp_path / name / "metrics.jsonl").read_text()))
    assert compiled
    for key in ("loss", "grad_norm", "critic_loss"):  # sums of float32: a thousand roundings is 1e-4
        assert records[1][key] == pytest.approx(records[0][key], rel=1e-4), key
