"""Work on two ranks of this machine: forks of a fresh process that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sfpp_cli.core.parallel import Ranks

Work = Callable[[Ranks, Path], None]
IMPORTED = [
    "pytest",
    "sfpp_cli.core.adapter",
    "sfpp_cli.core.dmd",
    "sfpp_cli.core.grpo",
    "sfpp_cli.core.trainer",
]
"""Once for all ranks, which would take longer over it than over their work."""


def on_two_ranks(work: Work, folder: Path) -> None:
    """Run `work`, a function at the top of its module, in two joined processes; both must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Libraries of macOS may not be used in forks.
    context: Any = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
    context.set_forkserver_preload(IMPORTED)
    processes = [
        context.Process(target=_rank, args=(rank, port, work, folder), daemon=True) for rank in range(2)
    ]
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
