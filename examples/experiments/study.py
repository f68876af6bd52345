"""What the experiments share: students trained once, videos made once, measured once.

A *system* is what makes videos: `pp@50` is the student `pp` after 50 updates, `ode` the one from which all
others start, `teacher` the bidirectional teacher (5 s clips only) and `world` the toy world itself.
Everything lies in one folder and is made only if it is not there yet, so an interrupted study goes on where
it was.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.geometry import round_up
from sfpp_cli.core.noise import VideoNoise, mixed, normal, seeded
from sfpp_cli.core.ode import trajectory
from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.data.toyworld.reader import judge_videos, speed
from sfpp_cli.data.toyworld.world import FPS, MOTIONS, Scenes, ToyWorld
from sfpp_cli.evaluation import Parameters, measure
from sfpp_cli.files import atomic_write
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.models.vae import StreamingDecoder, to_uint8
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.writer import VideoWriter

HERE = Path(__file__).parent
MODEL = "toyworld"
ODE = HERE.parent.parent / "weights" / MODEL / "students" / "ode"
CPU = torch.device("cpu")

WINDOW = 5
"""Seconds judged together: the teacher's horizon. A window is named by the second at which it ends."""
ENDS = (5, 10, 15, 25, 35, 50, 75, 100)
WORLD_SEED = 2
"""Of the scenes that no model was trained on."""
TEACHER_GUIDANCE, TEACHER_STEPS = 2.0, 48
"""As the ODE pairs were sampled."""
BATCH = 8
"""Videos made together."""


@dataclass(frozen=True)
class Student:
    """A recipe of ../toyworld, and what is changed of it."""

    recipe: str
    changes: tuple[str, ...] = ()


STUDENTS = {
    "sf": Student("self-forcing"),
    "sf-last": Student("self-forcing", ("dmd.gradient_step=last",)),
    "sf-9": Student("self-forcing", ("context=9",)),
    "sf-15": Student("self-forcing", ("context=15",)),
    "pp": Student("self-forcing-pp"),
    "pp-random": Student("self-forcing-pp", ("dmd.noise_init=random",)),
    "pp-beta": Student("self-forcing-pp", ('dmd.window="beta(1,2)"',)),
    "pp-uniform": Student("self-forcing-pp", ("dmd.gradient_step=uniform",)),
    "pp-10s": Student("self-forcing-pp", ("dmd.frames=42",)),
    "pp-9": Student("self-forcing-pp", ("context=9",)),
    "pp-15": Student("self-forcing-pp", ("context=15",)),
}
"""All learn on `train_prompts.txt`, from the same start, seed and order of samples."""


@dataclass(frozen=True)
class Scale:
    """How large the study is. The quick one only shows that every step works."""

    prompts: int = 24
    seeds: int = 3
    shorten: int = 1
    """Seconds of video and updates of training are divided by this."""
    changes: tuple[str, ...] = ()


FULL = Scale()
QUICK = Scale(
    prompts=2,
    seeds=1,
    shorten=5,
    changes=("training.batch=2", "training.save_every=1", "training.keep_every=1", "training.ema_start=1"),
)
QUICK_UPDATES = 25
"""The quick study learns for one update where the full one learns for so many."""


class Study:
    """One folder of students, videos and measurements."""

    def __init__(self, out: Path, scale: Scale = FULL) -> None:
        self.out, self.scale = out, scale
        self.prompts = [line.prompt for line in read_prompts(HERE / "test_prompts.txt")][: scale.prompts]
        self.seeds = range(scale.seeds)

    @property
    def quick(self) -> bool:
        return self.scale.shorten > 1

    def seconds(self, full: float) -> float:
        return max(WINDOW, full / self.scale.shorten)

    def updates(self, full: int) -> int:
        return max(1, full // QUICK_UPDATES) if self.quick else full

    # --- students

    def student(self, system: str) -> Path:
        """The folder of a system's averaged weights, trained as far as needed."""
        if system == "ode":
            return ODE
        name, _, updates = system.partition("@")
        run, step = self.out / "students" / name, self.updates(int(updates))
        folder = run / f"step-{step:06d}" / "student-ema"
        if not folder.exists():
            self._train(name, run, step)
        return folder

    def _train(self, name: str, run: Path, step: int) -> None:
        """Runs are at a constant learning rate, so a longer one may go on from a shorter one."""
        chosen = STUDENTS[name]
        changes = [*chosen.changes, *self.scale.changes, f"training.steps={step}"]
        if self.quick and name.startswith("pp"):
            changes.append("dmd.frames=42")
        recipe = HERE.parent / "toyworld" / f"{chosen.recipe}.toml"
        command = [sys.executable, "-m", "sfpp_cli", "train", str(recipe), "--out", str(run)]
        command += [word for change in changes for word in ("--set", change)]
        command += ["--resume"] if any(run.glob("step-*")) else []
        print(*command, flush=True)
        subprocess.run(command, check=True, cwd=HERE.parent.parent)

    # --- videos

    def video(self, system: str, prompt: str, seed: int) -> Path:
        return self.out / "videos" / system / f"{self.prompts.index(prompt):02d}-{seed}.mp4"

    def make_videos(self, system: str, seconds: float) -> None:
        """Every prompt and seed, in batches; what is there already stays."""
        wanted = [(seed, prompt) for seed, prompt in product(self.seeds, self.prompts)]
        missing = [(prompt, seed) for seed, prompt in wanted if not self.video(system, prompt, seed).exists()]
        if not missing:
            return
        size = self.bundle.settings.width, self.bundle.settings.height
        source = self._source(system, seconds)
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            print(f"{system}: videos {start + 1} to {start + len(batch)} of {len(missing)}", flush=True)
            with ExitStack() as stack:
                writers = [
                    stack.enter_context(VideoWriter(self._place(system, *each), size, FPS)) for each in batch
                ]
                for frames in source(batch):
                    for writer, piece in zip(writers, to_uint8(frames).numpy(), strict=True):
                        writer.write(piece)

    def _place(self, system: str, prompt: str, seed: int) -> Path:
        path = self.video(system, prompt, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _source(self, system: str, seconds: float) -> Any:
        """(prompts and seeds) -> pieces of their videos, [B, T, 3, H, W] in [-1, 1]."""
        if system == "world":
            return self._world
        if system == "teacher":
            return self._sampled
        bundle = Bundle(MODEL, str(self.student(system)))
        student = bundle.load_student(CPU, torch.float32).eval()
        return lambda batch: self._rolled(bundle, student, batch, seconds)

    @torch.inference_mode()
    def _rolled(
        self, bundle: Bundle, student: Any, batch: Sequence[tuple[str, int]], seconds: float
    ) -> Iterator[Tensor]:
        """The rollout of `sfpp generate`, for several videos at once."""
        settings, decoder = bundle.settings, StreamingDecoder(self.vae)
        chunks = (
            round_up(bundle.compression.latent_frames(round(seconds * settings.fps)), settings.chunk)
            // settings.chunk
        )
        shape = (settings.chunk, *self.latent_shape)
        noise = VideoNoise([mixed(seed, self.prompts.index(prompt)) for prompt, seed in batch], shape)
        text = self.text([prompt for prompt, _ in batch])
        for latents in settings.sampler().rollout(student, noise.chunks(0, chunks), text, noise.draw):
            yield decoder(latents)

    @torch.inference_mode()
    def _sampled(self, batch: Sequence[tuple[str, int]]) -> Iterator[Tensor]:
        """The teacher's clips, as the ODE pairs were sampled."""
        settings, prompts = self.bundle.settings, [prompt for prompt, _ in batch]
        shape = (self.bundle.teacher_horizon, *self.latent_shape)
        noise = torch.stack(
            [normal(shape, seeded(seed, self.prompts.index(prompt))) for prompt, seed in batch]
        )
        path = trajectory(
            self.teacher,
            noise,
            self.text(prompts),
            self.text([""] * len(prompts)),
            schedule=FlowSchedule(settings.shift),
            steps=settings.steps,
            sampling_steps=TEACHER_STEPS,
            guidance=TEACHER_GUIDANCE,
        )
        yield StreamingDecoder(self.vae)(path[:, -1])

    def _world(self, batch: Sequence[tuple[str, int]]) -> Iterator[Tensor]:
        """Scenes with these captions, another one for each seed."""
        yield torch.cat(
            [self.scenes_of(prompt)[seed : seed + 1].frames(0, WINDOW * FPS) for prompt, seed in batch]
        )

    # --- measurements

    def rows(self, system: str, seconds: float = 50) -> list[dict[str, Any]]:
        """One for each video: prompt, seed, `metrics` (see `_measured`) and every second's optical flow."""
        seconds = WINDOW if system in ("teacher", "world") else self.seconds(seconds)
        found = []
        for prompt, seed in product(self.prompts, self.seeds):
            kept = self._kept(system, prompt, seed)
            if not kept.exists():
                self.make_videos(system, seconds)
                row = {
                    "system": system,
                    "prompt": prompt,
                    "seed": seed,
                    **self._measured(system, prompt, seed),
                }
                self._keep(system, prompt, seed, json.dumps(row))
            found.append(json.loads(kept.read_text()))
        return found

    def pack(self, path: Path) -> None:
        """All rows measured so far into one file, a line each."""
        rows = [file.read_text() for file in sorted(self.out.glob("measured/*/*.json"))]
        atomic_write(path, gzip.compress("".join(f"{row}\n" for row in rows).encode(), mtime=0))

    def unpack(self, path: Path) -> None:
        """The other way round: nothing of what is in the file will be measured again."""
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            row = json.loads(line)
            self._keep(row["system"], row["prompt"], row["seed"], line)

    def _kept(self, system: str, prompt: str, seed: int) -> Path:
        return self.out / "measured" / system / f"{self.prompts.index(prompt):02d}-{seed}.json"

    def _keep(self, system: str, prompt: str, seed: int, row: str) -> None:
        path = self._kept(system, prompt, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, row)

    def _measured(self, system: str, prompt: str, seed: int) -> dict[str, Any]:
        """`NAME@END` for the window that ends at second END: the world's truth, and means of `sfpp
        evaluate`'s curves.

        `fired_NAME`: whether that verdict fired on the whole video. `speed_ratio` is against the mean speed
        of the world's scenes of that motion, `good` what did not leave the world.
        """
        path = self.video(system, prompt, seed)
        local = measure(path, Parameters())
        frames = torch.from_numpy(np.stack(list(read_frames(path)))).permute(0, 3, 1, 2) / 127.5 - 1
        scene = self.scenes_of(prompt)[:1]
        metrics: dict[str, float | None] = {}
        for end in (end for end in ENDS if end <= round(len(frames) / FPS)):
            truth = judge_videos([frames[(end - WINDOW) * FPS : end * FPS]], scene)
            truth["good"] = 1 - truth["left"]
            truth["speed_ratio"] = truth["speed"] / self.world_speed[int(scene.motion)]
            curves = {name: over(curve, end - WINDOW, end) for name, curve in local["curves"].items()}
            metrics |= {f"{name}@{end}": value for name, value in (truth | curves).items()}
        whole = {
            name: local["metrics"][name] for name in ("local_stability", "norepeat", "flow_variance_max")
        }
        fired = {f"fired_{name}": float(verdict["fired"]) for name, verdict in local["verdicts"].items()}
        flow = local["curves"]["flow_mean"]
        return {
            "metrics": metrics | whole | fired,
            "flow": [over(flow, second, second + 1) for second in range(round(len(frames) / FPS))],
        }

    # --- what is loaded once

    @cached_property
    def bundle(self) -> Bundle:
        return Bundle(MODEL)

    @cached_property
    def vae(self) -> Any:
        return self.bundle.load_vae(CPU, torch.float32)

    @cached_property
    def teacher(self) -> Any:
        return self.bundle.load_teacher(CPU, torch.float32).eval()

    @cached_property
    def text(self) -> EmbeddedPrompts:
        return EmbeddedPrompts(self.bundle.load_text(CPU, torch.float32), ["", *self.prompts])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """A latent frame's [C, H, W]."""
        settings, compression = self.bundle.settings, self.bundle.compression
        return (
            self.bundle.transformer_config()["in_channels"],
            *compression.latent_size(settings.width, settings.height),
        )

    @cached_property
    def _scenes(self) -> tuple[Scenes, list[str]]:
        scenes = ToyWorld(WORLD_SEED).scenes(range(4000))
        return scenes, scenes.captions([0] * len(scenes))

    def scenes_of(self, prompt: str) -> Scenes:
        """The world's first scenes with this caption, one a seed."""
        _, captions = self._scenes
        places = [place for place, caption in enumerate(captions) if caption == prompt][: len(self.seeds)]
        return ToyWorld(WORLD_SEED).scenes(places)

    @cached_property
    def world_speed(self) -> list[float]:
        """Mean speed of the first 300 scenes, by motion, in frame widths a video frame."""
        scenes = self._scenes[0][:300]
        tracks = scenes.positions(torch.arange(WINDOW * FPS))
        speeds = torch.tensor([speed(*track.unbind(-1)) for track in tracks])
        return [float(speeds[scenes.motion == motion].mean()) for motion in range(len(MOTIONS))]


def over(curve: dict[str, list[float | None]], start: float, end: float) -> float | None:
    """The mean of a curve from second `start` to second `end`."""
    inside = [
        v
        for s, v in zip(curve["seconds"], curve["values"], strict=True)
        if s is not None and v is not None and start <= s < end
    ]
    return float(np.mean(inside)) if inside else None
