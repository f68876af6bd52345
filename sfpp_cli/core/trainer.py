"""The training loop: steps, clipping, AdamW, warm-up, EMA, exact resume. It knows neither the objective nor a terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sfpp_cli.core import checkpoint
from sfpp_cli.core.parallel import ALONE, Ranks
from sfpp_cli.errors import UserError


@dataclass(frozen=True)
class Training:
    """How to train, whatever the objective. Defaults are the paper's where it gives one (arXiv 2510.02283, section 4)."""

    steps: int
    batch: int = 8
    lr: float = 2e-6
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.01
    warmup: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    clip: float = 10.0
    ema: float = 0.99
    ema_start: int = 200
    compile: bool = False
    save_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "warmup": 0, "ema_start": 0, "save_every": 1, "keep": 1}
        problems = [
            f"'{name}' must be {low} or more, not {getattr(self, name)}" for name, low in least.items() if getattr(self, name) < low
        ]
        problems += [
            f"'{name}' must be above 0, not {getattr(self, name)}" for name in ("lr", "clip") if not getattr(self, name) > 0
        ]
        if not 0 <= self.ema < 1:
            problems.append(f"'ema' must lie in [0, 1), not {self.ema}")
        if problems:
            raise ValueError("; ".join(problems))

    def learning_rate(self, step: int) -> float:
        """The rate of 0-based `step`: linear warm-up, then constant or a cosine to a hundredth."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        if self.decay == "constant":
            return self.lr * warm
        progress = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


class Objective(Protocol):
    """What is trained and by which loss."""

    models: Mapping[str, nn.Module]
    """Trainable models by the name they are saved under."""

    def loss(self, samples: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of the samples with these numbers, and figures to log. All randomness is a function of the numbers."""


class Trainer:
    """Runs an objective to `training.steps`, from the newest checkpoint in `run` if there is one.

    Sample number `step * batch + i` is the same sample whatever the ranks, so a resumed run equals an uninterrupted one bitwise and
    two ranks follow one.
    """

    def __init__(
        self,
        objective: Objective,
        training: Training,
        run: Path,
        ranks: Ranks = ALONE,
        on_step: Callable[[dict[str, float]], None] = lambda record: None,
    ) -> None:
        if training.batch % ranks.world:
            raise UserError(f"batch {training.batch} cannot be shared out evenly over {ranks.world} ranks: choose a multiple")
        self.objective, self.training, self.folder, self.ranks, self.on_step = objective, training, run, ranks, on_step
        self.step = 0
        self.parameters = [p for model in objective.models.values() for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.lr, betas=training.betas, weight_decay=training.weight_decay
        )
        self.average: checkpoint.Average | None = None

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        if self.ranks.first:
            self._forget_records()
        while self.step < self.training.steps:
            record = self.update()
            if self.ranks.first:
                with self._metrics.open("a") as log:
                    log.write(json.dumps(record) + "\n")
                if self.step % self.training.save_every == 0 or self.step == self.training.steps:
                    self.save()
            self.on_step(record)

    def update(self) -> dict[str, float]:
        """One optimiser step; returns its record."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        first = self.step * self.training.batch
        loss, figures = self.objective.loss([first + i for i in self.ranks.share(self.training.batch)])
        loss.backward()
        self.ranks.average(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.training.clip)
        record = self.ranks.mean({"loss": loss.item(), "grad_norm": norm.item(), **figures})
        if not all(math.isfinite(value) for value in record.values()):
            raise UserError(f"step {self.step + 1}: {record} is not finite; stopped before the update, the last checkpoint stands")
        self.optimizer.step()
        self.step += 1
        self._follow()
        return {"step": self.step, **record, "step_s": time.perf_counter() - began}

    @torch.no_grad()
    def _follow(self) -> None:
        """The exponential moving average of the weights, from `ema_start` on."""
        if self.step < self.training.ema_start:
            return
        if self.average is None:
            self.average = {name: _copy(model.state_dict()) for name, model in self.objective.models.items()}
        for name, model in self.objective.models.items():
            for key, value in model.state_dict().items():
                self.average[name][key].lerp_(value, 1 - self.training.ema)

    def save(self) -> Path:
        """A checkpoint of everything; the models and their averages are folders that can be loaded as they are."""
        models: dict[str, Any] = dict(self.objective.models)
        state = {"step": self.step, "optimizer": self.optimizer.state_dict()}
        return checkpoint.save(self.folder, self.step, models, self.average, state, self.training.keep)

    def resume(self) -> None:
        """Continue from the newest checkpoint, or start at step 0."""
        steps = checkpoint.saved_steps(self.folder)
        if not steps:
            return
        folder = checkpoint.path_of(self.folder, steps[-1])
        state = checkpoint.load_state(self.folder, steps[-1])
        for name, model in self.objective.models.items():
            saved = type(model).from_pretrained(folder / name).state_dict()  # type: ignore[attr-defined]
            if not checkpoint.same_weights(model.state_dict(), saved):
                raise UserError(
                    f"{folder / name} is not this recipe's model: resume with the recipe that wrote it, or choose another --out"
                )
            model.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.average = state["step"], state["average"]
        for name, average in (self.average or {}).items():
            place = self.objective.models[name].state_dict()
            self.average[name] = {key: value.to(place[key].device) for key, value in average.items()}

    def _forget_records(self) -> None:
        """Drop the records of steps behind the checkpoint: their updates are lost, and they will be written again."""
        lines = self._metrics.read_text().splitlines(keepends=True) if self._metrics.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        self._metrics.write_text("".join(line for line in whole if json.loads(line)["step"] <= self.step))

    @property
    def _metrics(self) -> Path:
        """One JSON object a step."""
        return self.folder / "metrics.jsonl"


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
