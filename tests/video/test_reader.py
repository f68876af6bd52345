"""What reads, and what is told of files that do not."""

from __future__ import annotations

import subprocess
import wave
from pathlib import Path

import imageio_ffmpeg
import pytest
from clips import VIDEO_FILES, load, save, shim, smooth
from PIL import Image

from sfpp_cli.errors import UserError
from sfpp_cli.video.reader import probe, read_frames, read_metadata


@pytest.mark.parametrize("fps", [8, 24, 24000 / 1001])
def test_frame_rate(tmp_path: Path, fps: float) -> None:
    for extension in VIDEO_FILES:
        info = probe(save(tmp_path / f"a{extension}", smooth(60, 16, 16), fps))
        assert (info.frames, info.fps) == (60, pytest.approx(fps, abs=1e-3))


@pytest.mark.parametrize("extension", VIDEO_FILES)
def test_frames_are_counted_by_any_ffmpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    """Some releases, such as 7.0.2, say nothing of frames in `-progress` where nothing is encoded."""
    path = save(tmp_path / f"a{extension}", smooth(13))
    real = imageio_ffmpeg.get_ffmpeg_exe()
    shim(tmp_path, monkeypatch, f"'{real}' \"$@\" | grep -av '^frame='")
    assert probe(path).frames == 13


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path: Path) -> None:
    """What `ffmpeg -ss ... -c copy` makes: all packets since the key frame, the first of them not shown."""
    whole = save(tmp_path / "whole.mp4", smooth(60), 16)
    path = tmp_path / "a.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-ss", "1.3", "-i", str(whole), "-c", "copy"]
    subprocess.run([*command, str(path)], check=True)
    assert probe(path).frames == len(load(path)) < 60 - 16
    assert path.stat().st_size > whole.stat().st_size / 2, "the hidden frames are there"


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 11):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"f-{number}.png")
    assert [frame[0, 0, 0] for frame in read_frames(tmp_path)] == [9, 10, 11]


def test_metadata_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "color=s=16x16:d=0.1"]
    subprocess.run(
        [*command, "-metadata", "artist=a;=\\\n#b", "-metadata", "comment=no json", str(path)], check=True
    )
    tags = read_metadata(path)
    assert tags["artist"] == "a;=\\\n#b"
    assert tags["comment"] == "no json"


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
