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
    assert again.file.stat().st_size == again.record == 4 * 3 * 2 * 4 * 4 + 32
    assert again.lost == 0


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_damaged_chunk_and_all_after_it_are_cut_off(tmp_path: Path, place: int) -> None:
    log = LatentLog(tmp_path / "log", SHAPE, {})
    for chunk in chunks(4):
        log.append(chunk)
    data = bytearray(log.file.read_bytes())
    data[2 * log.record + place] ^= 1  # of the third chunk, or the digest of the second
    log.file.write_bytes(data)
    with pytest.raises(UserError, match=r"latents\.f32 is damaged in chunk [23]: .* --resume"):
        list(log.chunks())
    again = LatentLog(tmp_path / "log", SHAPE, {})
    intact = 1 if place < 0 else 2
    assert (len(again), again.lost) == (intact, 4 - intact)
    assert all(torch.equal(a, b) for a, b in zip(again.chunks(), chunks(4), strict=False))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_written(tmp_path: Path, value: float) -> None:
    log = LatentLog(tmp_path / "log", SHAPE, {})
    log.append(chunks(1)[0])
    with pytest.raises(UserError, match=r"chunk 2 of the student's latents is not finite .*bfloat16"):
        log.append(chunks(1)[0].index_fill(3, torch.tensor([1]), value))
    assert len(log) == 1


@pytest.mark.parametrize("planted", ["log", "log/latents.f32", "log/request.json"])
def test_links_are_not_followed(tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "victim"
    link = tmp_path / planted
    link.parent.mkdir(exist_ok=True)
    if planted == "log":
        victim.mkdir()
    else:
        victim.write_text("precious")
    link.symlink_to(victim)
    if planted.endswith("json"):  # replaced, as every file that appears whole or not at all
        LatentLog(tmp_path / "log", SHAPE, {})
    else:
        with pytest.raises(UserError, match="log cannot be written"):
            LatentLog(tmp_path / "log", SHAPE, {})
    assert list(victim.iterdir()) == [] if victim.is_dir() else victim.read_text() == "precious"


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
