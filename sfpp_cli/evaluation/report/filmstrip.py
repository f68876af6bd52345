"""Film strips: what a video looks like where it goes wrong, or from first to last, as small JPEG pictures."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from sfpp_cli.evaluation.compare import Video
from sfpp_cli.evaluation.report.labels import fault, first_fault
from sfpp_cli.evaluation.source import decoding, jpeg
from sfpp_cli.video import Frames

STRIP = 5
"""Pictures of a film strip."""
THUMB = 192
"""Pixels of a picture's longer side, at most."""
QUALITY = 82
"""Of the JPEG."""
BEFORE = 1.0
"""Seconds before a fault at which a video still looks right; of a sudden one, the frame before shows more."""
AFTER = 0.5
"""Seconds after a sudden fault at which its picture has settled."""


@dataclass(frozen=True)
class Still:
    """A picture of a film strip: when it is shown, what it stands for, its size, and itself as a data URI."""

    seconds: float
    words: str
    width: int
    height: int
    source: str


def filmstrip(video: Video) -> list[Still]:
    """Frames of a video, decoded from its path: where a fault fired, the first, one before its onset, the
    onset, one after and the last; else evenly spaced ones. UserError where they cannot be decoded."""
    fps = float(video.get("fps") or 1)
    wanted = _indices(video, fps)
    stills: dict[int, tuple[Frames, str]] = {}
    if not wanted:
        return []
    with decoding(Path(str(video.get("path"))), _size(video)) as frames:
        for index, frame in enumerate(frames):
            if index in wanted:
                stills[index] = (frame, wanted[index])
            if len(stills) == len(wanted):
                break
    return [_still(frame, words, index / fps) for index, (frame, words) in stills.items()]


def _size(video: Video) -> tuple[int, int] | None:
    """Of the pictures, so that a long video need not come in full size; None where its own is not known."""
    width = video.get("width")
    height = video.get("height")
    if not width or not height:
        return None
    shrink = min(1.0, THUMB / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _indices(video: Video, fps: float) -> dict[int, str]:
    """The frames to show, in order, and what each stands for."""
    last = int(video.get("frames") or 0) - 1
    if last < 0:
        return {}
    name, onset = first_fault(video)
    if name is None or onset is None:
        return {last * place // (STRIP - 1): "" for place in range(STRIP)}
    start = min(round(onset * fps), last)
    before = start - round(BEFORE * fps)
    after = (start + last) // 2
    if fault(name).sudden:
        before = start - 1
        after = start + round(AFTER * fps)
    chosen = {0: "first", max(before, 0): "before", min(after, last): "after", last: "last", start: "onset"}
    return dict(sorted(chosen.items()))


def _still(frame: Frames, words: str, seconds: float) -> Still:
    data, size = jpeg(frame, THUMB, QUALITY)
    return Still(seconds, words, *size, f"data:image/jpeg;base64,{b64encode(data).decode()}")
