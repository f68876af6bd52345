"""Stages in threads: order, bounds, errors, an end at any moment; and the video is the same as without."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Sfpp
from torch import Tensor

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.data.latent_log import LatentLog
from sfpp_cli.devices import Made, Moment, cpu_threads
from sfpp_cli.errors import UserError
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.job import Job, describe_model
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.pipeline import Pipeline
from sfpp_cli.generation.requests import Request
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.vae import StreamingDecoder, TiledDecoder, to_uint8
from sfpp_cli.progress import Silent
from sfpp_cli.video import Frames
from sfpp_cli.video.writer import VideoWriter

CPU = torch.device("cpu")
PROMPT = "a red circle bouncing over a blue background"


@pytest.fixture(scope="module")
def generator() -> Generator:
    options = ModelOptions(device=CPU, dtype=torch.float32)
    return Generator.load(Bundle(DEFAULT_MODEL), options, [PROMPT], Silent())


def wish(frames: int, folder: Path = Path()) -> Request:
    return Request(prompt=PROMPT, seed=3, frames=frames, width=64, height=64, fps=16, out=folder / "v.mp4")


def stage_threads() -> int:
    return threading.active_count()


def test_items_come_in_order_and_work_runs_ahead_by_no_more_than_allowed() -> None:
    begun: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            begun.append(number)
            yield number

    with Pipeline(depth=2) as stages:
        doubled = stages.ahead(2 * number for number in stages.ahead(numbers()))
        deadline = time.monotonic() + 10
        while len(begun) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert begun == list(range(6)), "in both stages two wait, and one is made"
        assert list(doubled) == list(range(0, 40, 2))
        assert list(doubled) == [], "it stays at its end"


def test_an_error_comes_after_the_items_before_it_through_all_stages() -> None:
    before = stage_threads()

    def failing() -> Iterator[int]:
        yield 1
        raise UserError("no room")

    with Pipeline() as stages:
        numbers = stages.ahead(-number for number in stages.ahead(failing()))
        assert next(numbers) == -1
        with pytest.raises(UserError, match="no room"):
            next(numbers)
    assert stage_threads() == before


def test_leaving_stops_stages_that_work_and_stages_that_wait() -> None:
    before = stage_threads()

    def endless() -> Iterator[int]:
        yield 1
        while True:
            torch.ones(10).sum()

    with Pipeline() as stages:
        waiting = stages.ahead(stages.ahead(endless()))
        full = stages.ahead(iter(int, 1))
        assert next(waiting) == 1
        assert next(full) == 0
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert stage_threads() == before


def test_a_stream_left_half_read_does_not_keep_a_program_from_ending() -> None:
    code = """
from sfpp_cli.generation.pipeline import Pipeline

def stream():
    with Pipeline() as stages:
        yield from stages.ahead(stages.ahead(iter(int, 1)))

kept = stream()
print(next(kept))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_every_stage_has_its_own_number_of_threads() -> None:
    def counts(number: int) -> Iterator[int]:
        with Pipeline(threads=number) as stages:
            yield from stages.ahead(torch.get_num_threads() for _ in range(2))

    here = torch.get_num_threads()
    assert list(counts(3)) == [3, 3]
    assert list(counts(1)) == [1, 1]
    assert torch.get_num_threads() == here
    with cpu_threads(here + 1):
        assert torch.get_num_threads() == here + 1
    assert torch.get_num_threads() == here


def test_a_small_model_gets_one_thread_and_a_large_frame_what_there_is(generator: Generator) -> None:
    large = Request(prompt="", seed=0, frames=9, width=1024, height=1024, fps=16, out=Path("v.mp4"))
    with cpu_threads(5):
        assert generator.threads(wish(9)) == 1
        assert generator.threads(large) == 5


def test_the_number_of_cores_changes_neither_latents_nor_video(tmp_path: Path) -> None:
    options = ModelOptions(device=CPU, dtype=torch.float32)
    bundle = Bundle(DEFAULT_MODEL)
    files = []
    for count in (1, 3):
        request = wish(20, tmp_path / str(count))
        request.out.parent.mkdir()
        with cpu_threads(count):
            generator = Generator.load(bundle, options, [PROMPT], Silent())
            Job(request, describe_model(bundle, options)).run(generator, Silent(), save_latents=True)
        files.append([request.out.with_suffix(kind).read_bytes() for kind in (".mp4", ".safetensors")])
    assert files[0] == files[1]


def test_noise_drawn_ahead_is_the_noise() -> None:
    plain = VideoNoise([1, 5], (3, 4, 2, 2))
    ahead = VideoNoise([1, 5], (3, 4, 2, 2))
    like = torch.zeros(2, 3, 4, 2, 2, dtype=torch.float64)
    drawn = list(ahead.drawn(2, 5, steps=3))
    assert all(torch.equal(mine, other) for mine, other in zip(drawn, plain.chunks(2, 5), strict=True))
    for chunk in (2, 3, 4, 9):
        for step in (0, 1, 2, 3):
            assert torch.equal(ahead.draw(chunk, step, like), plain.draw(chunk, step, like))


@pytest.mark.parametrize("tile", [None, 5])
def test_the_first_picture_comes_alone_and_changes_none(generator: Generator, tile: int | None) -> None:
    def decoded() -> Iterator[tuple[int, bool, Frames]]:
        for piece in generator.decoded(request, chunks):
            yield piece.chunk, piece.is_last, piece.frames()

    request = wish(33)
    chunks = list(generator.latents(request))
    stream = StreamingDecoder(generator.vae) if tile is None else TiledDecoder(generator.vae, tile)
    generator.tile = tile
    pieces = list(decoded())
    generator.tile = None
    with torch.no_grad():
        whole = [to_uint8(stream(chunk))[0].numpy() for chunk in chunks]
    assert [(chunk, is_last, len(frames)) for chunk, is_last, frames in pieces] == [
        (0, False, 1),
        (0, True, 8),
        (1, True, 12),
        (2, True, 12),
    ]
    assert np.array_equal(np.concatenate([frames for *_, frames in pieces]), np.concatenate(whole))
    assert [generator.timeline().chunk_frames(chunk) for chunk in range(3)] == [9, 12, 12]


def test_the_first_picture_waits_for_no_other(generator: Generator) -> None:
    """It is there once one latent frame is decoded, long before its chunk is."""
    asked: list[int] = []

    def noted(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        asked.append(arguments[0].shape[2])

    hook = generator.vae.decoder.conv_in.register_forward_pre_hook(noted)
    chunks = list(generator.latents(wish(9)))
    assert len(next(generator.decoded(wish(9), chunks)).frames()) == 1
    hook.remove()
    assert asked[-1] == 1


def test_the_decoders_stage_never_waits_for_its_device(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On `meta`, where to look at a number is an error, as it would halt a GPU's queue."""

    def blank(latents: Tensor) -> Tensor:
        return latents.new_empty(1, 1, 3, 32, 48, device="meta")

    monkeypatch.setattr(generator, "decoder", lambda: blank)
    chunks = list(generator.latents(wish(9)))
    pieces = list(generator.decoded(wish(9), chunks))
    assert pieces
    with pytest.raises(TypeError, match="meta"):
        pieces[0].frames()


def test_a_chunk_is_on_disk_before_it_is_decoded(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = describe_model(Bundle(DEFAULT_MODEL), ModelOptions(device=CPU, dtype=torch.float32))
    job = Job(wish(45, tmp_path), model)
    record = 4 * int(np.prod(generator.chunk_shape(job.request)))
    logged: list[int] = []
    decoded = generator.decoded

    def watched(request: Request, chunks: Iterator[Tensor], cuts: object) -> Iterator[object]:
        def noted() -> Iterator[Tensor]:
            for chunk in chunks:
                logged.append((job.folder / "latents.f32").stat().st_size // record)
                yield chunk

        return decoded(request, noted())

    monkeypatch.setattr(generator, "decoded", watched)
    job.run(generator, Silent())
    assert logged == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("the log cannot be written: free some space"), "the log cannot be written"),
        (torch.OutOfMemoryError("CUDA out of memory"), "the memory is full"),
    ],
)
def test_an_error_of_any_stage_is_one_line(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    before = stage_threads()

    def failing(self: LatentLog, chunk: Tensor) -> None:
        raise error

    monkeypatch.setattr(LatentLog, "append", failing)
    code, out, err = sfpp("generate", PROMPT, "--frames", "40", "-o", "v.mp4", "--device", "cpu")
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "v.mp4").exists()
    assert stage_threads() == before


def test_a_video_that_is_stopped_leaves_no_thread(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stage_threads()

    def stopped(self: VideoWriter, frames: Frames) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoWriter, "write", stopped)
    assert sfpp("generate", PROMPT, "--seconds", "1000", "-o", "v.mp4", "--device", "cpu")[0] == 130
    assert stage_threads() == before


def test_the_decoder_may_be_elsewhere(sfpp: Sfpp, tmp_path: Path) -> None:
    """On one kind of device it is no part of a video's identity; what is not there is refused."""
    arguments = ("generate", PROMPT, "--frames", "20", "--device", "cpu")
    assert sfpp(*arguments, "-o", "a.mp4")[0] == 0
    code, out, _ = sfpp(*arguments, "-o", "b.mp4", "--decoder-device", "cpu", "--resume")
    assert (code, out) == (0, "a.mp4\n")
    code, _, err = sfpp(*arguments, "-o", "c.mp4", "--decoder-device", "cuda:1")
    assert code == 2
    assert err.startswith("error: --decoder-device cuda:1: no CUDA device is available here")
    assert len(err.splitlines()) == 1
    options = ModelOptions(device=torch.device("cuda"), dtype=torch.float32, decoder_device=CPU)
    assert describe_model(Bundle(DEFAULT_MODEL), options)["decoder_device"] == "cpu"


def test_verbose_says_how_many_threads(sfpp: Sfpp) -> None:
    arguments = ("generate", PROMPT, "--frames", "5", "-o", "v.mp4", "--device", "cpu")
    assert "CPU threads" not in sfpp(*arguments)[2]
    assert "CPU threads for an operation of each stage: 1\n" in sfpp(*arguments, "--overwrite", "-v")[2]


def test_on_a_cpu_a_moment_is_now() -> None:
    began = Moment(CPU)
    time.sleep(0.02)
    tensor = torch.ones(3)
    made = Made(tensor, began)
    assert made.cpu() is tensor
    assert 0.02 <= made.seconds < 10


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for_until_its_tensor_is_wanted() -> None:
    device = torch.device("cuda", 0)
    x = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    began = Moment(device)
    start = time.perf_counter()
    for _ in range(100):
        x = (x @ x).clamp(-1, 1)
    made = Made(x, began)
    launched = time.perf_counter() - start
    assert torch.equal(made.cpu(), x.cpu())
    assert made.seconds > 2 * launched
