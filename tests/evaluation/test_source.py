"""Files as they come: bad ones, known ones, long ones, several at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation import Parameters, evaluate, measure
from sfpp_cli.progress import Advance
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.writer import VideoWriter


def video(
    path: Path, frames: int = 40, seed: int = 0, size: tuple[int, int] = (48, 32), fps: float = 16
) -> Path:
    """A ramp that slides, with a little noise."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(30, 220, size[0])
    with VideoWriter(path, size, fps) as writer:
        for index in range(frames):
            picture = np.roll(ramp, 2 * index)[None, :, None] + generator.uniform(
                -4, 4, (size[1], size[0], 3)
            )
            writer.write(np.clip(picture, 0, 255).astype(np.uint8)[None])
    return writer.path


def ffmpeg(*arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


class Audience:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.seen: list[int] = []

    def say(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        self.totals.append(total)
        yield lambda done, figures: self.seen.append(done)


def test_the_result_has_the_documented_shape(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", 81)
    content = {"video": "a.mp4", "prompt": "a ramp", "seed": 3, "model": "toyworld"}
    (tmp_path / "a.json").write_text(json.dumps(content))
    audience = Audience()
    result = evaluate([path], prompts=["not this"], progress=audience)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == ["schema", "versions", "parameters", "videos", "failed"]
    (found,) = result["videos"]
    assert (found["prompt"], found["seed"], found["system"]) == ("a ramp", 3, "toyworld")
    assert (found["frames"], found["fps"], found["width"], found["height"], found["seconds"]) == (
        81,
        16,
        48,
        32,
        5.0625,
    )
    assert [(clip["start_frame"], clip["end_frame"]) for clip in found["clips"]] == [
        (0, 32),
        (32, 64),
        (49, 81),
    ]
    assert all(len(curve["seconds"]) == len(curve["values"]) == 81 for curve in found["curves"].values())
    assert all(value is None or isinstance(value, int | float) for value in found["metrics"].values())
    assert found["curves"]["flow_mean"]["values"][0] is None
    assert audience.totals == [1]
    assert audience.seen == [1]


def test_prompts_fill_what_no_file_says(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", 8)
    (tmp_path / "a.json").write_text('{"video": "other.mp4", "prompt": "of another video"}')
    (found,) = evaluate([path], prompts=["mine"])["videos"]
    assert (found["prompt"], found["seed"], found["system"]) == ("mine", None, None)
    with pytest.raises(ValueError, match="1 prompts for 2 videos"):
        evaluate([path, path], prompts=["mine"])


def test_bad_files_are_a_line_each_and_the_others_are_measured(tmp_path: Path) -> None:
    good = video(tmp_path / "good.mp4", 24)
    whole = video(tmp_path / "whole.mp4", 60, size=(160, 96)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("not a video at all\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(tmp_path / "sound.mp4"))
    ffmpeg(
        "-i",
        str(good),
        "-vf",
        "select='lt(mod(n,8),3)+eq(mod(n,8),5)'",
        "-fps_mode",
        "vfr",
        str(tmp_path / "variable.mp4"),
    )
    names = ("cut.mp4", "text.mp4", "empty.mp4", "folder", "sound.mp4", "variable.mp4", "missing.mp4")
    result = evaluate([*(tmp_path / name for name in names), good], workers=1)
    assert [entry["path"] for entry in result["videos"]] == [str(good)]
    errors = {Path(entry["path"]).name: entry["error"] for entry in result["failed"]}
    assert tuple(errors) == names
    assert all("\n" not in error and name in error for name, error in errors.items())
    assert "damaged or cut short" in errors["cut.mp4"]
    assert "variable frame rate" in errors["variable.mp4"]
    assert "fps=16" in errors["variable.mp4"]
    assert "does not exist" in errors["missing.mp4"]


def test_zero_frames(tmp_path: Path) -> None:
    ffmpeg(
        "-i",
        str(video(tmp_path / "a.mp4", 8)),
        "-frames:v",
        "0",
        "-c:v",
        "libx264",
        str(tmp_path / "none.mkv"),
    )
    with pytest.raises(UserError, match=r"none\.mkv"):
        measure(tmp_path / "none.mkv")


@pytest.mark.parametrize(
    ("extension", "fps"),
    [(".mp4", 24), (".webm", 16), (".webm", 30), (".gif", 16), (".gif", 40), (".png", 16)],
)
def test_coarse_clocks_are_no_variable_rate(tmp_path: Path, extension: str, fps: float) -> None:
    found = measure(video(tmp_path / f"a{extension}", 40, fps=fps))
    assert found["fps"] == pytest.approx(fps, rel=0.03)
    assert found["frames"] == 40


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_the_shortest_videos(tmp_path: Path, frames: int) -> None:
    found = measure(video(tmp_path / "a.mp4", frames))
    assert found["frames"] == frames
    assert not any(verdict["fired"] for name, verdict in found["verdicts"].items() if name != "stagnation")
    json.dumps(found, allow_nan=False)


def test_a_large_video_is_decoded_once_and_at_measuring_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(tmp_path / "a.mp4", 3, size=(640, 480))
    sizes = []

    def noted(path: Path, size: tuple[int, int] | None = None) -> Iterator[Frames]:
        sizes.append(size)
        return read_frames(path, size)

    monkeypatch.setattr("sfpp_cli.evaluation.source.read_frames", noted)
    found = measure(path)
    assert sizes == [(341, 256)]
    assert (found["width"], found["height"], found["measured_size"]) == (640, 480, [341, 256])


def test_a_second_run_reads_the_cache_and_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, path = tmp_path / "cache", video(tmp_path / "a.mp4", 24)
    first = evaluate([path], cache=cache)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())
    module = sys.modules["sfpp_cli.evaluation.parallel"]

    def refuse(*arguments: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "measure", refuse)
        second = evaluate([path, copy], cache=cache)
        with pytest.raises(AssertionError, match="measured again"):
            evaluate([path], cache=cache, parameters=Parameters(reference_seconds=1))
    assert second["videos"][0] == first["videos"][0]
    assert second["videos"][1] == {**first["videos"][0], "path": str(copy)}
    for file in cache.iterdir():
        file.write_text("{ broken")
    assert evaluate([path], cache=cache) == first


def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    paths = [video(tmp_path / f"{seed}.mp4", 24, seed) for seed in range(3)]
    (tmp_path / "bad.mp4").write_text("no")
    paths.insert(1, tmp_path / "bad.mp4")
    audience = Audience()
    together = evaluate(paths, workers=2, progress=audience)
    assert together == evaluate(paths, workers=1)
    assert len(together["videos"]) == 3
    assert audience.totals == [4]
    assert audience.seen == [1, 2, 3, 4]


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_at_once(tmp_path: Path) -> None:
    """As from a terminal, where the workers get the signal too. The short video is done by then and kept."""
    short = video(tmp_path / "short.mp4", 24)
    long = [video(tmp_path / f"long{number}.mp4", 1000, number, (320, 240)) for number in range(2)]
    command = [sys.executable, "-m", "sfpp_cli", "evaluate", "--workers", "2", str(short), *map(str, long)]
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (kept := list((tmp_path / "cache").rglob("*.json"))):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)  # the workers hold this stream, too
    assert process.returncode == 130
    assert "Traceback" not in said
    assert list((tmp_path / "cache").rglob("*.json")) == kept


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    def peak(frames: int) -> int:
        path = video(tmp_path / f"{frames}.mp4", frames, size=(320, 240))
        tracemalloc.start()
        try:
            measure(path, Parameters(flow_short_side=32))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    short, long = peak(100), peak(300)
    assert long - short < 200 * 12_000  # a frame is 230 kB, its miniature and numbers 5 kB, at the end twice


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, sfpp_cli.evaluation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
