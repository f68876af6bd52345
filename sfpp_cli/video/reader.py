"""Frames, sizes and metadata out of video files and directories of PNG files."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sfpp_cli.errors import UserError, reason
from sfpp_cli.files import natural
from sfpp_cli.video import Frames
from sfpp_cli.video.ffmpeg import EXACT, ask_ffmpeg, open_video, reading

_PACKET = rb"^[^#\n].*?(?:, F=0x([0-9A-Fa-f]+).*)?$"
"""A line of ffmpeg's framecrc, with the packet's flags where they are not the usual ones."""
_DISCARDED = 4
"""FFmpeg's AV_PKT_FLAG_DISCARD: to be decoded for later frames' sake but not shown, as edit lists have it."""


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
    """Size, rate and exact frame count of a video, or of a directory of PNG frames; decodes one frame.

    A GIF's clock ticks in hundredths of a second, so the rate of one shorter than a second or two is a guess,
    a few per cent off. UserError if it cannot be read, or if the frames carry no rate since another program
    wrote them.
    """
    with reading(path):
        if path.is_dir():
            files = _png_files(path)
            with _open_png(files[0]) as image:
                return VideoInfo(image.width, image.height, _rate(path, image), len(files))
        head = ask_ffmpeg(
            path, "-map", "0:v:0", "-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "pipe:1"
        )
        # A line a packet, in every version: the -progress of some counts nothing where nothing is encoded.
        packets = ask_ffmpeg(path, "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "pipe:1")
    header = re.match(rb"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+) ", head)
    count = sum(
        not int(flags or b"0", 16) & _DISCARDED for flags in re.findall(_PACKET, packets, re.MULTILINE)
    )
    if not header or not count:
        raise UserError(f"{path} holds no picture; is it a video?")
    width, height, rate, base = map(int, header.groups())
    return VideoInfo(width, height, rate / base, count)


def read_frames(path: Path, size: tuple[int, int] | None = None) -> Iterator[Frames]:
    """The frames of a video or directory, one [H, W, 3] at a time; area-averaged to `size` (W, H) if given.
    UserError where a file is cut short."""
    with reading(path):
        if path.is_dir():
            for file in _png_files(path):
                with _open_png(file) as image:
                    picture = image.convert("RGB")
                    frame = np.array(picture if size is None else picture.resize(size, Image.Resampling.BOX))
                yield frame
            return
        scale = EXACT if size is None else f"{size[0]}:{size[1]}:{EXACT.replace('bicubic', 'area')}"
        source = ("-map", "0:v:0", "-fps_mode", "passthrough", "-vf", f"scale={scale},format=rgb24")
        with open_video(path, *source, "-c:v", "ppm", "-f", "image2pipe", "pipe:1") as stream:
            while (header := [stream.readline() for _ in range(3)])[2]:
                width, height = map(int, header[1].split())
                pixels = stream.read(width * height * 3)
                if len(pixels) == width * height * 3:
                    yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3).copy()


def read_metadata(path: Path) -> dict[str, str]:
    """What `VideoWriter` was given; of another program's file, its tags. UserError if unreadable."""
    with reading(path):
        if path.is_dir():
            with _open_png(_png_files(path)[0]) as image:
                tags = {str(key): str(value) for key, value in image.info.items()}
        else:
            text = ask_ffmpeg(path, "-map_chapters", "-1", "-f", "ffmetadata", "pipe:1")
            tags = _parse_ffmetadata(text.decode(errors="replace"))
    with suppress(ValueError, RecursionError):
        recorded = json.loads(tags.get("comment", ""))
        if isinstance(recorded, dict) and all(isinstance(value, str) for value in recorded.values()):
            return recorded
    return tags


def _parse_ffmetadata(text: str) -> dict[str, str]:
    """Keys and values. webm shouts its keys; a backslash escapes `=`, `;`, `#`, itself and a line break."""
    entries = re.findall(r"^((?:[^\\=\n]|\\.)+)=((?:[^\\\n]|\\.)*)$", text, re.MULTILINE | re.DOTALL)
    plain = [[re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in entry] for entry in entries]
    return {key.lower(): value for key, value in plain}


@contextmanager
def _open_png(file: Path) -> Iterator[Image.Image]:
    """A picture. No other format is tried, whatever the file holds; OSError for what is damaged or a bomb."""
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(file, formats=("PNG",)) as image,
        ):
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, SyntaxError, ValueError) as error:
        raise OSError(f"{file.name}: {reason(error)}") from error


def _rate(path: Path, image: Image.Image) -> float:
    """Frames a second, as `VideoWriter` wrote into each picture."""
    try:
        rate = float(image.info["fps"])
    except (KeyError, TypeError, ValueError):
        rate = 0.0
    if not 0 < rate < math.inf:
        remedy = "make a video file of them first"
        raise UserError(f"{path} holds frames without a frame rate; {remedy}")
    return rate


def _png_files(directory: Path) -> list[Path]:
    """In order; UserError if there are none."""
    files = sorted(directory.glob("*.png"), key=natural)
    if not files:
        raise UserError(f"{directory} holds no PNG frames; give a video file or a directory of frames")
    return files
