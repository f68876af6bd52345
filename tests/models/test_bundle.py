"""Models load bitwise, in silence, without a network; what is wrong with a folder is said in one line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file
from tiny import SIZE, make_student
from torch import Tensor, nn

import sfpp_cli
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.errors import UserError
from sfpp_cli.models.bundle import Bundle, fingerprint
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.settings import SETTINGS, Settings

pytest_plugins = ["tiny_bundle"]

CPU = torch.device("cpu")
PARTS = ["transformer", "teacher", "vae", "text_encoder"]


def load(
    folder: Path, part: str, student: Path | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    bundle = Bundle(str(folder), None if student is None else str(student))
    if part == "text_encoder":
        return bundle.load_text(CPU, dtype).model
    loaders = {"transformer": bundle.load_student, "teacher": bundle.load_teacher, "vae": bundle.load_vae}
    return loaders[part](CPU, dtype)


def one_line(pattern: str) -> Any:
    """A UserError that matches and has one line (`.` does not match a line break)."""
    return pytest.raises(UserError, match=rf"\A(?=.*(?:{pattern})).*\Z")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def weight_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


# Loading


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_loaded_bitwise_and_for_inference(part: str, tiny_bundle: Path) -> None:
    model = load(tiny_bundle, part)
    saved, state = load_file(weight_file(tiny_bundle / part)), model.state_dict()
    assert saved.keys() <= state.keys()
    for name, tensor in saved.items():
        assert torch.equal(state[name], tensor), name
    assert isinstance(model, {"transformer": CausalWanModel, "teacher": Teacher}.get(part, nn.Module))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_part_is_loaded_in_the_precision_asked_for(
    part: str, dtype: torch.dtype, tiny_bundle: Path
) -> None:
    model = load(tiny_bundle, part, dtype=dtype)
    largest = max(model.parameters(), key=Tensor.numel)
    assert largest.dtype == dtype
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_vae_has_the_fast_layout_on_every_device(device: str, tiny_bundle: Path) -> None:
    """`meta` stands for a GPU: all that is not a CPU."""
    vae = Bundle(str(tiny_bundle)).load_vae(torch.device(device), torch.float32)
    volumes = [module.weight for module in vae.modules() if isinstance(module, nn.Conv3d)]
    pictures = [module.weight for module in vae.modules() if isinstance(module, nn.Conv2d)]
    assert volumes
    assert pictures
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in volumes)
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in pictures)


@pytest.mark.parametrize("part", PARTS)
def test_weights_in_shards_are_the_same_weights(part: str, own_bundle: Path) -> None:
    whole = load(own_bundle, part)
    weight_file(own_bundle / part).unlink()
    whole.save_pretrained(own_bundle / part, max_shard_size="20KB")
    assert len(list((own_bundle / part).glob("*.safetensors"))) > 1
    again = load(own_bundle, part).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.state_dict().items())


def test_a_missing_shard_and_a_bad_index_are_told(own_bundle: Path) -> None:
    folder = own_bundle / "transformer"
    weight_file(folder).unlink()
    make_student().save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].unlink()
    with one_line(f"{shards[1].name} is missing"):
        load(own_bundle, "transformer")
    (index,) = folder.glob("*.index.json")
    for content in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(content)
        with one_line(f"{index.name} cannot be read"):
            load(own_bundle, "transformer")


def test_links_are_followed_as_in_the_hubs_cache(tiny_bundle: Path, tmp_path: Path) -> None:
    """Every file a link to a blob without an extension, the folder itself behind another link."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(file for file in tiny_bundle.rglob("*") if file.is_file()):
        link = tmp_path / "snapshot" / file.relative_to(tiny_bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / f"{number:040x}")
        link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
    (tmp_path / "link").symlink_to(tmp_path / "snapshot")
    for part in PARTS:
        load(tmp_path / "link", part)
    assert Bundle(str(tmp_path / "link")).settings == Bundle(str(tiny_bundle)).settings
    assert fingerprint(Bundle(str(tmp_path / "link"))) == fingerprint(Bundle(str(tiny_bundle)))
    weight_file(tmp_path / "snapshot" / "vae").resolve().unlink()
    with one_line("diffusion_pytorch_model.safetensors is missing"):
        load(tmp_path / "link", "vae")


def test_loading_reaches_for_no_network_and_leaves_the_folder_alone(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("the network was reached for")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in own_bundle.rglob("*")}
    for folder in (own_bundle, *own_bundle.iterdir()):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    for part in PARTS:
        load(own_bundle, part)
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in own_bundle.rglob("*")} == before


def test_fingerprints_tell_weights_apart(own_bundle: Path) -> None:
    first = fingerprint(Bundle(str(own_bundle)))
    student = make_student()
    with torch.no_grad():
        student.proj_out.bias[0] += 1
    student.save_pretrained(own_bundle / "transformer")
    assert fingerprint(Bundle(str(own_bundle))) != first
    shutil.copytree(own_bundle, own_bundle.with_name("elsewhere"))
    assert fingerprint(Bundle(str(own_bundle))) == fingerprint(Bundle(str(own_bundle.with_name("elsewhere"))))


SCRIPT = """
import sys
from pathlib import Path
import torch
from sfpp_cli.models.bundle import Bundle
torch.set_num_threads(1)
folder, out = map(Path, sys.argv[1:])
bundle, cpu = Bundle(str(folder)), torch.device("cpu")
models = [
    bundle.load_student(cpu, torch.bfloat16),
    bundle.load_teacher(cpu, torch.float32),
    bundle.load_vae(cpu, torch.float32),
]
text = bundle.load_text(cpu, torch.float32)
text(["a zebra " * 20])
text.embed("a zebra " * 20)
for number, model in enumerate([*models, text.model]):
    model.save_pretrained(out / str(number), max_shard_size="20KB")
"""


def test_the_libraries_say_nothing(own_bundle: Path, tmp_path: Path) -> None:
    """Loading, running, saving: in a process that nobody else silenced; a config is of a later diffusers."""
    edit(own_bundle / "vae" / "config.json", unheard_of=True)
    environment = os.environ | {
        "PYTHONPATH": str(Path(sfpp_cli.__file__).parent.parent),
        "PYTHONWARNINGS": "default",
    }
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, own_bundle, tmp_path / "saved"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert len(list(tmp_path.glob("saved/*/*.index.json"))) == 4


@pytest.mark.parametrize("shown", [True, False])
def test_silence_leaves_the_downloads_progress_bars_as_they_are(shown: bool) -> None:
    (enable_progress_bars if shown else disable_progress_bars)()
    try:
        quiet_libraries()
        assert are_progress_bars_disabled() is not shown
    finally:
        enable_progress_bars()


# Damage


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part_is_named(part: str, own_bundle: Path) -> None:
    shutil.rmtree(own_bundle / part)
    with one_line(f"not a model: {part} missing"):
        Bundle(str(own_bundle))


def test_a_folder_of_something_else_is_no_model(tmp_path: Path) -> None:
    with one_line("not a model: transformer, vae, text_encoder, tokenizer missing"):
        Bundle(str(tmp_path))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (Path.unlink, "no weights in"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:50]), "is damaged"),
        (lambda file: file.write_bytes(bytes(range(256)) * 10), "is damaged"),
        (lambda file: file.write_bytes(b""), "is damaged"),
        (lambda file: file.rename(file.with_suffix(".bin")), "no weights in"),
        (lambda file: file.rename(file.with_name("other.safetensors")), "cannot be loaded"),
    ],
    ids=["none", "truncated", "header only", "noise", "empty", "pickle", "other name"],
)
def test_damaged_weights_are_refused(
    part: str, damage: Callable[[Path], object], complaint: str, own_bundle: Path
) -> None:
    damage(weight_file(own_bundle / part))
    with one_line(complaint):
        load(own_bundle, part)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_bytes(b"\xff"),
    ],
    ids=["none", "no JSON", "a list", "no text"],
)
def test_damaged_configs_are_refused(part: str, damage: Callable[[Path], object], own_bundle: Path) -> None:
    damage(own_bundle / part / "config.json")
    with one_line(r"config\.json (cannot be read|must hold)|holds a student but no teacher"):
        load(own_bundle, part)


@pytest.mark.parametrize(
    ("part", "changes", "complaint"),
    [
        ("transformer", {"num_layers": 3}, r"not those of its config\.json \(blocks\.2\."),
        ("transformer", {"num_layers": 1}, r"not those of its config\.json \(blocks\.1\."),
        ("transformer", {"ffn_dim": 64}, "expected shape"),
        ("transformer", {"num_layers": "two"}, "'num_layers' must be a whole number, not 'two'"),
        ("transformer", {"num_attention_heads": 0}, "'num_attention_heads' must be at least 1, not 0"),
        ("teacher", {"num_layers": 3}, r"not those of its config\.json \(blocks\.2\."),
        ("vae", {"base_dim": 8}, "expected shape"),
        ("vae", {"num_res_blocks": 2}, r"not those of its config\.json"),
        ("text_encoder", {"num_layers": 3}, r"not those of its config\.json \(encoder\.block\.2\."),
        ("text_encoder", {"num_layers": 1}, r"not those of its config\.json \(encoder\.block\.1\."),
        ("text_encoder", {"d_ff": 64}, r"not those of its config\.json"),
        ("text_encoder", {"vocab_size": 99}, r"not those of its config\.json \(shared\.weight"),
        ("text_encoder", {"d_ff": "wide"}, "'d_ff' must be a whole number, not 'wide'"),
    ],
)
def test_weights_and_config_must_fit(
    part: str, changes: dict[str, Any], complaint: str, own_bundle: Path
) -> None:
    edit(own_bundle / part / "config.json", **changes)
    with one_line(complaint):
        load(own_bundle, part)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_tokenizer_is_refused(content: str, own_bundle: Path) -> None:
    (own_bundle / "tokenizer" / "tokenizer.json").write_text(content)
    with one_line("tokenizer cannot be loaded"):
        load(own_bundle, "text_encoder")


def test_code_beside_a_tokenizer_is_neither_run_nor_asked_for(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "y")
    touched = own_bundle / "touched"
    (own_bundle / "tokenizer" / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(touched)!r}).touch()\nclass Evil: pass\n"
    )
    (own_bundle / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    with one_line("tokenizer cannot be loaded"):
        load(own_bundle, "text_encoder")
    assert not questions
    assert not touched.exists()


def test_parts_of_different_families_do_not_mix(own_bundle: Path, tmp_path: Path) -> None:
    make_student(in_channels=8).save_pretrained(tmp_path / "eight")
    with one_line("in_channels 8, but the vae .* z_dim 4"):
        Bundle(str(own_bundle), str(tmp_path / "eight"))
    make_student(text_dim=24).save_pretrained(tmp_path / "wide")
    with one_line("text_dim 24, but the text_encoder .* d_model 16"):
        Bundle(str(own_bundle), str(tmp_path / "wide"))


# Students and teachers


@pytest.fixture
def teacher_bundle(own_bundle: Path) -> Path:
    """Plain Wan: its transformer is the teacher, there is no sfpp.json."""
    shutil.rmtree(own_bundle / "transformer")
    (own_bundle / "teacher").rename(own_bundle / "transformer")
    edit(own_bundle / "transformer" / "config.json", _class_name="WanTransformer3DModel")
    (own_bundle / SETTINGS).unlink()
    return own_bundle


def test_a_plain_teacher_is_no_student(teacher_bundle: Path) -> None:
    assert Bundle(str(teacher_bundle)).settings == Settings()
    assert isinstance(load(teacher_bundle, "teacher"), Teacher)
    with one_line(
        "transformer is a bidirectional teacher, not a causal student: name causal weights with --student"
    ):
        load(teacher_bundle, "transformer")


def test_a_teacher_named_as_student_is_refused(tiny_bundle: Path) -> None:
    with one_line("teacher is a bidirectional teacher"):
        load(tiny_bundle, "transformer", tiny_bundle / "teacher")


def test_a_student_has_no_teacher_unless_it_is_there(own_bundle: Path) -> None:
    shutil.rmtree(own_bundle / "teacher")
    with one_line("holds a student but no teacher"):
        load(own_bundle, "teacher")


def test_a_vae_named_as_student_is_refused(tiny_bundle: Path) -> None:
    with one_line("of class AutoencoderKLWan, not a causal student"):
        load(tiny_bundle, "transformer", tiny_bundle / "vae")


@pytest.mark.parametrize("form", ["run", "bundle", "transformer"])
def test_a_student_is_named_as_a_run_a_bundle_or_its_transformer(
    form: str, teacher_bundle: Path, tmp_path: Path
) -> None:
    student = make_student()
    with torch.no_grad():
        student.proj_out.bias.fill_(7)
    place = (
        tmp_path / "run" / "step-000123" / "student-ema"
        if form == "run"
        else tmp_path / "other" / "transformer"
    )
    student.save_pretrained(place)
    if form != "run":
        Settings(horizon=81).write(place.parent / SETTINGS)
    named = place.parent if form == "bundle" else place
    loaded = load(teacher_bundle, "transformer", named)
    assert torch.equal(loaded.proj_out.bias, student.proj_out.bias)
    bundle = Bundle(str(teacher_bundle), str(named))
    assert bundle.settings.horizon == (21 if form == "run" else 81)
    assert bundle.transformer_config()["num_layers"] == 2
    assert isinstance(bundle.load_teacher(CPU, torch.float32), Teacher)


def test_a_base_without_transformer_serves_a_student(own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / "transformer").rename(tmp_path / "student")
    assert isinstance(load(own_bundle, "transformer", tmp_path / "student"), CausalWanModel)


def test_a_folder_above_the_student_is_corrected(tiny_bundle: Path, tmp_path: Path) -> None:
    make_student().save_pretrained(tmp_path / "run" / "step-000010" / "student")
    make_student().save_pretrained(tmp_path / "run" / "step-000010" / "student-ema")
    for named in ("run", "run/step-000010"):
        with one_line("holds no student.* such as .*step-000010/student-ema"):
            Bundle(str(tiny_bundle), str(tmp_path / named))
    (tmp_path / "empty").mkdir()
    with one_line("holds no student.* such as a run's"):
        Bundle(str(tiny_bundle), str(tmp_path / "empty"))


def test_compression_is_the_vaes(tiny_bundle: Path) -> None:
    compression = Bundle(str(tiny_bundle)).compression
    assert (compression.temporal, compression.spatial) == (4, 8)
    assert compression.latent_size(SIZE[1] * 8, SIZE[0] * 8) == SIZE


# Settings


def test_settings_survive_the_disk(tmp_path: Path) -> None:
    settings = Settings(chunk=1, context=9, sink=2, shift=3, steps=(1000, 1), prompt="Ein Kreis 圆 🎬\n")
    settings.write(tmp_path / SETTINGS)
    assert Settings.read(tmp_path / SETTINGS) == settings
    assert json.loads((tmp_path / SETTINGS).read_text()).keys() == asdict(Settings()).keys()


def test_settings_left_out_are_wans(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text('{"fps": 24}')
    assert Settings.read(tmp_path / SETTINGS) == Settings(fps=24)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"contxt": 21}, "unknown key 'contxt'; did you mean 'context'"),
        ({"zzz": 1}, r"unknown key 'zzz' \(known: chunk, "),
        ({"fps": "16"}, "'fps' must be a whole number, not '16'"),
        ({"fps": 16.0}, "'fps' must be a whole number, not 16.0"),
        ({"chunk": True}, "'chunk' must be a whole number, not true"),
        ({"shift": None}, "'shift' must be a number, not null"),
        ({"prompt": 3}, "'prompt' must be text, not 3"),
        ({"steps": 1000}, "'steps' must be a list, not 1000"),
        ({"steps": [1000, 500.5]}, r"'steps\[1\]' must be a whole number, not 500.5"),
        ({"steps": []}, "'steps' must descend"),
        ({"steps": [500, 1000]}, "'steps' must descend"),
        ({"steps": [500, 500]}, "'steps' must descend"),
        ({"steps": [1001, 1]}, "'steps' must descend"),
        ({"steps": [1000, 0]}, "'steps' must descend"),
        ({"steps": None}, "'steps' must be a list, not null"),
        ({"first_steps": 1000}, "'first_steps' must be a list, not 1000"),
        ({"first_steps": [1000, 500.5]}, r"'first_steps\[1\]' must be a whole number, not 500.5"),
        ({"first_steps": []}, "'first_steps' must descend"),
        ({"first_steps": [1000, 0]}, "'first_steps' must descend"),
        ({"chunk": 0}, "'chunk' must be at least 1, not 0"),
        ({"sink": -1}, "'sink' must be at least 0, not -1"),
        ({"context": 5, "sink": 3}, r"'context' \(5\) must hold the sink \(3\) and a chunk \(3\)"),
        ({"shift": 0}, "'shift' must be above 0"),
        ({"shift": float("nan")}, "'shift' must be a finite number, not NaN"),
        ({"shift": float("inf")}, "'shift' must be a finite number, not Infinity"),
        ({"fps": 0}, "'fps' must be at least 1"),
        ({"width": 0}, "'width' must be at least 1"),
        ({"text_length": 0}, "'text_length' must be at least 1"),
        ({"horizon": 0}, "'horizon' must be at least 1"),
    ],
)
def test_a_bad_setting_is_told(values: dict[str, Any], complaint: str, own_bundle: Path) -> None:
    edit(own_bundle / SETTINGS, **values)
    with one_line(rf"{SETTINGS}:\d*:? ?{complaint}"):
        Bundle(str(own_bundle))


def test_the_first_chunks_steps_reach_the_sampler(own_bundle: Path) -> None:
    """Files of before they were a setting have none, and are read as they are."""
    values = json.loads((own_bundle / SETTINGS).read_text())
    del values["first_steps"]
    (own_bundle / SETTINGS).write_text(json.dumps(values))
    assert Bundle(str(own_bundle)).settings.sampler().first_steps is None
    edit(own_bundle / SETTINGS, first_steps=[1000, 600])
    assert Bundle(str(own_bundle)).settings.sampler().first_steps == (1000, 600)


def test_all_bad_settings_are_told_at_once(own_bundle: Path) -> None:
    """Each with its line, also a fault between two values."""
    values = {"chunks": 3, "fps": "16", "horizon": 0, "context": 3, "sink": 1}
    file = own_bundle / SETTINGS
    file.write_text(json.dumps(values, indent=2))
    with pytest.raises(UserError) as caught:
        Bundle(str(own_bundle))
    assert str(caught.value).split("\n") == [
        f"{file}:6: 'context' (3) must hold the sink (1) and a chunk (3)",
        f"{file}:4: 'horizon' must be at least 1, not 0",
        f"{file}:3: 'fps' must be a whole number, not '16'",
        f"{file}:2: unknown key 'chunks'; did you mean 'chunk'?",
    ]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "half", "no text", "deep"]
)
def test_settings_that_are_no_json_are_told(content: bytes, own_bundle: Path) -> None:
    (own_bundle / SETTINGS).write_bytes(content)
    with one_line(f"{SETTINGS} cannot be read"):
        Bundle(str(own_bundle))


def test_settings_that_are_no_object_are_told(own_bundle: Path) -> None:
    (own_bundle / SETTINGS).write_text("[]")
    with one_line(f"{SETTINGS}: must be a table of keys and values, not \\[\\]"):
        Bundle(str(own_bundle))
