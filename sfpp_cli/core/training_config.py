"""How to train, whatever the objective: optimiser, batches, averages, precision, checkpoints."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.errors import UserError
from sfpp_cli.schema import STRICT, AtOnce, Count, Number, Rate, Weight

Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class Training:
    """How to train, whatever the objective.

    Defaults are the paper's where it gives one (arXiv 2510.02283, section 4).
    """

    steps: Count
    """Training steps; each is one update of the student, or of whatever else the recipe trains."""
    batch: AtOnce = 8
    """Samples of a step, over all ranks."""
    micro_batch: Count | None = None
    """Samples that a rank runs at once; gradients accumulate. All of its share if not given."""
    lr: Rate = 2e-6
    """Learning rate of AdamW."""
    betas: tuple[Decay, Decay] = (0.0, 0.999)
    """AdamW's decay of the first and second moments."""
    weight_decay: Weight = 0.01
    """AdamW's weight decay."""
    warmup: Number = 0
    """Steps over which the learning rate rises from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """The learning rate after the warm-up: as it is, or falling by a cosine to a hundredth."""
    clip: Annotated[float, Field(gt=0, le=1e30)] = 10.0
    """Largest norm of an update's gradient; longer ones are scaled down to it."""
    ema: Decay = 0.99
    """Decay of the moving average of the weights, per step."""
    ema_start: Number = 40
    """Step at which the moving average begins: Self-Forcing's 200th update of the critic."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of arithmetic, by autocast; auto is bfloat16 on CUDA, else float32. Weights are always float32."""
    parallel: Literal["shard", "replicate"] = "shard"
    """Over several ranks: shards by FSDP2, or whole models on every rank, which is faster for small ones."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, a third more time."""
    compile: bool = False
    """Compile the transformer blocks: slow first steps, faster ones after them."""
    timeout: Annotated[float, Field(gt=0, le=10_080)] = 30.0
    """Minutes that ranks wait for one another before they give a missing one up."""
    offload: bool = False
    """Keep the moving average, and the optimiser's moments between its updates, in main memory."""
    save_every: Count = 500
    """Steps between two checkpoints."""
    saving: Literal["auto", "background", "waiting"] = "auto"
    """Write checkpoints while training goes on, from a copy in main memory, or let training wait.

    auto is background on CUDA.
    """
    keep: Count = 2
    """How many of the newest checkpoints to keep."""
    keep_every: Number = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 keeps none."""

    def check(self, ranks: Ranks) -> None:
        """UserError if these ranks cannot train so."""
        if self.batch % ranks.world:
            raise UserError(
                f"batch {self.batch} cannot be shared out evenly over {ranks.world} ranks: choose a multiple"
            )
        if self.offload and ranks.world > 1:
            raise UserError(
                "offload is for a single process: over several ranks the states are sharded, so leave it out"
            )

    def dtype(self, device: torch.device) -> torch.dtype:
        """The precision of arithmetic on `device`."""
        lower = device.type == "cuda" if self.precision == "auto" else self.precision == "bfloat16"
        return torch.bfloat16 if lower else torch.float32

    def saves_in_background(self, device: torch.device) -> bool:
        """Whether steps on `device` go on while a checkpoint is written."""
        return device.type == "cuda" if self.saving == "auto" else self.saving == "background"

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of arithmetic on `device`.

        Autocast must not keep its casts: one made while gradients are off would be found again when they are
        on, without gradient.
        """
        lower = self.dtype(device) == torch.bfloat16
        return torch.autocast(device.type, torch.bfloat16, enabled=lower, cache_enabled=False)

    def lr_scale(self, step: int) -> float:
        """Factor of the learning rate at 0-based `step`: a linear warm-up, then 1 or a cosine to 0.01."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        if self.decay == "constant":
            return warm
        progress = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return warm * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
