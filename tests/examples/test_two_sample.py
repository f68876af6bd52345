"""The energy distance between sets of videos: against its definition, a known value, and chance."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from tiny import gaussian
from torch import Tensor

SCRIPT = Path(__file__).parents[2] / "examples" / "toyworld" / "two_sample.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)  # where it finds gates.py when it is run
    spec = importlib.util.spec_from_file_location("two_sample", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def naive(x: Tensor, y: Tensor) -> float:
    """The definition over [videos, frames, D], pair by pair; a video is never paired with itself."""

    def mean(a: Tensor, b: Tensor, apart: bool) -> float:
        pairs = [(i, j) for i, j in product(range(len(a)), range(len(b))) if not apart or i != j]
        found = [math.dist(p.tolist(), q.tolist()) for i, j in pairs for p, q in product(a[i], b[j])]
        return sum(found) / len(found)

    return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)


def test_it_is_its_definition(script: ModuleType) -> None:
    x, y = gaussian(4, 3, 5, seed=1), gaussian(5, 2, 5, seed=2) + 0.5
    assert script.energy_distance(x, y) == pytest.approx(naive(x, y))
    assert script.energy_distance(x[:, 0], y[:, 0]) == pytest.approx(naive(x[:, :1], y[:, :1]))
    assert script.energy_distance(x, y) == pytest.approx(script.energy_distance(y, x))


def test_points_that_agree_within_their_sets(script: ModuleType) -> None:
    """All of X in one place, all of Y in another: twice the way between them."""
    assert script.energy_distance(
        torch.zeros(3, 2), torch.tensor([[3.0, 4.0]]).expand(7, 2)
    ) == pytest.approx(10)


def test_shifted_uniform_samples_are_as_far_apart_as_calculus_says(script: ModuleType) -> None:
    """U(0, 1) and U(d, 1 + d) with d <= 1: E|X - X'| = 1/3 and E|X - Y| = 1/3 + d^2 - d^3/3."""
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5)[:, None] / 1000
    for shift in (0.0, 0.25, 0.5, 1.0):
        assert script.energy_distance(grid, grid + shift) == pytest.approx(
            2 * shift**2 - 2 * shift**3 / 3, abs=1e-3
        )


def test_it_is_zero_in_the_mean_for_one_distribution(script: ModuleType) -> None:
    """Frames of a video share most of what they are; as independent samples they would differ."""
    samples = gaussian(200, 2, 6, 1, 4) + 0.3 * gaussian(200, 2, 6, 3, 4, seed=2)
    found = torch.tensor([script.energy_distance(x, y) for x, y in samples])
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    assert (found < 0).any()
    as_if_independent = [script.energy_distance(x.flatten(0, 1), y.flatten(0, 1)) for x, y in samples]
    assert sum(as_if_independent) / len(samples) > 10 * error


def test_halves_show_the_size_of_chance(script: ModuleType) -> None:
    """Pairs of independent sets are as far apart as halves of one set of twice the size."""
    videos = gaussian(400, 24, 2, 4)
    pairs = torch.tensor([script.energy_distance(x[:12], x[12:]) for x in videos])
    halves = torch.tensor([script.halves_distance(x, 20) for x in videos[:40]])
    assert halves.square().mean().sqrt() == pytest.approx(float(pairs.square().mean().sqrt()), rel=0.2)
    assert script.halves_distance(videos[0]) == script.halves_distance(videos[0])


def test_it_grows_with_the_shift(script: ModuleType) -> None:
    x, y = gaussian(20, 4, 8, seed=1), gaussian(20, 4, 8, seed=2)
    found = [script.energy_distance(x, y + shift) for shift in (0.0, 0.2, 0.5, 1.0, 2.0)]
    assert found == sorted(found)
    assert found[-1] > 1 > 0.1 > abs(found[0])


def test_features_are_small_frames_evenly_spaced(script: ModuleType, tmp_path: Path) -> None:
    """A ramp over time: frame t has the value t / 100; a checkerboard finer than 16 x 16 becomes grey."""
    videos = (torch.arange(101) / 50 - 1)[None, :, None, None, None].repeat(2, 1, 3, 32, 32)
    save_file({"frames": videos}, tmp_path / "ramp.safetensors")
    found = script.features(tmp_path / "ramp.safetensors", 5)
    assert found.shape == (2, 5, 3 * 16 * 16)
    assert found.mean(2)[1].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-6)
    later = script.features(tmp_path / "ramp.safetensors", 3, (1.0, 2.0))
    assert later.mean(2)[0].tolist() == pytest.approx([0.16, 0.24, 0.31], abs=1e-6)
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    save_file({"frames": board.expand(2, 4, 3, 32, 32).contiguous()}, tmp_path / "board.safetensors")
    assert script.features(tmp_path / "board.safetensors", 2).unique().tolist() == [0.5]
    assert script.features(tmp_path / "board.safetensors", 2, moving=True).abs().max() == 0, "nothing moves"
    moving = script.features(tmp_path / "ramp.safetensors", 5, moving=True)
    assert moving.mean(2)[0].tolist() == pytest.approx([-0.5, -0.25, 0, 0.25, 0.5], abs=1e-6)


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["two_sample.py", *map(str, arguments)])
    script.main()


def test_the_script_tells_a_drift_from_chance(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Videos that brighten after a second: their first second is like the first set, their second is not."""
    videos = 0.2 * gaussian(16, 32, 3, 1, 1).expand(-1, -1, -1, 16, 16)
    save_file({"frames": videos[:8].contiguous()}, tmp_path / "a.safetensors")
    drifting = videos[8:].clone()
    drifting[:, 16:] += 0.5
    torch.save(drifting, tmp_path / "b.pt")
    reports = []
    for span in ((0, 1), (1, 2)):
        run(
            script, monkeypatch, tmp_path / "a.safetensors", tmp_path / "b.pt", "--frames", 4, "--span", *span
        )
        reports.append(json.loads(capsys.readouterr().out))
    early, late = reports
    assert early["frames"] == late["frames"] == [32, 32]
    assert early["same_set_halves"] == late["same_set_halves"]
    assert late["energy_distance"] > 10 * abs(early["energy_distance"])
    assert late["energy_distance"] > 5 * early["same_set_halves"] > abs(early["energy_distance"])


def test_sets_too_small_are_said_to_be(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(torch.zeros(1, 4, 3, 16, 16), tmp_path / "one.pt")
    torch.save(torch.zeros(2, 4, 3, 16, 16), tmp_path / "two.pt")
    with pytest.raises(SystemExit, match="two videos or more"):
        run(script, monkeypatch, tmp_path / "two.pt", tmp_path / "one.pt")
    with pytest.raises(SystemExit, match="no frame in seconds"):
        run(script, monkeypatch, tmp_path / "two.pt", tmp_path / "two.pt", "--span", 5, 6)
