"""Film strips: a video's frames from first to last, as small JPEG pictures that a page can hold."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfpp_cli.evaluation.compare import Video
from sfpp_cli.evaluation.source import jpeg
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.sheet import SheetSampler

STRIP = 5
"""Pictures of a film strip."""
THUMB = 192
"""Pixels of a picture's longer side, at most."""
QUALITY = 82
"""Of the JPEG."""


@dataclass(frozen=True)
class Still:
    """A picture of a film strip: how far into the video it is, its size, and itself as a data URI."""

    percent: int
    seconds: float
    width: int
    height: int
    source: str


def filmstrip(video: Video, frames: Sequence[Frames] | None = None) -> list[Still]:
    """A video's frames at 0, 25, 50, 75 and 100 %, decoded from its path unless `frames` has them.
    UserError where they cannot be decoded."""
    sampler = SheetSampler(int(video.get("frames") or 0), STRIP)
    if frames is None:
        frames = _sampled(sampler, Path(str(video.get("path"))))
    times = [index / float(video.get("fps") or 1) for index in sampler.indices]
    return [
        _still(frame, 100 * place // max(len(times) - 1, 1), time)
        for place, (frame, time) in enumerate(zip(frames, times, strict=False))
    ]


def _sampled(sampler: SheetSampler, path: Path) -> Sequence[Frames]:
    """The sampler's frames, and no more decoding than it takes to find them."""
    if sampler.indices:
        for frame in read_frames(path):
            sampler.write(frame[None])
            if len(sampler.frames) == len(sampler.indices):
                break
    return sampler.frames


def _still(frame: Frames, percent: int, seconds: float) -> Still:
    data, size = jpeg(frame, THUMB, QUALITY)
    return Still(percent, seconds, *size, f"data:image/jpeg;base64,{b64encode(data).decode()}")
