"""The cores of a CPU as ranks: each takes its part of a batch, and their gradients are averaged.

At these sizes two threads of one process are hardly faster than one; two processes are nearly twice as fast.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from road import Job
from torch import Tensor


class Ranks:
    """This process's place among those that train together; alone if there is one."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    def mean(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks."""
        if self.count == 1:
            return
        together = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(together)
        together /= self.count
        for tensor, mean in zip(tensors, together.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def first(self, value: float) -> float:
        """The first rank's value."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()


def train_on_cores(job: Job, batch: int, train: Callable[[Job, Ranks], None]) -> None:
    """Run `train` on every core that this process may use, if `batch` is a multiple of their number.

    A GPU trains alone. `taskset` or a container tells how many cores there are.
    """
    count = 1 if job.cuda else len(os.sched_getaffinity(0))
    if count == 1 or batch % count:
        train(job, Ranks())
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments = (job, count, Path(folder) / "meeting", train)
        mp.start_processes(_run_rank, arguments, nprocs=count, start_method="fork")


def _run_rank(rank: int, job: Job, count: int, meeting: Path, train: Callable[[Job, Ranks], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=count)
    train(job, Ranks(rank, count))
    dist.destroy_process_group()
