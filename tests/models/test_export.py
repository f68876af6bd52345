"""`sfpp weights export`: Wan's own names, every bit as it was, and `convert` makes the same student of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Sfpp
from golden_data import weights as golden_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CONFIG
from torch import Tensor

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.models import export as exporting
from sfpp_cli.models.convert import original_name, transformer_keys, transformer_name
from sfpp_cli.models.settings import SETTINGS, Settings

pytest_plugins = ["tiny_bundle"]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def weights(sfpp: Sfpp) -> Command:
    """`sfpp weights`, given paths and numbers too."""
    return lambda *arguments: sfpp("weights", *map(str, arguments))


def assert_same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype, name
        assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_converted_comes_back_as_it_was(
    dtype: torch.dtype, weights: Command, tmp_path: Path
) -> None:
    """The golden transformer has the reference's names, which were not written by us."""
    source = {name: tensor.to(dtype) for name, tensor in golden_weights("transformer").items()}
    save_file(source, tmp_path / "source.safetensors")
    converted, file = tmp_path / "converted", tmp_path / "new" / "exported.safetensors"
    told = ("--num-heads", 4, "--chunk", 2, "--context", 12, "--shift", 8, "--steps", "1000,500")
    assert weights("convert", tmp_path / "source.safetensors", converted, *told)[0] == 0
    assert weights("export", converted, file) == (0, f"{file}\n", "")
    assert_same(load_file(file), source)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_convert_needs_to_be_told_nothing(weights: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    file, again = tmp_path / "exported.safetensors", tmp_path / "again"
    assert weights("export", tiny_bundle, file)[0] == 0
    assert weights("convert", file, again) == (0, f"{again}\n", "")
    student = CausalWanModel.from_pretrained(again / "transformer")
    assert_same(student.state_dict(), load_file(next((tiny_bundle / "transformer").glob("*.safetensors"))))
    assert student.config.num_attention_heads == CONFIG["num_attention_heads"]
    assert Settings.read(again / SETTINGS) == Settings.read(tiny_bundle / SETTINGS)


def test_names_are_those_that_convert_reads() -> None:
    for name in golden_weights("transformer"):
        assert original_name(transformer_name(name)) == name
        assert original_name(name.replace("blocks.1.", "blocks.23.")) == name.replace(
            "blocks.1.", "blocks.23."
        )


@pytest.mark.parametrize("inside", ["", "transformer"])
def test_every_folder_of_a_student_serves(
    inside: str, weights: Command, tiny_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "exported.safetensors"
    assert weights("export", tiny_bundle / inside, file)[0] == 0
    stored = load_file(next((tiny_bundle / "transformer").glob("*.safetensors")))
    assert_same(transformer_keys(load_file(file)), stored)
    with safe_open(file, "pt") as opened:
        told = json.loads(opened.metadata()["sfpp"])
    assert told["config"]["num_layers"] == CONFIG["num_layers"]
    assert told["settings"]["fps"] == 8


def test_what_cannot_be_exported_is_refused_in_a_line(
    weights: Command, own_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "exported.safetensors"

    def refused(pattern: str, *arguments: object) -> None:
        code, out, err = weights("export", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert pattern in err

    refused("end its name in .safetensors", own_bundle, tmp_path / "exported.pt")
    refused("is no causal student", own_bundle / "teacher", file)
    stored = next((own_bundle / "transformer").glob("*.safetensors"))
    tensors = load_file(stored)
    tensors["blocks.0.attn1.to_q.lora_A.weight"] = tensors.pop("blocks.0.attn1.to_q.bias")
    save_file(tensors, stored)
    refused("missing: blocks.0.attn1.to_q.bias; unexpected: blocks.0.attn1.to_q.lora_A", own_bundle, file)
    stored.write_bytes(stored.read_bytes()[:-8])
    refused("cannot be read", own_bundle, file)
    assert not file.exists()


def test_a_file_is_replaced_only_if_told_and_whole(
    weights: Command, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "exported.safetensors"
    file.write_bytes(b"mine")
    assert "exists: use --overwrite" in weights("export", tiny_bundle, file)[2]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "save_file", full)
        assert "No space left on device" in weights("export", tiny_bundle, file, "--overwrite")[2]
    assert file.read_bytes() == b"mine"
    assert weights("export", tiny_bundle, file, "--overwrite")[0] == 0
    assert len(load_file(file)) > 10
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_student_is_not_exported_over_itself(weights: Command, own_bundle: Path) -> None:
    file = own_bundle / "transformer" / "diffusion_pytorch_model.safetensors"
    before = file.read_bytes()
    assert "lies in the student's own folder" in weights("export", own_bundle, file, "--overwrite")[2]
    assert file.read_bytes() == before


def test_a_damaged_header_is_refused(weights: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "exported.safetensors"
    assert weights("export", tiny_bundle, file)[0] == 0
    for header in ("{", "[]", '{"config": 3}', '{"config": {}, "settings": {"chunk": -1}}'):
        save_file(load_file(file), file, {"sfpp": header})
        code, _, err = weights("convert", file, tmp_path / "out")
        assert (code, err.count("\n")) == (2, 1)
        assert "what its header says of the model is damaged" in err
