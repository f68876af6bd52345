"""What the stages of the road share: sizes, time budgets, states that survive a kill, contact sheets."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from PIL import Image
from torch import Tensor

SAVE_EVERY = 60.0
"""Seconds between two states of a stage."""
CAREFUL = "careful"
"""A file of that name says that something failed."""
VAE_SEED, TEACHER_SEED, JUDGE_SEED = range(3)
"""Of the world: what one stage is judged on, no stage has seen."""


@dataclass(frozen=True)
class Scale:
    """How large everything is. Batches are of what one step sees."""

    size: tuple[int, int]
    """Video height and width in pixels."""
    pictures: int
    """Single pictures a step of the VAE's first phase."""
    streams: int
    """Streams that one step of the VAE's second phase walks on."""
    groups: int
    """Batches of streams that are walked in turn, each at another place of its streams."""
    pool: int
    """Streams that are kept rendered."""
    length: int
    """Video frames of a stream, 1 + a multiple of 8."""
    render: int
    """Streams rendered at once."""
    encode: int
    """Clips encoded, and scenes judged, at once."""
    clips: int
    """Clips that the teacher learns from."""
    curriculum: tuple[tuple[int, int, float], ...]
    """The teacher's phases: latent frames, batch, share of the time."""
    pairs: int
    pair_batch: int
    student_batch: int
    match_batch: int
    """Rollouts a step of Self-Forcing."""
    judged: int
    """Clips and scenes that gates look at."""
    judged_frames: int
    """Video frames of the VAE's gate, 1 + a multiple of 16."""


SCALES = {
    "gpu": Scale(
        size=(96, 160),
        pictures=192,
        streams=24,
        groups=6,
        pool=384,
        length=161,
        render=16,
        encode=64,
        clips=2560,
        curriculum=((1, 512, 0.15), (5, 192, 0.3), (21, 64, 0.55)),
        pairs=1024,
        pair_batch=128,
        student_batch=32,
        match_batch=32,
        judged=48,
        judged_frames=481,
    ),
    "cpu": Scale(
        size=(64, 112),
        pictures=12,
        streams=4,
        groups=6,
        pool=48,
        length=161,
        render=4,
        encode=4,
        clips=3072,
        curriculum=((1, 96, 0.05), (5, 32, 0.13), (21, 16, 0.82)),
        pairs=256,
        pair_batch=8,
        student_batch=8,
        match_batch=8,
        judged=32,
        judged_frames=481,
    ),
    "quick": Scale(
        size=(32, 48),
        pictures=4,
        streams=2,
        groups=2,
        pool=6,
        length=33,
        render=2,
        encode=2,
        clips=8,
        curriculum=((1, 8, 0.3), (5, 4, 0.3), (21, 2, 0.4)),
        pairs=4,
        pair_batch=2,
        student_batch=2,
        match_batch=2,
        judged=2,
        judged_frames=49,
    ),
}


@dataclass(frozen=True)
class Job:
    """One call of one stage."""

    work: Path
    """Folder of the whole road; every stage has its place in it."""
    scale: Scale
    device: torch.device
    seconds: float
    """The stage's budget in this call."""
    began: float
    """When the stage's process began, so that starting up counts as well."""

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def careful(self) -> bool:
        """A stage has failed before: no compiling and no choosing of kernels from then on."""
        return (self.work / CAREFUL).exists()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda)

    def say(self, text: str) -> None:
        """A line for the log and the terminal."""
        say(self.work, text)

    def gates(self, stage: str, report: dict[str, Any], gates: dict[str, bool]) -> None:
        """Write down what was measured, and say which gates it passes."""
        for text, passed in gates.items():
            self.say(f"{'pass' if passed else 'FAIL'}  {stage}: {text}")
        write_json(self.work / f"gate-{stage}.json", {**report, "gates": gates})

    def ready(self) -> None:
        """What every stage wants of torch."""
        torch.manual_seed(0)
        # A shape is a kernel of its own, and what cannot be compiled runs as it is.
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.suppress_errors = True
        if not self.cuda:
            torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
            return
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = not self.careful
        torch.backends.cudnn.benchmark_limit = 4
        # cuDNN's attention builds a plan for every new shape; flash is as fast at heads of 32 and needs none.
        torch.backends.cuda.enable_cudnn_sdp(False)


class Clock:
    """A stage's time, kept over its calls: what earlier ones have spent comes on top of this one's budget."""

    def __init__(self, job: Job, spent: float = 0.0) -> None:
        self.budget, self.before, self.began = spent + job.seconds, spent, job.began
        self.saved = time.monotonic()

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self.began

    @property
    def done(self) -> float:
        """0 at the beginning, 1 when the time is over."""
        return min(1.0, self.spent / self.budget) if self.budget > 0 else 1.0

    def time_to_save(self) -> bool:
        """Once every `SAVE_EVERY` seconds."""
        if time.monotonic() - self.saved < SAVE_EVERY:
            return False
        self.saved = time.monotonic()
        return True


class Speed:
    """Steps a second since it was last asked."""

    def __init__(self, steps: int = 0) -> None:
        self.steps, self.began = steps, time.monotonic()

    def ask(self, steps: int) -> float:
        now = time.monotonic()
        speed = (steps - self.steps) / max(1e-9, now - self.began)
        self.steps, self.began = steps, now
        return speed


def say(work: Path, text: str) -> None:
    line = f"{time.strftime('%H:%M:%S')} {text}"
    print(line, flush=True)
    with (work / "log.txt").open("a", encoding="utf-8") as log:
        log.write(line + "\n")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.rename(path)


def load_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """A folder that is never seen half-written: `fill` writes it under another name."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def sheet(rows: Sequence[Sequence[Tensor]], path: Path, zoom: int = 2) -> None:
    """A picture of pictures [3, H, W] in [-1, 1], row by row."""
    lines = [torch.cat([cell.float().cpu() for cell in row], dim=2) for row in rows]
    page = ((torch.cat(lines, dim=1) + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous()
    image = Image.fromarray(page.numpy())
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.LANCZOS).save(path)


def job_of(description: str | None) -> Job:
    """A stage's command line, for running it by itself."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the whole road")
    parser.add_argument("--device", help="cuda or cpu; the best there is by default")
    parser.add_argument("--scale", choices=SCALES, help="gpu on CUDA, cpu elsewhere, if not given")
    parser.add_argument("--minutes", type=float, required=True, help="the stage's budget in this call")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    scale = options.scale or ("gpu" if options.device.startswith("cuda") else "cpu")
    job = Job(options.work, SCALES[scale], torch.device(options.device), 60 * options.minutes, began)
    job.ready()
    return job
