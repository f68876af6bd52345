"""Files that come back as they went in, or do not appear at all."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from clips import NASTY, VIDEO_FILES, load, mean_error, save, shim, smooth
from PIL import Image

from sfpp_cli.errors import UserError
from sfpp_cli.video.reader import VideoInfo, probe, read_metadata
from sfpp_cli.video.writer import VideoWriter, output_path


def stream_line(path: Path) -> str:
    """How ffmpeg describes the picture."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    return re.search(
        r"Video:.*", subprocess.run(command, capture_output=True, text=True, check=False).stderr
    )[0]


@pytest.mark.parametrize(("extension", "codec", "tolerance"), [(".mp4", "h264", 1.5), (".webm", "vp9", 1.5)])
def test_compressed_video_comes_back(tmp_path: Path, extension: str, codec: str, tolerance: float) -> None:
    frames = smooth()
    path = save(tmp_path / f"a{extension}", frames)
    back = load(path)
    assert back.shape == frames.shape
    assert back.flags.writeable
    assert mean_error(frames, back) < tolerance
    assert abs(float(back.mean()) - float(frames.mean())) < 0.3, "a round trip must not darken or brighten"
    assert probe(path) == VideoInfo(width=64, height=48, fps=16.0, frames=12)
    assert probe(path).seconds == 0.75
    assert re.search(rf"{codec}.* yuv420p\(tv, bt709", stream_line(path))


def test_colours_survive(tmp_path: Path) -> None:
    primaries = np.zeros((2, 32, 96, 3), np.uint8)
    for channel in range(3):
        primaries[:, :, 32 * channel : 32 * (channel + 1), channel] = 220
    back = load(save(tmp_path / "a.mp4", primaries))
    assert np.abs(back[:, :, 16::32].astype(int) - primaries[:, :, 16::32]).max() <= 4


def test_gif_comes_back(tmp_path: Path) -> None:
    frames = smooth(9)
    frames[5] = frames[4]  # a still moment is still a frame
    path = save(tmp_path / "a.gif", frames)
    back = load(path)
    assert back.shape == frames.shape
    assert mean_error(frames, back) < 6
    assert probe(path) == VideoInfo(width=64, height=48, fps=16.0, frames=9)
    with Image.open(path) as image:
        assert image.n_frames == 9
        assert image.info["loop"] == 0


def test_png_sequence_is_exact(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 17, 33, 3), np.uint8)
    path = save(tmp_path / "a.png", frames, fps=12.5)
    assert path == tmp_path / "a"
    assert sorted(file.name for file in path.iterdir()) == ["a-000001.png", "a-000002.png", "a-000003.png"]
    assert (load(path) == frames).all()
    assert probe(path) == VideoInfo(width=33, height=17, fps=12.5, frames=3)


def test_mp4_starts_with_its_index(tmp_path: Path) -> None:
    data = save(tmp_path / "a.mp4", smooth()).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(
    ("extension", "width", "height"), [(".mp4", 34, 18), (".webm", 34, 18), (".gif", 33, 17)]
)
def test_odd_sizes(tmp_path: Path, extension: str, width: int, height: int) -> None:
    frames = smooth(3, 17, 33)
    back = load(save(tmp_path / f"a{extension}", frames))
    assert back.shape == (3, height, width, 3)
    padded = np.pad(frames, ((0, 0), (0, height - 17), (0, width - 33), (0, 0)), mode="edge")
    assert mean_error(padded, back) < 6


@pytest.mark.parametrize("extension", [*VIDEO_FILES, ".png"])
def test_metadata_survives(tmp_path: Path, extension: str) -> None:
    assert read_metadata(save(tmp_path / f"a{extension}", smooth(2), metadata=NASTY)) == NASTY
    assert read_metadata(save(tmp_path / f"b{extension}", smooth(2))) == {}


def test_gif_comment_leaves_the_pictures_alone(tmp_path: Path) -> None:
    plain, tagged = (save(tmp_path / f"{n}.gif", smooth(4), metadata=NASTY if n else {}) for n in range(2))
    assert (load(plain) == load(tagged)).all()
    with Image.open(tagged) as image:
        assert b'"seed": "7"' in image.info["comment"]


def test_awkward_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "http: %d 'ü'.mp4", "UPPER.MP4", "new/deep/a.mp4"):
        assert len(load(save(Path(name), smooth(2)))) == 2
        assert probe(Path(name)).frames == 2


@pytest.mark.parametrize("extension", VIDEO_FILES)
def test_same_frames_same_bytes(tmp_path: Path, extension: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 80, 144, 3), np.uint8)
    one, two = (save(tmp_path / name / f"a{extension}", frames, metadata=NASTY).read_bytes() for name in "xy")
    assert one == two


def test_same_frames_same_pngs(tmp_path: Path) -> None:
    one, two = (sorted(save(tmp_path / name / "a.png", smooth(2)).iterdir()) for name in "xy")
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


@pytest.mark.parametrize("extension", [*VIDEO_FILES, ".png"])
def test_abort_leaves_nothing(tmp_path: Path, extension: str) -> None:
    writer = VideoWriter(tmp_path / f"a{extension}", (64, 48), 16)
    writer.write(smooth(3))
    assert list(tmp_path.iterdir())
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def interrupted(writer: VideoWriter, error: type[BaseException]) -> None:
    writer.write(smooth(3))
    raise error


@pytest.mark.parametrize("extension", [".mp4", ".png"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_keeps_the_older_video(tmp_path: Path, extension: str, error: type[BaseException]) -> None:
    older = save(tmp_path / f"a{extension}", smooth(2))
    before = load(older)
    with pytest.raises(error), VideoWriter(tmp_path / f"a{extension}", (64, 48), 16) as writer:
        interrupted(writer, error)
    assert list(tmp_path.iterdir()) == [older]
    assert (load(older) == before).all()


@pytest.mark.parametrize("extension", [".mp4", ".png"])
def test_finished_video_replaces_the_older_one(tmp_path: Path, extension: str) -> None:
    for count in (3, 2):
        path = save(tmp_path / f"a{extension}", smooth(count))
        assert probe(path).frames == count
    assert list(tmp_path.iterdir()) == [path]


def test_frames_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"), VideoWriter(tmp_path / "a.mp4", (64, 48), 16):
        pass
    for wrong in (smooth(2, 64, 48), smooth(2)[0], smooth(2).astype(np.float32)):
        with (
            pytest.raises(ValueError, match=r"expected uint8 \[T, 48, 64, 3\]"),
            VideoWriter(tmp_path / "a.mp4", (64, 48), 16) as writer,
        ):
            writer.write(wrong)
    assert list(tmp_path.iterdir()) == []


def test_output_path_refuses_early(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photos-1.png").touch()
    (tmp_path / "file").touch()
    for name, message in {
        "a.avi": r"'\.avi'; end the name in \.mp4, \.webm, \.gif, \.png",
        "a": "unknown kind of video ''",
        "folder.mp4": "is a directory",
        "photos.png": r"holds photos-1\.png, which is not one of its frames",
        "file.png": "is a file",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            output_path(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert output_path(tmp_path / "b.c.png") == tmp_path / "b.c"


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a\.mp4 cannot be written \(.+\); check"):
        VideoWriter(tmp_path / "file" / "a.mp4", (64, 48), 16)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on file sizes stands in for the disk: 16 blocks of 512 bytes, overrun by noise."""
    shim(
        tmp_path, monkeypatch, f"trap '' XFSZ; ulimit -f 16; exec '{imageio_ffmpeg.get_ffmpeg_exe()}' \"$@\""
    )
    noise = np.random.default_rng(0).integers(0, 256, (120, 80, 144, 3), np.uint8)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"a\.gif cannot be written \(.*File too large\)"):
        save(out / "a.gif", noise)
    assert list(out.iterdir()) == []
