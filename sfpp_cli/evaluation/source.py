"""Video files as they come: whether they can be measured, what they were made from, and results kept by their content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfpp_cli.errors import UserError
from sfpp_cli.files import atomic_write
from sfpp_cli.video import Frames
from sfpp_cli.video.ffmpeg import ask_ffmpeg, reading
from sfpp_cli.video.reader import VideoInfo, probe, read_frames

_RATE_TOLERANCE = 0.03


def inspect(path: Path) -> VideoInfo:
    """Size, rate and length. UserError, one line, for what cannot be measured: no video, no frame, a variable frame rate."""
    info = probe(path)
    if not info.frames or info.fps <= 0:
        raise UserError(f"{path} holds no frames; is it a video?")
    return info if path.is_dir() else _timed(path, info)


def _timed(path: Path, info: VideoInfo) -> VideoInfo:
    """The same with the rate that the frames' times show, where that is another than the file's header claims (short GIFs)."""
    times = frame_times(path)
    gaps, tick = np.diff(times.seconds), times.tick
    if not gaps.size:
        return info
    if not _is_constant(gaps, tick):
        raise UserError(
            f"{path} has a variable frame rate, so times and motion would be wrong; make it constant first: "
            f"ffmpeg -i IN -vf fps={max(1, round(1 / float(np.median(gaps))))} OUT"
        )
    shown = 1 / float(gaps.mean())
    return info if abs(shown / info.fps - 1) < _RATE_TOLERANCE else replace(info, fps=shown)


@contextmanager
def decoding(path: Path) -> Iterator[Iterator[Frames]]:
    """The frames of a video [H, W, 3], whose decoder stops at the end of the block, however far it came."""
    frames = read_frames(path)
    try:
        yield frames
    finally:
        if isinstance(frames, Generator):
            frames.close()


@dataclass(frozen=True)
class FrameTimes:
    """When each frame is shown, in order, and the resolution of the file's clock."""

    seconds: NDArray[np.float64]
    tick: float


def frame_times(path: Path) -> FrameTimes:
    """As the container has them; nothing is decoded. Empty where it has none."""
    with reading(path):
        listing = ask_ffmpeg(path, "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "pipe:1").decode(
            errors="replace"
        )
    base = re.search(r"^#tb 0: (\d+)/(\d+)", listing, re.MULTILINE)
    tick = int(base[1]) / int(base[2]) if base else 1.0
    ticks = sorted(int(found) for found in re.findall(r"^0, *-?\d+, *(-?\d+),", listing, re.MULTILINE))
    return FrameTimes(np.array(ticks, np.float64) * tick, tick)


def _is_constant(gaps: NDArray[np.float64], tick: float) -> bool:
    """All gaps equal to within the clock's tick, which in WebM and GIF is a good part of a frame, and two per cent."""
    usual = float(np.median(gaps))
    return usual > 0 and bool((np.abs(gaps - usual) <= 1.01 * tick + 0.02 * usual).all())


def sidecar(path: Path) -> dict[str, Any]:
    """What `sfpp generate` wrote beside the video, or nothing."""
    for file in (path.with_suffix(".json"), Path(f"{path}.json")):
        with suppress(OSError, ValueError):
            content = json.loads(file.read_text())
            if isinstance(content, dict) and content.get("video") == path.name:
                return content
    return {}


def digest(path: Path) -> str:
    """SHA-256 of a file's content, or of the pictures of a directory. UserError if it cannot be read."""
    found = hashlib.sha256()
    try:
        for file in sorted(path.glob("*.png")) if path.is_dir() else [path]:
            with file.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give the path of a video") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    return found.hexdigest()


class Cache:
    """Results in a directory, by a key of everything they depend on. What cannot be read is not there; None keeps nothing."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def get(self, key: str) -> dict[str, Any] | None:
        if self.directory is None:
            return None
        with suppress(OSError, ValueError):
            content = json.loads((self.directory / f"{key}.json").read_text())
            return content if isinstance(content, dict) else None
        return None

    def put(self, key: str, content: dict[str, Any]) -> None:
        if self.directory is not None:
            atomic_write(self.directory / f"{key}.json", json.dumps(content))
