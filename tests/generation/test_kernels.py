"""Attention kernels, fp8 and the decision to compile: what is chosen, said and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Sfpp

from sfpp_cli.errors import UserError
from sfpp_cli.generation.kernels import attention, kernel_for
from sfpp_cli.generation.model_options import ModelOptions

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def options(device: torch.device = CPU, dtype: torch.dtype = torch.float32, **more: object) -> ModelOptions:
    return ModelOptions(device=device, dtype=dtype, **more)  # type: ignore[arg-type]


def refusal(**more: object) -> str:
    with pytest.raises(UserError) as caught:
        options(**more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_kernel_is_chosen_by_name() -> None:
    query, key = torch.zeros(1, 2, 6, 8), torch.zeros(1, 2, 12, 8)
    names = []
    for name in (None, "flash", "math"):
        with attention(name, CPU):
            names.append(kernel_for(query, key))
    assert names == ["flash", "flash", "math"]
    assert kernel_for(query, key) == "flash", "the choice ends with the block"


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(attention="cudnn") == "--attention cudnn: on cpu it takes flash, math"
    assert refusal(attention="flsh").endswith("did you mean 'flash'?")
    assert refusal(device=CUDA, attention="fa9").startswith("--attention fa9: on cuda it takes cudnn, flash")
    assert refusal(quantize="int4") == "--quantize int4: it takes fp8"
    assert refusal(quantize="fp8").startswith("--quantize fp8 needs an NVIDIA GPU")
    for capability, says in (((8, 6), "needs an NVIDIA GPU"), ((8, 9), "pip install 'sfpp[fp8]'")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        monkeypatch.setattr("sfpp_cli.generation.kernels.find_spec", lambda name: None)
        assert says in refusal(device=CUDA, dtype=torch.bfloat16, quantize="fp8")
    assert "--dtype bfloat16" in refusal(device=CUDA, dtype=torch.float16, quantize="fp8")


def test_long_videos_are_compiled_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfpp_cli.devices.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("sfpp_cli.devices.find_spec", lambda name: object())
    undecided = options(CUDA, compile=None)
    assert not undecided.decided(19.9).compile
    assert undecided.decided(20).compile
    assert options(CPU, compile=None).decided(1000).compile is False
    for asked in (True, False):
        assert replace(undecided, compile=asked).decided(20).compile is asked
    monkeypatch.setattr("sfpp_cli.devices.find_spec", lambda name: None)  # no triton
    assert undecided.decided(20).compile is False


def test_a_video_tells_its_kernel_and_a_named_one_is_part_of_it(sfpp: Sfpp, tmp_path: Path) -> None:
    seen = {}
    for name in ("plain", "math"):
        extra = ["-v"] if name == "plain" else ["--attention", name]
        code, _, said = sfpp("generate", "--frames", "9", "-o", f"{name}.mp4", *extra)
        assert code == 0
        seen[name] = json.loads((tmp_path / f"{name}.json").read_text())
        assert ("attention runs by the kernel 'flash'" in said) == (name == "plain")
    assert seen["plain"]["attention_kernel"] == "flash"
    assert seen["math"]["attention_kernel"] == "math"
    assert "attention" not in seen["plain"], "so that videos of before keep their keys"
    assert seen["math"]["attention"] == "math"
    assert seen["plain"]["key"] != seen["math"]["key"]
    assert seen["plain"]["speed"]["warm_up_s"] == 0
