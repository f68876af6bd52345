"""The training loop: updates of all players, accumulation, clipping, AdamW, warm-up, EMA, exact resume.

It knows no objective and no terminal.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfpp_cli.core import checkpoint
from sfpp_cli.core.objective import Objective, Player, Update
from sfpp_cli.core.parallel import ALONE, Ranks, full_tensor
from sfpp_cli.errors import UserError


@dataclass(frozen=True)
class Training:
    """How to train, whatever the objective. The defaults are arXiv 2510.02283's, section 4, if it has one."""

    steps: int
    batch: int = 8
    micro_batch: int | None = None
    """Samples a rank runs at once; their gradients accumulate. All of its share if None."""
    lr: float = 2e-6
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.01
    warmup: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    clip: float = 10.0
    ema: float = 0.99
    ema_start: int = 200
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of arithmetic, by autocast; auto is bfloat16 on CUDA, else float32. Weights are always float32."""
    parallel: Literal["shard", "replicate"] = "shard"
    """Over several ranks: FSDP2, or whole models on every rank, which is faster for small ones."""
    gradient_checkpointing: bool = False
    compile: bool = False
    offload: bool = False
    """Keep the EMA, and the optimiser of whichever player is not learning, in main memory."""
    save_every: int = 500
    keep: int = 2
    """How many of the newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 keeps no more."""

    def __post_init__(self) -> None:
        least = {
            "steps": 1,
            "batch": 1,
            "warmup": 0,
            "ema_start": 0,
            "save_every": 1,
            "keep": 1,
            "keep_every": 0,
        }
        problems = [
            f"'{name}' must be {low} or more, not {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        problems += [
            f"'{name}' must be above 0, not {getattr(self, name)}"
            for name in ("lr", "clip")
            if not getattr(self, name) > 0
        ]
        if self.micro_batch is not None and self.micro_batch < 1:
            problems.append(f"'micro_batch' must be 1 or more, not {self.micro_batch}")
        if not 0 <= self.ema < 1:
            problems.append(f"'ema' must lie in [0, 1), not {self.ema}")
        if problems:
            raise ValueError("; ".join(problems))

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of arithmetic on `device`.

        Autocast must not keep its casts: one made while gradients are off would be found again when they are
        on, without gradient.
        """
        lower = device.type == "cuda" if self.precision == "auto" else self.precision == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16, enabled=lower, cache_enabled=False)

    def lr_scale(self, step: int) -> float:
        """Factor of the learning rate at 0-based `step`: a linear warm-up, then 1 or a cosine to 0.01."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        if self.decay == "constant":
            return warm
        progress = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return warm * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


class Trainer:
    """Runs an objective to `training.steps`, from the newest checkpoint in `run` if there is one.

    A resumed run equals an uninterrupted one bitwise, and two ranks follow one, since all randomness is a
    function of sample numbers.
    """

    def __init__(
        self,
        objective: Objective,
        training: Training,
        run: Path,
        ranks: Ranks = ALONE,
        on_step: Callable[[dict[str, float]], None] = lambda record: None,
        watch_step: Callable[[dict[str, float]], dict[str, float]] = lambda record: {},
        on_save: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Checkpoints and metrics go to the folder `run`.

        After every step `watch_step`, on every rank, is given its record and answers what to add to it;
        `on_step` is given the record as it is logged. `on_save` is given the folder of a checkpoint that is
        about to be complete, and may add files.

        Models are copied and sharded here, so compile them, or enable checkpointing, afterwards: a compiled
        block's functions are bound to that block, and its copy would go on using the original's.
        """
        if training.batch % ranks.world:
            raise UserError(
                f"batch {training.batch} cannot be shared out evenly over {ranks.world} ranks: "
                "choose a multiple"
            )
        if training.offload and ranks.world > 1:
            raise UserError(
                "offload is for a single process: over several ranks the states are sharded, so leave it out"
            )
        self.objective = objective
        self.training = training
        self.folder = run
        self.ranks = ranks
        self.players = objective.players
        self.on_step = on_step
        self.watch_step = watch_step
        self.on_save = on_save
        self.step = 0
        """Finished steps."""
        self.models = {name: model for player in self.players for name, model in player.models.items()}
        self.skeletons = {name: _meta_copy(model) for name, model in self.models.items()}
        if training.parallel == "shard":
            for model in self.models.values():
                ranks.shard(model)
        self.optimizers = [self._optimizer(player) for player in self.players]
        self.ema: checkpoint.States | None = None

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        if self.ranks.first:
            self._forget_records()
        while self.step < self.training.steps:
            record = self.update()
            record |= self.watch_step(record)
            if self.ranks.first:
                with self._metrics.open("a") as log:
                    log.write(json.dumps(record) + "\n")
            if self.step % self.training.save_every == 0 or self.step == self.training.steps:
                self.save()
            self.on_step(record)

    def update(self) -> dict[str, float]:
        """One step: all updates of every player, in order. Returns its record."""
        began = time.perf_counter()
        record: dict[str, float] = {}
        for number, player in enumerate(self.players):
            prefix = f"{player.name}_" if player.name else ""
            records = [self._update_player(number, repeat) for repeat in range(player.updates)]
            record |= {prefix + name: fmean(each[name] for each in records) for name in records[0]}
        self.step += 1
        self._update_ema()
        return {"step": self.step, **record, "step_s": time.perf_counter() - began}

    def _update_player(self, number: int, repeat: int) -> dict[str, float]:
        """One optimiser update of a player; returns its metrics."""
        player = self.players[number]
        optimizer = self.optimizers[number]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = (player.lr or self.training.lr) * self.training.lr_scale(self.step)
        optimizer.zero_grad(set_to_none=True)
        metrics = self._accumulate(number, repeat)
        if self.training.parallel == "replicate":
            self.ranks.average(parameters)
        norm = full_tensor(nn.utils.clip_grad_norm_(parameters, self.training.clip)).item()
        record = self.ranks.mean(metrics) | {"grad_norm": norm}
        if not all(math.isfinite(value) for value in record.values()):
            who = f"{player.name} at " if player.name else ""
            raise UserError(
                f"{who}step {self.step + 1}: {record} is not finite; stopped before the update, "
                "the last checkpoint stands"
            )
        self._step(optimizer, parameters[0].device)
        return record

    def _step(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Step an optimiser on `device`; when offloading, its moments are there for that time only."""
        if self.training.offload:
            _move(optimizer, device)
        optimizer.step()
        if self.training.offload:
            _move(optimizer, torch.device("cpu"))

    def _accumulate(self, number: int, repeat: int) -> dict[str, float]:
        """Back-propagate the loss of this rank's samples, part by part; returns it and the mean metrics."""
        player = self.players[number]
        device = next(p.device for model in player.models.values() for p in model.parameters())
        first = self.step * self.training.batch
        mine = [first + i for i in self.ranks.share(self.training.batch)]
        size = self.training.micro_batch or len(mine)
        total = 0.0
        logged = defaultdict(list)
        for start in range(0, len(mine), size):
            part = tuple(mine[start : start + size])
            with self.training.autocast(device):
                loss, metrics = player.loss(Update(self.step, number, repeat, part))
            loss = loss * (len(part) / len(mine))
            loss.backward()
            total += loss.item()
            for name, value in metrics.items():
                logged[name].append(value)
        return {"loss": total, **{name: fmean(values) for name, values in logged.items()}}

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Move the exponential moving average of the weights; it begins as a copy at step `ema_start`."""
        if self.step < self.training.ema_start:
            return
        if self.ema is None:
            self.ema = self._copies()
        for name, averages in self.ema.items():
            for key, value in self.models[name].state_dict().items():
                averages[key].lerp_(value.to(averages[key].device), 1 - self.training.ema)

    def _copies(self) -> checkpoint.States:
        """Copies of the weights that have an EMA, where it is kept."""
        names = [name for player in self.players if player.has_ema for name in player.models]
        return {
            name: {key: self._to_host(value) for key, value in self.models[name].state_dict().items()}
            for name in names
        }

    def save(self) -> Path:
        """Write a checkpoint of everything, with the models and their EMA as folders of their own format."""
        t = self.training
        return checkpoint.save(
            self.folder,
            self.step,
            self._state(),
            self.skeletons,
            self.ranks,
            keep=t.keep,
            keep_every=t.keep_every,
            on_save=self.on_save,
        )

    def resume(self) -> None:
        """Continue from the newest checkpoint, or start at step 0."""
        steps = checkpoint.saved_steps(self.folder)
        if not steps:
            return
        self.step = steps[-1]
        if checkpoint.has_ema(self.folder, self.step):
            self.ema = self._copies()
        checkpoint.load(self.folder, self.step, self._state(), self.ranks)
        if self.training.offload:
            for optimizer in self.optimizers:
                _move(optimizer, torch.device("cpu"))

    def _state(self) -> checkpoint.State:
        learners = [
            (player.models, optimizer)
            for player, optimizer in zip(self.players, self.optimizers, strict=True)
        ]
        return checkpoint.State(learners, self.ema)

    def _optimizer(self, player: Player) -> torch.optim.AdamW:
        parameters = [p for model in player.models.values() for p in model.parameters() if p.requires_grad]
        t = self.training
        return torch.optim.AdamW(parameters, lr=player.lr or t.lr, betas=t.betas, weight_decay=t.weight_decay)

    def _to_host(self, tensor: Tensor) -> Tensor:
        """A copy, in main memory when offloading."""
        copied = tensor.detach().clone()
        return copied.cpu() if self.training.offload else copied

    def _forget_records(self) -> None:
        """Drop the records of steps after the checkpoint: their updates are lost, and will be made again."""
        lines = self._metrics.read_text().splitlines(keepends=True) if self._metrics.exists() else []
        whole_lines = [line for line in lines if line.endswith("\n")]
        self._metrics.write_text(
            "".join(line for line in whole_lines if json.loads(line)["step"] <= self.step)
        )

    @property
    def _metrics(self) -> Path:
        """One JSON object a step."""
        return self.folder / "metrics.jsonl"


def _move(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    for state in optimizer.state.values():
        state.update({key: value.to(device) for key, value in state.items() if value.ndim})


def _meta_copy(model: nn.Module) -> nn.Module:
    """The model on the meta device, to write weights from anywhere in its format.

    deepcopy takes what `memo` holds as copied already, so parameters are replaced instead of being copied:
    the weights are never in memory twice.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)
