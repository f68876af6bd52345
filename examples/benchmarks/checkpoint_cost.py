"""What a checkpoint costs a run: the step that begins it, and all steps, waiting for it or in the background.

    python examples/benchmarks/checkpoint_cost.py [--millions 50] [--steps 12] [--out FOLDER]

A stack of linear layers with as many parameters as asked is trained with AdamW and EMA; every third step is
saved. Prints seconds a step without a checkpoint, seconds that a checkpoint adds to its step, and to the run.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import nn

from sfpp_cli.core.noise import normal, seeded
from sfpp_cli.core.objective import Loss, Player, Update
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training

WIDTH = 1024
EVERY = 3


class Stack(nn.Sequential):
    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file(self.state_dict(), folder / "model.safetensors")


class Objective:
    """A regression whose cost is the passes through the layers."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self.device = device
        self.model = Stack(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers))).to(device)
        self.players = (Player({"model": self.model}, self.loss),)

    def loss(self, update: Update) -> Loss:
        x = torch.stack([normal((256, WIDTH), seeded(number)) for number in update.samples]).to(self.device)
        return (self.model(x) - x).square().mean(), {}


def measure(
    saving: str, layers: int, steps: int, device: torch.device, folder: Path
) -> tuple[float, float, float]:
    """Seconds of a usual step, of a step that saves, and of the run."""
    training = Training(steps=steps, batch=2, ema_start=0, save_every=EVERY, keep=1, saving=saving)  # type: ignore[arg-type]
    marks = []
    trainer = Trainer(
        Objective(layers, device), training, folder, on_step=lambda _: marks.append(time.perf_counter())
    )
    began = time.perf_counter()
    trainer.run()
    whole = time.perf_counter() - began
    spent = [after - before for before, after in pairwise(marks)]
    saves = [spent[i] for i in range(len(spent)) if (i + 2) % EVERY == 0]
    others = [spent[i] for i in range(len(spent)) if (i + 2) % EVERY]
    return median(others), median(saves), whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, default=50, help="parameters")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=None, help="where checkpoints go, and are deleted")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers = max(1, options.millions * 1_000_000 // WIDTH**2)
    size = layers * WIDTH**2 / 1e6
    print(f"{size:.0f} M parameters on {device}, {options.steps} steps, a checkpoint every {EVERY}")
    for saving in ("waiting", "background", "waiting", "background"):
        folder = Path(tempfile.mkdtemp(dir=options.out))
        usual, saved, whole = measure(saving, layers, options.steps, device, folder)
        shutil.rmtree(folder)
        print(
            f"{saving:<11} step {usual:6.2f} s, one that saves {saved:6.2f} s (+{saved - usual:.2f}), "
            f"run {whole:7.1f} s"
        )


if __name__ == "__main__":
    main()
