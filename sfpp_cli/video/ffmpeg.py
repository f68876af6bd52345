"""Finding ffmpeg and running it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import imageio_ffmpeg

from sfpp_cli.errors import UserError, reason

EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
"""Options of its `scale` filter: colours are rounded, not cut off, and the same on every processor."""
_FORMATS = (
    "mov,matroska,avi,gif,mpegts,mpeg,flv,asf,ogg,nut,ivf,yuv4mpegpipe,h264,hevc,wav,mp3,flac,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
"""Formats that hold their pictures themselves. Playlists (HLS, DASH, concat) and drawings (SVG) name other
files, whatever they are called, and ffmpeg would show what is in those."""


def _executable() -> str:
    """The ffmpeg that imageio-ffmpeg brings along, or the one that IMAGEIO_FFMPEG_EXE names."""
    with suppress(RuntimeError):
        executable: str | None = shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
        if executable:
            return executable
    raise UserError("no ffmpeg was found; install one, or let IMAGEIO_FFMPEG_EXE name it")


@contextmanager
def run_ffmpeg(
    *arguments: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL, strict: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A running ffmpeg: finished and waited for at the end, killed by an exception.

    It has its own session, so that Ctrl-C reaches us first. OSError with its first complaint if it fails, or
    if `strict` and it complains at all; the first, since later ones are consequences.
    """
    command = [_executable(), "-nostdin", "-hide_banner", "-v", "error", *arguments]
    with tempfile.TemporaryFile() as log:  # a pipe that nobody empties would block ffmpeg
        ffmpeg = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=log, start_new_session=True)
        with suppress(BrokenPipeError), ffmpeg as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise
        log.seek(0)
        complaint = re.sub(r"^\[[^]]*\] ", "", log.readline().decode(errors="replace").strip())
        if process.returncode or (strict and complaint):
            raise OSError(complaint or f"ffmpeg stopped with code {process.returncode}")


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    """A pipe we asked for, so it is there."""
    assert stream is not None
    return stream


@contextmanager
def open_video(path: Path, *arguments: str) -> Iterator[IO[bytes]]:
    """What ffmpeg makes of a file, as a stream. A complaint is an error: a damaged file may cause no more."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a video")
    pinned = ("-format_whitelist", _FORMATS, "-protocol_whitelist", "file,pipe")
    source = ("-xerror", *pinned, "-i", f"file:{path}")
    with run_ffmpeg(*source, *arguments, stdout=subprocess.PIPE, strict=True) as process:
        yield pipe(process.stdout)


def ask_ffmpeg(path: Path, *arguments: str) -> bytes:
    """All that ffmpeg answers about a file."""
    with open_video(path, *arguments) as stream:
        return stream.read()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong in the block while the video is read, as a UserError."""
    try:
        yield
    except OSError as error:
        if "matches no streams" in str(error):
            raise UserError(f"{path} has no video stream; give the path of a video") from error
        if "whitelist" in str(error):
            raise UserError(
                f"{path} cannot be read as a video: it is a playlist, a drawing or of another kind that may "
                "name other files; give one such as .mp4, .mov, .webm, .mkv, .avi or .gif"
            ) from error
        raise UserError(
            f"{path} cannot be read as a video ({reason(error)}); it may be damaged or cut short"
        ) from error
