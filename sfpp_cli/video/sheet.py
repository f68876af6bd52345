"""Contact sheets: evenly spaced frames of a video in one picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sfpp_cli.files import atomic_write
from sfpp_cli.video import Frames

_BACKGROUND = (24, 24, 27)
_INK = (205, 205, 210)
_MARGIN = 16
_GAP = 8
_CAPTION = 22
_FONT_SIZE = 13


class SheetSampler:
    """Picks `count` evenly spaced frames, first and last included, from a stream of `total` frames."""

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

    The longer side of a frame becomes `tile` pixels: by repeating pixels where that is a whole multiple, else
    by Lanczos.
    """
    height, width, _ = frames[0].shape
    longer = max(width, height)
    wide = round(width * tile / longer)
    high = round(height * tile / longer)
    resample = Image.Resampling.LANCZOS if tile % longer else Image.Resampling.NEAREST
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    across = wide + _GAP
    down = high + _CAPTION + _GAP
    size = (columns * across - _GAP + 2 * _MARGIN, rows * down - _GAP + 2 * _MARGIN)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for place, (frame, time) in enumerate(zip(frames, times, strict=True)):
        x = _MARGIN + place % columns * across
        y = _MARGIN + place // columns * down
        sheet.paste(Image.fromarray(frame).resize((wide, high), resample), (x, y))
        draw.text((x + wide / 2, y + high + 4), f"{time:.1f} s", fill=_INK, font=font, anchor="ma")
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    atomic_write(path, encoded.getvalue())
