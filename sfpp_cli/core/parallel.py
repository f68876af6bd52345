"""Ranks: the only module that knows there is more than one process. `torchrun` starts them; a plain start is rank 0 of 1."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


@dataclass(frozen=True)
class Ranks:
    """This process's place among all of them."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """The rank within its machine, which is the index of its GPU."""

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read what `torchrun` sets, without joining a process group: enough to share out independent work."""
        rank, world, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
        return cls(rank, world, local)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Open the process group (NCCL between GPUs, gloo between CPUs); nothing to do for a single process."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")

    def share(self, count: int) -> range:
        """This rank's part of `count` equal pieces of work: every world-th, none twice."""
        return range(self.rank, count, self.world)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Mean of each figure over the ranks."""
        if self.world == 1:
            return values
        stacked = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


ALONE = Ranks()
