"""Checkpoints as they are published, in miniature: each is read whole, or refused in words that help.

The names and keys are those of the releases; the tensors are the golden transformer's, 2 layers of width 96.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import weights as golden_weights
from safetensors.torch import load_file, save_file
from tiny import make_student
from torch import Tensor

from sfpp_cli.errors import UserError
from sfpp_cli.models.convert import transformer_keys
from sfpp_cli.models.lora import Lora
from sfpp_cli.models.packing import convert
from sfpp_cli.models.releases import RELEASES, guess_release, unwarped
from sfpp_cli.models.settings import SETTINGS, Settings

pytest_plugins = ["tiny_bundle"]

Tensors = dict[str, Tensor]
FSDP = "model._fsdp_wrapped_module."
HEADS = 4


@pytest.fixture(scope="module")
def wan() -> Tensors:
    """A transformer under Wan's own names."""
    return dict(golden_weights("transformer"))


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def shifted(tensors: Mapping[str, Tensor]) -> Tensors:
    """Other weights of the same shapes."""
    return {name: tensor + 0.01 for name, tensor in tensors.items()}


def write_config(folder: Path, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": HEADS, **config}))


def write_shards(folder: Path, tensors: Tensors) -> Path:
    """Two shards and their index, as diffusers and Wan 14B have them; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    stem = "diffusion_pytorch_model"
    files = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file)
    places = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def converted(source: Path, *, heads: int | None = HEADS, **options: Any) -> tuple[Tensors, Settings, str]:
    """What `sfpp weights convert` makes of it: weights, settings, and all that it says."""
    target = source.with_name("converted")
    changes = options.pop("changes", {})
    notes = convert(source, target, changes, num_heads=heads, **options)
    state = load_file(target / "transformer" / "diffusion_pytorch_model.safetensors")
    return state, Settings.read(target / SETTINGS), "\n".join(notes)


def assert_is(state: Tensors, expected: Mapping[str, Tensor]) -> None:
    named = transformer_keys(expected)
    assert state.keys() == named.keys()
    for name, tensor in named.items():
        assert torch.equal(state[name], tensor), name


FILES: dict[str, Callable[[Tensors], Any]] = {
    "self_forcing_dmd.pt": lambda wan: {
        "generator": prefixed("model.", shifted(wan)),
        "critic": prefixed("model.", shifted(wan)),
        "generator_ema": prefixed(FSDP, wan),
    },
    "ode_init.pt": lambda wan: {"generator": prefixed("model.", wan)},
    "causvid/model.pt": lambda wan: {"generator": prefixed("model.", wan), "critic": shifted(wan)},
    "longlive_base.pt": lambda wan: {"generator": prefixed("model.", wan)},
    "rewardforcing.pt": lambda wan: prefixed("model.", wan),
    "wan.safetensors": lambda wan: wan,
    "diffusers.safetensors": transformer_keys,
    "comfy.safetensors": lambda wan: prefixed("model.diffusion_model.", wan),
    "comfy-short.safetensors": lambda wan: prefixed("diffusion_model.", wan),
    "lightning.ckpt.pt": lambda wan: {"state_dict": prefixed("generator.model.", wan), "global_step": 5},
    "ema-and-model.pt": lambda wan: {"model": shifted(wan), "ema": wan},
    "with-optimizer.pt": lambda wan: {"generator": wan, "critic_optimizer": {"state": {}}, "step": 600},
    "freqs.pt": lambda wan: prefixed("model.", wan | {"freqs": torch.ones(8, 3, dtype=torch.complex128)}),
    "rope.pt": lambda wan: transformer_keys(wan) | {"rope.freqs_cos": torch.ones(8, 3)},
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_whole(name: str, wan: Tensors, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(FILES[name](wan), path)
    state, settings, _ = converted(path)
    assert_is(state, wan)
    assert settings == Settings()


def test_krea_stays_in_bfloat16(wan: Tensors, tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in wan.items()}
    save_file(prefixed("model.", half), tmp_path / "krea-realtime-video-14b.safetensors")
    state, settings, said = converted(tmp_path / "krea-realtime-video-14b.safetensors", like="krea")
    assert_is(state, half)
    assert settings == Settings()
    assert "recomputes the cache" in said


@pytest.mark.parametrize("what", ["folder", "index", "repository"])
def test_shards_are_read_from_their_folder_or_index(what: str, wan: Tensors, tmp_path: Path) -> None:
    folder = tmp_path / "wan" / ("transformer" if what == "repository" else "")
    index = write_shards(folder, transformer_keys(wan))
    if what != "index":
        write_config(folder)
    source = {"folder": folder, "index": index, "repository": tmp_path / "wan"}[what]
    state, _, _ = converted(source, heads=HEADS if what == "index" else None)
    assert_is(state, wan)


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ({"num_frames_per_block": 3, "local_attn_size": -1, "sliding_window_num_frames": 21}, Settings()),
        (
            {"num_frames_per_block": 1, "local_attn_size": 12, "sink_size": 3},
            Settings(chunk=1, context=12, sink=3),
        ),
    ],
)
def test_fastvideos_folder_tells_its_settings(
    told: dict[str, Any], settings: Settings, wan: Tensors, tmp_path: Path
) -> None:
    folder = tmp_path / "fastvideo" / "transformer"
    write_config(folder, _class_name="CausalWanTransformer3DModel", **told)
    save_file(transformer_keys(wan), folder / "diffusion_pytorch_model.safetensors")
    state, found, said = converted(tmp_path / "fastvideo", heads=None)
    assert_is(state, wan)
    assert found == settings
    assert "chunk" not in said
    assert "shift 5.0" in said


def test_a_converted_folder_keeps_its_settings(wan: Tensors, tmp_path: Path) -> None:
    save_file(wan, tmp_path / "wan.safetensors")
    convert(tmp_path / "wan.safetensors", tmp_path / "first", {"sink": 3, "fps": 24}, num_heads=HEADS)
    state, settings, said = converted(tmp_path / "first", heads=None, changes={"chunk": 1})
    assert_is(state, wan)
    assert settings == Settings(chunk=1, sink=3, fps=24)
    assert said == ""


def test_a_bidirectional_folder_is_said_to_be_one(wan: Tensors, tmp_path: Path) -> None:
    write_shards(tmp_path / "wan", wan)
    write_config(tmp_path / "wan", _class_name="WanModel")
    _, _, said = converted(tmp_path / "wan")
    assert "no student before `sfpp distill`" in said


def test_which_part_was_taken_is_said_unless_chosen(wan: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    parts = {"generator": prefixed("model.", shifted(wan)), "generator_ema": prefixed(FSDP, wan)}
    torch.save(parts | {"optimizer": {"state": {}}}, path)
    _, _, said = converted(path)
    assert "took generator_ema" in said
    assert "takes another: generator\n" in said
    state, _, said = converted(path, which="generator", overwrite=True)
    assert_is(state, shifted(wan))
    assert "took" not in said


@pytest.mark.parametrize(("dtype", "error"), [("float8_e4m3fn", "6%"), ("float8_e5m2", "12%")])
def test_fp8_without_scales_is_warned_about(dtype: str, error: str, wan: Tensors, tmp_path: Path) -> None:
    coarse = {name: tensor.to(getattr(torch, dtype)) for name, tensor in wan.items()}
    save_file(coarse, tmp_path / "fp8.safetensors")
    state, _, said = converted(tmp_path / "fp8.safetensors")
    assert f"{dtype} without scales, which rounds weights by up to {error}" in said
    assert_is(state, {name: tensor.float() for name, tensor in coarse.items()})


def refused_files(wan: Tensors) -> dict[str, tuple[Any, str]]:
    """What the file holds, and words of the refusal."""
    name = "blocks.0.self_attn.q.weight"
    weight = wan[name]
    matrix = torch.zeros(96, 2)
    plain = "takes plain floating-point weights"
    scaled = {**wan, "blocks.0.self_attn.q.scale_weight": torch.ones(1)}
    five_b = {**wan, "patch_embedding.weight": torch.zeros(96, 48, 1, 2, 2)}
    adapter = {f"{name}.lora_A.default.weight": matrix.T, f"{name}.lora_B.default.weight": matrix}
    return {
        "complex.pt": ({**wan, name: weight.to(torch.complex64)}, f"{name} is complex, and sfpp {plain}"),
        "sparse.pt": ({**wan, name: weight.to_sparse()}, f"{name} is sparse"),
        "int8.pt": ({**wan, name: weight.to(torch.int8)}, f"{name} is quantised (torch.int8)"),
        "scaled-fp8.pt": (scaled, "q.scale_weight is the scale of a quantised tensor"),
        "expanded.pt": ({**wan, name: torch.zeros(1).expand(10**10)}, f"{name} is without values of its own"),
        "scalar.pt": ({**wan, name: torch.tensor(1.0)}, "attn1.to_q.weight [] instead of [96, 96]"),
        "longlive2.pt": (
            {"generator": five_b, "generator_lora": adapter},
            "48 latent channels, as Wan 2.2 5B",
        ),
        "wan22-5b.pt": (five_b, "48 latent channels, as Wan 2.2 5B's"),
        "i2v-22.pt": (
            {**wan, "patch_embedding.weight": torch.zeros(96, 36, 1, 2, 2)},
            "take 36 channels and return 16, as an image-to-video Wan",
        ),
        "i2v-21.pt": ({**wan, "img_emb.proj.0.weight": matrix}, "are of an image-to-video Wan"),
        "vace.pt": ({**wan, "vace_blocks.0.after_proj.weight": matrix}, "are of a VACE model"),
        "skyreels.pt": ({**wan, "fps_embedding.weight": matrix}, "are of SkyReels-V2"),
        "lora.pt": (
            {"generator_lora": adapter, "critic_lora": adapter},
            "holds a LoRA, no model: convert the",
        ),
        "flat-lora.pt": (prefixed("diffusion_model.", adapter), "holds a LoRA, no model: convert the"),
        "base-and-lora.pt": (
            {"generator": wan, "generator_lora": adapter},
            "holds a model and a LoRA: merge it",
        ),
        "peft-model.pt": (
            prefixed("base_model.model.", {**wan, **adapter}),
            "holds a model and a LoRA: merge",
        ),
        "args.pt": (
            {"generator": wan, "args": argparse.Namespace(lr=1)},
            "it holds argparse.Namespace besides tensors; code is never executed",
        ),
    }


@pytest.mark.parametrize("name", refused_files(dict(golden_weights("transformer"))))
def test_files_are_refused_by_name_and_reason(name: str, wan: Tensors, tmp_path: Path) -> None:
    content, reason = refused_files(wan)[name]
    torch.save(content, tmp_path / name)
    with pytest.raises(UserError) as raised:
        converted(tmp_path / name)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage is deprecated")
def test_pytorchs_quantised_tensors_are_refused(wan: Tensors, tmp_path: Path) -> None:
    name = "blocks.0.self_attn.q.weight"
    torch.save({**wan, name: torch.quantize_per_tensor(wan[name], 0.1, 0, torch.qint8)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"{name} is quantised \(torch\.qint8\)"):
        converted(tmp_path / "x.pt")


def test_folders_are_refused_by_name_and_reason(wan: Tensors, tmp_path: Path) -> None:
    index = write_shards(tmp_path / "shards", wan)
    with pytest.raises(UserError, match="is one of 2 shards; give their folder or index"):
        converted(tmp_path / "shards" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    (tmp_path / "shards" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors is missing"):
        converted(index)
    (tmp_path / "a14b" / "transformer_2").mkdir(parents=True)
    with pytest.raises(UserError, match="two transformers that take turns"):
        converted(tmp_path / "a14b")
    (tmp_path / "twice").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        save_file(wan, tmp_path / "twice" / name)
    with pytest.raises(UserError, match=r"b\.safetensors holds what another file holds too"):
        converted(tmp_path / "twice")


# settings


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("self-forcing", Settings()),
        ("causvid", Settings(shift=8.0, steps=(1000, 280, 120))),
        ("causvid-4step", Settings(shift=8.0)),
        ("causal-forcing", Settings()),
        ("causal-forcing-frame", Settings(chunk=1)),
        (
            "causal-forcing-frame-2step",
            Settings(chunk=1, steps=(1000, 500), first_steps=(1000, 750, 500, 250)),
        ),
        (
            "causal-forcing-frame-1step",
            Settings(chunk=1, steps=(1000,), first_steps=(1000, 750, 500, 250)),
        ),
        ("longlive", Settings(context=12, sink=3, horizon=240)),
        ("krea", Settings()),
        ("rolling-forcing", Settings(sink=3, steps=(1000, 800, 600, 400, 200))),
        ("reward-forcing", Settings(context=9, sink=3)),
    ],
)
def test_a_release_names_its_settings(name: str, settings: Settings, wan: Tensors, tmp_path: Path) -> None:
    save_file(wan, tmp_path / "w.safetensors")
    _, found, said = converted(tmp_path / "w.safetensors", like=name)
    assert found == settings
    assert said == RELEASES[name].warning + RELEASES[name].without_lora


def test_what_is_told_wins_over_the_release_and_this_over_the_base(own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / SETTINGS).unlink()
    Settings(chunk=1, sink=2, shift=8.0, fps=24).write(own_bundle / SETTINGS)
    save_file(make_student().state_dict(), tmp_path / "w.safetensors")
    _, found, _ = converted(
        tmp_path / "w.safetensors", heads=None, like="longlive", base=str(own_bundle), changes={"sink": 6}
    )
    assert found == Settings(context=12, sink=6, horizon=240, fps=24)


def test_a_release_of_one_list_takes_the_bases_first_steps_away(own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / SETTINGS).unlink()
    Settings(steps=(1000,), first_steps=(1000, 500)).write(own_bundle / SETTINGS)
    save_file(make_student().state_dict(), tmp_path / "w.safetensors")
    options: dict[str, Any] = {"heads": None, "base": str(own_bundle)}
    _, found, said = converted(tmp_path / "w.safetensors", **options)
    assert found.first_steps == (1000, 500)
    assert "steps 1000, first_steps 1000,500, horizon 21, since" in said
    _, found, _ = converted(tmp_path / "w.safetensors", like="self-forcing", overwrite=True, **options)
    assert found == Settings()


def test_an_unknown_release_is_answered_with_the_known(wan: Tensors, tmp_path: Path) -> None:
    save_file(wan, tmp_path / "w.safetensors")
    with pytest.raises(
        UserError, match=r"--like longlife: it takes self-forcing, .*; did you mean 'longlive'"
    ):
        converted(tmp_path / "w.safetensors", like="longlife")


def test_what_is_assumed_is_said(wan: Tensors, tmp_path: Path) -> None:
    save_file(wan, tmp_path / "w.safetensors")
    _, _, said = converted(tmp_path / "w.safetensors", changes={"chunk": 1, "horizon": 99})
    assert "assumed context 21, sink 0, shift 5.0, steps 1000,750,500,250, since" in said
    (tmp_path / "w.safetensors").rename(tmp_path / "longlive_base.safetensors")
    _, _, said = converted(tmp_path / "longlive_base.safetensors", overwrite=True)
    assert "the name suggests --like longlive" in said


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Self-Forcing/checkpoints/self_forcing_dmd.pt", "self-forcing"),
        ("CausVid/autoregressive_checkpoint/model.pt", "causvid"),
        ("CausVid/autoregressive_checkpoint_warp_4step_cfg2/model.pt", "causvid-4step"),
        ("checkpoints/chunkwise/causal_forcing.pt", "causal-forcing"),
        ("checkpoints/framewise/causal_forcing.pt", "causal-forcing-frame"),
        ("causal_forcing-framewise.safetensors", "causal-forcing-frame"),
        ("causal-forcing++/framewise-2step.pt", "causal-forcing-frame-2step"),
        ("causal-forcing++/framewise-1step.pt", "causal-forcing-frame-1step"),
        ("longlive_models/models/lora.pt", "longlive"),
        ("krea-realtime-video-14b.safetensors", "krea"),
        ("checkpoints/rolling_forcing_dmd.pt", "rolling-forcing"),
        ("Reward-Forcing-T2V-1.3B/rewardforcing.pt", "reward-forcing"),
        ("checkpoints/model.pt", None),
    ],
)
def test_names_suggest_their_release(path: str, name: str | None) -> None:
    assert guess_release([Path("/data/models/here", path)]) == name


def test_timesteps_of_the_network_become_steps_to_warp(wan: Tensors, tmp_path: Path) -> None:
    """CausVid's and Krea's lists; warping them again gives them back to the table's resolution."""
    assert unwarped([1000, 757, 522], 8.0) == [1000, 280, 120]
    assert unwarped([1000, 937, 833, 625], 5.0) == [1000, 748, 499, 250]
    save_file(wan, tmp_path / "w.safetensors")
    changes = {"steps": [1000, 757, 522], "shift": 8.0}
    _, found, _ = converted(tmp_path / "w.safetensors", changes=changes, unwarp=True)
    assert found.steps == (1000, 280, 120)
    changes = {"first_steps": [1000, 937, 833, 625], "shift": 5.0}
    _, found, _ = converted(
        tmp_path / "w.safetensors",
        changes=changes,
        like="causal-forcing-frame-1step",
        unwarp=True,
        overwrite=True,
    )
    assert (found.steps, found.first_steps) == ((1000,), (1000, 748, 499, 250))
    with pytest.raises(UserError, match="give --steps too"):
        converted(tmp_path / "w.safetensors", unwarp=True, overwrite=True)


# LoRA

MODULES = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.1.cross_attn.o": "blocks.1.attn2.to_out.0",
    "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj",
    "head.head": "proj_out",
}
"""Wan's and diffusers' names of modules that a LoRA may change."""
RANK = 2


def factors(wan: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """For every module A [r, in] and B [out, r]."""
    generator = torch.Generator().manual_seed(3)
    shapes = {module: wan[f"{module}.weight"].shape for module in MODULES}
    return {
        module: (
            torch.randn(RANK, shape[1], generator=generator),
            torch.randn(shape[0], RANK, generator=generator),
        )
        for module, shape in shapes.items()
    }


def named(prefix: str, down: str, up: str, wan: Tensors, *, diffusers: bool = False) -> Tensors:
    """A LoRA's tensors under one tool's names."""
    tensors = {}
    for module, (a, b) in factors(wan).items():
        name = prefix + (MODULES[module] if diffusers else module)
        tensors[f"{name}.{down}"] = a
        tensors[f"{name}.{up}"] = b
    return tensors


def with_lora(wan: Tensors, scale: float) -> Tensors:
    """The expected weights, computed in float64."""
    merged = dict(wan)
    for module, (a, b) in factors(wan).items():
        name = f"{module}.weight"
        merged[name] = (wan[name].double() + scale * (b.double() @ a.double())).float()
    return merged


def assert_close(state: Tensors, expected: Mapping[str, Tensor]) -> None:
    """To float32's rounding of sums of order one."""
    for name, tensor in transformer_keys(expected).items():
        torch.testing.assert_close(state[name], tensor, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("prefix", "down", "up", "diffusers"),
    [
        ("base_model.model.", "lora_A.weight", "lora_B.weight", False),
        ("base_model.model.model.", "lora_A.default.weight", "lora_B.default.weight", False),
        ("", "lora_A.weight", "lora_B.weight", False),
        ("diffusion_model.", "lora_A.weight", "lora_B.weight", False),
        ("diffusion_model.", "lora_down.weight", "lora_up.weight", False),
        ("transformer.", "lora_A.weight", "lora_B.weight", True),
        ("", "lora.down.weight", "lora.up.weight", True),
        ("", "lora_A", "lora_B", True),
    ],
    ids=["PEFT", "PEFT named", "Wan", "diffusion-pipe", "ComfyUI", "diffusers", "diffusers old", "FastVideo"],
)
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_loras_of_all_tools_are_merged(
    prefix: str, down: str, up: str, diffusers: bool, weight: float, wan: Tensors, tmp_path: Path
) -> None:
    save_file(wan, tmp_path / "base.safetensors")
    save_file(named(prefix, down, up, wan, diffusers=diffusers), tmp_path / "lora.safetensors")
    lora = Lora(tmp_path / "lora.safetensors", weight)
    state, _, _ = converted(tmp_path / "base.safetensors", loras=[lora])
    assert_close(state, with_lora(wan, weight))
    unchanged = "blocks.0.attn1.to_k.weight"
    assert torch.equal(state[unchanged], wan["blocks.0.self_attn.k.weight"])


@pytest.mark.parametrize("alpha", [torch.tensor(1.0), torch.tensor(8)])
def test_alpha_over_rank_scales_a_lora(alpha: Tensor, wan: Tensors, tmp_path: Path) -> None:
    save_file(wan, tmp_path / "base.safetensors")
    tensors = named("diffusion_model.", "lora_down.weight", "lora_up.weight", wan)
    tensors |= {f"diffusion_model.{module}.alpha": alpha.clone() for module in MODULES}
    save_file(tensors, tmp_path / "lora.safetensors")
    state, _, _ = converted(tmp_path / "base.safetensors", loras=[Lora(tmp_path / "lora.safetensors")])
    assert_close(state, with_lora(wan, float(alpha) / RANK))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8, "r": RANK}, 8 / RANK),
        ({"lora_alpha": 8, "r": RANK, "use_rslora": True}, 8 / RANK**0.5),
    ],
)
@pytest.mark.parametrize("inner", ["", "adapter_model.safetensors"])
def test_pefts_folder_tells_alpha(
    config: dict[str, Any], scale: float, inner: str, wan: Tensors, tmp_path: Path
) -> None:
    save_file(wan, tmp_path / "base.safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(
        named("base_model.model.", "lora_A.weight", "lora_B.weight", wan),
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    state, _, _ = converted(tmp_path / "base.safetensors", loras=[Lora(folder / inner)])
    assert_close(state, with_lora(wan, scale))


def test_longlive_is_a_base_and_a_lora(wan: Tensors, tmp_path: Path) -> None:
    torch.save({"generator": prefixed("model.", wan)}, tmp_path / "longlive_base.pt")
    adapter = named("base_model.model.model.", "lora_A.default.weight", "lora_B.default.weight", wan)
    torch.save({"generator_lora": adapter, "critic_lora": shifted(adapter)}, tmp_path / "lora.pt")
    state, settings, said = converted(
        tmp_path / "longlive_base.pt", like="longlive", loras=[Lora(tmp_path / "lora.pt")]
    )
    assert said == ""
    assert_close(state, with_lora(wan, 1.0))
    assert (settings.context, settings.sink) == (12, 3)


@pytest.mark.parametrize("layout", ["beside", "inside"])
def test_a_file_of_base_and_lora_is_merged_or_left_only_if_told(
    layout: str, wan: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "both.pt"
    adapter = named("", "lora_A.default.weight", "lora_B.default.weight", wan)
    if layout == "beside":
        torch.save({"generator": wan, "generator_lora": adapter}, path)
    else:  # PEFT renames the layers that it wraps
        wrapped = {
            name.replace(".weight", ".base_layer.weight") if name[:-7] in MODULES else name: tensor
            for name, tensor in wan.items()
        }
        torch.save(prefixed("base_model.model.", {**wrapped, **adapter}), path)
    with pytest.raises(UserError, match=r"holds a model and a LoRA: merge it with --lora .*both\.pt:0"):
        converted(path)
    assert_close(converted(path, loras=[Lora(path)])[0], with_lora(wan, 1.0))
    assert_is(converted(path, loras=[Lora(path, 0.0)], overwrite=True)[0], wan)
    if layout == "beside":
        assert_is(converted(path, which="generator", overwrite=True)[0], wan)


def test_comfyuis_differences_and_convolutions_are_merged(wan: Tensors, tmp_path: Path) -> None:
    save_file(wan, tmp_path / "base.safetensors")
    generator = torch.Generator().manual_seed(4)
    down = torch.randn(RANK, *wan["patch_embedding.weight"].shape[1:], generator=generator)
    up = torch.randn(96, RANK, 1, 1, 1, generator=generator)
    norm = torch.randn(96, generator=generator)
    bias = torch.randn(96, generator=generator)
    tensors = {
        "patch_embedding.lora_down.weight": down,
        "patch_embedding.lora_up.weight": up,
        "blocks.0.norm3.diff": norm,
        "blocks.1.self_attn.v.diff_b": bias,
    }
    save_file(prefixed("diffusion_model.", tensors), tmp_path / "lora.safetensors")
    state, _, _ = converted(tmp_path / "base.safetensors", loras=[Lora(tmp_path / "lora.safetensors")])
    product = torch.einsum("or,rithw->oithw", up[:, :, 0, 0, 0].double(), down.double())
    expected = dict(wan)
    expected["patch_embedding.weight"] = (wan["patch_embedding.weight"].double() + product).float()
    expected["blocks.0.norm3.weight"] = wan["blocks.0.norm3.weight"] + norm
    expected["blocks.1.self_attn.v.bias"] = wan["blocks.1.self_attn.v.bias"] + bias
    assert_close(state, expected)


def test_two_loras_add_up(wan: Tensors, tmp_path: Path) -> None:
    save_file(wan, tmp_path / "base.safetensors")
    save_file(named("", "lora_A.weight", "lora_B.weight", wan), tmp_path / "lora.safetensors")
    loras = [Lora(tmp_path / "lora.safetensors", weight) for weight in (0.75, -0.25)]
    state, _, _ = converted(tmp_path / "base.safetensors", loras=loras)
    assert_close(state, with_lora(wan, 0.5))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"blocks.0.self_attn.q.lora_A.weight": (2, 96)}, "blocks.0.self_attn.q lacks a matrix of its LoRA"),
        (
            {"blocks.0.self_attn.q.lora_A.weight": (2, 96), "blocks.0.self_attn.q.lora_B.weight": (96, 3)},
            "or the two do not fit",
        ),
        (
            {"blocks.0.self_attn.q.lora_A.weight": (2, 80), "blocks.0.self_attn.q.lora_B.weight": (96, 2)},
            "attn1.to_q.weight is not in the model, or has another shape",
        ),
        (
            {
                "blocks.0.cross_attn.k_img.lora_A.weight": (2, 96),
                "blocks.0.cross_attn.k_img.lora_B.weight": (96, 2),
            },
            "k_img.weight is not in the model",
        ),
        ({"lora_unet_blocks_0_self_attn_q.lora_down.weight": (2, 96)}, "blocks.0.self_attn.q lacks a matrix"),
        (
            {"lora_unet_x.lora_down.weight": (2, 9), "lora_unet_x.lora_up.weight": (9, 2)},
            "x.weight is not in the model",
        ),
        ({"blocks.0.self_attn.q.hada_w1_a": (2, 96)}, "cannot merge blocks.0.self_attn.q.hada_w1_a"),
        ({"blocks.0.self_attn.q.lora_magnitude_vector": (96,)}, "cannot merge"),
        ({"blocks.0.norm3.diff": (96,), "blocks.0.diff_m": (6, 96)}, "cannot merge blocks.0.diff_m"),
        ({"blocks.0.self_attn.q.weight": (96, 96)}, "holds no LoRA"),
        (
            {"blocks.0.self_attn.q.diff": (96, 96), "blocks.0.attn1.to_q.diff": (96, 96)},
            "changes blocks.0.attn1.to_q.weight twice",
        ),
    ],
)
def test_a_lora_that_cannot_be_merged_whole_is_refused(
    tensors: dict[str, tuple[int, ...]], reason: str, wan: Tensors, tmp_path: Path
) -> None:
    save_file(wan, tmp_path / "base.safetensors")
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError) as raised:
        converted(tmp_path / "base.safetensors", loras=[Lora(tmp_path / "lora.safetensors")])
    assert reason in str(raised.value)
    assert not (tmp_path / "converted").exists()


def test_dora_and_patterns_of_alpha_are_refused(wan: Tensors, tmp_path: Path) -> None:
    save_file(wan, tmp_path / "base.safetensors")
    file = tmp_path / "adapter_model.safetensors"
    save_file(named("", "lora_A.weight", "lora_B.weight", wan), file)
    for config in ({"lora_alpha": 8, "use_dora": True}, {"lora_alpha": 8, "alpha_pattern": {"q": 4}}, {}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            converted(tmp_path / "base.safetensors", loras=[Lora(file)])


def test_a_lora_is_named_with_its_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/b.pt", "C:/b.pt"):
        Path(name).parent.mkdir()
        Path(name).touch()
    assert Lora.parse("a/b.pt") == Lora(Path("a/b.pt"), 1.0)
    assert Lora.parse("a/b.pt:0.8") == Lora(Path("a/b.pt"), 0.8)
    assert Lora.parse("C:/b.pt:-1e-1") == Lora(Path("C:/b.pt"), -0.1)
    assert Lora.parse("C:/b.pt") == Lora(Path("C:/b.pt"))
    (tmp_path / "x:2").touch()
    assert Lora.parse(str(tmp_path / "x:2")) == Lora(tmp_path / "x:2", 1.0)
    with pytest.raises(UserError, match="finite"):
        Lora.parse("a/b.pt:nan")
    for absent in ("", ":", "b.pt", "b.pt:2", "a", "a/b.pt:"):
        with pytest.raises(UserError, match=r"^--lora .* is not there: give a LoRA's file"):
            Lora.parse(absent)
