"""Previews of a student in training: gauges of known frames, rollouts that differ only by the student."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Sfpp
from PIL import Image
from tiny import make_student, randomize
from torch import Tensor

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.training.preview import COLUMNS, Previewer, gauges
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import read_frames

pytest_plugins = ["tiny_bundle"]

CPU = torch.device("cpu")
PROMPTS = ["a red circle moving left", "the blue square"]
NAMES = ["luma", "saturation", "motion", "clipped"]
ROUNDING = 2e-6
"""Gauges lie in 0..1 and are means in float32: thirty roundings of 1."""


def flat(*colors: tuple[int, int, int], height: int = 4, width: int = 6) -> Frames:
    """A video of one plain colour a frame, [T, height, width, 3]."""
    return np.array(colors, dtype=np.uint8)[:, None, None].repeat(height, 1).repeat(width, 2)


def embedded(bundle: Bundle, prompts: list[str]) -> Tensor:
    return EmbeddedPrompts(bundle.load_text(CPU, torch.float32), prompts)(prompts)


def previewer(bundle: Path, folder: Path, seconds: float = 1.0, seed: int = 5) -> Previewer:
    model = Bundle(str(bundle))
    return Previewer(model, model.settings, embedded(model, PROMPTS), seconds, folder, CPU, seed)


@pytest.fixture
def student() -> CausalWanModel:
    return make_student()


# --- gauges -------


@pytest.mark.parametrize(
    ("color", "luma", "saturation", "clipped"),
    [
        ((0, 0, 0), 0.0, 0.0, 1.0),
        ((255, 255, 255), 1.0, 0.0, 1.0),
        ((128, 128, 128), 128 / 255, 0.0, 0.0),
        ((255, 0, 0), 0.2126, 1.0, 0.0),
        ((0, 255, 0), 0.7152, 1.0, 0.0),
        ((0, 0, 255), 0.0722, 1.0, 0.0),
        ((0, 0, 27), 0.0722 * 27 / 255, 1.0, 1.0),
        ((200, 100, 150), (0.2126 * 200 + 0.7152 * 100 + 0.0722 * 150) / 255, 0.5, 0.0),
    ],
)
def test_gauges_of_one_colour(
    color: tuple[int, int, int], luma: float, saturation: float, clipped: float
) -> None:
    for video in (flat(color), flat(color, color, color)):
        measured = gauges(video)
        assert list(measured) == NAMES
        assert list(measured.values()) == pytest.approx([luma, saturation, 0.0, clipped], abs=ROUNDING)


def test_clipping_begins_and_ends_exactly_at_its_levels() -> None:
    clipped = [gauges(flat((level, level, level)))["clipped"] for level in range(256)]
    assert clipped == [1.0] * 2 + [0.0] * 252 + [1.0] * 2


def test_motion_is_the_mean_change_between_neighbours() -> None:
    greys = [(level,) * 3 for level in (10, 40, 40, 20)]
    assert gauges(flat(*greys))["motion"] == pytest.approx((30 + 0 + 20) / 3 / 255)
    assert gauges(flat(greys[0]))["motion"] == 0


def test_gauges_are_means_over_pixels_and_frames() -> None:
    video = flat((0, 0, 0), (0, 0, 0))
    video[1, :, :3] = (250, 125, 0)
    luma = (0.2126 * 250 + 0.7152 * 125) / 255
    expected = {"luma": luma / 4, "saturation": 1 / 4, "motion": luma / 2, "clipped": 3 / 4}
    assert gauges(video) == pytest.approx(expected, abs=ROUNDING)


def test_gauges_follow_their_formulas_on_noise() -> None:
    video = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    rgb = video / 255
    luma = rgb @ [0.2126, 0.7152, 0.0722]
    saturation = (rgb.max(-1) - rgb.min(-1)) / np.maximum(rgb.max(-1), 1e-9)
    clipped = (luma < 2 / 255) | (luma > 253 / 255)
    expected = [luma.mean(), saturation.mean(), np.abs(np.diff(luma, axis=0)).mean(), clipped.mean()]
    assert list(gauges(video).values()) == pytest.approx(expected, rel=ROUNDING)
    assert gauges(torch.from_numpy(video)) == gauges(video)


# --- previews ------


def test_the_same_student_gives_the_same_bytes_and_another_student_others(
    tiny_bundle: Path, tmp_path: Path, student: CausalWanModel
) -> None:
    preview = previewer(tiny_bundle, tmp_path / "previews")
    first, again = preview(student, 100), preview(student, 200)
    assert list(first) == [f"preview_{name}" for name in NAMES]
    assert all(0 < value < 1 for value in list(first.values())[:3])
    randomize(student, seed=8)
    other = preview(student, 300)
    sheets = [(tmp_path / "previews" / f"step-000{step}.png").read_bytes() for step in (100, 200, 300)]
    assert (first, sheets[0]) == (again, sheets[1])
    assert first != other
    assert sheets[0] != sheets[2]
    assert len(list((tmp_path / "previews").iterdir())) == 3


def test_another_previewer_of_the_same_seed_sees_the_same(
    tiny_bundle: Path, tmp_path: Path, student: CausalWanModel
) -> None:
    measured = [previewer(tiny_bundle, tmp_path, seed=seed)(student, 1, write=False) for seed in (5, 5, 6)]
    assert measured[0] == measured[1]
    assert measured[0] != measured[2]


def test_a_rank_that_does_not_write_measures_the_same(
    tiny_bundle: Path, tmp_path: Path, student: CausalWanModel
) -> None:
    preview = previewer(tiny_bundle, tmp_path / "previews")
    silent = preview(student, 1, write=False)
    assert not (tmp_path / "previews").exists()
    assert silent == preview(student, 1)


@pytest.mark.parametrize("training", [True, False])
def test_the_student_stays_as_it_was(
    tiny_bundle: Path, tmp_path: Path, student: CausalWanModel, training: bool
) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.train(training).requires_grad_(True)
    random = torch.random.get_rng_state()
    previewer(tiny_bundle, tmp_path)(student, 1, write=False)
    assert all(module.training is training for module in student.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


def test_a_student_that_fails_keeps_its_mode(
    tiny_bundle: Path, tmp_path: Path, student: CausalWanModel
) -> None:
    preview = previewer(tiny_bundle, tmp_path)
    student.proj_out.weight.data = student.proj_out.weight.data[:, :1]
    with pytest.raises(RuntimeError):
        preview(student.train(), 1)
    assert student.training
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, 9), (1.0, 9), (9 / 8, 9), (10 / 8, 21), (2.0, 21)])
def test_seconds_are_rounded_up_to_whole_chunks(
    tiny_bundle: Path, tmp_path: Path, seconds: float, frames: int
) -> None:
    """8 frames a second; a chunk is 3 latent frames, the first of which is one picture, the others four."""
    preview = previewer(tiny_bundle, tmp_path, seconds)
    assert (preview.frames, preview.latent_frames % 3) == (frames, 0)


def test_the_sheet_has_a_row_a_prompt(tiny_bundle: Path, tmp_path: Path, student: CausalWanModel) -> None:
    """Rows of 192 pixels with their captions, 48 x 32 pixels a frame being shown four times as large."""
    previewer(tiny_bundle, tmp_path)(student, 12)
    with Image.open(tmp_path / "step-000012.png") as image:
        assert image.size == (COLUMNS * 200 - 8 + 32, 2 * (128 + 22 + 8) - 8 + 32)


def test_a_preview_is_what_generate_makes_of_the_prompt(
    sfpp: Sfpp, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A preview of the bundle's own weights is the video that `sfpp generate` makes with the same seed."""
    bundle = Bundle(str(tiny_bundle))
    preview = Previewer(bundle, bundle.settings, embedded(bundle, PROMPTS[:1]), 2.0, tmp_path, CPU, 5)
    model = ("--model", str(tiny_bundle), "--device", "cpu", "--dtype", "float32")
    assert (
        sfpp("generate", PROMPTS[0], *model, "--seed", "5", "--frames", str(preview.frames), "-o", "v.png")[0]
        == 0
    )
    generated = gauges(np.stack(list(read_frames(tmp_path / "v"))))
    assert preview(bundle.load_student(CPU, torch.float32), 1) == {
        f"preview_{name}": value for name, value in generated.items()
    }


@pytest.mark.parametrize("on", ["latents", "keys"])
def test_a_student_trained_with_context_noise_is_previewed_and_generated_with_it(
    on: str, sfpp: Sfpp, own_bundle: Path, tmp_path: Path
) -> None:
    settings = Bundle(str(own_bundle)).settings
    settings.changed({"context_noise": 100.0, "context_noise_on": on}).write(own_bundle / "sfpp.json")
    model = ("--model", str(own_bundle), "--device", "cpu", "--dtype", "float32", "--seed", "5")
    found = {}
    for name in ("with", "without"):
        bundle = Bundle(str(own_bundle))
        preview = Previewer(bundle, bundle.settings, embedded(bundle, PROMPTS[:1]), 2.0, tmp_path, CPU, 5)
        found[name] = preview(bundle.load_student(CPU, torch.float32), 1)
        out = tmp_path / f"{name}.png"
        assert sfpp("generate", PROMPTS[0], *model, "--frames", str(preview.frames), "-o", out)[0] == 0
        generated = gauges(np.stack(list(read_frames(out.with_suffix("")))))
        assert found[name] == {f"preview_{gauge}": value for gauge, value in generated.items()}
        assert ("context_noise" in json.loads(out.with_suffix(".json").read_text())) == (name == "with")
        settings.write(own_bundle / "sfpp.json")
    assert found["with"] != found["without"]
