"""Files that come back as they went in, or do not appear at all."""

from __future__ import annotations

import os
import re
import subprocess
import wave
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from sfpp_cli.errors import UserError
from sfpp_cli.video.ffmpeg import (
    Frames,
    SheetSampler,
    VideoInfo,
    VideoWriter,
    contact_sheet,
    output_path,
    probe,
    read_frames,
    read_metadata,
)

NASTY = {
    "prompt": 'a "cat\'s" ; tail = 50% # \\ [stream]\nsecond line\r\n\ttab, 一只猫 😀 é',
    "seed": "7",
    "MixedCase": "",
    "settings": '{"sigmas": [1.0, 0.94], "note": "a=b;c"}',
    "controls": "\x00\x1b\ud800",
    "long": "x" * 3000,
}
VIDEO_FILES = (".mp4", ".webm", ".gif")


def smooth(count: int = 12, height: int = 48, width: int = 64) -> Frames:
    """Slow ramps in all three channels, [count, height, width, 3]."""
    t, y, x = np.ogrid[:count, :height, :width]
    channels = (40 + 2 * x + 0 * y + 0 * t, 200 - 3 * y + 0 * x + 0 * t, 60 + 5 * t + 0 * y + 0 * x)
    return np.stack(channels, axis=-1).astype(np.uint8)


def save(path: Path, frames: Frames, fps: float = 16, metadata: dict[str, str] | None = None) -> Path:
    """Write `frames` in uneven pieces and answer with what came into being."""
    with VideoWriter(path, (frames.shape[2], frames.shape[1]), fps, metadata) as writer:
        writer.write(frames[:1])
        writer.write(frames[1:])
    return writer.path


def load(path: Path) -> Frames:
    return np.stack(list(read_frames(path)))


def mean_error(a: Frames, b: Frames) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


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


@pytest.mark.parametrize("fps", [8, 24, 24000 / 1001])
def test_frame_rate(tmp_path: Path, fps: float) -> None:
    for extension in VIDEO_FILES:
        info = probe(save(tmp_path / f"a{extension}", smooth(60, 16, 16), fps))
        assert (info.frames, info.fps) == (60, pytest.approx(fps, abs=1e-3))


@pytest.mark.parametrize("extension", [*VIDEO_FILES, ".png"])
def test_metadata_survives(tmp_path: Path, extension: str) -> None:
    assert read_metadata(save(tmp_path / f"a{extension}", smooth(2), metadata=NASTY)) == NASTY
    assert read_metadata(save(tmp_path / f"b{extension}", smooth(2))) == {}


def test_gif_comment_leaves_the_pictures_alone(tmp_path: Path) -> None:
    plain, tagged = (save(tmp_path / f"{n}.gif", smooth(4), metadata=NASTY if n else {}) for n in range(2))
    assert (load(plain) == load(tagged)).all()
    with Image.open(tagged) as image:
        assert b'"seed": "7"' in image.info["comment"]


def test_metadata_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "color=s=16x16:d=0.1"]
    subprocess.run(
        [*command, "-metadata", "artist=a;=\\\n#b", "-metadata", "comment=no json", str(path)], check=True
    )
    tags = read_metadata(path)
    assert tags["artist"] == "a;=\\\n#b"
    assert tags["comment"] == "no json"


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
    assert len(list(tmp_path.iterdir())) == 1
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


def test_ffmpeg_is_out_of_reach_of_ctrl_c(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", (64, 48), 16) as writer:
        writer.write(smooth(2))
        pid = writer._sink._process.pid
        assert os.getsid(pid) == pid != os.getsid(0)


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


def shim(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a shell script stand in for ffmpeg."""
    file = directory / "ffmpeg.sh"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(file))


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


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_dying_ffmpeg_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim(tmp_path, monkeypatch, "yes '[x264 @ 0x1] first cause' | head -n 20000 >&2; exit 3")
    with pytest.raises(UserError, match=r"cannot be written \(first cause\)"):
        save(tmp_path / "a.mp4", smooth(60))
    shim(tmp_path, monkeypatch, "kill -9 $$")
    with pytest.raises(UserError, match=r"\(ffmpeg stopped with code -9\)"):
        save(tmp_path / "a.mp4", smooth(60))
    assert [file.name for file in tmp_path.iterdir()] == ["ffmpeg.sh"]


def test_missing_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no ffmpeg was found"):
        VideoWriter(tmp_path / "a.mp4", (64, 48), 16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", [".mp4", ".webm"])
def test_video_that_was_cut_short(tmp_path: Path, extension: str) -> None:
    path = save(tmp_path / f"a{extension}", smooth(40))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 4 // 5])
    with pytest.raises(UserError, match=rf"a{extension} cannot be read as a video \(.+\)") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        probe(path)


def test_what_is_no_video(tmp_path: Path) -> None:
    junk, folder = tmp_path / "junk.mp4", tmp_path / "folder"
    junk.write_bytes(bytes(range(256)))
    folder.mkdir()
    for read in (probe, load, read_metadata):
        for path, message in {
            junk: "cannot be read as a video",
            tmp_path / "a.mp4": "does not exist",
            folder: "holds no PNG frames",
        }.items():
            with pytest.raises(UserError, match=message):
                read(path)
    Image.new("RGB", (4, 4)).save(folder / "x.png")
    with pytest.raises(UserError, match="without a frame rate"):
        probe(folder)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    with pytest.raises(UserError, match=r"sound\.mp4 has no video stream"):
        probe(tmp_path / "sound.mp4")


def test_reading_may_stop_early(tmp_path: Path) -> None:
    frames = read_frames(save(tmp_path / "a.gif", smooth(30)))
    assert next(frames).shape == (48, 64, 3)
    frames.close()


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [
        (10, 4, [0, 3, 6, 9]),
        (9, 3, [0, 4, 8]),
        (5, 1, [0]),
        (3, 8, [0, 1, 2]),
        (1, 2, [0]),
        (960, 2, [0, 959]),
    ],
)
@pytest.mark.parametrize("piece", [1, 4, 1000])
def test_sampler_picks_evenly(total: int, count: int, indices: list[int], piece: int) -> None:
    stream = (
        np.arange(total, dtype=np.uint16).view(np.uint8).reshape(total, 1, 1, 2).repeat(2, axis=-1)[..., :3]
    )
    sampler = SheetSampler(total, count)
    for start in range(0, total, piece):
        sampler.write(stream[start : start + piece])
    assert sampler.indices == indices
    assert [int(frame[0, 0, 0]) + 256 * int(frame[0, 0, 2]) for frame in sampler.frames] == indices
    assert sampler.times(16) == [index / 16 for index in indices]


def test_sampler_of_a_stream_that_ends_early() -> None:
    sampler = SheetSampler(10, 4)
    sampler.write(smooth(5))
    assert len(sampler.frames) == 2
    assert sampler.times(2) == [0.0, 1.5]


def test_contact_sheet(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8)
    contact_sheet(frames, [0, 1, 2, 3, 61.25], tmp_path / "a.png", columns=3)
    with Image.open(tmp_path / "a.png") as image:
        sheet = np.array(image)
    assert sheet.shape == (16 + 144 + 22 + 8 + 144 + 22 + 16, 16 + 3 * 192 + 2 * 8 + 16, 3)
    enlarged = frames[4].repeat(3, axis=0).repeat(3, axis=1)
    assert (sheet[190 : 190 + 144, 216 : 216 + 192] == enlarged).all()
    caption = sheet[190 + 144 : 190 + 144 + 22, 216 : 216 + 192]
    assert caption.max() > 150, "the time is written under the frame"
    assert sheet[190:, 416:].max() == 27, "the sixth place stays empty"


def test_contact_sheet_shrinks_large_frames(tmp_path: Path) -> None:
    contact_sheet(np.full((2, 480, 832, 3), 90, np.uint8), [0, 1], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (16 + 192 + 8 + 192 + 16, 16 + 111 + 22 + 16)
        assert image.getpixel((100, 60)) == (90, 90, 90)
