"""Several ranks that make every video together: the first leads and writes, the others pass with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.errors import UserError
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import Request
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.progress import Progress

_CPU = torch.device("cpu")


def check_split(name: str | None, ranks: Ranks) -> Ranks | None:
    """The ranks that make every video together; None unless they are to. UserError if they cannot."""
    if name is None:
        return None
    if name != "heads":
        raise UserError(f"--split {name}: it takes heads")
    if ranks.world == 1:
        raise UserError(
            "--split heads needs several processes: torchrun --nproc-per-node 2 -m sfpp_cli generate ..."
        )
    return ranks


def lead(request: Request, past: Iterable[Tensor], done: int) -> list[Tensor]:
    """Have all ranks continue this video after the `done` chunks of `past`, which is answered."""
    known = [chunk.cpu() for chunk in past]
    tell((request, known, done))
    return known


def tell(what: Any) -> None:
    """From the first rank to all others: the prompts, then video after video, then None."""
    dist.broadcast_object_list([what], src=0, device=_CPU)


def follow(bundle: Bundle, model: ModelOptions, progress: Progress) -> None:
    """What every rank but the first does, until that one is done."""
    prompts = _told()
    if prompts is None:
        return
    generator = Generator.load(bundle, model, prompts, progress)
    while (work := _told()) is not None:
        for _ in generator.made(generator.latents(*work)):
            pass


def _told() -> Any:
    heard = [None]
    dist.broadcast_object_list(heard, src=0, device=_CPU)
    return heard[0]
