"""Frames into a video file through an ffmpeg pipe, or into a directory of PNG files.

Two things are easy to get wrong and matter to what is measured later: colours are converted with exact
rounding (ffmpeg's default darkens a round trip by one level) and tagged BT.709, and every encoder is told to
leave out whatever differs from run to run, so that the same frames give the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfpp_cli.errors import UserError, reason
from sfpp_cli.files import put_in_place, scratch, writing
from sfpp_cli.video import Frames
from sfpp_cli.video.ffmpeg import EXACT, pipe, run_ffmpeg

YUV420 = (
    f"scale=out_color_matrix=bt709:out_range=tv:{EXACT},format=yuv420p,"
    "setparams=color_primaries=bt709:color_trc=bt709"
)
_PALETTE_PER_FRAME = (
    "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=bayer:bayer_scale=3"
)
_LONGEST_TAG = 125_000
"""Bytes of an argument that Linux gives to a program are 131,072 at most; what is longer is left out."""
_THREADS = "4"
"""Fixed, since x264's output depends on the number of threads."""

_ENCODERS = {
    ".mp4": ("-vf", YUV420, "-c:v", "libx264", "-crf", "18", "-movflags", "+faststart", "-f", "mp4"),
    ".webm": (
        *("-vf", YUV420, "-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0"),
        *("-deadline", "good", "-cpu-used", "4", "-f", "webm"),
    ),
    ".gif": ("-vf", _PALETTE_PER_FRAME, "-f", "gif"),
}
EXTENSIONS = (*_ENCODERS, ".png")
"""What a video can be written as; `.png` stands for a directory of frames."""


def output_path(path: Path) -> Path:
    """What a video asked for as `path` will be called: itself, or for `a/name.png` the directory `a/name`.

    The frames in such a directory are `name-000001.png`, `name-000002.png` and so on. UserError for an
    unknown extension, and where something stands that must not be overwritten: a directory in the place of a
    file, or a directory that holds anything but such frames. Cheap, so check it before the work begins.
    """
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{path}: unknown kind of video {path.suffix!r}; end the name in {', '.join(EXTENSIONS)}"
        )
    with writing(path):
        if path.suffix.lower() != ".png":
            if path.is_dir():
                raise UserError(f"{path} is a directory; choose the name of a file")
            return path
        directory = path.with_suffix("")
        if directory.is_dir():
            frame = re.compile(re.escape(directory.name) + r"-\d{6,}\.png")
            others = (entry.name for entry in directory.iterdir() if not frame.fullmatch(entry.name))
            if other := next(others, None):
                raise UserError(
                    f"{directory} holds {other}, which is not one of its frames; choose another name"
                )
        elif directory.exists():
            raise UserError(
                f"{directory} is a file, but frames of {path.name} go into a directory; choose another name"
            )
    return directory


def check_encoder(path: Path, size: tuple[int, int], fps: float) -> None:
    """Encode one picture as `path` would be: UserError now for what would end the work later."""
    if path.suffix.lower() == ".png":
        return
    width, height = size
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            sink = _FfmpegSink(Path(folder) / f"a{path.suffix}", size, fps, _tags({}))
            stack.callback(sink.kill)
            sink.write(np.zeros((1, height, width, 3), np.uint8))
            sink.close()
    except OSError as error:
        raise UserError(
            f"{path}: ffmpeg cannot encode {width}x{height} at {fps:g} frames a second ({reason(error)}); "
            "try another --size, --fps or kind of file, or let IMAGEIO_FFMPEG_EXE name another ffmpeg"
        ) from error


class VideoWriter:
    """Frames on their way into a video file, or for `.png` into a directory of frames (see `output_path`).

    `size` is (W, H) in pixels, `fps` in frames a second, `metadata` what `read_metadata` will give back. In
    mp4 and webm sides have to be even: an odd one gains a copy of its last row or column. Everything is
    written under a hidden name beside the target and renamed by `close`, so the final name never holds half a
    video and keeps the older one if anything goes wrong. As a context manager it closes, or after an
    exception aborts. UserError where the file cannot be written.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], fps: float, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = output_path(path)
        self.size = size
        self.frames = 0
        with ExitStack() as undo, writing(self.path):
            self._part = undo.enter_context(scratch(self.path))
            sink: type[_PngSink | _FfmpegSink] = _PngSink if path.suffix.lower() == ".png" else _FfmpegSink
            self._sink = sink(self._part, size, fps, _tags(metadata or {}))
            self._scratch = undo.pop_all()

    def write(self, frames: Frames) -> None:
        """Append [T, H, W, 3]."""
        width, height = self.size
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (height, width, 3):
            raise ValueError(
                f"expected uint8 [T, {height}, {width}, 3], got {frames.dtype} {list(frames.shape)}"
            )
        with writing(self.path):
            self._sink.write(frames)
        self.frames += len(frames)

    def close(self) -> None:
        """Finish the file and give it its name. ValueError if no frame was written."""
        try:
            if not self.frames:
                raise ValueError(f"{self.path}: a video needs at least one frame")
            with writing(self.path):
                self._sink.close()
                put_in_place(self._part, self.path)
        finally:
            self.abort()

    def abort(self) -> None:
        """Stop and leave nothing behind. Harmless after `close`."""
        self._sink.kill()
        self._scratch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class _FfmpegSink:
    """One video file, encoded by ffmpeg as its extension says. Fails with OSError; `kill` may be repeated."""

    def __init__(self, file: Path, size: tuple[int, int], fps: float, tags: Mapping[str, str]) -> None:
        self._file = file
        self._tags = tags
        self._is_gif = file.suffix.lower() == ".gif"
        width, height = size
        self._odd = (0, 0) if self._is_gif else (height % 2, width % 2)
        picture = f"{width + self._odd[1]}x{height + self._odd[0]}"
        self._stack = ExitStack()
        self._process = self._stack.enter_context(
            run_ffmpeg(
                *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", picture),
                *("-framerate", str(fps), "-i", "pipe:0"),
                *_ENCODERS[file.suffix.lower()],
                *("-threads", _THREADS, "-fflags", "+bitexact", "-flags:v", "+bitexact"),
                *(argument for key, value in tags.items() for argument in ("-metadata", f"{key}={value}")),
                f"file:{file}",
                stdin=subprocess.PIPE,
            )
        )

    def write(self, frames: Frames) -> None:
        if any(self._odd):
            frames = np.pad(frames, ((0, 0), (0, self._odd[0]), (0, self._odd[1]), (0, 0)), mode="edge")
        try:
            pipe(self._process.stdin).write(np.ascontiguousarray(frames).data)
        except BrokenPipeError:
            self._stack.close()  # says what ffmpeg died of
            raise

    def close(self) -> None:
        self._stack.close()
        if self._is_gif:  # ffmpeg reads comments in a GIF but does not write them
            _insert_gif_comment(self._file, self._tags["comment"])

    def kill(self) -> None:
        self._process.kill()
        with suppress(OSError):
            self._stack.close()
        self._process.wait()


class _PngSink:
    """A directory of pictures; each carries the tags and the frame rate, since one may be copied alone."""

    def __init__(self, directory: Path, size: tuple[int, int], fps: float, tags: Mapping[str, str]) -> None:
        directory.mkdir()
        self._directory = directory
        self._count = 0
        self._info = PngInfo()
        for key, value in {**tags, "fps": str(fps)}.items():
            self._info.add_itxt(key, value)

    def write(self, frames: Frames) -> None:
        for frame in frames:
            self._count += 1
            name = f"{self._directory.name}-{self._count:06d}.png"
            Image.fromarray(frame).save(self._directory / name, pnginfo=self._info)

    def close(self) -> None:
        """Every picture is complete already."""

    def kill(self) -> None:
        """No process to stop."""


def _tags(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata as two tags that every container knows: the prompt, and all of it as JSON in ASCII."""
    title = "".join(filter(str.isprintable, metadata.get("prompt", "")))
    comment = json.dumps(dict(metadata))
    if len(comment) > _LONGEST_TAG:
        comment = json.dumps(
            {key: value for key, value in metadata.items() if len(value) < _LONGEST_TAG // 50}
        )
    return {"title": title, "comment": comment}


def _insert_gif_comment(file: Path, comment: str) -> None:
    """Put a comment (GIF89a, section 24) between a GIF's header and its first frame, where readers look."""
    text = comment.encode("ascii")
    blocks = [text[start : start + 255] for start in range(0, len(text), 255)]
    extension = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    whole = file.with_suffix("")
    with file.open("rb") as source, whole.open("wb") as sink:
        header = source.read(13)
        flags = header[10]
        palette = source.read(3 << (flags & 7) + 1) if flags & 0x80 else b""
        sink.write(header + palette + extension)
        shutil.copyfileobj(source, sink)
    os.replace(whole, file)
