"""The training loop: updates of all players, accumulation, clipping, AdamW, warm-up, EMA, exact resume.

It knows no objective and no terminal.
"""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfpp_cli.core import checkpoint
from sfpp_cli.core.adapter import learned, remove_adapters
from sfpp_cli.core.objective import Objective, Player, Update, merge_metric
from sfpp_cli.core.parallel import ALONE, Ranks, full_tensor
from sfpp_cli.core.training_config import Training
from sfpp_cli.errors import UserError
from sfpp_cli.files import atomic_write


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
        gauges: Callable[[dict[str, float]], dict[str, float]] = lambda record: {},
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        """Checkpoints and metrics go to the folder `run`.

        After every step `gauges`, on every rank, is given its record and answers what to add to it before it
        is logged; it may run the models. `on_step` is given the whole record once the step is saved, or
        being saved in the background. `warn` hears of damaged files that are passed over.

        Models are copied and sharded here, so compile them, or enable checkpointing, afterwards: a compiled
        block's functions are bound to that block, and its copy would go on using the original's.
        """
        training.check(ranks)
        self.objective = objective
        self.training = training
        self.folder = run
        self.ranks = ranks
        self.players = objective.players
        self.on_step = on_step
        self.gauges = gauges
        self.warn = warn
        self.step = 0
        """Finished steps."""
        self.models = {name: model for player in self.players for name, model in player.models.items()}
        self.skeletons = {name: _meta_copy(model) for name, model in self.models.items()}
        if training.parallel == "shard":
            for model in self.models.values():
                ranks.shard(model)
        self.optimizers = [self._optimizer(player) for player in self.players]
        self.ema: checkpoint.States | None = None
        self.saver = self._saver()

    def run(self) -> None:
        """Train. A checkpoint that is being written when something goes wrong is finished all the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.step:
            self.resume()
        if self.ranks.first:
            self.saver.prune()
            self._forget_records()
        try:
            while self.step < self.training.steps:
                self._step_and_save()
        except BaseException:
            with suppress(Exception):  # of what went wrong first, the reader should hear
                self.saver.settle()
            raise
        self.saver.finish()

    def _step_and_save(self) -> None:
        """A step, its record, and a checkpoint where one is due."""
        record = self.update()
        record |= self.gauges(record)
        if self.ranks.first:
            with self._metrics.open("a") as log:
                log.write(json.dumps({**record, "time": f"{datetime.now(UTC):%FT%TZ}"}) + "\n")
        if self.step % self.training.save_every == 0 or self.step == self.training.steps:
            self.saver.save(self.step, self._state())
        self.on_step(record)

    def update(self) -> dict[str, float]:
        """One step: all updates of every player, in order. Returns its record.

        Losses and metrics of objectives are means over the step. NAME_update_s are a player's seconds,
        `step_s` all; `samples` are those of this and all earlier steps.
        """
        began = time.perf_counter()
        record: dict[str, float] = {}
        for number, player in enumerate(self.players):
            prefix = f"{player.name}_" if player.name else ""
            player_began = time.perf_counter()
            if player.prepare is not None:
                self._prepare(number)
            records = [self._update_player(number, repeat) for repeat in range(player.updates)]
            record |= {
                prefix + name: merge_metric(name, [each[name] for each in records]) for name in records[0]
            }
            record[f"{prefix}lr"] = self._lr(player)
            record[f"{prefix}update_s"] = time.perf_counter() - player_began
        self.step += 1
        self._update_ema()
        seen = {"samples": self.step * self.training.batch, "step_s": time.perf_counter() - began}
        return {"step": self.step, **record, **seen}

    def _update_player(self, number: int, repeat: int) -> dict[str, float]:
        """One optimiser update of a player; returns its metrics."""
        player = self.players[number]
        optimizer = self.optimizers[number]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = self._lr(player)
        metrics = self._accumulate(number, repeat)
        if self.training.parallel == "replicate":
            self.ranks.average(parameters)
        norm = full_tensor(nn.utils.clip_grad_norm_(parameters, self.training.clip)).item()
        record = self._over_ranks(metrics) | {"grad_norm": norm}
        if not all(math.isfinite(value) for value in record.values()):
            who = f"{player.name} at " if player.name else ""
            raise UserError(
                f"{who}step {self.step + 1}: {record} is not finite; stopped before the update, "
                "the last checkpoint stands"
            )
        self._step(optimizer, parameters[0].device)
        optimizer.zero_grad(set_to_none=True)  # now: gradients should not lie about while others learn
        return record

    def _lr(self, player: Player) -> float:
        """A player's learning rate in this step."""
        return (player.lr or self.training.lr) * self.training.lr_scale(self.step)

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
        total = 0.0
        logged = defaultdict(list)
        share = self.training.batch // self.ranks.world
        for part in self._parts(number, repeat):
            with self.training.autocast(self._device(player)):
                loss, metrics = player.loss(part)
            loss = loss * (len(part.samples) / share)
            loss.backward()
            total += loss.item()
            for name, value in metrics.items():
                logged[name].append(value)
        return {"loss": total, **{name: merge_metric(name, values) for name, values in logged.items()}}

    def _parts(self, number: int, repeat: int) -> list[Update]:
        """A player's update as this rank makes it, part by part."""
        first = self.step * self.training.batch
        mine = [first + i for i in self.ranks.share(self.training.batch)]
        size = self.training.micro_batch or len(mine)
        starts = range(0, len(mine), size)
        return [Update(self.step, number, repeat, tuple(mine[start : start + size])) for start in starts]

    def _prepare(self, number: int) -> None:
        """What a player does before the first of its updates in this step."""
        player = self.players[number]
        assert player.prepare is not None
        with self.training.autocast(self._device(player)):
            player.prepare(self._parts(number, 0))

    def _device(self, player: Player) -> torch.device:
        return next(p.device for model in player.models.values() for p in model.parameters())

    def _over_ranks(self, metrics: dict[str, float]) -> dict[str, float]:
        """Figures of this rank merged with those of all others."""
        rows = self.ranks.gather(torch.tensor([list(metrics.values())], dtype=torch.float64))
        columns = rows.T.tolist()
        return {name: merge_metric(name, column) for name, column in zip(metrics, columns, strict=True)}

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Move the exponential moving average of the weights; it begins as a copy at step `ema_start`."""
        if self.step < self.training.ema_start:
            return
        if self.ema is None:
            self.ema = self._copies()
        for name, averages in self.ema.items():
            for key, value in learned(self.models[name]).items():
                averages[key].lerp_(value.to(averages[key].device), 1 - self.training.ema)

    def _copies(self) -> checkpoint.States:
        """Copies of the weights that have an EMA, where it is kept."""
        names = [name for player in self.players if player.has_ema for name in player.models]
        return {
            name: {key: self._to_host(value) for key, value in learned(self.models[name]).items()}
            for name in names
        }

    def save(self) -> Path:
        """Write a checkpoint of everything, with the models and their EMA as folders of their own format."""
        self.saver.save(self.step, self._state())
        self.saver.finish()
        return checkpoint.path_of(self.folder, self.step)

    def resume(self) -> None:
        """Continue from the newest checkpoint that is whole, or start at step 0."""
        step = checkpoint.newest(self.folder, self.ranks, self.warn)
        if step is None:
            return
        self.step = step
        if checkpoint.has_ema(self.folder, self.step):
            self.ema = self._copies()
        checkpoint.load(self.folder, self.step, self._state(), self.ranks)
        for optimizer in self.optimizers:  # a checkpoint brings the options of the recipe that wrote it
            for group in optimizer.param_groups:
                group.update(optimizer.defaults)
        if self.training.offload:
            for optimizer in self.optimizers:
                _move(optimizer, torch.device("cpu"))

    def _saver(self) -> checkpoint.Saver:
        t = self.training
        extras = {
            name: player.save_extra
            for player in self.players
            if player.save_extra is not None
            for name in player.models
        }
        device = self._device(self.players[0])
        return checkpoint.Saver(
            self.folder,
            self.skeletons,
            self.ranks,
            keep=t.keep,
            keep_every=t.keep_every,
            extras=extras,
            background=t.saves_in_background(device),
            timeout=t.timeout,
        )

    def _state(self) -> checkpoint.State:
        learners = [
            (player.models, optimizer)
            for player, optimizer in zip(self.players, self.optimizers, strict=True)
        ]
        return checkpoint.State(learners, self.ema)

    def _optimizer(self, player: Player) -> torch.optim.AdamW:
        parameters = [p for model in player.models.values() for p in model.parameters() if p.requires_grad]
        t = self.training
        return torch.optim.AdamW(
            parameters,
            lr=player.lr or t.lr,
            betas=t.betas,
            weight_decay=t.weight_decay,
            fused=parameters[0].device.type == "cuda",  # no temporary copy of all weights
        )

    def _to_host(self, tensor: Tensor) -> Tensor:
        """A copy, in main memory when offloading."""
        copied = tensor.detach().clone()
        return copied.cpu() if self.training.offload else copied

    def _forget_records(self) -> None:
        """Drop the records of steps after the checkpoint: their updates are lost, and will be made again.

        So are lines that are no record: a killed process, or a damaged disk, left them.
        """
        lines = self._metrics.read_bytes().splitlines(keepends=True) if self._metrics.exists() else []
        known = [line for line in lines if (_step_of(line) or math.inf) <= self.step]
        atomic_write(self._metrics, b"".join(known))

    @property
    def _metrics(self) -> Path:
        """One JSON object a step."""
        return self.folder / "metrics.jsonl"


def _step_of(line: bytes) -> int | None:
    """The step of a whole record, or None."""
    if not line.endswith(b"\n"):
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def _move(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    for state in optimizer.state.values():
        state.update({key: value.to(device) for key, value in state.items() if value.ndim})


def _meta_copy(model: nn.Module) -> nn.Module:
    """The model without adapters on the meta device, to write weights from anywhere in its format.

    deepcopy takes what `memo` holds as copied already, so parameters are replaced instead of being copied:
    the weights are never in memory twice.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    skeleton = copy.deepcopy(model, memo)
    remove_adapters(skeleton)
    return skeleton
