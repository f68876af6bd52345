"""Latents on disk: what is written is what is read, whole chunks only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfpp_cli.data.latent_log import LatentLog
from sfpp_cli.errors import UserError

SHAPE = (1, 3, 2, 4, 4)


def chunks(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def test_chunks_come_back_bit_for_bit(tmp_path: Path) -> None:
    log = LatentLog(tmp_path / "log", SHAPE, {"prompt": "圆"})
    for chunk in chunks(3):
        log.append(chunk)
    again = LatentLog(tmp_path / "log", SHAPE, {"prompt": "圆"})
    assert len(again) == 3
    assert all(torch.equal(a, b) for a, b in zip(again.chunks(), chunks(3), strict=True))
    assert len(list(again.chunks(2))) == 2
    assert json.loads((tmp_path / "log" / "request.json").read_text()) == {"prompt": "圆"}


def test_half_a_chunk_is_cut_off(tmp_path: Path) -> None:
    log = LatentLog(tmp_path / "log", SHAPE, {})
    log.append(chunks(1)[0])
    with log.file.open("ab") as file:
        file.write(b"x" * 100)
    again = LatentLog(tmp_path / "log", SHAPE, {})
    assert len(again) == 1
    assert again.file.stat().st_size == 4 * 3 * 2 * 4 * 4


def test_it_goes_with_its_folder(tmp_path: Path) -> None:
    log = LatentLog(tmp_path / "log", SHAPE, {})
    log.append(chunks(1)[0])
    log.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    log = LatentLog(tmp_path / "log", (1, 1, 1, 1, 1), {})
    log.file = Path("/dev/full")
    with pytest.raises(
        UserError, match=r"/dev/full cannot be written \(No space left on device\): .*--resume"
    ):
        log.append(torch.zeros(1, 1, 1, 1, 1))
