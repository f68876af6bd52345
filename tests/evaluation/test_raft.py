"""Dynamic degree on RAFT's flow: what the network is shown, which pairs, VBench's rule."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Sfpp
from torch import Tensor

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.metrics.motion import clip_ranges, fastest
from sfpp_cli.evaluation.networks.raft import ITERATIONS, Raft, dynamic_clips, load_raft, padding
from sfpp_cli.video import Frames
from sfpp_cli.video.writer import VideoWriter

CPU = torch.device("cpu")
SIZE, FPS = (136, 130), 16.0
TAU = 6.0 * 130 / 256


class KnownFlow:
    """Instead of the network: flow is a tenth of the later picture's first pixel; inputs are remembered."""

    def __init__(self) -> None:
        self.shown: list[tuple[Tensor, Tensor]] = []

    def __call__(self, first: Tensor, second: Tensor, num_flow_updates: int) -> Sequence[Tensor]:
        assert num_flow_updates == ITERATIONS == 20
        self.shown.append((first, second))
        speed = round(float(second[0, 0, 0, 0] + 1) * 127.5) / 10
        flow = torch.zeros(1, 2, *first.shape[-2:])
        flow[:, 0, :, :] = 0.6 * speed
        flow[:, 1, :, :] = 0.8 * speed
        return [torch.full_like(flow, 1e6)] * (num_flow_updates - 1) + [flow]


def grey_levels(path: Path, levels: Sequence[int], size: tuple[int, int] = SIZE) -> Path:
    """A directory of PNG frames, each of one grey: what is read is exactly what was written."""
    with VideoWriter(path, size, FPS) as writer:
        for level in levels:
            writer.write(np.full((1, size[1], size[0], 3), level, np.uint8))
    return writer.path


def test_padding_is_vbench_s() -> None:
    assert padding(832, 480) == (0, 0, 0, 0)
    assert padding(130, 133) == (3, 3, 1, 2)
    assert padding(135, 129) == (0, 1, 3, 4)


def test_a_frame_is_scaled_and_its_border_repeated() -> None:
    network = KnownFlow()
    frame = np.random.default_rng(0).integers(0, 256, (133, 130, 3), dtype=np.uint8)
    flow = Raft(network, CPU, {})(frame, np.full_like(frame, 50))
    assert flow.shape == (136, 136, 2)
    assert fastest(flow) == pytest.approx(5.0, abs=1e-6)
    [(first, second)] = network.shown
    expected = np.pad(frame, ((1, 2), (3, 3), (0, 0)), mode="edge").transpose(2, 0, 1)[None] / 127.5 - 1
    assert first.numpy() == pytest.approx(expected, abs=1e-6)
    assert second.numpy() == pytest.approx(np.full_like(expected, 50 / 127.5 - 1), abs=1e-6)


def test_clips_by_hand(tmp_path: Path) -> None:
    """81 frames at 16 a second: clips (0, 32) (32, 64) (49, 81); of 16 frames each, 4 pairs above 3.05 px."""
    above, below = round(10 * TAU) + 1, round(10 * TAU) - 1
    levels = [below] * 81
    for index in (2, 10, 20, 30):  # on the first clip's grid
        levels[index] = above
    for index in (33, 35, 37, 39, 41):  # off the second's
        levels[index] = above
    for index in (62, 66, 70, 74, 78):  # off the third's, which is odd
        levels[index] = above
    path, network = grey_levels(tmp_path / "v.png", levels), KnownFlow()
    raft = Raft(network, CPU, {})
    read: list[int] = []
    clips = clip_ranges(81, FPS)
    assert clips == [(0, 32), (32, 64), (49, 81)]
    assert dynamic_clips(path, clips, FPS, SIZE, raft, read.append) == [True, False, False]
    assert read == list(range(1, 82))
    assert len(network.shown) == 3 * 15
    assert dynamic_clips(path, [(0, 30)], FPS, SIZE, raft) == [
        False
    ]  # 15 kept: round(3.75) = 4, and the one at 30 is outside
    assert dynamic_clips(path, [(0, 22)], FPS, SIZE, raft) == [True]  # 11 kept: round(2.75) = 3


def test_the_pairs_are_a_stride_apart_and_shared_ones_are_looked_at_once(tmp_path: Path) -> None:
    path = grey_levels(tmp_path / "v.png", range(0, 120, 2))
    seen: list[tuple[int, int]] = []

    def flow(before: Frames, after: Frames) -> Any:
        seen.append((int(before[0, 0, 0]) // 2, int(after[0, 0, 0]) // 2))
        return np.zeros((*before.shape[:2], 2), np.float32)

    clips = clip_ranges(60, FPS)
    assert clips == [(0, 32), (28, 60)]
    assert dynamic_clips(path, clips, FPS, SIZE, flow) == [False, False]
    # (28, 30) is a pair of both clips; (30, 32) is the second's only, since the first ends before 32
    assert seen == [(index, index + 2) for index in range(0, 58, 2)]


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    small = grey_levels(tmp_path / "small.png", [0] * 4, (120, 200))
    with pytest.raises(UserError, match="120x200, and no side may be below 128"):
        dynamic_clips(small, [(0, 4)], FPS, (120, 200), Raft(KnownFlow(), CPU, {}))
    fits = grey_levels(tmp_path / "fits.png", [0] * 4, (121, 200))
    assert dynamic_clips(fits, [(0, 4)], FPS, (121, 200), Raft(KnownFlow(), CPU, {})) == [False]
    with pytest.raises(UserError, match="ends before its clips do"):
        dynamic_clips(fits, [(0, 9)], FPS, (121, 200), Raft(KnownFlow(), CPU, {}))


# --- torchvision ----------------------------------------------------------------------------------------


def hide(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Importing torchvision raises this."""
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> ModuleType:
        if name.partition(".")[0] == "torchvision":
            raise error
        return real(name, *arguments, **named)

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)


def test_without_torchvision_it_is_one_line(
    sfpp: Sfpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, ModuleNotFoundError("No module named 'torchvision'", name="torchvision"))
    grey_levels(tmp_path / "v.mp4", [50] * 8)
    code, out, err = sfpp("evaluate", "v.mp4", "--raft", "torchvision", "--workers", "1")
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert line.startswith(
        "error: --raft runs torchvision's RAFT, and torchvision is not installed: pip install torchvision"
    )
    assert torch.__version__ in line


def test_a_torchvision_for_another_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, RuntimeError("operator torchvision::nms does not exist\nand more"))
    with pytest.raises(
        UserError,
        match=r"cannot be imported \(operator torchvision::nms does not exist\): pip install the one",
    ):
        load_raft("torchvision", CPU)


def test_torchvision_s_network(tmp_path: Path) -> None:
    """With random weights, since its own cannot be fetched in a test: they load, and its flow comes out."""
    optical_flow = pytest.importorskip(
        "torchvision.models.optical_flow", reason="torchvision is no dependency of this project"
    )
    torch.manual_seed(0)
    network = optical_flow.raft_large().eval()
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    raft = load_raft(str(tmp_path / "raft.pth"), CPU)
    first, second = np.random.default_rng(0).integers(0, 256, (2, 130, 133, 3), dtype=np.uint8)
    flow = raft(first, second)
    assert flow.shape == (136, 136, 2)
    pictures = [
        np.pad(frame, ((3, 3), (1, 2), (0, 0)), mode="edge").transpose(2, 0, 1)[None]
        for frame in (first, second)
    ]
    prepared = optical_flow.Raft_Large_Weights.C_T_V1.transforms()(*map(torch.from_numpy, pictures))
    with torch.no_grad():
        expected = network(*prepared, num_flow_updates=20)[-1][0].permute(1, 2, 0).numpy()
    assert flow == pytest.approx(expected, rel=1e-3, abs=1e-3 * float(np.abs(expected).max()))
    assert raft.parameters["weights"] == str(tmp_path / "raft.pth")
    torch.save({"fnet.conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds other weights"):
        load_raft(str(tmp_path / "other.pth"), CPU)
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("text.pth", "absent.pth"):
        with pytest.raises(UserError, match="cannot be read as weights"):
            load_raft(str(tmp_path / name), CPU)
