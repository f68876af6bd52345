"""Do the cores of a CPU work as ranks: each in a process and with a share of its own, and joined?"""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

LANDSCAPE = Path(__file__).parents[2] / "examples" / "landscape"


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(LANDSCAPE)
    return importlib.import_module("ranks")


@pytest.fixture
def job(ranks: ModuleType, tmp_path: Path) -> Any:
    road = importlib.import_module("road")
    return road.Job(tmp_path, road.SCALES["quick"], torch.device("cpu"), 1.0, time.monotonic())


def write_share(job: Any, ranks: Any) -> None:
    """What this rank is, and what it hears of all of them."""
    everyone = ranks.gather(torch.tensor([ranks.rank + 1])).tolist()
    told = [os.getpid(), torch.get_num_threads(), list(ranks.share(5)), everyone]
    (job.work / str(ranks.rank)).write_text(json.dumps(told))


def fail_or_wait(job: Any, ranks: Any) -> None:
    if ranks.first:
        raise ValueError("the first rank's fault")
    ranks.wait()


def test_two_processes_share_the_work(ranks: ModuleType, job: Any) -> None:
    ranks.on_ranks(job, 2, write_share)
    first, second = (json.loads((job.work / rank).read_text()) for rank in "01")
    assert len({os.getpid(), first[0], second[0]}) == 3, "each is a process of its own"
    assert first[1:] == [1, [0, 2, 4], [1, 2]]
    assert second[1:] == [1, [1, 3], [1, 2]]


def test_one_rank_is_this_process(ranks: ModuleType, job: Any) -> None:
    ranks.on_ranks(job, 1, write_share)
    process, _, share, everyone = json.loads((job.work / "0").read_text())
    assert (process, share, everyone) == (os.getpid(), [0, 1, 2, 3, 4], [1])


def test_a_batch_that_cannot_be_shared_out_evenly_is_one_process(ranks: ModuleType) -> None:
    assert [ranks.even(batch, 2) for batch in (8, 7)] == [2, 1]


def test_a_rank_that_fails_ends_the_other(ranks: ModuleType, job: Any) -> None:
    """Which would wait for its answer."""
    with pytest.raises(mp.ProcessRaisedException, match="first rank's fault"):
        ranks.on_ranks(job, 2, fail_or_wait)
