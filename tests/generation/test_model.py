"""sfpp from Python: what it gives is what the command line writes."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from conftest import Sfpp
from embedded import picture_size
from PIL import Image

import sfpp_cli
from sfpp_cli.generation.model import Model

PROMPT = "a red circle bouncing over a blue background"


@pytest.fixture(scope="module")
def model() -> Model:
    return sfpp_cli.load(device="cpu")


def test_importing_sfpp_loads_next_to_nothing() -> None:
    code = "import sys, sfpp_cli; sys.exit(bool({'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_types_are_shipped() -> None:
    assert files("sfpp_cli").joinpath("py.typed").is_file()


def test_a_stream_is_what_the_command_line_writes(sfpp: Sfpp, model: Model, tmp_path: Path) -> None:
    assert sfpp("generate", PROMPT, "--frames", "30", "--seed", "4", "-o", "v.png", "--device", "cpu")[0] == 0
    written = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "v").glob("*.png"))])
    pieces = list(model.stream(PROMPT, frames=30, seed=4))
    assert [len(piece) for piece in pieces] == [1, 8, 12, 9]
    assert pieces[0].dtype == np.uint8
    assert np.array_equal(np.concatenate(pieces), written)


def test_a_stream_is_steered_as_the_command_line_is(sfpp: Sfpp, model: Model, tmp_path: Path) -> None:
    """With a start, a change that keeps the decoder and one that begins it anew."""
    Image.new("RGB", (80, 64), "red").save(tmp_path / "p.png")
    then = ["0.7: a blue square", "1.4: a white circle"]
    for how in ("recache", "cut"):
        flags = [flag for text in then for flag in ("--then", text)]
        arguments = (
            "--frames",
            "36",
            "--how",
            how,
            "--start",
            "p.png",
            "-o",
            f"{how}.png",
            "--device",
            "cpu",
        )
        assert sfpp("generate", PROMPT, *flags, *arguments)[0] == 0
        paths = sorted((tmp_path / how).glob("*.png"))
        written = np.stack([np.asarray(Image.open(path)) for path in paths])
        pieces = model.stream(PROMPT, frames=36, then=then, how=how, start=tmp_path / "p.png")
        assert np.array_equal(np.concatenate(list(pieces)), written)
        assert len(written) == 37


def test_a_stream_begins_at_once_and_may_be_left(model: Model) -> None:
    stream = model.stream(PROMPT, seconds=1e6)
    width, height = picture_size()
    assert next(stream).shape == (1, height, width, 3)


def test_streams_do_not_disturb_each_other(model: Model) -> None:
    alone = list(model.stream(PROMPT, frames=25, seed=1))
    both = zip(
        model.stream(PROMPT, frames=25, seed=1),
        model.stream("a white square sliding over a brown background", frames=25, seed=2),
        strict=True,
    )
    for one, (mine, other) in zip(alone, both, strict=True):
        assert np.array_equal(one, mine)
        assert not np.array_equal(mine, other)


def test_the_file_is_the_command_lines(sfpp: Sfpp, model: Model, tmp_path: Path) -> None:
    arguments = ("--frames", "13", "--seed", "2", "-o", "cli.mp4", "--device", "cpu", "--save-latents")
    assert sfpp("generate", PROMPT, *arguments)[0] == 0
    made = model.generate(PROMPT, out=tmp_path / "api.mp4", frames=13, seed=2, save_latents=True)
    assert made["path"] == str(tmp_path / "api.mp4")
    for suffix in (".mp4", ".safetensors"):
        api = (tmp_path / "api").with_suffix(suffix).read_bytes()
        assert api == (tmp_path / "cli").with_suffix(suffix).read_bytes()


def test_what_exists_is_kept_unless_told(model: Model, tmp_path: Path) -> None:
    (tmp_path / "v.gif").touch()
    with pytest.raises(sfpp_cli.UserError, match="exists"):
        model.generate(PROMPT, out=tmp_path / "v.gif", frames=1)
    model.generate(PROMPT, out=tmp_path / "v.gif", frames=1, overwrite=True)
    assert (tmp_path / "v.gif").stat().st_size > 0


@pytest.mark.parametrize("options", [{"seconds": -1}, {"size": "7x7"}, {"seconds": 1, "frames": 1}])
def test_what_cannot_be_is_told_at_once(model: Model, options: dict[str, object]) -> None:
    with pytest.raises(sfpp_cli.UserError):
        model.stream(PROMPT, **options)


def test_a_prompt_that_is_too_long_is_a_warning(model: Model) -> None:
    with pytest.warns(UserWarning, match="this part is not seen: '.*shiny'"):
        next(model.stream(PROMPT + " very" * 40 + " shiny", frames=1))
