"""Work on two ranks of this machine. No model library is imported here: fresh processes would wait for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

from sfpp_cli.core.parallel import Ranks

Work = Callable[[Ranks, Path], None]


def on_two_ranks(work: Work, folder: Path) -> None:
    """Run `work`, a function at the top of its module, in two joined processes; both must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn").Process
    processes = [spawn(target=_rank, args=(rank, port, work, folder), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)  # on busy cores, importing what a rank needs alone takes a minute
    assert [process.exitcode for process in processes] == [0, 0]


def _rank(rank: int, port: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = Ranks.from_environment()
    ranks.join(torch.device("cpu"))
    work(ranks, folder)
    ranks.wait()
    dist.destroy_process_group()
    os._exit(0)  # in one of some thirty runs, torch's threads abort while the interpreter is torn down
