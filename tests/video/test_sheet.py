"""Contact sheets: which frames, where, how large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clips import smooth
from PIL import Image

from sfpp_cli.video.sheet import SheetSampler, contact_sheet


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [
        (10, 4, [0, 3, 6, 9]),
        (9, 3, [0, 4, 8]),
        (5, 1, [0]),
        (3, 8, [0, 1, 2]),
        (1, 2, [0]),
        (960, 2, [0, 959]),
    ],
)
@pytest.mark.parametrize("piece", [1, 4, 1000])
def test_sampler_picks_evenly(total: int, count: int, indices: list[int], piece: int) -> None:
    stream = (
        np.arange(total, dtype=np.uint16).view(np.uint8).reshape(total, 1, 1, 2).repeat(2, axis=-1)[..., :3]
    )
    sampler = SheetSampler(total, count)
    for start in range(0, total, piece):
        sampler.write(stream[start : start + piece])
    assert sampler.indices == indices
    assert [int(frame[0, 0, 0]) + 256 * int(frame[0, 0, 2]) for frame in sampler.frames] == indices
    assert sampler.times(16) == [index / 16 for index in indices]


def test_sampler_of_a_stream_that_ends_early() -> None:
    sampler = SheetSampler(10, 4)
    sampler.write(smooth(5))
    assert len(sampler.frames) == 2
    assert sampler.times(2) == [0.0, 1.5]


def test_contact_sheet(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8)
    contact_sheet(frames, [0, 1, 2, 3, 61.25], tmp_path / "a.png", columns=3)
    with Image.open(tmp_path / "a.png") as image:
        sheet = np.array(image)
    assert sheet.shape == (16 + 144 + 22 + 8 + 144 + 22 + 16, 16 + 3 * 192 + 2 * 8 + 16, 3)
    enlarged = frames[4].repeat(3, axis=0).repeat(3, axis=1)
    assert (sheet[190 : 190 + 144, 216 : 216 + 192] == enlarged).all()
    caption = sheet[190 + 144 : 190 + 144 + 22, 216 : 216 + 192]
    assert caption.max() > 150, "the time is written under the frame"
    assert sheet[190:, 416:].max() == 27, "the sixth place stays empty"


def test_contact_sheet_shrinks_large_frames(tmp_path: Path) -> None:
    contact_sheet(np.full((2, 480, 832, 3), 90, np.uint8), [0, 1], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (16 + 192 + 8 + 192 + 16, 16 + 111 + 22 + 16)
        assert image.getpixel((100, 60)) == (90, 90, 90)
