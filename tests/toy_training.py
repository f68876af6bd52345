"""A run of toy size: a plane is fitted to noise, in milliseconds, by the training loop as it is.

No model library is imported here: ranks that start as fresh processes should not wait for one.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from sfpp_cli.core import checkpoint
from sfpp_cli.core.noise import normal, seeded
from sfpp_cli.core.objective import Loss, Player, Update
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training

TRAINING = Training(
    steps=12, batch=4, lr=1e-2, warmup=3, decay="cosine", clip=1.0, ema=0.9, ema_start=5, save_every=4
)


class Toy(nn.Module):
    """A model that can be saved, without a library."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.inner, self.outer = nn.Linear(2, width), nn.Linear(width, 1)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(parameter.shape, seeded(number)))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.outer(self.inner(x).tanh())
        return answer

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        torch.save({"width": self.width, "state": self.state_dict()}, folder / "toy.pt")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Toy:
        saved = torch.load(folder / "toy.pt", map_location="cpu")
        toy = cls(saved["width"])
        toy.load_state_dict(saved["state"])
        return toy


class Regression:
    """Fit a plane to noise; notes the samples it was asked for.

    `broken` samples turn a figure, or the loss, to NaN.
    """

    def __init__(self, width: int = 3, broken: Mapping[int, str] | None = None, device: str = "cpu") -> None:
        self.toy = Toy(width).to(device)
        self.players = (Player({"toy": self.toy}, self.loss),)
        self.broken = broken or {}
        self.device = device
        self.asked: list[int] = []

    def loss(self, update: Update) -> Loss:
        self.asked += update.samples
        x = torch.stack([normal((3,), seeded(number)) for number in update.samples]).to(self.device)
        loss = (self.toy(x[:, :2]) - 5 * x[:, 2:]).square().mean()
        figures = {"first": x[:, 0].mean().item()}
        for figure in (self.broken[number] for number in update.samples if number in self.broken):
            if figure == "loss":
                loss = loss * math.nan
            else:
                figures[figure] = math.nan
        return loss, figures


def train(run: Path, training: Training = TRAINING, stop: int | None = None, **toy: Any) -> Trainer:
    """Train to the end, or until the terminal is closed behind step `stop`."""

    def on_step(record: dict[str, float]) -> None:
        if record["step"] == stop:
            raise KeyboardInterrupt

    trainer = Trainer(Regression(**toy), training, run, on_step=on_step)
    if stop is None:
        trainer.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    return trainer


def contents(run: Path, step: int) -> dict[str, Any]:
    """Everything in a checkpoint."""
    folder = checkpoint.path_of(run, step)
    models = {name: Toy.from_pretrained(folder / name).state_dict() for name in ("toy", "toy-ema")}
    with tempfile.NamedTemporaryFile() as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp_to_torch_save(folder / checkpoint.STATE, file.name)
        return {**torch.load(file.name), **models}


def metrics(run: Path) -> list[dict[str, float]]:
    """What was logged, without the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [untimed(record) for record in records]


def untimed(record: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key != "time" and not key.endswith("_s")}


def assert_equal(ours: Any, theirs: Any) -> None:
    """Bitwise, through dictionaries and lists."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def flip_bit(file: Path, place: int | None = None) -> None:
    """Change a bit of a file: of the byte at `place`, or in its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    file.write_bytes(content)
