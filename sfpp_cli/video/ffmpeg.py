"""Frames in and out of files: videos through an ffmpeg pipe, PNG sequences, contact sheets. Memory does not grow with length.

Frames are numpy uint8 [T, H, W, 3] RGB. Two things are easy to get wrong here and matter to what is measured later: colours are
converted with exact rounding both ways (ffmpeg's default darkens a round trip by one level) and tagged BT.709, and every encoder
is told to leave out whatever differs from run to run, so that the same frames give the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from sfpp_cli.errors import UserError, reason
from sfpp_cli.files import atomic_write as atomic_write
from sfpp_cli.files import put_in_place, scratch_folder, writing

Frames = NDArray[np.uint8]

_EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
_YUV420 = f"scale=out_color_matrix=bt709:out_range=tv:{_EXACT},format=yuv420p,setparams=color_primaries=bt709:color_trc=bt709"
_PALETTE_PER_FRAME = (
    "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=bayer:bayer_scale=3"
)
_THREADS = "4"
"""Fixed, since x264's output depends on the number of threads."""

_ENCODERS = {
    ".mp4": ("-vf", _YUV420, "-c:v", "libx264", "-crf", "18", "-movflags", "+faststart", "-f", "mp4"),
    ".webm": (
        *("-vf", _YUV420, "-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0"),
        *("-deadline", "good", "-cpu-used", "4", "-f", "webm"),
    ),
    ".gif": ("-vf", _PALETTE_PER_FRAME, "-f", "gif"),
}
EXTENSIONS = (*_ENCODERS, ".png")
"""What a video can be written as; `.png` stands for a directory of frames."""


# --- writing ----------------------------------------------------------------------------------------------------------------


def output_path(path: Path) -> Path:
    """What a video asked for as `path` will be called: itself, or for `a/name.png` the directory `a/name` of frames
    `name-000001.png`, `name-000002.png`, ...

    UserError for an unknown extension, and where something stands that must not be overwritten: a directory in the place of a
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
            foreign = next(
                (entry.name for entry in directory.iterdir() if not frame.fullmatch(entry.name)), None
            )
            if foreign is not None:
                raise UserError(
                    f"{directory} holds {foreign}, which is not one of its frames; choose another name"
                )
        elif directory.exists():
            raise UserError(
                f"{directory} is a file, but the frames of {path.name} go into a directory; choose another name"
            )
    return directory


class VideoWriter:
    """Frames on their way into a video file, or for `.png` into a directory of frames (see `output_path`).

    `size` is (W, H) in pixels, `fps` in frames a second, `metadata` what `read_metadata` will give back. In mp4 and webm
    sides have to be even: an odd one gains a copy of its last row or column. Everything is written under a hidden name beside the
    target and renamed by `close`, so the final name never holds half a video and keeps the older one if anything goes wrong.
    As a context manager it closes, or after an exception aborts. UserError where the file cannot be written.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], fps: float, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = output_path(path)
        self.size = size
        self.frames = 0
        with ExitStack() as undo, writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = scratch_folder(self.path)
            undo.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self._part = self._scratch / self.path.name
            sink = _PngSink if path.suffix.lower() == ".png" else _FfmpegSink
            self._sink: _Sink = sink(self._part, size, fps, _tags(metadata or {}))
            undo.pop_all()

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
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class _Sink(Protocol):
    """Where frames go. All three raise OSError; `kill` is harmless after `close`."""

    def write(self, frames: Frames) -> None: ...
    def close(self) -> None: ...
    def kill(self) -> None: ...


class _FfmpegSink:
    """One video file, encoded by ffmpeg as its extension says."""

    def __init__(self, file: Path, size: tuple[int, int], fps: float, tags: Mapping[str, str]) -> None:
        self._file, self._tags = file, tags
        self._is_gif = file.suffix.lower() == ".gif"
        width, height = size
        self._odd = (0, 0) if self._is_gif else (height % 2, width % 2)
        picture = f"{width + self._odd[1]}x{height + self._odd[0]}"
        self._stack = ExitStack()
        self._process = self._stack.enter_context(
            _ffmpeg(
                *(
                    "-f",
                    "rawvideo",
                    "-pix_fmt",
                    "rgb24",
                    "-s",
                    picture,
                    "-framerate",
                    str(fps),
                    "-i",
                    "pipe:0",
                ),
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
            _pipe(self._process.stdin).write(np.ascontiguousarray(frames).data)
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
    """A directory of pictures; each carries the tags and the frame rate, since a single one may travel alone."""

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
    """Metadata as the two tags that every container knows: the prompt, and all of it as ASCII JSON, which none can mangle."""
    title = "".join(filter(str.isprintable, metadata.get("prompt", "")))
    return {"title": title, "comment": json.dumps(dict(metadata))}


def _insert_gif_comment(file: Path, comment: str) -> None:
    """Put a comment extension (GIF89a, section 24) between the header of a GIF and its first frame, where readers look for it."""
    text = comment.encode("ascii")
    blocks = (text[start : start + 255] for start in range(0, len(text), 255))
    whole = file.with_name(f"{file.name}.whole")
    with file.open("rb") as source, whole.open("wb") as sink:
        header = source.read(13)
        flags = header[10]
        palette = source.read(3 << (flags & 7) + 1) if flags & 0x80 else b""
        sink.write(
            header + palette + b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
        )
        shutil.copyfileobj(source, sink)
    os.replace(whole, file)


# --- reading ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoInfo:
    """Size in pixels, rate in frames a second, length in frames."""

    width: int
    height: int
    fps: float
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def probe(path: Path) -> VideoInfo:
    """Size, rate and exact frame count of a video, or of a directory of PNG frames. Only one frame is decoded.

    A GIF's clock ticks in hundredths of a second, so the rate of one shorter than a second or two is a guess, a few per cent off.
    UserError if it cannot be read, or if the frames carry no rate since another program wrote them.
    """
    with reading(path):
        if path.is_dir():
            files = _png_files(path)
            with Image.open(files[0]) as image:
                if "fps" not in image.info:
                    raise UserError(
                        f"{path} holds frames without a frame rate; make a video file of them first"
                    )
                return VideoInfo(image.width, image.height, float(image.info["fps"]), len(files))
        head = ask_ffmpeg(
            path, "-map", "0:v:0", "-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "pipe:1"
        )
        progress = ask_ffmpeg(path, "-map", "0:v:0", "-c", "copy", "-f", "null", "-progress", "pipe:1", "-")
    found = re.match(rb"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+) ", head)
    counts = re.findall(rb"^frame=(\d+)", progress, re.MULTILINE)
    if not found or not counts:
        raise UserError(f"{path} holds no picture; is it a video?")
    width, height, rate, base = map(int, found.groups())
    return VideoInfo(width, height, rate / base, int(counts[-1]))


def read_frames(path: Path) -> Iterator[Frames]:
    """The frames of a video or of a directory of PNG frames, one [H, W, 3] at a time.

    UserError, raised while iterating, for what cannot be read: a file that was cut short ends in one, not in a short video.
    """
    with reading(path):
        if path.is_dir():
            for file in _png_files(path):
                with Image.open(file) as image:
                    yield np.array(image.convert("RGB"))
            return
        how = (
            "-map",
            "0:v:0",
            "-fps_mode",
            "passthrough",
            "-vf",
            f"scale={_EXACT},format=rgb24",
            "-c:v",
            "ppm",
        )
        with _open_video(path, *how, "-f", "image2pipe", "pipe:1") as stream:
            while (header := [stream.readline() for _ in range(3)])[2]:
                width, height = map(int, header[1].split())
                pixels = stream.read(width * height * 3)
                if len(pixels) == width * height * 3:
                    yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3).copy()


def read_metadata(path: Path) -> dict[str, str]:
    """What `VideoWriter` was given as metadata; of a file by another program, the container's own tags. UserError if unreadable."""
    with reading(path):
        if path.is_dir():
            with Image.open(_png_files(path)[0]) as image:
                tags = {str(key): str(value) for key, value in image.info.items()}
        else:
            tags = _parse_ffmetadata(
                ask_ffmpeg(path, "-map_chapters", "-1", "-f", "ffmetadata", "pipe:1").decode(errors="replace")
            )
    with suppress(ValueError):
        recorded = json.loads(tags.get("comment", ""))
        if isinstance(recorded, dict) and all(isinstance(value, str) for value in recorded.values()):
            return recorded
    return tags


def _parse_ffmetadata(text: str) -> dict[str, str]:
    """Keys, in lower case as webm shouts them, and values; a backslash escapes `=`, `;`, `#`, itself and a line break."""
    entries = re.findall(r"^((?:[^\\=\n]|\\.)+)=((?:[^\\\n]|\\.)*)$", text, re.MULTILINE | re.DOTALL)
    return {_unescape(key).lower(): _unescape(value) for key, value in entries}


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _png_files(directory: Path) -> list[Path]:
    """In order; UserError if there are none."""
    files = sorted(directory.glob("*.png"))
    if not files:
        raise UserError(f"{directory} holds no PNG frames; give a video file or a directory of frames")
    return files


# --- contact sheets ---------------------------------------------------------------------------------------------------------

_BACKGROUND, _INK = (24, 24, 27), (205, 205, 210)
_MARGIN, _GAP, _CAPTION, _FONT_SIZE = 16, 8, 22, 13


class SheetSampler:
    """Picks `count` evenly spaced frames, first and last included, from a stream of `total` frames that passes in pieces."""

    def __init__(self, total: int, count: int) -> None:
        count = min(count, total)
        self.indices = [i * (total - 1) // max(count - 1, 1) for i in range(count)]
        self.frames: list[Frames] = []
        self._seen = 0

    def write(self, frames: Frames) -> None:
        """The next [T, H, W, 3] of the stream."""
        for index in self.indices[len(self.frames) :]:
            if index >= self._seen + len(frames):
                break
            self.frames.append(frames[index - self._seen].copy())
        self._seen += len(frames)

    def times(self, fps: float) -> list[float]:
        """When the frames picked so far are shown, in seconds."""
        return [index / fps for index in self.indices[: len(self.frames)]]


def contact_sheet(
    frames: Sequence[Frames], times: Sequence[float], path: Path, columns: int = 6, tile: int = 192
) -> None:
    """A PNG of frames [H, W, 3] of one size, in rows, the time in seconds under each.

    The longer side of a frame becomes `tile` pixels: by repeating pixels where that is a whole multiple, else by Lanczos.
    """
    height, width, _ = frames[0].shape
    longer = max(width, height)
    wide, high = round(width * tile / longer), round(height * tile / longer)
    resample = Image.Resampling.LANCZOS if tile % longer else Image.Resampling.NEAREST
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    across, down = wide + _GAP, high + _CAPTION + _GAP
    sheet = Image.new(
        "RGB", (columns * across - _GAP + 2 * _MARGIN, rows * down - _GAP + 2 * _MARGIN), _BACKGROUND
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for place, (frame, time) in enumerate(zip(frames, times, strict=True)):
        x, y = _MARGIN + place % columns * across, _MARGIN + place // columns * down
        sheet.paste(Image.fromarray(frame).resize((wide, high), resample), (x, y))
        draw.text((x + wide / 2, y + high + 4), f"{time:.1f} s", fill=_INK, font=font, anchor="ma")
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    atomic_write(path, encoded.getvalue())


# --- ffmpeg -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _ffmpeg(
    *arguments: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL, strict: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A running ffmpeg: finished and waited for at the end, killed by an exception.

    It has its own session, so that Ctrl-C reaches us first. OSError with its first complaint if it fails, or if `strict` and it
    complains at all; the first, since later ones are consequences.
    """
    try:
        executable = shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        executable = None
    if executable is None:
        raise UserError("no ffmpeg was found; install one, or let IMAGEIO_FFMPEG_EXE name it")
    command = [executable, "-nostdin", "-hide_banner", "-v", "error", *arguments]
    with tempfile.TemporaryFile() as log:  # a pipe that nobody empties would block ffmpeg
        with (
            suppress(BrokenPipeError),
            subprocess.Popen(
                command, stdin=stdin, stdout=stdout, stderr=log, start_new_session=True
            ) as process,
        ):
            try:
                yield process
            except BaseException:
                process.kill()
                raise
        log.seek(0)
        complaint = re.sub(r"^\[[^]]*\] ", "", log.readline().decode(errors="replace").strip())
        if process.returncode or (strict and complaint):
            raise OSError(complaint or f"ffmpeg stopped with code {process.returncode}")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    """A pipe we asked for, so it is there."""
    assert stream is not None
    return stream


@contextmanager
def _open_video(path: Path, *arguments: str) -> Iterator[IO[bytes]]:
    """What ffmpeg makes of a file, as a stream; strict, because a damaged file often ends with no more than a complaint."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a video")
    source = ("-xerror", "-i", f"file:{path}")
    with _ffmpeg(*source, *arguments, stdout=subprocess.PIPE, strict=True) as process:
        yield _pipe(process.stdout)


def ask_ffmpeg(path: Path, *arguments: str) -> bytes:
    """All that ffmpeg answers about a file."""
    with _open_video(path, *arguments) as stream:
        return stream.read()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if "matches no streams" in str(error):
            raise UserError(f"{path} has no video stream; give the path of a video") from error
        raise UserError(
            f"{path} cannot be read as a video ({reason(error)}); it may be damaged or cut short"
        ) from error
