"""What a video goes on from: any picture or video, fitted and said aloud, or latents that were kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sfpp_cli.errors import UserError
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.job import Job, describe_model
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import GenerateOptions, plan
from sfpp_cli.generation.start import Start, Target, read_start
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.vae import StreamingEncoder
from sfpp_cli.progress import Silent
from sfpp_cli.video.writer import VideoWriter

pytest_plugins = ["tiny_bundle"]

OPTIONS = ModelOptions(device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    """48x32 pixels at 8 frames a second, chunks of 3, a context of 21."""
    return Bundle(str(tiny_bundle))


@pytest.fixture(scope="module")
def generator(bundle: Bundle) -> Generator:
    return Generator.load(bundle, OPTIONS, ["a"], Silent())


def target(bundle: Bundle, **changes: Any) -> Target:
    return Target(**{"width": 48, "height": 32, "fps": 8.0, "drop": False, "model": bundle} | changes)


def ramp(count: int, height: int, width: int) -> np.ndarray:
    """Frames of one grey each, 10 levels apart."""
    frames = np.arange(10, 10 + 2 * count, 2, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(frames, (count, height, width, 3)).copy()


def video(path: Path, frames: np.ndarray, fps: float) -> Path:
    with VideoWriter(path, (frames.shape[2], frames.shape[1]), fps) as writer:
        writer.write(frames)
    return path


def seen(start: Start) -> list[int]:
    """The grey of every picture that the model is given."""
    return [round(float(picture.mean())) for picture in start.pictures(48, 32, 8)]


def test_a_picture_stands_for_a_chunk_and_shows_once(bundle: Bundle, tmp_path: Path) -> None:
    picture = np.zeros((50, 300, 3), np.uint8)
    picture[:, 100:200] = 200
    Image.fromarray(picture).save(tmp_path / "p.png")
    start = read_start(tmp_path / "p.png", target(bundle))
    assert (start.chunks, start.frames, start.hidden, start.repeats) == (1, 9, 8, 8)
    (said,) = start.said
    assert said.endswith("a picture, 300x50 scaled to 48x32, 75 % of it cut off")
    pictures = list(start.pictures(48, 32, 8))
    assert len(pictures) == 9
    assert pictures[0].shape == (32, 48, 3)
    assert pictures[0].min() > 190, "its middle is kept"
    dropped = read_start(tmp_path / "p.png", target(bundle, drop=True))
    assert (dropped.frames, dropped.hidden) == (9, 9)


@pytest.mark.parametrize(
    ("count", "fps", "chunks", "greys"),
    [
        (5, 8, 1, [10] * 5 + [12, 14, 16, 18]),
        (9, 8, 1, [*range(10, 28, 2)]),
        (10, 8, 2, [10] * 12 + [*range(12, 30, 2)]),
        (20, 16, 2, [10] * 12 + [*range(14, 50, 4)]),
    ],
)
def test_a_video_is_resampled_and_fills_whole_chunks(
    bundle: Bundle, tmp_path: Path, count: int, fps: float, chunks: int, greys: list[int]
) -> None:
    path = video(tmp_path / "v.mp4", ramp(count, 64, 96), fps)
    start = read_start(path, target(bundle))
    assert start.chunks == chunks
    assert start.frames - start.hidden == round(count * 8 / fps)
    assert seen(start) == pytest.approx(greys, abs=2.1)
    assert f"{count} frames at {fps} fps become" in start.said[0]


def test_of_a_long_video_that_is_dropped_only_the_context_is_read(bundle: Bundle, tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", ramp(100, 32, 48), 8)
    whole, last = (read_start(path, target(bundle, drop=drop)) for drop in (False, True))
    assert (whole.chunks, whole.frames - whole.hidden) == (9, 100)
    assert (last.chunks, last.frames, last.hidden, last.passed) == (7, 81, 81, 19)
    assert seen(last) == pytest.approx(range(48, 210, 2), abs=2.1)


def test_the_same_pictures_are_the_same_start_whatever_their_file(bundle: Bundle, tmp_path: Path) -> None:
    Image.fromarray(ramp(1, 32, 48)[0]).save(tmp_path / "a.png")
    Image.fromarray(ramp(1, 32, 48)[0]).save(tmp_path / "b.bmp")
    Image.fromarray(ramp(2, 32, 48)[1]).save(tmp_path / "c.png")
    a, b, c = (
        read_start(tmp_path / name, target(bundle)).described() for name in ("a.png", "b.bmp", "c.png")
    )
    assert a == b != c


def test_it_is_encoded_as_one_stream(bundle: Bundle, generator: Generator, tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", ramp(21, 32, 48), 8)
    (request,) = plan(GenerateOptions(prompt="a", frames=4, start=path), bundle)
    assert (request.frames, request.hidden) == (25, 0)
    assert request.start is not None
    pictures = np.stack(list(request.start.pictures(48, 32, 8)))
    with torch.no_grad():
        whole = StreamingEncoder(generator.vae)(torch.from_numpy(pictures).movedim(-1, 1)[None] / 127.5 - 1)
    torch.testing.assert_close(torch.cat(list(generator.given(request)), dim=1), whole)


def made(generator: Generator, bundle: Bundle, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    """The latents of a video."""
    (request,) = plan(GenerateOptions(prompt="a", seed=3, out=out, save_latents=True, **options), bundle)
    Job(request, describe_model(bundle, OPTIONS)).run(generator, Silent(), save_latents=True)
    return load_file(out.with_suffix(".safetensors"))


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("drop", [False, True])
def test_kept_latents_go_on_as_if_there_had_been_no_end(
    generator: Generator, bundle: Bundle, tmp_path: Path, drop: bool
) -> None:
    """Twice in a row, though videos end in the middle of a chunk."""
    at_once = made(generator, bundle, tmp_path / "whole.mp4", frames=39)
    made(generator, bundle, tmp_path / "a.mp4", frames=13)
    made(generator, bundle, tmp_path / "b.mp4", frames=13, start=tmp_path / "a.mp4", drop_start=drop)
    in_parts = made(
        generator, bundle, tmp_path / "c.mp4", frames=13, start=tmp_path / "b.mp4", drop_start=drop
    )
    assert equal(in_parts, at_once)
    beside = json.loads((tmp_path / "c.json").read_text())
    assert beside["frames"] == (13 if drop else 39)
    if not drop:
        assert (tmp_path / "c.mp4").stat().st_size == pytest.approx(
            (tmp_path / "whole.mp4").stat().st_size, rel=0.2
        )


@pytest.fixture(scope="module")
def kept(generator: Generator, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a video whose latents were kept."""
    folder = tmp_path_factory.mktemp("kept")
    made(generator, bundle, folder / "a.mp4", frames=13)
    return folder


def spoil(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"video": "other.mp4"}, "they are of another video"),
        ({"fps": 9}, "they are of another size or rate"),
        ({"weights": "x"}, "they are of another model"),
        ({"frames": 33}, "they are not complete"),
        ({"scenes": [{"at": 1.0, "prompt": "a", "how": "cut"}]}, "there is a cut in them"),
        (None, "No such file or directory"),
        ("rest", "they are not complete"),
        ("damaged", "Error while deserializing header"),
    ],
)
def test_latents_that_do_not_serve_give_way_to_pictures(
    kept: Path, bundle: Bundle, tmp_path: Path, what: Any, why: str
) -> None:
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    latents = tmp_path / "a.safetensors"
    if isinstance(what, dict):
        spoil(tmp_path / "a.json", **what)
    elif what == "rest":
        save_file({"latents": load_file(latents)["latents"]}, latents)
    elif what == "damaged":
        latents.write_bytes(b"x" * 100)
    else:
        (tmp_path / "a.json").unlink()
    start = read_start(tmp_path / "a.mp4", target(bundle))
    assert not start.kept_latents
    assert f"do not serve, since {why}" in start.said[0]


def test_what_is_no_start(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "t.png").write_text("text")
    for name, why in (("none.png", "is no file"), (".", "is no file"), ("t.png", "cannot be read")):
        with pytest.raises(UserError, match=why) as caught:
            read_start(tmp_path / name, target(bundle))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="give --start too"):
        plan(GenerateOptions(drop_start=True), bundle)


def test_a_line_of_a_file_has_its_own_start(bundle: Bundle, tmp_path: Path) -> None:
    Image.fromarray(ramp(1, 32, 48)[0]).save(tmp_path / "p.png")
    lines = [
        {"prompt": "a", "start": "p.png"},
        {"prompt": "a", "start": "p.png", "drop_start": True},
        {"prompt": "b"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shown, dropped, none = plan(GenerateOptions(prompts=tmp_path / "p.jsonl", frames=5), bundle)
    assert (shown.frames, shown.hidden) == (6, 8)
    assert (dropped.frames, dropped.hidden) == (5, 9)
    assert none.start is None


def test_a_start_and_scenes_decide_the_key(bundle: Bundle, tmp_path: Path) -> None:
    model = describe_model(bundle, OPTIONS)
    Image.fromarray(ramp(1, 32, 48)[0]).save(tmp_path / "p.png")
    wishes: list[dict[str, Any]] = [
        {},
        {"start": tmp_path / "p.png"},
        {"start": tmp_path / "p.png", "drop_start": True},
        {"then": ["2: b"]},
        {"then": ["2: c"]},
        {"then": ["4: b"]},
        {"then": ["2: b"], "how": "cut"},
    ]
    requests = [plan(GenerateOptions(prompt="a", **wish), bundle)[0] for wish in wishes]
    assert len({Job(request, model).key for request in requests}) == len(wishes)
    assert not {"scenes", "start"} & set(Job(requests[0], model).description)
    (late,) = plan(GenerateOptions(prompt="a", then=["1.9: b"]), bundle)
    assert Job(late, model).key == Job(requests[3], model).key, "the same chunk"
