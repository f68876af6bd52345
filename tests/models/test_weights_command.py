"""`sfpp weights`: what it shows is what models are, what it writes works, what it refuses leaves nothing."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Sfpp
from golden_data import weights as golden_weights
from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tiny import CONFIG, SIZE, make_student, prompts, randomize
from torch import Tensor

from sfpp_cli.core.cache import KVCache, Room
from sfpp_cli.core.geometry import Compression, tokens_per_frame
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.errors import UserError
from sfpp_cli.models import hub, packing
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.convert import student_from_original
from sfpp_cli.models.releases import RELEASES
from sfpp_cli.models.settings import SETTINGS, Settings
from sfpp_cli.models.summary import Shape, readable, summarise

pytest_plugins = ["tiny_bundle"]

CPU = torch.device("cpu")


class Answer(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]
HUB_ID = "owner/some-video"


@pytest.fixture
def weights(sfpp: Sfpp) -> Command:
    """`sfpp weights`, given paths and numbers too."""
    return lambda *arguments: Answer(*sfpp("weights", *map(str, arguments)))


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache, and no network whatever a test does."""
    cache = tmp_path_factory.mktemp("hub")

    def snapshot_download(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "scan_cache_dir", functools.partial(scan_cache_dir, cache))
    return cache


@pytest.fixture
def embedded(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model as one that comes with the package."""
    monkeypatch.setattr(hub, "EMBEDDED", tmp_path / "weights")
    return Path(shutil.copytree(tiny_bundle, tmp_path / "weights" / "tinyworld"))


def fill_cache(
    cache: Path, repo: str, source: Path, commit: str = "a" * 40, ref: str | None = "main"
) -> Path:
    """`source` in the hub's cache, as it lays it: links to blobs."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for file in (file for file in source.rglob("*") if file.is_file()):
        blob = root / "blobs" / str(file.relative_to(source)).replace("/", "-")
        shutil.copy(file, blob)
        link = root / "snapshots" / commit / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if ref is not None:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    return root / "snapshots" / commit


def refused(answer: Answer, pattern: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that says why."""
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert answer.err.endswith("\n")
    assert pattern in answer.err


# show


def test_parameters_are_those_of_the_models(tiny_bundle: Path) -> None:
    bundle, parts = Bundle(str(tiny_bundle)), summarise(str(tiny_bundle)).parts
    loaded = {
        "transformer": bundle.load_student(CPU, torch.float32),
        "teacher": bundle.load_teacher(CPU, torch.float32),
        "vae": bundle.load_vae(CPU, torch.float32),
        "text_encoder": bundle.load_text(CPU, torch.float32).model,
    }
    counted = {
        name: sum(parameter.numel() for parameter in model.parameters()) for name, model in loaded.items()
    }
    assert {name: part.parameters for name, part in parts.items()} == counted
    assert {part.dtype for part in parts.values()} == {"float32"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("context", [3, 21])
def test_cache_bytes_are_those_of_a_cache(dtype: torch.dtype, context: int, tiny_bundle: Path) -> None:
    shape = summarise(str(tiny_bundle)).shape
    cache = (
        Bundle(str(tiny_bundle))
        .load_student(CPU, dtype)
        .new_cache(prompts(1).to(dtype), SIZE, context=context)
    )
    assert cache.keys[0].dtype == dtype
    assert shape.cache_bytes(context, dtype.itemsize) == cache.nbytes


def test_wans_cache_is_as_large_as_published() -> None:
    """Wan 1.3B at 832x480 in bfloat16: 287.5 MB a latent frame, 6.0 GB for the 21 it was trained on."""
    tokens = tokens_per_frame(*Compression(temporal=4, spatial=8).latent_size(832, 480), (1, 2, 2))
    wan = Shape(layers=30, heads=12, head_dim=128, tokens=tokens)
    assert (wan.tokens, wan.cache_bytes(1, 2)) == (1560, 287_539_200)
    assert [readable(wan.cache_bytes(frames, 2)) for frames in (1, 21)] == ["287.5 MB", "6.0 GB"]
    text = torch.empty(1, 12, 512, 128, device="meta", dtype=torch.bfloat16)
    assert KVCache([(text, text)] * 30, Room(tokens, 21)).nbytes == wan.cache_bytes(21, 2)


def test_show_as_json(weights: Command, tiny_bundle: Path) -> None:
    answer = weights("show", tiny_bundle, "--json")
    assert (answer.code, answer.err) == (0, "")
    shown = json.loads(answer.out)
    expected = {
        "model": str(tiny_bundle),
        "kind": "student",
        "layers": 2,
        "heads": 2,
        "head_dim": 12,
        "tokens": 6,
        "chunk": 3,
        "context": 21,
        "sink": 0,
        "shift": 5.0,
        "steps": [1000, 750, 500, 250],
        "horizon": 21,
        "horizon_seconds": 81 / 8,
        "fps": 8,
        "width": 48,
        "height": 32,
        "text_length": 8,
    }
    assert {key: shown[key] for key in expected} == expected
    assert shown["cache_bytes"]["float32"] == {
        "latent_frame": 2 * 2 * 6 * 24 * 4,
        "context": 21 * 2 * 2 * 6 * 24 * 4,
    }
    assert shown["cache_bytes"]["bfloat16"]["context"] * 2 == shown["cache_bytes"]["float32"]["context"]


def test_show_as_text(weights: Command, embedded: Path) -> None:
    answer = weights("show", "tinyworld")
    assert (answer.code, answer.err) == (0, "")
    lines = dict(line.split(None, 1) for line in answer.out.splitlines())
    assert lines["model"] == f"tinyworld (student), {embedded}"
    assert lines["sizes"] == "2 layers, 2 heads of 12"
    assert lines["video"] == "48x32 at 8 fps, 6 tokens a latent frame"
    assert "rollouts of 21 latent frames (10.1 s)" in lines["trained"]
    assert "float32 2.3 kB a latent frame, 48.4 kB in all; bfloat16 1.2 kB" in lines["KV"]


def test_show_another_student(weights: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    make_student(num_layers=3).to(torch.bfloat16).save_pretrained(tmp_path / "student")
    shown = json.loads(weights("show", tiny_bundle, "--student", tmp_path / "student", "--json").out)
    assert (shown["layers"], shown["parts"]["transformer"]["dtype"]) == (3, "bfloat16")
    assert shown["weights"] == str(tmp_path / "student")


def test_show_a_teacher(weights: Command, own_bundle: Path) -> None:
    shutil.rmtree(own_bundle / "transformer")
    (own_bundle / "teacher").rename(own_bundle / "transformer")
    (own_bundle / SETTINGS).unlink()
    shown = json.loads(weights("show", own_bundle, "--json").out)
    assert (shown["kind"], shown["width"], shown["tokens"]) == ("teacher", 832, 1560)
    assert "teacher" not in shown["parts"]


def test_show_refuses_what_is_damaged(weights: Command, own_bundle: Path) -> None:
    config = own_bundle / "transformer" / "config.json"
    sound = json.loads(config.read_text())
    config.write_text(json.dumps({"_class_name": "CausalWanModel", "num_layers": 2}))
    code, out, err = weights("show", own_bundle)
    assert (code, out) == (2, "")
    missing = ("num_attention_heads", "attention_head_dim", "patch_size")
    assert err.splitlines() == [f"error: {config}: '{key}' is missing" for key in missing]
    config.write_text(json.dumps(sound))
    (own_bundle / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 99)
    refused(weights("show", own_bundle), "is damaged")


# list


def test_list_of_nothing(weights: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "EMBEDDED", tmp_path / "absent")
    monkeypatch.setattr(hub, "scan_cache_dir", functools.partial(scan_cache_dir, tmp_path / "absent"))
    answer = weights("list", "--json")
    assert answer == (0, "[]\n", "")


def test_list_tells_what_each_model_is(
    weights: Command, embedded: Path, own_bundle: Path, no_hub: Path, tmp_path: Path
) -> None:
    whole = fill_cache(no_hub, "a/whole", own_bundle)
    fill_cache(no_hub, "a/damaged", own_bundle)
    (no_hub / "models--a--damaged" / "blobs" / "transformer-diffusion_pytorch_model.safetensors").write_bytes(
        b""
    )
    shutil.rmtree(own_bundle / "vae")
    fill_cache(no_hub, "a/incomplete", own_bundle)
    for part in ("text_encoder", "tokenizer", "teacher", "scheduler"):
        shutil.rmtree(own_bundle / part)
    fill_cache(no_hub, "a/student", own_bundle)
    (own_bundle / SETTINGS).unlink()
    fill_cache(no_hub, "a/plain-student", own_bundle / "transformer")
    config = own_bundle / "transformer" / "config.json"
    config.write_text(config.read_text().replace("CausalWanModel", "OtherTransformer3DModel"))
    fill_cache(no_hub, "a/other-family", own_bundle)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").touch()
    fill_cache(no_hub, "a/language-model", tmp_path / "other")
    models = {model["name"]: model for model in json.loads(weights("list", "--json").out)}
    assert {name: model["kind"] for name, model in models.items()} == {
        "tinyworld": "student",
        "a/whole": "student",
        "a/damaged": "incomplete",
        "a/incomplete": "incomplete",
        "a/student": "student only",
        "a/plain-student": "student only",
    }
    assert models["a/whole"]["folder"] == str(whole)
    assert models["tinyworld"]["source"] == "embedded"
    assert models["a/whole"]["size"] == sum(
        file.stat().st_size for file in embedded.rglob("*") if file.is_file()
    )


def test_list_shows_the_main_revision(weights: Command, tiny_bundle: Path, no_hub: Path) -> None:
    main = fill_cache(no_hub, HUB_ID, tiny_bundle, commit="b" * 40)
    fill_cache(no_hub, HUB_ID, tiny_bundle, commit="c" * 40, ref=None)
    found = [
        model["folder"] for model in json.loads(weights("list", "--json").out) if model["name"] == HUB_ID
    ]
    assert found == [str(main)]


def test_list_is_plain_in_a_pipe_and_a_table_for_people(
    weights: Command, embedded: Path, no_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, row = weights("list").out.splitlines()
    assert head.split("\t") == ["model", "kind", "size", "source", "folder"]
    assert row.split("\t")[0::4] == ["tinyworld", str(embedded)]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    table = weights("list").out
    assert "\t" not in table
    assert table.splitlines()[1].split()[:2] == ["tinyworld", "student"]
    assert str(embedded) in "".join(table.split()), "long paths are folded, not cut"


# pull


def downloads(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[tuple[str, dict[str, Any]]]:
    """Replace the download; returns what is asked of it."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        asked.append((repo, options))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return asked


def matching(patterns: list[str], files: list[str]) -> list[str]:
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(files, allow_patterns=patterns))


def test_pull_prints_the_folder(weights: Command, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = downloads(monkeypatch, tiny_bundle)
    answer = weights("pull", HUB_ID)
    assert answer == (0, f"{tiny_bundle}\n", "")
    ((repo, options),) = asked
    assert repo == HUB_ID
    assert options["local_files_only"] is False
    needed = [
        "sfpp.json",
        "transformer/config.json",
        "transformer/x-00001-of-2.safetensors",
        "transformer/x.safetensors.index.json",
    ]
    needed += [
        "vae/x.safetensors",
        "text_encoder/x.safetensors",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer.json",
    ]
    useless = [
        "README.md",
        "x.pt",
        "transformer/x.bin",
        "assets/logo.png",
        "original/x.safetensors",
        "transformer_2/x.safetensors",
    ]
    assert matching(options["allow_patterns"], needed + useless) == needed


def test_pull_of_a_student_leaves_the_rest(
    weights: Command, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = downloads(monkeypatch, tiny_bundle)
    assert weights("pull", HUB_ID, "--student").out == f"{tiny_bundle / 'transformer'}\n"
    files = [
        "sfpp.json",
        "config.json",
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/config.json",
        "transformer/x.safetensors",
    ]
    assert (
        matching(asked[0][1]["allow_patterns"], [*files, "vae/x.safetensors", "text_encoder/config.json"])
        == files
    )
    Bundle(str(tiny_bundle), HUB_ID)
    assert asked[1] == asked[0], "--student fetches no more than that either"


def test_pull_refuses_what_is_no_model(
    weights: Command, own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads(monkeypatch, tmp_path / "nothing matched")
    refused(weights("pull", HUB_ID), "holds no model in diffusers' layout")
    shutil.rmtree(own_bundle / "transformer")
    (own_bundle / "teacher").rename(own_bundle / "transformer")
    downloads(monkeypatch, own_bundle)
    refused(weights("pull", HUB_ID, "--student"), "is no causal student")
    shutil.rmtree(own_bundle / "vae")
    refused(weights("pull", HUB_ID), "vae missing")


def test_pull_accepts_a_student_alone(
    weights: Command, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own_bundle / "vae")
    downloads(monkeypatch, own_bundle)
    assert weights("pull", HUB_ID).out == f"{own_bundle}\n"


RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (
            RepositoryNotFoundError("401 Client Error.\nLong story.", response=RESPONSE),
            "nor such a model on the hub",
        ),
        (
            GatedRepoError("403 Client Error.\nLong story.", response=RESPONSE),
            f"is gated: accept its terms at {constants.ENDPOINT}/",
        ),
        (
            LocalEntryNotFoundError("Got: ConnectError\nLong story."),
            "the hub cannot be reached: check the network",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("transfer failed: [bold]why[/]\nLong story."), "(transfer failed: [bold]why[/])"),
        (ConnectionError(), "(ConnectionError)"),
    ],
    ids=["unknown", "gated", "no network", "full disk", "transfer", "silent"],
)
def test_a_failed_download_is_one_line(
    error: Exception, complaint: str, weights: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads(monkeypatch, error)
    answer = weights("pull", HUB_ID)
    refused(answer, complaint)
    assert f"'{HUB_ID}'" in answer.err


@pytest.fixture
def real_hub(monkeypatch: pytest.MonkeyPatch, no_hub: Path) -> Path:
    """The hub's own client, which its offline mode keeps from the network."""
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(no_hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return no_hub


def test_offline_the_cache_is_used(real_hub: Path, tiny_bundle: Path) -> None:
    cached = fill_cache(real_hub, HUB_ID, tiny_bundle)
    assert hub.resolve(HUB_ID) == cached
    assert Bundle(HUB_ID).settings == Bundle(str(tiny_bundle)).settings


def test_offline_what_is_not_cached_is_refused(weights: Command, real_hub: Path) -> None:
    refused(weights("pull", HUB_ID), "HF_HUB_OFFLINE forbids")


def test_show_downloads_nothing(weights: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = downloads(monkeypatch, LocalEntryNotFoundError("not here"))
    refused(weights("show", HUB_ID), f"fetch it with `sfpp weights pull {HUB_ID}`")
    assert asked[0][1]["local_files_only"] is True


@pytest.mark.parametrize("name", ["a b/c", "owner/na--me", "owner/", "owner/x.git", "ow\nner/x"])
def test_an_invalid_id_is_refused(name: str, real_hub: Path) -> None:
    with pytest.raises(UserError, match=r"neither a folder that exists nor a valid hub id"):
        hub.resolve(name)


# From a name to a folder


def test_an_embedded_name_wins_over_a_folder(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tinyworld").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("tinyworld") == embedded
    assert hub.resolve("./tinyworld").resolve() == tmp_path / "tinyworld"


@pytest.mark.parametrize("name", ["tinywold", "TinyWorld", "tiny-world"])
def test_a_misspelt_name_is_corrected(name: str, embedded: Path) -> None:
    with pytest.raises(UserError, match=f"unknown model '{name}'; did you mean 'tinyworld'"):
        hub.resolve(name)


@pytest.mark.parametrize(
    "name",
    ["", "wan", "/absent/model", "./absent", "~/absent", "~nobody-here/x", "a/b/c", "x" * 5000, "a\0b"],
)
def test_an_unknown_name_is_refused(name: str, embedded: Path) -> None:
    with pytest.raises(
        UserError, match=r"it takes an embedded name \(tinyworld\), a folder that exists, or a hub id"
    ):
        hub.resolve(name)


def test_folders_around_the_embedded_are_no_models(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights" / "notes").mkdir()
    assert hub.embedded() == ["tinyworld"]
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("..").resolve() == tmp_path.parent
    monkeypatch.setenv("HOME", str(embedded.parent))
    assert hub.resolve("~/tinyworld") == embedded


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(UserError, match=r"is a file, but a model is a folder: .*sfpp weights convert"):
        hub.resolve(str(tmp_path / "model.pt"))


# convert


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A Self-Forcing checkpoint of the golden transformer (width 96, 4 heads), under Wan's names."""
    path = tmp_path / "original.pt"
    average = {name: tensor + 0.01 for name, tensor in golden_weights("transformer").items()}
    wrap = {
        f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in golden_weights("transformer").items()
    }
    torch.save({"generator": wrap, "generator_ema": average}, path)
    return path


@pytest.fixture
def fitting(tmp_path: Path) -> Path:
    """Weights of the tiny bundle's shape, but other ones."""
    student = make_student()
    randomize(student, seed=5)
    path = tmp_path / "fitting.safetensors"
    save_file({f"model.{name}": tensor for name, tensor in student.state_dict().items()}, path)
    return path


def everything(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, hidden files too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(("which", "shift"), [(None, 0.01), ("generator_ema", 0.01), ("generator", 0.0)])
def test_originals_become_a_student(
    which: str | None, shift: float, weights: Command, original: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new" / "student"
    answer = weights(
        *("convert", original, target, "--num-heads", 4, *(["--which", which] if which else [])),
        *("--chunk", 2, "--context", 12, "--sink", 1, "--shift", 8, "--steps", "1000,500", "--horizon", 100),
    )
    assert (answer.code, answer.out) == (0, f"{target}\n")
    assert ("took generator_ema" in answer.err) == (which is None)
    expected = student_from_original(
        {name: tensor + shift for name, tensor in golden_weights("transformer").items()},
        {"dim": 96, "num_heads": 4, "ffn_dim": 128, "num_layers": 2, "text_dim": 32},
    )
    saved = CausalWanModel.from_pretrained(target / "transformer")
    assert saved.config.num_attention_heads == 4
    for name, tensor in expected.state_dict().items():
        assert torch.equal(saved.state_dict()[name], tensor), name
    assert Settings.read(target / SETTINGS) == Settings(2, 12, 1, 8.0, (1000, 500), horizon=100)
    assert sorted(path.name for path in target.iterdir()) == ["sfpp.json", "transformer"]
    assert sorted(path.name for path in target.parent.iterdir()) == ["student"]
    modes = {path.stat().st_mode for path in target.rglob("*") if path.is_file()}
    assert len(modes) == 1, "every file is as readable as the others"


def test_a_base_gives_everything_else(
    weights: Command, fitting: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "whole"
    assert weights("convert", fitting, target, "--base", tiny_bundle, "--horizon", 99).code == 0
    bundle = Bundle(str(target))
    assert bundle.settings == Settings.read(tiny_bundle / SETTINGS).changed({"horizon": 99})
    state, source = bundle.load_student(CPU, torch.float32).state_dict(), load_file(fitting)
    assert all(torch.equal(state[name.removeprefix("model.")], tensor) for name, tensor in source.items())
    bundle.load_teacher(CPU, torch.float32)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler", "teacher"):
        assert everything(target / part) == everything(tiny_bundle / part)
    shown = json.loads(weights("show", target, "--json").out)
    assert (shown["heads"], shown["horizon"]) == (CONFIG["num_attention_heads"], 99)


def test_a_release_and_its_lora_are_named_on_the_command_line(
    weights: Command, fitting: Path, tmp_path: Path
) -> None:
    bias = "blocks.0.attn1.to_q.bias"
    save_file({"blocks.0.attn1.to_q.diff_b": torch.ones(24)}, tmp_path / "lora.safetensors")
    answer = weights(
        *("convert", fitting, tmp_path / "out", "--num-heads", 2, "--like", "rolling-forcing", "--sink", 0),
        *("--lora", f"{tmp_path / 'lora.safetensors'}:0.5", "--lora", tmp_path / "lora.safetensors"),
        *("--steps", "1000,937,833,625", "--unwarped"),
    )
    assert (answer.code, answer.out) == (0, f"{tmp_path / 'out'}\n")
    assert answer.err.startswith("warning: Rolling Forcing denoises five chunks jointly")
    assert Settings.read(tmp_path / "out" / SETTINGS) == Settings(steps=(1000, 748, 499, 250))
    state = CausalWanModel.from_pretrained(tmp_path / "out" / "transformer").state_dict()
    assert torch.equal(state[bias], load_file(fitting)[f"model.{bias}"] + 0.5 + 1)


def test_the_first_chunks_steps_are_told_and_shown(
    weights: Command, fitting: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    options = ("--base", tiny_bundle, "--steps", "1000,500", "--first-steps", "1000,750,500,250")
    assert weights("convert", fitting, target, *options).code == 0
    assert Settings.read(target / SETTINGS).first_steps == (1000, 750, 500, 250)
    assert "steps 1000 500, in the first chunk 1000 750 500 250\n" in weights("show", target).out
    assert json.loads(weights("show", target, "--json").out)["first_steps"] == [1000, 750, 500, 250]


def test_help_names_every_release(weights: Command) -> None:
    shown = " ".join(weights("convert", "--help").out.replace("│", " ").split())
    assert f"settings to write: {', '.join(RELEASES)}." in shown


@pytest.mark.parametrize("inner", ["", "transformer"])
def test_without_base_it_serves_as_student(
    inner: str, weights: Command, fitting: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "student"
    assert weights("convert", fitting, target, "--num-heads", 2, "--chunk", 1).code == 0
    bundle = Bundle(str(tiny_bundle), str(target / inner))
    assert bundle.settings.chunk == 1
    bundle.load_student(CPU, torch.float32)
    refused(weights("show", target), "a student alone goes to --student")


def test_a_base_on_the_hub_is_copied_without_its_links(
    weights: Command,
    fitting: Path,
    tiny_bundle: Path,
    no_hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached = fill_cache(no_hub, HUB_ID, tiny_bundle)
    downloads(monkeypatch, cached)
    assert weights("convert", fitting, tmp_path / "whole", "--base", HUB_ID).code == 0
    assert not any(path.is_symlink() for path in (tmp_path / "whole").rglob("*"))
    shutil.rmtree(no_hub)
    Bundle(str(tmp_path / "whole")).load_vae(CPU, torch.float32)


def stored_dtype(folder: Path) -> set[torch.dtype]:
    return {
        tensor.dtype for tensor in load_file(next((folder / "transformer").glob("*.safetensors"))).values()
    }


def test_precision_is_the_sources_or_as_asked(weights: Command, fitting: Path, tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in load_file(fitting).items()}
    save_file(half, tmp_path / "half.safetensors")
    save_file({name: tensor.double() for name, tensor in half.items()}, tmp_path / "double.safetensors")
    for source, option, dtype in (
        ("half", [], torch.bfloat16),
        ("half", ["--dtype", "float32"], torch.float32),
        ("fitting", ["--dtype", "float16"], torch.float16),
        ("double", [], torch.float32),
    ):
        target = tmp_path / "out"
        command = (
            "convert",
            tmp_path / f"{source}.safetensors",
            target,
            "--num-heads",
            2,
            "--overwrite",
            *option,
        )
        assert weights(*command).code == 0
        assert stored_dtype(target) == {dtype}


def test_an_earlier_conversion_is_replaced_only_if_told(
    weights: Command, fitting: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    command = ("convert", fitting, target, "--num-heads", 2)
    assert weights(*command).code == 0
    (target / "mine.txt").touch()
    before = everything(tmp_path)
    refused(weights(*command, "--chunk", 1), "exists: use --overwrite")
    assert everything(tmp_path) == before
    assert weights(*command, "--chunk", 1, "--overwrite").code == 0
    assert Settings.read(target / SETTINGS).chunk == 1
    assert not (target / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fitting.safetensors", "out"]


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def _malicious(path: Path) -> None:
    torch.save({"generator_ema": {"w": torch.ones(1), "x": Payload(path.with_name("touched"))}}, path)


def _raw_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.with_name("touched"))))


def _vae(path: Path) -> None:
    torch.save(dict(golden_weights("vae")), path)


def _changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        state = {name: tensor.clone() for name, tensor in make_student().state_dict().items()}
        change(state)
        torch.save(state, path)

    return write


@pytest.mark.parametrize(
    ("write", "options", "complaint"),
    [
        (_malicious, [], "code is never executed"),
        (_raw_pickle, [], "code is never executed"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip"), [], "cannot be read"),
        (lambda path: path.mkdir(), [], "no weights in"),
        (lambda path: None, [], "is not there"),
        (_vae, [], "no Wan transformer's"),
        (_changed(lambda state: state.pop("proj_out.bias")), [], "missing: proj_out.bias"),
        (
            _changed(lambda state: state.update({"img_emb.proj.weight": torch.ones(2)})),
            [],
            "are of an image-to-video Wan",
        ),
        (
            _changed(lambda state: state["proj_out.bias"].fill_(float("nan"))),
            [],
            "proj_out.bias is not finite",
        ),
        (
            _changed(lambda state: state["proj_out.bias"].fill_(1e9)),
            ["--dtype", "float16"],
            "not finite in torch.float16",
        ),
        (_changed(lambda state: None), ["--num-heads", "5"], "num_heads 5"),
        (_changed(lambda state: None), ["--which", "generator"], "no part 'generator'"),
        (_changed(lambda state: None), ["--dtype", "int8"], "--dtype int8: it takes float32"),
        (_changed(lambda state: None), ["--base", "absent"], "unknown model 'absent'"),
        (_changed(lambda state: None), ["--steps", "1000;500"], "--steps 1000;500: it takes"),
        (
            _changed(lambda state: None),
            ["--chunk", "9", "--context", "4", "--shift", "-1"],
            "a chunk (9); 'shift' must be above 0",
        ),
        (_changed(lambda state: None), ["--steps", "250,1000"], "'steps' must descend"),
        (_changed(lambda state: None), ["--first-steps", "1000;500"], "--first-steps 1000;500: it takes"),
        (_changed(lambda state: None), ["--first-steps", "250,1000"], "'first_steps' must descend"),
    ],
)
def test_what_is_wrong_is_refused_and_leaves_nothing(
    write: Callable[[Path], Any], options: list[str], complaint: str, weights: Command, tmp_path: Path
) -> None:
    source = tmp_path / "source.pt"
    write(source)
    before = everything(tmp_path)
    heads = [] if "--num-heads" in options else ["--num-heads", "2"]
    refused(weights("convert", source, tmp_path / "sub" / "out", *heads, *options), complaint)
    assert everything(tmp_path) == before


def test_weights_of_another_family_than_the_base_are_refused(
    weights: Command, original: Path, tiny_bundle: Path
) -> None:
    answer = weights("convert", original, original.with_name("out"), "--base", tiny_bundle, "--num-heads", 4)
    refused(answer, "in_channels 16, but the vae")


def test_small_weights_need_their_heads_told(weights: Command, fitting: Path) -> None:
    refused(weights("convert", fitting, fitting.with_name("out")), "num_heads")


@pytest.mark.parametrize("kind", ["folder", "file", "below a file"])
def test_nothing_else_is_walked_over(kind: str, weights: Command, fitting: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    if kind == "folder":
        target.mkdir()
        (target / "thesis.tex").touch()
    else:
        target.touch()
    before = everything(tmp_path)
    chosen = target / "out" if kind == "below a file" else target
    answer = weights("convert", fitting, chosen, "--num-heads", 2, "--overwrite")
    refused(answer, "cannot be written" if kind == "below a file" else "exists and is no converted model")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing_and_keeps_the_old(
    error: BaseException, weights: Command, fitting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("convert", fitting, tmp_path / "out", "--num-heads", 2)
    assert weights(*command).code == 0
    before = everything(tmp_path)

    def write(*_: object) -> None:
        raise error

    monkeypatch.setattr(packing.Settings, "write", write)
    answer = weights(*command, "--overwrite")
    assert everything(tmp_path) == before
    if isinstance(error, OSError):
        refused(answer, "No space left on device")
    else:
        assert (answer.code, answer.out) == (130, "")
