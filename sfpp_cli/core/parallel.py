"""Ranks: the only module that knows there may be more than one process.

`torchrun` starts them; a plain start is rank 0 of 1. Models are sharded from outside, by PyTorch's own FSDP2;
they do not know.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

_FORWARD_METHODS = ("cache_clean", "cache_keys_values", "embed_text", "text_keys_values")
"""Methods besides `forward` that use a module's parameters."""
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
        """Read what `torchrun` sets without joining a process group: enough to share out independent work."""
        rank, world, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
        return cls(rank, world, local)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Open the process group (NCCL between GPUs, gloo between CPUs) if there are several processes."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")

    def share(self, count: int) -> range:
        """This rank's part of `count` equal pieces of work: every world-th, none twice."""
        return range(self.rank, count, self.world)

    def shard(self, model: nn.Module) -> None:
        """Shard weights, gradients and optimiser states over the ranks; does nothing for a single process.

        A unit is a transformer block. What was gathered stays until the backward pass: a rollout is hundreds
        of passes with the same weights, so it communicates once, and ranks need not run equally many.
        """
        if self.world == 1:
            return
        warnings.filterwarnings(
            "ignore", message="FSDP2-wrapped module .* returned a view"
        )  # nobody changes one in place
        # Left to itself, FSDP2 takes the machine's accelerator, even for a model on the CPU.
        mesh = init_device_mesh(next(model.parameters()).device.type, (self.world,))
        blocks = (child for part in model.children() if isinstance(part, nn.ModuleList) for child in part)
        for module in (*blocks, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=False)
            for name in _FORWARD_METHODS:
                if hasattr(module, name):
                    register_fsdp_forward_method(module, name)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks: what models need that every rank holds whole."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def gather(self, mine: Tensor) -> Tensor:
        """This rank's [n, ...] as [world * n, ...] in the order of the pieces that `share` gave out."""
        if self.world == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(parts, mine)
        return torch.stack(parts, dim=1).flatten(0, 1)

    def cpu_group(self) -> dist.ProcessGroup | None:
        """A process group of its own for what a thread exchanges beside the others; None for one process."""
        return dist.new_group(backend="gloo") if self.world > 1 else None

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, of which this rank may hold a shard. All ranks take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


ALONE = Ranks()
