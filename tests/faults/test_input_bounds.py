"""Numbers and words that nobody can mean, in every option, setting and configuration: one line, code 2.

Never a traceback, a hang or a full memory. The quick suite runs every fortieth case, `-m slow` all of them.
"""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outcomes import Sfpp, ends_well
from typer.models import ArgumentInfo

from sfpp_cli.commands import distill, evaluate, generate, train, weights
from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.errors import UserError
from sfpp_cli.models.settings import SETTINGS, Settings
from sfpp_cli.video.reader import read_metadata

pytest_plugins = ["tiny_bundle", "film"]

NUMBERS = (
    *(
        "0",
        "-1",
        "2",
        "1e308",
        "-1e308",
        "1e-308",
        "nan",
        "inf",
        "-inf",
        "",
        " ",
        "x",
        "0x10",
        "1_0",
        "\u00b2",
    ),
    *("100000000000000000000", "-100000000000000000000", "9" * 5000, "\x1b[31m9", "9223372036854775808"),
)
WORDS = (
    *("", " ", ".", "..", "/", "~", "-", "a/b/c", "x" * 300, "x" * 5000, "\x1b[31mred", "\r\b\x9b2J"),
    *("\u202etxt.4pm", "\udcff", "line\nline", "[bold]x[/]", "%s{0}$HOME", "9" * 5000, "https://x.invalid/y"),
)
SPECIAL_WORDS = {
    "size": ("0x0", "16x", "x16", "1048576x1048576", "16x1048576", "9" * 5000 + "x16", "\u0661\u0666x16"),
    "seeds": ("0-999999999999", "5-1", "1-", ",", "0," * 9, "9" * 5000, "\u00b2", "0-9223372036854775808"),
    "device": ("cuda:99999999999999999999", "cpu:7", "meta", "mps", "cuda:-1"),
    "steps": ("1000,1000", "0", "-5", "1e3", ",", "9" * 5000, "1,1000"),
}
"""For options whose words have a form."""
VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 7, 10**9, 10**19, -(10**19), 1e308, -1e308, 1e-308, float("nan"), float("inf")),
    *(None, True, "", "x", "\x1b[31m", [], [0], [None], [10**19] * 3, [1.5, "a"], {}, {"a": 1}),
)
"""For a key of a JSON file."""

COMMANDS = {
    **{"generate": generate.generate, "train": train.train, "distill": distill.distill},
    **{"evaluate": evaluate.evaluate, "weights show": weights.show},
    **{"weights pull": weights.pull, "weights convert": weights.convert},
}


def is_quick(number: int) -> bool:
    return number % 40 == 0


def marked(cases: Iterator[tuple[Any, ...]]) -> list[Any]:
    """Every fortieth case as it is, the others as slow ones; with names that a terminal can take."""
    return [
        pytest.param(
            *case,
            marks=[] if is_quick(number) else pytest.mark.slow,
            id="-".join(ascii(part)[:24].strip("'") for part in case),
        )
        for number, case in enumerate(cases)
    ]


def option_cases() -> Iterator[tuple[str, str, str]]:
    """(command, option or nothing for an argument, value) of all that takes a value."""
    for name, command in COMMANDS.items():
        for word, kind in get_type_hints(command, include_extras=True).items():
            accepted, *details = get_args(kind) if get_origin(kind) is Annotated else (kind,)
            kinds = {part for part in (accepted, *get_args(accepted)) if isinstance(part, type)}
            if bool in kinds or word == "return":
                continue
            is_argument = any(isinstance(detail, ArgumentInfo) for detail in details)
            values = NUMBERS if kinds & {int, float} else SPECIAL_WORDS.get(word, ()) + WORDS
            for value in values:
                yield name, "" if is_argument else f"--{word.strip('_').replace('_', '-')}", value


def arguments(command: str, flag: str, value: str, bundle: Path, film: Path, folder: Path) -> Sequence[str]:
    """A command that would work, but for one option or, without a flag, its first argument."""
    model = str(bundle)
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'objective = "dmd"\nmodel = "{model}"\nprompts = "p.txt"\n'
        '[dmd]\nmethod = "self-forcing++"\nframes = 24\n[training]\nsteps = 1\nbatch = 1\n'
    )
    (folder / "p.txt").write_text("a red circle\n")
    given = [f"{flag}={value}"] if flag.startswith("--") else [flag, value] if flag else ["--", value]
    if command == "evaluate" and flag == "--judge-prices":
        given = [flag, value, value]
    usual = {
        "generate": ["--model", model, "--frames", "1", "--out", "v.mp4", "--overwrite"],
        "train": [str(recipe), "--dry-run", "--out", "run"],
        "distill": [str(recipe), "--dry-run", "--out", "run"],
        "evaluate": [str(film), "--no-cache", "--workers", "1"],
        "weights show": [model],
        "weights pull": [],
        "weights convert": [f"{model}/transformer", "out", "--num-heads", "2", "--overwrite"],
    }[command]
    if not flag and command == "weights convert":
        return [*command.split(), *usual[2:], *given, "out"]
    if not flag:  # the first argument itself
        return [*command.split(), *(usual if command == "generate" else usual[1:]), *given]
    if command == "weights pull":
        usual = [model]
    if flag in ("--seconds", "--out-dir", "--prompts") and command == "generate":
        usual = ["--model", model, *(["--frames", "1"] if flag != "--seconds" else [])]
    return [*command.split(), *usual, *given]


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("command", "flag", "value"), marked(option_cases()))
def test_options(
    sfpp: Sfpp, tiny_bundle: Path, film: Path, tmp_path: Path, command: str, flag: str, value: str
) -> None:
    ends_well(sfpp, *arguments(command, flag, value, tiny_bundle, film, tmp_path))


def key_cases() -> Iterator[tuple[str, str, Any]]:
    """(file, key, value) of every key of a model's JSON files."""
    files = {
        SETTINGS: [*Settings.__dataclass_fields__],
        "transformer/config.json": [
            *("num_layers", "num_attention_heads", "attention_head_dim", "patch_size", "in_channels", "eps"),
            *("out_channels", "text_dim", "freq_dim", "ffn_dim", "cross_attn_norm", "qk_norm", "image_dim"),
            *("rope_max_seq_len", "added_kv_proj_dim", "pos_embed_seq_len", "_class_name"),
        ],
        "vae/config.json": [
            *(
                "base_dim",
                "decoder_base_dim",
                "z_dim",
                "dim_mult",
                "num_res_blocks",
                "attn_scales",
                "dropout",
            ),
            *("temperal_downsample", "latents_mean", "latents_std", "is_residual", "patch_size"),
            *("in_channels", "out_channels", "scale_factor_spatial", "_class_name"),
        ],
        "text_encoder/config.json": [
            *("d_model", "num_layers", "num_heads", "d_kv", "d_ff", "vocab_size", "feed_forward_proj"),
            *("relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate"),
            *("layer_norm_epsilon", "model_type", "tie_word_embeddings", "pad_token_id"),
        ],
    }
    for file, keys in files.items():
        for key in keys:
            for value in VALUES:
                yield file, key, value


@pytest.mark.parametrize(("file", "key", "value"), marked(key_cases()))
def test_model_files(sfpp: Sfpp, own_bundle: Path, file: str, key: str, value: Any) -> None:
    path = own_bundle / file
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, key: value}))
    ends_well(sfpp, "weights", "show", str(own_bundle))
    ends_well(sfpp, "generate", "--model", str(own_bundle), "--frames", "1", "-o", "v.mp4")


BROKEN = {
    "empty": b"",
    "cut": b'{"a": 1',
    "list": b"[]",
    "deep": b"[" * 100_000,
    "deep-object": b'{"a":' * 100_000,
    "bytes": b"\xff\xfe\x00",
    "nul": b"\0" * 100,
    "digits": b'{"chunk": ' + b"9" * 5000 + b"}",
    "surrogate": b'{"prompt": "\\ud800"}',
    "twice": b'{"chunk": 3, "chunk": "x"}',
    "escape": b'{"\\u001b[31mkey": 1}',
}
FILES = (SETTINGS, "transformer/config.json", "vae/config.json", "text_encoder/config.json")


@pytest.mark.parametrize(("file", "how"), marked((file, how) for file in FILES for how in BROKEN))
def test_damaged_json_of_a_model(sfpp: Sfpp, own_bundle: Path, file: str, how: str) -> None:
    (own_bundle / file).write_bytes(BROKEN[how])
    assert not ends_well(sfpp, "generate", "--model", str(own_bundle), "--frames", "1", "-o", "v.mp4") or (
        how == "escape"
    )


def test_a_folder_or_a_pipe_in_the_place_of_a_file(sfpp: Sfpp, own_bundle: Path) -> None:
    (own_bundle / SETTINGS).unlink()
    (own_bundle / SETTINGS).mkdir()
    assert not ends_well(sfpp, "weights", "show", str(own_bundle))
    (own_bundle / SETTINGS).rmdir()
    (own_bundle / SETTINGS).symlink_to("/dev/zero")
    assert not ends_well(sfpp, "weights", "show", str(own_bundle))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.sampled_from(["prompt", "seed", "seconds", "out", "other"]), JSON)
QUIET = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@QUIET
@given(line=FIELDS)
def test_any_line_of_a_prompt_file(tmp_path: Path, line: dict[str, Any]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(line))
    try:
        (read,) = read_prompts(path)
    except UserError as found:
        error = str(found)
    else:
        error = f"{path}:1: "
        assert read.seconds is None or 0 < read.seconds < float("inf")
        assert read.seed is None or 0 <= read.seed < 2**63
    assert error.startswith(f"{path}:1: ")


@QUIET
@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_any_bytes_as_a_prompt_file(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"p{kind}"
    path.write_bytes(content)
    try:
        assert all(line.prompt for line in read_prompts(path))
    except UserError as found:
        error = str(found)
    else:
        error = str(path)
    assert error.startswith(str(path))


@QUIET
@given(changes=st.dictionaries(st.sampled_from([*Settings.__dataclass_fields__]), JSON, min_size=1))
def test_any_settings(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / SETTINGS
    path.write_text(json.dumps(changes))
    try:
        read = Settings.read(path)
    except UserError as found:
        error = str(found)
    else:
        error = str(path)
        assert read.context >= read.sink + read.chunk
        assert max(read.width, read.height) <= 2**14
    assert str(path) in error


@pytest.mark.parametrize("value", ["1e308", "1e12", "-0.0"])
def test_lengths_in_prompt_lines(sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path, value: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "a red circle", "seconds": {value}}}\n')
    assert not ends_well(
        sfpp, "generate", "--model", str(tiny_bundle), "--prompts", "p.jsonl", "--out-dir", "o"
    )


def test_what_exceeds_the_machine_is_refused_with_the_figure(
    sfpp: Sfpp, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ["generate", "--model", str(tiny_bundle), "-o", "v.mp4"]
    code, _, err = sfpp(*model, "--size", "4096x4096", "--context", "9999")
    assert code == 2
    assert "4096x4096 needs more than" in err
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10**6))
    code, _, err = sfpp(*model, "--frames", "20000")
    assert code == 2
    # 5001 latent frames, rounded up to whole chunks, of 4 channels and 4 x 6 cells in float32
    assert "v.mp4 needs 1.9 MB of disk" in err
    assert "has 1.0 MB" in err


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_prompts_that_no_program_can_be_told(sfpp: Sfpp, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"p{kind}"
    prompt = "x" * 140_000
    path.write_text(prompt if kind == ".txt" else json.dumps({"prompt": prompt}))
    code, _, err = sfpp("generate", "--prompts", path.name)
    assert (code, err) == (
        2,
        f"error: {path.name}:1: 'prompt' must have at most 10000 characters, not 140000\n",
    )
    code, _, err = sfpp("generate", prompt)
    assert (code, err) == (2, "error: the prompt has 140000 characters: it takes at most 10000\n")


def test_the_longest_prompt_comes_back_from_the_video(sfpp: Sfpp, tiny_bundle: Path) -> None:
    """In whatever script; each letter takes twelve bytes of the container's metadata."""
    prompt = "\U00020000" * 10_000
    assert ends_well(sfpp, "generate", prompt, "--model", str(tiny_bundle), "--frames", "1", "-o", "v.mp4")
    assert json.loads(Path("v.json").read_text())["prompt"] == prompt
    assert "seed" in read_metadata(Path("v.mp4"))


@pytest.mark.parametrize("order", ["utf-16", "utf-16-be"])
def test_prompts_as_powershell_writes_them(sfpp: Sfpp, tmp_path: Path, order: str) -> None:
    (tmp_path / "p.txt").write_bytes(
        codecs.BOM_UTF16_BE * (order != "utf-16") + "a red circle\n".encode(order)
    )
    code, _, err = sfpp("generate", "--prompts", "p.txt")
    assert (code, err) == (2, "error: p.txt is UTF-16, as PowerShell writes text: save it as UTF-8\n")
