"""Attention kernels, fp8 and the decision to compile: what is chosen, said and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Sfpp
from torch._dynamo.testing import CompileCounter

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.devices import cpu_threads
from sfpp_cli.errors import UserError
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.kernels import attention, check_kernel, kernel_for, multiply_fast
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import Request
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.progress import Silent

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


def test_a_slow_kernel_is_a_warning_and_another_than_asked_is_refused() -> None:
    assert "runs the slow one" in str(check_kernel("math", None, CUDA))
    for runs, asked, device in (("math", "math", CUDA), ("cudnn", None, CUDA), ("math", None, CPU)):
        assert check_kernel(runs, asked, device) is None
    with pytest.raises(UserError, match="--attention flash does not run these shapes here, 'math' does"):
        check_kernel("math", "flash", CUDA)


def test_float32_on_a_gpu_is_multiplied_by_its_tensor_cores() -> None:
    before = torch.get_float32_matmul_precision()
    found = []
    for device, dtype in ((CPU, torch.float32), (CUDA, torch.bfloat16), (CUDA, torch.float32)):
        multiply_fast(device, dtype)
        found.append(torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision(before)
    assert found == [before, before, "high"]


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
    for room, fits in ((24e9, False), (80e9, True), (None, False)):
        monkeypatch.setattr("sfpp_cli.generation.model_options.total_memory", lambda device, room=room: room)
        assert undecided.decided(20).compiles_decoder is fits
        assert not undecided.decided(19.9).compiles_decoder
        assert not options(CPU, compile=True).compiles_decoder
    monkeypatch.setattr("sfpp_cli.devices.find_spec", lambda name: None)  # no triton
    assert undecided.decided(20).compile is False


def test_the_warm_up_leaves_nothing_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of student and decoder, whatever the number of threads around it."""
    counter = CompileCounter()
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    monkeypatch.setattr(ModelOptions, "compiles_decoder", True)  # as on a large GPU
    request = Request(
        prompt="a red circle", seed=0, frames=69, width=64, height=64, fps=16, out=Path("v.mp4")
    )
    generator = Generator.load(Bundle(DEFAULT_MODEL), options(compile=True), [request.prompt], Silent())
    with cpu_threads(2):
        assert generator.warm_up(request) > 0
        compiled = counter.frame_count
        assert compiled > 2, "more than the student's two graphs"
        assert sum(map(len, generator.frames(request))) == 69
    assert counter.frame_count == compiled
    assert generator.warm_up(request) == 0


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
