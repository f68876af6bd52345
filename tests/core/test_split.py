"""Two ranks make the video that one makes, each with half of the tokens and half of the heads."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny import CONFIG, SIZE, make_student, prompts
from torch import Tensor
from two_ranks import on_two_ranks

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.parallel import ALONE, Ranks
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.core.split import Split, SplitCache
from sfpp_cli.core.student import CausalWanModel, SinkPositions
from sfpp_cli.errors import UserError

SAMPLERS = [
    Sampler(
        schedule=FlowSchedule(5.0),
        steps=(1000, 500),
        chunk=3,
        context=8,
        sink=1,
        sink_positions=positions,
    )
    for positions in get_args(SinkPositions)
]


@torch.no_grad()
def video(student: CausalWanModel) -> Tensor:
    """Five chunks, of which the last three see a cache that has rolled; with every kind of sink."""
    noise = VideoNoise([3, 4], (3, CONFIG["in_channels"], *SIZE))
    videos = [list(s.rollout(student, noise.chunks(0, 5), prompts(2), noise.draw)) for s in SAMPLERS]
    assert not torch.equal(videos[0][-1], videos[1][-1])
    return torch.cat([chunk for chunks in videos for chunk in chunks], dim=1)


def split_video(ranks: Ranks, folder: Path) -> None:
    student = make_student()
    student.split = Split(ranks)
    torch.save(video(student), folder / f"{ranks.rank}.pt")
    cache = student.new_cache(prompts(2), SIZE, context=8, sink=1)
    assert isinstance(cache, SplitCache)
    assert cache.nbytes * 2 == make_student().new_cache(prompts(2), SIZE, context=8, sink=1).nbytes


@pytest.mark.slow
def test_two_ranks_make_the_same_video(tmp_path: Path) -> None:
    on_two_ranks(split_video, tmp_path)
    expected = video(make_student())
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*found)
    assert expected.std() > 0.5
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_what_cannot_be_shared_out_is_refused() -> None:
    Split(ALONE).check(heads=12, tokens=7)
    with pytest.raises(UserError, match="12 heads, and 1560 tokens of a latent frame, cannot be shared out"):
        Split(Ranks(0, 8, 0)).check(heads=12, tokens=1560)
