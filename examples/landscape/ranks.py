"""The cores of a CPU as ranks: each takes its part of a batch, and their gradients are averaged.

At these sizes two threads of one process are hardly faster than one; two processes are nearly twice as fast.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from road import Job

from sfpp_cli.core.parallel import ALONE, Ranks

Train = Callable[[Job, Ranks], None]


def train_on_cores(job: Job, batch: int, train: Train) -> None:
    """Run `train` on every core that this process may use, if `batch` is a multiple of their number.

    A GPU trains alone. `taskset` or a container tells how many cores there are.
    """
    count = 1 if job.cuda else len(os.sched_getaffinity(0))
    if count == 1 or batch % count:
        train(job, ALONE)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_run_rank, (job, count, port, train), nprocs=count, start_method="fork")


def _run_rank(rank: int, job: Job, count: int, port: int, train: Train) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = Ranks(rank, count, rank)
    ranks.join(job.device)
    train(job, ranks)
    dist.destroy_process_group()
