"""A request in its folder: what tells it from others, what is found of it, what a resume needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfpp_cli.errors import UserError
from sfpp_cli.files import owned
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.job import Job, describe_model, find_finished, jobs_of
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import Request
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.settings import SETTINGS
from sfpp_cli.progress import Advance, Silent
from sfpp_cli.video import Frames
from sfpp_cli.video.writer import VideoWriter

pytest_plugins = ["tiny_bundle"]

OPTIONS = ModelOptions(device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(prompt="a", seed=3, frames=9, width=64, height=48, fps=8, out=tmp_path / "v.mp4")


class Counting(Silent):
    """Keeps what a bar would show."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        yield lambda done, figures: self.counts.append(done)


def with_first_steps(bundle: Path) -> None:
    Bundle(str(bundle)).settings.changed({"first_steps": [1000, 500]}).write(bundle / SETTINGS)


@pytest.fixture
def model(tiny_bundle: Path) -> dict[str, Any]:
    return describe_model(Bundle(str(tiny_bundle)), OPTIONS)


def test_all_but_the_name_decides_the_key(request_: Request, model: dict[str, Any]) -> None:
    key = Job(request_, model).key
    assert Job(request_, model | {"model": "./the/same/weights"}).key == key
    assert Job(replace(request_, out=request_.out.with_name("w.mp4")), model).key == key
    others = [
        Job(replace(request_, prompt="b"), model),
        Job(replace(request_, seed=4), model),
        Job(replace(request_, frames=10), model),
        Job(replace(request_, width=96), model),
        Job(replace(request_, fps=9), model),
        Job(replace(request_, out=request_.out.with_suffix(".gif")), model),
        *(Job(request_, model | {name: "another"}) for name in model if name != "model"),
    ]
    assert len({key, *(job.key for job in others)}) == 1 + len(others)


def test_the_model_is_described_by_how_it_runs(tiny_bundle: Path) -> None:
    bundle = Bundle(str(tiny_bundle))
    model = describe_model(bundle, replace(OPTIONS, context=9, sink=2, dtype=torch.bfloat16, tile=3))
    assert (model["context"], model["sink"], model["dtype"], model["tile"]) == (9, 2, "bfloat16", 3)
    assert (model["chunk"], model["steps"]) == (bundle.settings.chunk, bundle.settings.steps)


def test_first_steps_count_only_where_they_are_set(own_bundle: Path, model: dict[str, Any]) -> None:
    """Videos of before there were any keep their keys."""
    assert "first_steps" not in model
    with_first_steps(own_bundle)
    other = describe_model(Bundle(str(own_bundle)), OPTIONS)
    assert other == model | {"model": other["model"], "first_steps": (1000, 500)}


def test_a_video_with_first_steps_resumes_after_its_first_chunk(
    own_bundle: Path, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_first_steps(own_bundle)
    bundle = Bundle(str(own_bundle))
    generator = Generator.load(bundle, OPTIONS, ["a"], Silent())
    model = describe_model(bundle, OPTIONS)
    request = replace(request_, frames=33)
    other = replace(request, out=tmp_path / "parts" / "v.mp4")
    other.out.parent.mkdir()
    assert Job(request, model).run(generator, Silent(), save_latents=True)["resumed_at_chunk"] == 0

    def stopped(self: VideoWriter, frames: Frames) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(VideoWriter, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            Job(other, model).run(generator, Silent())
    progress = Counting()
    resumed = Job(other, model).run(generator, progress, save_latents=True)["resumed_at_chunk"]
    assert resumed in (1, 2, 3)
    assert progress.counts[0] == resumed, "not 0, though all its pictures are made again"
    assert progress.counts == sorted(progress.counts)
    for suffix in (".mp4", ".safetensors"):
        assert other.out.with_suffix(suffix).read_bytes() == request.out.with_suffix(suffix).read_bytes()


@pytest.mark.parametrize(
    ("part", "what"), [("transformer", "the student's latents"), ("vae", "the VAE's pictures")]
)
def test_what_is_not_finite_stops_at_its_first_chunk(
    own_bundle: Path, request_: Request, part: str, what: str
) -> None:
    """Pictures of NaN are black ones."""
    (file,) = (own_bundle / part).glob("*.safetensors")
    weights = load_file(file)
    name = {"transformer": "proj_out.bias", "vae": "decoder.conv_out.bias"}[part]
    weights[name][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    bundle = Bundle(str(own_bundle))
    generator = Generator.load(bundle, OPTIONS, ["a"], Silent())
    with pytest.raises(UserError, match=rf"chunk 1 of {what} is not finite .*bfloat16"):
        Job(request_, describe_model(bundle, OPTIONS)).run(generator, Silent())
    assert not request_.out.exists()
    assert not request_.out.with_suffix(".json").exists()


def test_a_finished_video_is_found_by_its_key(request_: Request, model: dict[str, Any]) -> None:
    job = Job(request_, model)
    folder = request_.out.parent
    for name, content in {"no": "{", "list": "[]", "other": '{"key": "x", "video": "v.mp4"}'}.items():
        (folder / f"{name}.json").write_text(content)
    assert find_finished([job]) == {}
    (folder / "w.json").write_text(json.dumps({"key": job.key, "video": "w.mp4"}))
    assert find_finished([job]) == {}, "the video itself is gone"
    (folder / "w.mp4").touch()
    assert find_finished([job])[job]["path"] == str(folder / "w.mp4")
    assert job.finished() is None, "under its own name"


def test_a_finished_video_stands_for_one_request(request_: Request, model: dict[str, Any]) -> None:
    """Of equal requests, each has its own; the name decides before the order does."""
    first, second = jobs_of([request_, replace(request_, out=request_.out.with_name("w.mp4"))], model)
    assert first.key == second.key
    assert first.folder != second.folder
    second.sidecar.write_text(json.dumps({"key": second.key, "video": "w.mp4"}))
    second.request.out.touch()
    assert set(find_finished([first, second])) == {second}
    assert set(find_finished([first])) == {first}


def test_leftovers_of_a_name_go_with_its_video(request_: Request) -> None:
    """Whatever request they were of; not those of another name, nor those of a living process."""
    job = Job(request_, {})
    for name, about in {
        "gif": '{"out": "v"}',
        "other": '{"out": "w"}',
        "nothing": None,
        "living": None,
        "strange": "[]",
    }.items():
        folder = request_.out.parent / f".sfpp-{name}"
        folder.mkdir()
        if about is not None:
            (folder / "request.json").write_text(about)
    lock = request_.out.parent / ".sfpp-living.lock"
    with owned(lock, lock):
        job._remove_leftovers()
    assert {path.name for path in request_.out.parent.iterdir()} == {
        ".sfpp-other",
        ".sfpp-living",
        ".sfpp-strange",
    }


def test_an_interrupted_one_can_be_forgotten(request_: Request, model: dict[str, Any]) -> None:
    job = Job(request_, model)
    job.discard()
    assert not job.interrupted()
    job.folder.mkdir()
    (job.folder / "latents.f32").write_bytes(b"half")
    assert job.interrupted()
    job.discard()
    assert not job.interrupted()
    assert list(request_.out.parent.iterdir()) == []
