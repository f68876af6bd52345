"""Video files as they come: can they be measured, what were they made from, are their results known."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfpp_cli.errors import UserError, reason
from sfpp_cli.files import file_digest, natural
from sfpp_cli.progress import Progress
from sfpp_cli.schema import load_json
from sfpp_cli.video import Frames
from sfpp_cli.video.ffmpeg import ask_ffmpeg, reading
from sfpp_cli.video.reader import VideoInfo, probe, read_frames

_KINDS = {"prompt": str, "seed": int, "model": str}
"""What is taken from the file beside a video, and its types: the file may be a stranger's."""
_RATE_TOLERANCE = 0.03
"""By how much a file's header may be wrong about the frame rate before the frames' times are believed."""


def inspect(path: Path) -> VideoInfo:
    """Size, frame rate and length of a video. UserError for what cannot be measured: no video, no frame, a
    variable frame rate."""
    info = probe(path)
    if not info.frames or info.fps <= 0:
        raise UserError(f"{path} holds no frames; is it a video?")
    if path.is_dir():
        return info
    seconds, tick = _frame_times(path)
    gaps = np.diff(seconds)
    if not gaps.size:
        return info
    usual = float(np.median(gaps))
    # equal to within two per cent and the clock's tick, which in WebM is half a frame or so
    if not usual or (np.abs(gaps - usual) > 1.01 * tick + 0.02 * usual).any():
        rate = max(1, round(1 / (usual or tick)))
        raise UserError(
            f"{path} has a variable frame rate, so times and motion would be wrong; make it constant first: "
            f"ffmpeg -i IN -vf fps={rate} OUT"
        )
    shown = 1 / float(gaps.mean())
    # the header of a short GIF claims another rate than the one at which its frames are shown
    return info if abs(shown / info.fps - 1) < _RATE_TOLERANCE else replace(info, fps=shown)


@contextmanager
def decoding(path: Path, size: tuple[int, int] | None = None) -> Iterator[Iterator[Frames]]:
    """The frames of a video [H, W, 3], scaled to `size` (W, H) if given; the decoder stops at the end of the
    block, however far it came."""
    frames = read_frames(path, size)
    try:
        yield frames
    finally:
        if isinstance(frames, Generator):
            frames.close()


def _frame_times(path: Path) -> tuple[NDArray[np.float64], float]:
    """When each frame is shown, in seconds, and one tick of the file's clock; nothing is decoded."""
    with reading(path):
        output = ask_ffmpeg(path, "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "pipe:1")
    listing = output.decode(errors="replace")
    base = re.search(r"^#tb 0: (\d+)/(\d+)", listing, re.MULTILINE)
    tick = int(base[1]) / int(base[2]) if base else 1.0
    ticks = sorted(int(time) for time in re.findall(r"^0, *-?\d+, *(-?\d+),", listing, re.MULTILINE))
    return np.array(ticks, np.float64) * tick, tick


def sidecar(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """What `sfpp generate` wrote beside the video, or nothing; `progress` hears of what cannot be from it."""
    for file in (path.parent / f"{path.stem}.json", Path(f"{path}.json")):
        with suppress(OSError, ValueError):
            content = load_json(file)
            if not isinstance(content, dict) or content.get("video") != path.name:
                continue
            wrong = [key for key, kind in _KINDS.items() if type(content.get(key)) not in (kind, type(None))]
            if wrong and progress:
                progress.warn(f"{file}: {', '.join(wrong)} cannot be what made the video, and is left out")
            return {key: _whole(value) for key, value in content.items() if key not in wrong}
    return {}


def _whole(value: Any) -> Any:
    """Text without halves of surrogate pairs, which JSON can smuggle in and no file takes."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def digest(path: Path) -> str:
    """SHA-256 of a video file's bytes, or of a folder's frames in order. UserError if it cannot be read."""
    try:
        if not path.is_dir():
            return file_digest(path)
        frames = hashlib.sha256()
        for file in sorted(path.glob("*.png"), key=natural):
            frames.update(file.read_bytes())
        return frames.hexdigest()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give the path of a video") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); check its permissions") from error


def jpeg(frame: Frames, side: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """A frame [H, W, 3] as JPEG, shrunk to a longer side of at most `side`, and its (width, height)."""
    image = Image.fromarray(frame)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue(), image.size
