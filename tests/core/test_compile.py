"""Compiled blocks: the same numbers, and one graph for all layers and chunks.

The compiler's code generator is left out (it takes a minute, and is PyTorch's to test); all before it runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tiny import IDENTITY, SIZE, gradients, latents, make_student, make_teacher, prompts
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from sfpp_cli.core.student import CausalWanModel

TEXT = prompts(2).double()
TIMESTEP = torch.tensor([833.25, 77.5])


def compile_with(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are to be compiled whole, by a compiler that has seen nothing yet."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))


@pytest.fixture(
    params=[pytest.param("eager", marks=pytest.mark.slow), "aot_eager"]
)  # which begins as the first
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with(request.param, monkeypatch)


@torch.no_grad()
def stream(student: CausalWanModel, frames: int, videos: int = 2) -> Tensor:
    """Flows of chunk after chunk over one rolling cache."""
    cache = student.new_cache(TEXT[:videos], SIZE, context=5, sink=1)
    flows = []
    for chunk in latents(videos, frames).double().split(3, dim=1):
        flows.append(student(chunk, TIMESTEP[:videos], cache))
        cache.commit(chunk.shape[1])
    return torch.cat(flows, dim=1)


@pytest.mark.usefixtures("backend")
def test_a_compiled_student_answers_the_same() -> None:
    student = make_student().double()
    expected = stream(student, frames=8)
    student.compile_blocks()
    torch.testing.assert_close(stream(student, frames=8), expected, atol=IDENTITY, rtol=0)


@pytest.mark.usefixtures("backend")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # the compiler looks at it
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_student_learns_the_same(checkpointing: bool) -> None:
    student = make_student().double()
    x = latents(2, 6).double()
    found = []
    for compiled in (False, True):
        if compiled:
            student.compile_blocks()
        if compiled and checkpointing:
            student.enable_gradient_checkpointing()
        student(x, TIMESTEP, student.block_causal(TEXT, SIZE, chunk=3)).square().mean().backward()
        found.append(gradients(student))
    plain, learned = found
    assert plain.keys() == learned.keys() == dict(student.named_parameters()).keys()
    for name, gradient in learned.items():
        torch.testing.assert_close(gradient, plain[name], atol=IDENTITY, rtol=0, msg=name)


@pytest.mark.usefixtures("backend")
@torch.no_grad()
def test_a_compiled_teacher_answers_the_same() -> None:
    teacher = make_teacher().double()
    x = latents(2, 6).double()
    expected = teacher(x, TIMESTEP, TEXT)
    teacher.compile_blocks()
    torch.testing.assert_close(teacher(x, TIMESTEP, TEXT), expected, atol=IDENTITY, rtol=0)


def test_all_layers_and_chunks_share_two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a long video, or 30 layers, would be compiled again and again until the compiler gives up.

    One video at a time, as in `generate`: of a single one the batch's stride may be anything, and counts.
    """
    counter = CompileCounter()
    compile_with(counter, monkeypatch)
    counters.clear()
    student = make_student(num_layers=12).double()
    student.compile_blocks()
    stream(student, frames=30, videos=1)
    assert counter.frame_count == 2
    assert not counters["graph_break"]
    assert not counters["recompiles"]
