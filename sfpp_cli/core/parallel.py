"""Ranks: the only module that knows there may be more than one process.

`torchrun` starts them; a plain start is rank 0 of 1. Models are sharded from outside, by PyTorch's own FSDP2;
they do not know.
"""

from __future__ import annotations

import os
import re
import time
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from sfpp_cli.errors import UserError, reason

_FORWARD_METHODS = ("cache_clean", "cache_keys_values", "embed_text", "text_keys_values")
"""Methods besides `forward` that use a module's parameters."""
_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
_GONE = r"gloo|nccl|connection (closed|reset)|timed out|broken pipe"
"""What backends say of ranks that do not answer."""
_NOTICE = 5.0
"""Seconds for the other ranks to notice the same."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among all of them."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """The rank within its machine, which is the index of its GPU."""

    @classmethod
    def from_environment(cls, *, launched: bool = True) -> Ranks:
        """Read what `torchrun` sets without joining a process group: enough to share out independent work.

        UserError if it makes no sense. So is it if there should be several processes, as clusters say of
        their own accord, but no launcher tells where they meet; for a plan they need not be `launched`.
        """
        rank, world, local = (_whole(name, default) for name, default in _VARIABLES)
        if not (rank < world and local < world):
            raise UserError(
                f"the environment says rank {rank} (local {local}) of {world}: "
                "unset RANK, LOCAL_RANK and WORLD_SIZE, or start with torchrun"
            )
        if (
            launched
            and world > 1
            and not all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT"))
        ):
            raise UserError(
                f"the environment says rank {rank} of {world}, but nothing started {world} processes "
                "(no MASTER_ADDR and MASTER_PORT): unset WORLD_SIZE, or start with torchrun"
            )
        return cls(rank, world, local)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def join(self, device: torch.device, timeout: float = 30.0) -> None:
        """Open the process group (NCCL between GPUs, gloo between CPUs) if there are several processes.

        They wait for one another for `timeout` minutes. UserError if they do not meet.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if self.world > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            patience = timedelta(minutes=timeout)
            try:
                shared, _, _ = next(rendezvous("env://", self.rank, self.world, timeout=patience))
                store = PrefixStore(self._meet(shared, patience), shared)
                dist.init_process_group(
                    backend, store=store, rank=self.rank, world_size=self.world, timeout=patience
                )
            except (dist.DistError, ValueError) as error:
                raise UserError(
                    f"rank {self.rank} of {self.world} does not meet the others ({reason(error)}): "
                    "see that all were started, and that MASTER_ADDR and MASTER_PORT are theirs"
                ) from error

    def _meet(self, store: Store, patience: timedelta) -> str:
        """A word that these processes share, and none before them: what they name their keys by.

        After a restart `torchrun` gives its workers the store of those before them, with all addresses of
        the dead. So the first rank offers a word of its own, and goes by it once every rank has answered
        with one of its own; these come back with the word, which tells an offer of the dead.
        """
        own = uuid.uuid4().hex
        deadline = time.monotonic() + patience.total_seconds()
        others = [f"{own}/{rank}" for rank in range(1, self.world)]
        if self.first:
            store.set("offer", own)
            store.wait(others, patience)
            store.set(f"{own}/met", " ".join(store.get(key).decode() for key in others))
            return own
        while time.monotonic() < deadline:
            offer: str = store.get("offer").decode()
            store.set(f"{offer}/{self.rank}", own)
            if store.check([f"{offer}/met"]) and own.encode() in store.get(f"{offer}/met").split():
                return offer
            time.sleep(0.05)
        raise dist.DistStoreError("no answer from the first rank")

    def missing(self, error: BaseException) -> str | None:
        """If `error` says that other ranks have gone, or stopped answering, which: in words, where known.

        Whoever notices says so in the store they met in, and looks for those who do not.
        """
        if self.world == 1 or not re.search(_GONE, str(error), re.IGNORECASE):
            return None
        others = set(range(self.world)) - {self.rank}
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"noticed/{self.rank}", "")
            deadline = time.monotonic() + _NOTICE
            while others and time.monotonic() < deadline:
                others = {rank for rank in others if not store.check([f"noticed/{rank}"])}
                time.sleep(0.1)
        except (dist.DistError, RuntimeError):
            return "the first rank"  # whose process keeps the store
        names = ", ".join(map(str, sorted(others)))
        return f"rank {names}" if names else "another rank"

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

    def cpu_group(self, timeout: float) -> dist.ProcessGroup | None:
        """A process group for what a thread exchanges beside the others; None for one process."""
        if self.world == 1:
            return None
        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout))
        return group

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


def is_restarted() -> bool:
    """Whether `torchrun --max-restarts` has started this process anew, after one that failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, of which this rank may hold a shard. All ranks take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


ALONE = Ranks()


def _whole(name: str, default: int) -> int:
    """A whole number from the environment, where an empty text is none."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(f"{name} in the environment is {text[:40]!r}, which is no whole number: unset it")
    return int(text)
