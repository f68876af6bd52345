"""Both naming schemes cover each other, converted models answer as the reference, bad files are refused."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from golden_data import ATOL, load, weights
from safetensors.torch import save_file
from torch import Tensor

from sfpp_cli.errors import UserError
from sfpp_cli.models.convert import (
    infer_config,
    student_from_original,
    teacher_from_original,
    transformer_config,
    transformer_keys,
    vae_config,
    vae_from_original,
    vae_keys,
)
from sfpp_cli.models.original import load_original
from sfpp_cli.models.vae import StreamingDecoder, StreamingEncoder

VAE_CONFIGS = [
    {
        "dim": 8,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
    },
    {"dim": 4, "z_dim": 6, "dim_mult": [1, 2, 3], "num_res_blocks": 1, "temperal_downsample": [True, False]},
    {
        "dim": 4,
        "z_dim": 3,
        "dim_mult": [1, 1, 2, 2, 2],
        "num_res_blocks": 3,
        "temperal_downsample": [True, False, False, True],
    },
]


@pytest.fixture(scope="module")
def transformer_case() -> tuple[dict[str, Any], dict[str, Tensor]]:
    return load("teacher_forward")


@torch.no_grad()
def test_teacher_answers_as_the_reference(transformer_case: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    config, golden = transformer_case
    teacher = teacher_from_original(weights("transformer"), config)
    flow = teacher(golden["input.latents"], golden["input.timestep"], golden["input.prompt_embeds"])
    torch.testing.assert_close(flow, golden["output.flow_pred"], atol=ATOL, rtol=0)


@torch.no_grad()
def test_student_answers_as_the_reference() -> None:
    config, golden = load("block_causal_forward")
    student = student_from_original(weights("transformer"), config)
    latents = golden["input.latents"]
    memory = student.block_causal(golden["input.prompt_embeds"], latents.shape[3:], chunk=3)
    flow = student(latents, golden["input.timestep"], memory)
    torch.testing.assert_close(flow, golden["output.flow_pred"], atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    "case", ["causal_rollout_full", "causal_rollout_rolling", "causal_rollout_rolling_sink"]
)
def test_a_config_may_say_how_the_weights_are_used(case: str) -> None:
    config, _ = load(case)
    assert transformer_config(config) == transformer_config(load("teacher_forward")[0])


@pytest.mark.parametrize("chunks", [[7], [3, 3, 1], [1, 2, 4]])
@torch.no_grad()
def test_vae_decodes_as_the_reference(chunks: list[int]) -> None:
    config, golden = load("vae_decode")
    decoder = StreamingDecoder(vae_from_original(weights("vae"), config))
    pixels = [decoder(chunk) for chunk in golden["input.latents"].split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pixels, dim=1), golden["output.pixels"], atol=ATOL, rtol=0)
    if chunks == [3, 3, 1]:
        assert [chunk.shape[1] for chunk in pixels] == golden["output.chunk_pixel_frames"].tolist()


@pytest.mark.parametrize("chunks", [[17], [5, 12], [1, 8, 4, 4]])
@torch.no_grad()
def test_vae_encodes_as_the_reference(chunks: list[int]) -> None:
    config, golden = load("vae_encode")
    encoder = StreamingEncoder(vae_from_original(weights("vae"), config))
    frames = golden["input.pixels"].transpose(1, 2)
    latents = torch.cat([encoder(chunk) for chunk in frames.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(latents, golden["output.latents"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("config", VAE_CONFIGS, ids=["wan", "three stages", "five stages"])
def test_vae_names_are_a_bijection(config: dict[str, Any]) -> None:
    vae = AutoencoderKLWan(**vae_config(config))
    original = {original_vae_name(name, vae): tensor for name, tensor in vae.state_dict().items()}
    if config["dim_mult"] == [1, 2, 4, 4]:
        assert original.keys() == weights("vae").keys(), "the test's own inverse map is wrong"
    assert_same(vae_keys(original, config), vae.state_dict())
    assert_same(vae_from_original(original, config).state_dict(), vae.state_dict())


def test_transformer_names_are_a_bijection(
    transformer_case: tuple[dict[str, Any], dict[str, Tensor]],
) -> None:
    config, _ = transformer_case
    deep = {
        name.replace("blocks.1.", f"blocks.{layer}."): tensor
        for layer in range(1, 12)
        for name, tensor in weights("transformer").items()
    }
    student = student_from_original(deep, {**config, "num_layers": 12})
    assert_same(student.state_dict(), transformer_keys(deep))


def test_diffusers_names_pass_through(transformer_case: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    config, _ = transformer_case
    student = student_from_original(weights("transformer"), config)
    assert_same(teacher_from_original(student.state_dict(), config).state_dict(), student.state_dict())
    vae = AutoencoderKLWan(**vae_config(VAE_CONFIGS[1]))
    assert_same(vae_keys(vae.state_dict(), VAE_CONFIGS[1]), vae.state_dict())


def test_models_take_the_very_tensors_of_their_source(
    transformer_case: tuple[dict[str, Any], dict[str, Tensor]],
) -> None:
    """A copy, in float32 at that, would take three times the memory of a file in bfloat16."""
    config, _ = transformer_case
    source = {name: tensor.bfloat16() for name, tensor in weights("transformer").items()}
    student = student_from_original(source, config)
    given = {tensor.data_ptr() for tensor in source.values()}
    assert {parameter.data_ptr() for parameter in student.parameters()} == given
    assert {tensor.dtype for tensor in student.state_dict().values()} == {torch.bfloat16}


def test_config_is_read_from_the_shapes(transformer_case: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    config, _ = transformer_case
    inferred = infer_config(weights("transformer"), num_heads=config["num_heads"])
    assert {key: config[key] for key in inferred} == inferred
    plain = {name: tensor for name, tensor in weights("transformer").items() if ".norm3." not in name}
    assert infer_config(plain, num_heads=4)["cross_attn_norm"] is False
    student_from_original(plain, infer_config(plain, num_heads=4))


def test_wan_sized_transformers_need_no_number_of_heads() -> None:
    shapes = {
        name: [16 * size if size == 96 else size for size in tensor.shape]
        for name, tensor in weights("transformer").items()
    }
    wide = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert infer_config(wide)["dim"] == 1536
    assert infer_config(wide)["num_heads"] == 12


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dim": None}, "'dim'"),
        ({"num_heads": None}, "'num_heads'"),
        ({"ffn_dim": None}, "'ffn_dim'"),
        ({"num_layers": "two"}, "num_layers .* 'two'"),
        ({"num_heads": 5}, "num_heads 5"),
        ({"qk_norm": False}, "qk_norm"),
        ({"patch_size": [2, 2]}, "patch_size"),
    ],
)
def test_transformer_config_names_the_key_at_fault(
    change: dict[str, Any], complaint: str, transformer_case: tuple[dict[str, Any], dict[str, Tensor]]
) -> None:
    config, _ = transformer_case
    with one_line_error(complaint):
        transformer_config({**config, **change})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"temperal_downsample": [True]}, "temperal_downsample"),
        ({"attn_scales": [0.5]}, "attn_scales"),
        ({"latents_mean": [0.0]}, "latents_mean"),
        ({"dim_mult": []}, "temperal_downsample|dim_mult"),
    ],
)
def test_vae_config_names_the_key_at_fault(change: dict[str, Any], complaint: str) -> None:
    with one_line_error(complaint):
        vae_config({**VAE_CONFIGS[1], **change})


def test_vae_statistics_default_to_wans_or_to_none() -> None:
    wan = AutoencoderKLWan(**vae_config(VAE_CONFIGS[0])).config
    assert wan.latents_mean == pytest.approx(load("vae_decode")[0]["latents_mean"])
    assert vae_config(VAE_CONFIGS[1])["latents_std"] == [1.0] * 6
    assert vae_config({**VAE_CONFIGS[0], "latents_std": [2.0] * 16})["latents_std"] == [2.0] * 16


def test_loading_is_strict(transformer_case: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    config, _ = transformer_case
    state = dict(weights("transformer"))
    state["head.extra"] = state.pop("head.modulation")
    state["patch_embedding.bias"] = torch.zeros(95)
    complaint = r"missing: scale_shift_table; unexpected: head\.extra; .*ing\.bias \[95\] instead of \[96\]"
    with one_line_error(complaint):
        student_from_original(state, config)
    with one_line_error(r"and \d+ more"):
        vae_from_original(state, VAE_CONFIGS[1])
    with one_line_error("no patch_embedding.weight"):
        infer_config(weights("vae"))
    with one_line_error("num_heads"):
        infer_config(weights("transformer"))


def test_two_names_for_one_parameter_are_refused() -> None:
    with one_line_error("twice"):
        transformer_keys({"head.head.bias": torch.zeros(1), "proj_out.bias": torch.zeros(1)})


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors"])
@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.model.", "model._fsdp_wrapped_module.", "_orig_mod.module."]
)
def test_files_of_every_kind_are_read(name: str, prefix: str, tmp_path: Path) -> None:
    state = {
        f"{prefix}head.modulation": torch.rand(1, 2, 3),
        f"{prefix}blocks.0._fsdp_wrapped_module.norm3.bias": torch.rand(3),
    }
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    assert_same(
        load_original(tmp_path / name).weights,
        dict(zip(["head.modulation", "blocks.0.norm3.bias"], state.values(), strict=True)),
    )


def test_a_part_of_a_training_checkpoint_is_chosen(tmp_path: Path) -> None:
    parts = {name: {"model.w": torch.rand(2)} for name in ("critic", "generator", "generator_ema")}
    torch.save({"step": 7, **parts}, tmp_path / "all.pt")
    torch.save(
        {"state_dict": {"generator": parts["generator"], "critic": parts["critic"]}}, tmp_path / "two.pt"
    )
    assert torch.equal(load_original(tmp_path / "all.pt").weights["w"], parts["generator_ema"]["model.w"])
    assert torch.equal(load_original(tmp_path / "two.pt").weights["w"], parts["generator"]["model.w"])
    for name, part in parts.items():
        assert torch.equal(load_original(tmp_path / "all.pt", which=name).weights["w"], part["model.w"])
    assert torch.equal(
        load_original(tmp_path / "two.pt", which="critic").weights["w"], parts["critic"]["model.w"]
    )
    with one_line_error("'generator_ema', only state_dict, generator, critic"):
        load_original(tmp_path / "two.pt", which="generator_ema")


def test_the_legacy_format_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same(load_original(tmp_path / "old.pt").weights, {"w": torch.ones(2)})


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_code_in_a_file_is_refused_and_never_run(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    torch.save({"generator": Payload(target)}, tmp_path / "zip.pt")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Payload(target)))
    for name in ("zip.pt", "raw.pth"):
        with one_line_error("never executed"):
            load_original(tmp_path / name)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_truncated_files_are_refused(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    (torch.save if suffix == ".pt" else save_file)({"w": torch.rand(1000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with one_line_error("damaged"):
        load_original(path)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    contents = {
        "list.pt": [torch.ones(1)],
        "empty.pt": {},
        "scalars.pt": {"model": {"step": 1}},
        "number.pt": 3,
    }
    cycle: dict[str, Any] = {}
    cycle["model"] = cycle
    for name, content in {**contents, "cycle.pt": cycle}.items():
        torch.save(content, tmp_path / name)
        with one_line_error("holds no state dict"):
            load_original(tmp_path / name)
    with one_line_error("is not there"):
        load_original(tmp_path / "absent.pt")
    (tmp_path / "folder").mkdir()
    with one_line_error("no weights in"):
        load_original(tmp_path / "folder")
    with one_line_error("no known kind"):
        (tmp_path / "w.gguf").touch()
        load_original(tmp_path / "w.gguf")
    torch.save({"w": torch.ones(1)}, tmp_path / "flat.pt")
    with one_line_error("without a name"):
        load_original(tmp_path / "flat.pt", which="generator")


def one_line_error(pattern: str) -> Any:
    """A UserError that matches and has one line (`.` does not match a line break)."""
    return pytest.raises(UserError, match=rf"\A(?=.*(?:{pattern})).*\Z")


def assert_same(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(given[name], tensor), name


def original_vae_name(name: str, vae: AutoencoderKLWan) -> str:
    """diffusers' name -> Wan's; the flat numbers come from counting the modules there are."""
    modules = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    for half, group, layers in (
        ("encoder", "downsamples", encoder_layers(vae)),
        ("decoder", "upsamples", decoder_layers(vae)),
    ):
        ends = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
        middle = {
            f"mid_block.{place}": f"middle.{index}"
            for index, place in enumerate(["resnets.0", "attentions.0", "resnets.1"])
        }
        flat = {place: f"{group}.{index}" for index, place in enumerate(layers)}
        modules |= {f"{half}.{theirs}": f"{half}.{ours}" for theirs, ours in (ends | middle | flat).items()}
    inner = {
        "norm1": "residual.0",
        "conv1": "residual.2",
        "norm2": "residual.3",
        "conv2": "residual.6",
        "conv_shortcut": "shortcut",
    }
    module = next(module for module in modules if name.startswith(f"{module}."))
    first, *rest = name.removeprefix(f"{module}.").split(".")
    return ".".join([modules[module], inner.get(first, first), *rest])


def encoder_layers(vae: AutoencoderKLWan) -> list[str]:
    return [f"down_blocks.{index}" for index, _ in enumerate(vae.encoder.down_blocks)]


def decoder_layers(vae: AutoencoderKLWan) -> list[str]:
    layers = []
    for stage, block in enumerate(vae.decoder.up_blocks):
        layers += [f"up_blocks.{stage}.resnets.{index}" for index, _ in enumerate(block.resnets)]
        layers += [f"up_blocks.{stage}.upsamplers.{index}" for index, _ in enumerate(block.upsamplers or [])]
    return layers
