"""Norms of queries and keys meet weights of their own precision, as the fused kernels want it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from tiny import CONFIG, SIZE, gaussian, latents, make_student, make_teacher, prompts
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sfpp_cli.core.norm import QueryKeyNorm


class NormPrecisions(TorchFunctionMode):
    """Notes the precision of input and weight of every RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        answer = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "rms_norm":
            x, _, weight, *_ = (*args, *(kwargs or {}).values())
            self.seen.add((x.dtype, weight.dtype))
        return answer


def teacher_pass() -> None:
    make_teacher()(latents(1, 3), torch.tensor([500.0]), prompts(1))


def student_pass() -> None:
    student = make_student()
    cache = student.new_cache(prompts(1), SIZE, context=3)
    student(latents(1, 3), torch.tensor([500.0]), cache)


@pytest.mark.parametrize("run", [teacher_pass, student_pass])
@torch.no_grad()
def test_under_autocast_inputs_are_normed_in_the_precision_of_the_weights(run: Callable[[], None]) -> None:
    with NormPrecisions() as norms, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        run()
    assert norms.seen == {(torch.float32, torch.float32)}


def test_the_answer_has_the_precision_of_the_input() -> None:
    norm = nn.RMSNorm(CONFIG["text_dim"])
    nn.init.uniform_(norm.weight)
    x = gaussian(2, 5, CONFIG["text_dim"])
    expected: Tensor = norm(x.bfloat16().float())
    norm.__class__ = QueryKeyNorm
    assert torch.equal(norm(x), nn.RMSNorm.forward(norm, x))
    assert torch.equal(norm(x.bfloat16()), expected.bfloat16())
