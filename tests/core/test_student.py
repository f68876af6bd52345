"""The causal student: a teacher with chunk-wise sight.

The same by cache and in one pass, at any place in time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from golden_data import ATOL, load, weights
from tiny import (
    IDENTITY,
    SIZE,
    WAN_1_3B,
    MaskedMemory,
    NaiveCache,
    gradients,
    latents,
    make_student,
    make_teacher,
    prompts,
)
from torch import Tensor, nn

from sfpp_cli.core.cache import CacheSnapshot, KVCache, Memory, Room
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.models.convert import student_from_original

TEXT = prompts(2)
TIMESTEP = torch.tensor([833.25, 77.5])
DIFFUSERS_TIME = 1e-5
"""In float64, against diffusers' own model: it embeds time in float32, 6e-8 of 5, two layers deep."""


def test_a_teachers_weights_are_a_students(tmp_path: Path) -> None:
    teacher = make_teacher()
    teacher.save_pretrained(tmp_path / "teacher")
    student, report = CausalWanModel.from_pretrained(tmp_path / "teacher", output_loading_info=True)
    assert not any(report.values()), report
    student.load_state_dict(teacher.state_dict(), strict=True)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name


def test_a_configuration_passes_through_unchanged(tmp_path: Path) -> None:
    teacher = make_teacher(eps=1e-5, rope_max_seq_len=64, cross_attn_norm=False)
    student = CausalWanModel.from_config(teacher.config)
    student.save_pretrained(tmp_path)
    loaded = [model.from_pretrained(tmp_path).config for model in (CausalWanModel, WanTransformer3DModel)]
    for config in (student.config, *loaded):
        assert public(config) == public(teacher.config)


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
        if key[0] != "_"
    }


@torch.no_grad()
def test_a_saved_student_is_a_diffusers_folder(tmp_path: Path) -> None:
    student = make_student()
    student.save_pretrained(tmp_path)
    wan, report = WanTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    student.double()
    x, text = latents(2, 6).double(), TEXT.double()
    flow = wan.double()(x.transpose(1, 2), TIMESTEP, text, return_dict=False)[0].transpose(1, 2)
    memory = student.block_causal(text, SIZE, chunk=6)
    torch.testing.assert_close(student(x, TIMESTEP, memory), flow, atol=DIFFUSERS_TIME, rtol=0)


@torch.no_grad()
def test_wan_1_3b_has_diffusers_keys_and_shapes() -> None:
    with torch.device("meta"):
        student, wan = CausalWanModel(**WAN_1_3B), WanTransformer3DModel(**WAN_1_3B)
    shapes = {name: tensor.shape for name, tensor in student.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in wan.state_dict().items()}
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_418_996_800
    assert student.tokens((60, 104)) == 1560


@pytest.mark.parametrize("head_dim", [12, 14, 16])
@pytest.mark.parametrize("chunk", [7, 9])
@torch.no_grad()
def test_with_all_frames_in_one_chunk_it_is_the_teacher(head_dim: int, chunk: int) -> None:
    """Head widths whose complex pairs 3 divides and does not: the remainder of the rotation goes to time."""
    student = make_student(attention_head_dim=head_dim).double()
    teacher = make_teacher(attention_head_dim=head_dim).double()
    x, text = latents(2, 7).double(), TEXT.double()
    flow = student(x, TIMESTEP, student.block_causal(text, SIZE, chunk=chunk))
    torch.testing.assert_close(flow, teacher(x, TIMESTEP, text), atol=DIFFUSERS_TIME, rtol=0)
    by_frame = student(x, TIMESTEP[:, None].expand(-1, 7), student.block_causal(text, SIZE, chunk=chunk))
    torch.testing.assert_close(by_frame, flow, atol=IDENTITY, rtol=0)
    cached = student(x, TIMESTEP, student.new_cache(text, SIZE, context=7))
    torch.testing.assert_close(cached, flow, atol=IDENTITY, rtol=0)


@pytest.mark.parametrize(("context", "output"), [(None, "flow_pred"), (6, "flow_pred_local6")])
@torch.no_grad()
def test_block_causal_is_the_references(context: int | None, output: str) -> None:
    config, golden = load("block_causal_forward")
    student = student_from_original(weights("transformer"), config)
    x = golden["input.latents"]
    memory = student.block_causal(
        golden["input.prompt_embeds"], (x.shape[3], x.shape[4]), chunk=3, context=context
    )
    flow = student(x, golden["input.timestep"], memory)
    torch.testing.assert_close(flow, golden[f"output.{output}"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("context", [3, 4, 6, 9, 21])
@pytest.mark.parametrize("last", [3, 2])
@torch.no_grad()
def test_the_cache_answers_as_one_block_causal_pass(context: int, last: int) -> None:
    """Clean chunks at t = 0 and a noisy one after them.

    Its flow is that of the chunk alone, over the cache of the others.
    """
    student = make_student().double()
    x, text = latents(2, 9 + last).double(), TEXT.double()
    clean, noisy = x.split([9, last], dim=1)
    timestep = torch.cat([torch.zeros(clean.shape[:2]), TIMESTEP[:, None].expand(noisy.shape[:2])], dim=1)
    whole = student(x, timestep, student.block_causal(text, SIZE, chunk=3, context=context))

    cache = student.new_cache(text, SIZE, context=context)
    for chunk in clean.split(3, dim=1):
        student.cache_clean(chunk, cache)
    assert cache.frame == clean.shape[1]
    flow = student(noisy, TIMESTEP, cache)
    torch.testing.assert_close(flow, whole[:, clean.shape[1] :], atol=IDENTITY, rtol=0)
    alone = student(noisy, TIMESTEP, student.new_cache(text, SIZE, context=context))
    assert context == 3 or (flow - alone).abs().max() > 0.1, "the past does not show"


@pytest.mark.parametrize("offset", [5000, 14_400])
@torch.no_grad()
def test_only_relative_time_matters(offset: int) -> None:
    """No sink. The first chunks over the shifted cache see its empty slots; two layers forget in two chunks.

    All is float64 but the rotation's cosines, whose 6e-8 in each of two layers leave some 1e-6.
    """
    student = make_student().double()
    text = TEXT.double()
    here, far = (student.new_cache(text, SIZE, context=6) for _ in range(2))
    far.frame = offset
    for chunk in latents(2, 15).double().split(3, dim=1):
        student.cache_clean(chunk, here)
        student.cache_clean(chunk, far)
    x = latents(2, 3, seed=5).double()
    flow = student(x, TIMESTEP, here)
    torch.testing.assert_close(student(x, TIMESTEP, far), flow, atol=1e-5, rtol=0)
    far.frame += 1
    assert (student(x, TIMESTEP, far) - flow).abs().max() > 1e-2, "time does not show"

    memory = student.block_causal(text, SIZE, chunk=3)
    x = latents(2, 9).double()
    flow = student(x, TIMESTEP, memory)
    memory.frame = offset
    torch.testing.assert_close(student(x, TIMESTEP, memory), flow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_dim", [12, 128])
def test_the_rotation_of_an_hour_is_exact(head_dim: int) -> None:
    """Against Wan's formula.

    theta ** (-2 i / width), the axes' widths 2 (d / 6), 2 (d / 6) and the rest for time.
    """
    with torch.device("meta"):
        student = make_student(attention_head_dim=head_dim)
    spatial = 2 * (head_dim // 6)
    angles = []
    for frame in range(14_400, 14_403):
        for row in range(2):
            for column in range(3):
                axes = [(frame, head_dim - 2 * spatial), (row, spatial), (column, spatial)]
                angles.append(
                    [place * 10_000.0 ** (-2 * i / width) for place, width in axes for i in range(width // 2)]
                )
    expected = torch.tensor(angles, dtype=torch.float64)
    cos, sin = student._rope(14_400, 3, 2, 3, torch.device("cpu"))
    # Half a unit in the last place of 1 is 6e-8: that, and no more than the rounding to float32.
    torch.testing.assert_close(cos.double(), expected.cos(), atol=1e-7, rtol=0)
    torch.testing.assert_close(sin.double(), expected.sin(), atol=1e-7, rtol=0)


@torch.no_grad()
def test_tokens_lie_one_after_another_in_memory() -> None:
    """Where a block's input were a view of channels, so would be all that it adds to it."""
    student = make_student()
    orders = []
    for block in student.blocks:
        block.register_forward_pre_hook(lambda block, inputs: orders.append(inputs[0].is_contiguous()))
    with torch.no_grad():
        student(latents(1, 3), torch.tensor([500.0]), student.new_cache(prompts(1), SIZE, context=3))
    assert orders == [True] * len(student.blocks)


def test_padding_is_attended() -> None:
    student = make_student()
    x = latents(2, 3)
    flows = [
        student(
            x, TIMESTEP, student.block_causal(nn.functional.pad(TEXT[:, :5], (0, 0, 0, zeros)), SIZE, chunk=3)
        )
        for zeros in (0, 3, 20)
    ]
    assert (flows[0] - flows[1]).abs().max() > 1e-2
    assert (flows[1] - flows[2]).abs().max() > 1e-2


@torch.no_grad()
def test_the_context_pass_leaves_what_a_whole_pass_at_zero_would() -> None:
    student = make_student()
    short, whole = (student.new_cache(TEXT, SIZE, context=5, sink=1) for _ in range(2))
    for chunk in latents(2, 9).split(3, dim=1):
        student.cache_clean(chunk, short)
        student(chunk, torch.zeros(2), whole)
        whole.commit(3)
        for ours, theirs in zip([*short.keys, *short.values], [*whole.keys, *whole.values], strict=True):
            assert torch.equal(ours, theirs)
    assert short.frame == whole.frame == 9


@torch.no_grad()
def test_the_context_pass_computes_no_more_than_it_must() -> None:
    student = make_student(num_layers=3)
    calls = dict.fromkeys(
        ["proj_out", "norm_out", *(f"blocks.{i}.{part}" for i in range(3) for part in ("ffn", "attn1.to_k"))],
        0,
    )

    def count(name: str) -> None:
        calls[name] += 1

    for name in calls:
        student.get_submodule(name).register_forward_hook(lambda *_, name=name: count(name))
    student.cache_clean(latents(2, 3), student.new_cache(TEXT, SIZE, context=6))
    assert {name for name, number in calls.items() if not number} == {"proj_out", "norm_out", "blocks.2.ffn"}
    assert set(calls.values()) == {0, 1}


@torch.no_grad()
def test_bfloat16_stays_close(tmp_path: Path) -> None:
    """Cast as a whole, and as diffusers loads it: norms and the time embedding stay in float32."""
    student = make_student()
    student.save_pretrained(tmp_path)
    mixed = CausalWanModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert mixed.scale_shift_table.dtype == torch.float32
    assert mixed.proj_out.weight.dtype == torch.bfloat16
    expected = two_chunks(student, TEXT)
    for low in (mixed, student.bfloat16()):
        flow = two_chunks(low, TEXT.bfloat16())
        assert flow.dtype == torch.float32, "flow comes in the latents' precision"
        error = (flow - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert 1e-4 < error < 0.03


def two_chunks(student: CausalWanModel, text: Tensor) -> Tensor:
    first, second = latents(2, 6).split(3, dim=1)
    cache = student.new_cache(text, SIZE, context=6)
    student.cache_clean(first, cache)
    assert cache.keys[0].dtype == text.dtype
    flow: Tensor = student(second, TIMESTEP, cache)
    return flow


@pytest.mark.parametrize("context", [None, 4])
def test_gradients_of_a_block_causal_pass(context: int | None) -> None:
    student = make_student().double()
    x = latents(2, 8).double()
    found = []
    for kind in (
        lambda: student.block_causal(TEXT.double(), SIZE, chunk=3, context=context),
        lambda: masked(student, 3, context),
    ):
        student(x, TIMESTEP, kind()).square().mean().backward()
        found.append(gradients(student))
    assert_same_gradients(*found)
    assert found[0].keys() == dict(student.named_parameters()).keys(), (
        "the text's keys and values learn as well"
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_survive_that_the_rollout_goes_on(checkpointing: bool) -> None:
    """One pass with gradient amid a rollout; the backward pass comes when all it saw has left the context."""
    student = make_student().double()
    student.enable_gradient_checkpointing()
    past, present, future = latents(2, 18).double().split([6, 3, 9], dim=1)
    present.requires_grad_()
    with torch.no_grad():
        text = student.embed_text(TEXT.double())
    tokens = student.tokens(SIZE)
    caches: list[Any] = [
        CacheSnapshot(text, Room(tokens, 7, 1)),
        NaiveCache(text, tokens=tokens, context=7, sink=1),
    ]
    found = []
    for cache in caches:
        student.gradient_checkpointing = checkpointing and cache is caches[0]
        walk(student, past, cache)
        flow = student(present, TIMESTEP, cache)
        walk(student, torch.cat([present.detach(), future], 1), cache)
        flow.square().mean().backward()
        assert present.grad is not None
        found.append({"input": present.grad, **gradients(student)})
        present.grad = None
    assert_same_gradients(*found)
    assert found[0]["blocks.0.attn1.to_k.weight"].abs().max() > 1e-3


@torch.no_grad()
def walk(student: CausalWanModel, x: Tensor, cache: KVCache | CacheSnapshot) -> None:
    for chunk in x.split(3, dim=1):
        student(torch.rand_like(chunk), TIMESTEP, cache)
        student.cache_clean(chunk, cache)


def masked(student: CausalWanModel, chunk: int, context: int | None) -> Memory:
    text = student.embed_text(TEXT.double())
    return MaskedMemory(text, tokens=student.tokens(SIZE), chunk=chunk, context=context)


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """In float64, but what passes back through a norm is rounded to float32: 6e-8 of it."""
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        largest = theirs[name].abs().max().item()
        torch.testing.assert_close(gradient, theirs[name], atol=1e-8 + 1e-5 * largest, rtol=0, msg=name)


def test_gradients_survive_when_only_queries_learn() -> None:
    """Adapters may train the queries alone.

    Keys and values then carry no gradient, but the queries' needs them.
    """
    student = make_student().requires_grad_(False)
    student.blocks[0].attn1.to_q.requires_grad_(True)
    first, second = latents(2, 6).split(3, dim=1)
    cache = student.new_cache(TEXT, SIZE, context=6).snapshot(3)
    walk(student, first, cache)
    flow = student(second, TIMESTEP, cache)
    walk(student, second, cache)
    flow.square().mean().backward()
    assert student.blocks[0].attn1.to_q.weight.grad.abs().max() > 0


def test_the_context_pass_needs_no_one_to_switch_gradients_off() -> None:
    student = make_student()
    chunk = latents(2, 3)
    inside, outside = (student.new_cache(TEXT, SIZE, context=6) for _ in range(2))
    student.cache_clean(chunk, outside)
    with torch.no_grad():
        student.cache_clean(chunk, inside)
    for ours, theirs in zip([*outside.keys, *outside.values], [*inside.keys, *inside.values], strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_videos_of_a_batch_do_not_meet() -> None:
    student = make_student().double()
    x, text = latents(2, 6).double(), TEXT.double()
    together = student(x, TIMESTEP, student.block_causal(text, SIZE, chunk=3))
    for i in range(2):
        one = slice(i, i + 1)
        alone = student(x[one], TIMESTEP[one], student.block_causal(text[one], SIZE, chunk=3))
        torch.testing.assert_close(together[one], alone, atol=IDENTITY, rtol=0)
