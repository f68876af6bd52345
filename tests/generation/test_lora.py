"""`--lora`: folded in as a naive sum in float64 says, part of the identity, refused unless all of it fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Sfpp
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CONFIG, make_student, randomize
from torch import Tensor

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.errors import UserError
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.job import Job, describe_model
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import Request
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.convert import original_name
from sfpp_cli.models.lora import Lora, fold
from sfpp_cli.progress import Silent

pytest_plugins = ["tiny_bundle"]

Tensors = dict[str, Tensor]
OPTIONS = ModelOptions(device=torch.device("cpu"), dtype=torch.float32)
RANK = 2
ALPHA = 3.0
MODULES = ("blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.1.ffn.net.0.proj", "proj_out")


def factors(student: CausalWanModel) -> dict[str, tuple[Tensor, Tensor]]:
    """For modules under diffusers' names A [r, in] and B [out, r]."""
    noise = torch.Generator().manual_seed(3)
    shapes = {module: student.get_submodule(module).weight.shape for module in MODULES}
    return {
        module: (torch.randn(RANK, shape[1], generator=noise), torch.randn(shape[0], RANK, generator=noise))
        for module, shape in shapes.items()
    }


def wans(module: str) -> str:
    return original_name(f"{module}.weight").removesuffix(".weight")


def diffusers_file(student: CausalWanModel, path: Path) -> None:
    """Written by diffusers' own pipeline, which leaves alpha in the header."""
    model = WanTransformer3DModel(**{**CONFIG, "rope_max_seq_len": 1024})
    model.load_state_dict(student.state_dict())
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(MODULES)))
    for module, (down, up) in factors(student).items():
        layer = model.get_submodule(module)
        layer.lora_A["default"].weight.data = down
        layer.lora_B["default"].weight.data = up
    WanPipeline.save_lora_weights(
        path.parent,
        transformer_lora_layers=get_peft_model_state_dict(model),
        weight_name=path.name,
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )


def peft_folder(student: CausalWanModel, path: Path) -> None:
    path.mkdir()
    tensors = {}
    for module, (down, up) in factors(student).items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))


def comfyui_file(student: CausalWanModel, path: Path) -> None:
    """As ComfyUI and kijai's extracts: Wan's names, alpha as a tensor."""
    tensors = {}
    for module, (down, up) in factors(student).items():
        name = f"diffusion_model.{wans(module)}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)


def musubi_file(student: CausalWanModel, path: Path) -> None:
    tensors = {}
    for module, (down, up) in factors(student).items():
        name = "lora_unet_" + wans(module).replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)


LAYOUTS: dict[str, Callable[[CausalWanModel, Path], None]] = {
    "diffusers": diffusers_file,
    "peft": peft_folder,
    "comfyui": comfyui_file,
    "musubi": musubi_file,
}


def expected(student: CausalWanModel, weight: float) -> Tensors:
    """The naive sum, in float64."""
    state = {name: tensor.double() for name, tensor in student.state_dict().items()}
    for module, (down, up) in factors(student).items():
        for row in range(RANK):
            outer = torch.outer(up[:, row].double(), down[row].double())
            state[f"{module}.weight"] += weight * ALPHA / RANK * outer
    return state


@pytest.fixture
def student() -> CausalWanModel:
    model = make_student()
    randomize(model, seed=5)
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_every_layout_folds_as_the_naive_sum(
    layout: str, weight: float, student: CausalWanModel, tmp_path: Path
) -> None:
    path = tmp_path / ("adapter" if layout == "peft" else "lora.safetensors")
    LAYOUTS[layout](student, path)
    wanted = expected(student, weight)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    fold(student, [Lora(path, weight)])
    for name, tensor in student.state_dict().items():
        if name.removesuffix(".weight") in MODULES:
            assert not torch.equal(tensor, before[name])
            torch.testing.assert_close(tensor.double(), wanted[name], atol=4e-6, rtol=1e-6)
        else:
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_diffusers_loader_agrees(layout: str, student: CausalWanModel, tmp_path: Path) -> None:
    """An independent reader of both names and scales. It refuses an alpha of the head, so that stays away."""
    path = tmp_path / "lora.safetensors"
    LAYOUTS[layout](student, path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file({name: tensor for name, tensor in load_file(path).items() if "head" not in name}, path, header)
    model = WanTransformer3DModel(**CONFIG)
    model.load_state_dict(student.state_dict())
    tensors, metadata = WanPipeline.lora_state_dict(path, return_lora_metadata=True)
    model.load_lora_adapter(tensors, metadata=metadata, prefix="transformer")
    model.fuse_lora()
    model.unload_lora()
    fold(student, [Lora(path)])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], tensor, atol=4e-6, rtol=1e-6)


def test_several_add_up_before_they_are_rounded(student: CausalWanModel, tmp_path: Path) -> None:
    comfyui_file(student, tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    half = student.bfloat16()
    before = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    fold(half, [Lora(tmp_path / "a.safetensors", 1.25), Lora(tmp_path / "b.safetensors", -1.25)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in half.state_dict().items())


def test_what_overflows_is_refused(student: CausalWanModel, tmp_path: Path) -> None:
    comfyui_file(student, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"blocks\.0\.attn1\.to_q\.weight with its LoRA is not finite"):
        fold(student.half(), [Lora(tmp_path / "a.safetensors", 1e6)])


@pytest.fixture
def lora(tiny_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "lora.safetensors"
    comfyui_file(CausalWanModel.from_pretrained(tiny_bundle / "transformer"), path)
    return path


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(prompt="a", seed=3, frames=50, width=64, height=48, fps=8, out=tmp_path / "v.mp4")


def test_it_is_part_of_the_identity(tiny_bundle: Path, lora: Path, request_: Request) -> None:
    bundle = Bundle(str(tiny_bundle))
    plain = describe_model(bundle, OPTIONS)
    assert "loras" not in plain, "videos without keep their keys"

    def described(*loras: Lora) -> dict[str, Any]:
        return describe_model(bundle, replace(OPTIONS, loras=loras))

    other = Path(shutil.copy(lora, lora.with_name("same.safetensors")))
    assert described(Lora(lora)) == described(Lora(other)), "its name does not count"
    keys = {Job(request_, model).key for model in (plain, described(Lora(lora)), described(Lora(lora, 0.5)))}
    save_file({name: 2 * tensor for name, tensor in load_file(lora).items()}, other)
    keys.add(Job(request_, described(Lora(other))).key)
    keys.add(Job(request_, described(Lora(lora), Lora(other))).key)
    assert len(keys) == 5


def test_pefts_alpha_is_part_of_the_identity(student: CausalWanModel, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    peft_folder(student, folder)
    before = Lora(folder).described()
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 2 * ALPHA}))
    assert Lora(folder).described() != before


def test_an_interrupted_video_goes_on_bit_by_bit(
    tiny_bundle: Path, lora: Path, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle(str(tiny_bundle))
    options = replace(OPTIONS, loras=(Lora(lora, 0.5),))
    model = describe_model(bundle, options)

    def made(name: str) -> bytes:
        """By a generator of its own, as another process would."""
        out = tmp_path / name / "v.mp4"
        generator = Generator.load(bundle, options, ["a"], Silent())
        Job(replace(request_, out=out), model).run(generator, Silent(), save_latents=True)
        return out.read_bytes() + out.with_suffix(".safetensors").read_bytes()

    whole = made("whole")
    latents = Generator.latents

    def cut(self: Generator, *arguments: Any, **options: Any) -> Iterator[Tensor]:
        chunks = latents(self, *arguments, **options)
        yield next(chunks)
        yield next(chunks)
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "latents", cut)
    with pytest.raises(KeyboardInterrupt):
        made("cut")
    monkeypatch.setattr(Generator, "latents", latents)
    assert made("cut") == whole
    assert json.loads((tmp_path / "cut" / "v.json").read_text())["resumed_at_chunk"] == 2
    plain = Generator.load(bundle, OPTIONS, ["a"], Silent())
    Job(replace(request_, out=tmp_path / "plain.mp4"), describe_model(bundle, OPTIONS)).run(plain, Silent())
    assert (tmp_path / "plain.mp4").read_bytes() not in whole


def test_on_the_command_line(sfpp: Sfpp, tiny_bundle: Path, lora: Path, tmp_path: Path) -> None:
    def generate(text: str) -> tuple[int, str, str]:
        out = str(tmp_path / "v.mp4")
        return sfpp(
            "generate", "a", "--frames", "5", "--model", str(tiny_bundle), "--out", out, "--lora", text
        )

    def refused(text: str, *patterns: str) -> None:
        code, out, err = generate(text)
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].startswith("error: ")
        assert all(pattern in err for pattern in patterns), err
        assert not (tmp_path / "v.mp4").exists()

    refused(str(tmp_path / "none.safetensors"), "none.safetensors is not there")
    refused(f"{lora}:nan", "its weight must be a finite number")
    wide = {
        name: tensor.repeat(2, 1) if tensor.ndim == 2 else tensor for name, tensor in load_file(lora).items()
    }
    save_file(wide, tmp_path / "wide.safetensors")
    refused(str(tmp_path / "wide.safetensors"), "wide.safetensors", "blocks.0.self_attn.q")
    strange = load_file(lora) | {"diffusion_model.blocks.9.self_attn.q.diff": torch.zeros(24, 24)}
    save_file(strange, tmp_path / "strange.safetensors")
    refused(str(tmp_path / "strange.safetensors"), "blocks.9.attn1.to_q.weight is not in the model")
    code, _, err = generate(f"{lora}:0.5")
    assert code == 0, err
    assert json.loads((tmp_path / "v.json").read_text())["loras"] == [Lora(lora, 0.5).described()]
