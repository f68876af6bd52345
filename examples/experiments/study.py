"""What the experiments share: students trained once, videos made once, measured once.

A *system* is what makes videos: an arm of `arms.py` after so many updates (`pp@40`), the `ode` student, the
`teacher` (5 s clips only), or the `world` itself. The model brings three of them (`ode`, `sf@320`, `pp@320`).
Everything lies in one folder and is made only if it is not there yet, so an interrupted study goes on where
it was.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import ARMS, BROUGHT, ROADS_OWN, SECONDS, TEACHERS, System
from torch import Tensor

from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.geometry import round_up
from sfpp_cli.core.noise import VideoNoise, mixed, normal, seeded
from sfpp_cli.core.ode import trajectory
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.data.landscape import FPS, Scenes, draw_scenes, parse_caption
from sfpp_cli.data.landscape.reader import judge_frames, read_video
from sfpp_cli.data.landscape.world import SPEED
from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.evaluation import Parameters, measure
from sfpp_cli.files import atomic_write
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.hub import resolve
from sfpp_cli.models.settings import SETTINGS, Settings
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.models.vae import StreamingDecoder, to_uint8
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.writer import VideoWriter

HERE = Path(__file__).parent
LANDSCAPE = HERE.parent / "landscape"
MODEL = "landscape"
CPU = torch.device("cpu")

WINDOW = 5
"""Seconds judged together: the teacher's horizon. A window is named by the second at which it ends."""
ENDS = (5, 10, 15, 25, 35, 50, 75, 100, 150, 200, 255)
WORLD_SEED = 4
"""Of the scenes that no model was trained on."""
TEACHER_STEPS = 48
"""As the ODE pairs were sampled."""
BATCH = 8
"""Videos made together."""
BAND_CLIPS = 24
"""Clips of the teacher that say what motion GRPO is to reward."""
KEPT = ("over", "under", "grey", "vivid", "hue_out", "stopped", "repeated", "lost", "in_world")
"""What is kept of every second, for the verdicts of `sfpp evaluate` to be held against."""


@dataclass(frozen=True)
class Scale:
    """How large the study is. The quick one only shows that every step works."""

    prompts: int = 32
    seeds: int = 1
    shorten: int = 1
    """Seconds of video and updates of training are divided by this."""


FULL = Scale()
QUICK = Scale(prompts=2, shorten=10)
QUICK_CHANGES = ("training.batch=2", "training.save_every=1", "training.ema_start=1")
QUICK_UPDATES = 40
"""The quick study learns for one update where the full one learns for so many."""


class Study:
    """One folder of students, videos and measurements."""

    def __init__(
        self,
        out: Path,
        scale: Scale = FULL,
        model: str = MODEL,
        road: Path | None = None,
        captions: str = "test",
    ) -> None:
        """`road` is the work folder of the landscape's road, whose students need not be trained again;
        `captions` names a file of the landscape's."""
        self.out, self.scale, self.model, self.road = out, scale, model, road
        self.prompts = [line.prompt for line in read_prompts(LANDSCAPE / f"{captions}.txt")][: scale.prompts]
        self.seeds = range(scale.seeds)

    @property
    def quick(self) -> bool:
        return self.scale.shorten > 1

    def seconds(self, system: str) -> float:
        """How long a system's videos are."""
        return self.shortened(SECONDS.get(system, 50))

    def shortened(self, seconds: float) -> float:
        return max(WINDOW, seconds / self.scale.shorten)

    def updates(self, full: int) -> int:
        return max(1, full // QUICK_UPDATES) if self.quick else full

    # --- students

    def student(self, system: str) -> Path:
        """The folder of a system's averaged weights, as float16: the road's, the model's, or trained
        as far as needed."""
        if system in BROUGHT and not self._on_road(system):
            return resolve(self.model) / BROUGHT[system]
        kept = self.out / "weights" / system
        if not (kept / SETTINGS).exists():
            trained = self._trained(System.of(system), self.run_of(system))
            CausalWanModel.from_pretrained(trained).half().save_pretrained(kept)
            shutil.copy(trained / SETTINGS, kept)
        return kept

    def run_of(self, system: str) -> Path:
        """The folder of checkpoints: the road's, where it has this system, or the study's own."""
        return self._on_road(system) or self.out / "students" / system.partition("@")[0]

    def _on_road(self, system: str) -> Path | None:
        name, of = system.partition("@")[0], System.of(system)
        if self.road and name in ROADS_OWN:
            run = self.road / "runs" / ROADS_OWN[name]
            if (run / f"step-{of.updates:06d}").exists():
                return run
        return None

    def _trained(self, system: System, run: Path) -> Path:
        """Runs are at a constant learning rate, so a longer one goes on from a shorter one."""
        step = self.updates(system.updates)
        folder = run / f"step-{step:06d}" / "student-ema"
        if folder.exists():
            return folder
        arm = ARMS[system.arm]
        changes = [
            f"model={resolve(self.model).absolute()}",
            f"student={self._start(arm.start, arm.sink).absolute()}",
            f"prompts={LANDSCAPE / 'prompts.txt'}",
            f"seed={system.seed}",
            f"training.steps={step}",
            "training.save_every=10",
            *arm.changes,
        ]
        if arm.recipe == "grpo":
            changes += [f"reward.{name}={value}" for name, value in self.band.items()]
        if self.quick:
            changes += QUICK_CHANGES
            changes += ["dmd.frames=42"] if arm.recipe == "self-forcing-pp" else []
            changes += ["grpo.group=2"] if arm.recipe == "grpo" else []
        words = ["--out", str(run), *(["--resume"] if any(run.glob("step-*")) else [])]
        self._sfpp_train(arm.recipe, changes, words)
        return folder

    def _start(self, system: str, sink: int) -> Path:
        """A student to begin with; with a sink, the same weights under other settings."""
        start = self.student(system)
        if not sink:
            return start
        folder = self.out / "starts" / f"{system}-sink{sink}"
        shutil.copytree(start, folder, dirs_exist_ok=True)
        settings = Settings.read(start / SETTINGS)
        settings.changed({"sink": sink, "sink_positions": "relative"}).write(folder / SETTINGS)
        return folder

    @cached_property
    def band(self) -> dict[str, float]:
        """What motion GRPO rewards: that of the teacher's clips."""
        kept = self.out / "band.toml"
        if not kept.exists():
            model = f"model={resolve(self.model).absolute()}"
            clips = str(2 if self.quick else BAND_CLIPS)
            atomic_write(kept, self._sfpp_train("grpo", [model], ["--flow-band", clips]))
        return dict(tomllib.loads(kept.read_text()))

    def _sfpp_train(self, recipe: str, changes: Sequence[str], words: Sequence[str]) -> str:
        command = [sys.executable, "-m", "sfpp_cli", "train", str(LANDSCAPE / f"{recipe}.toml"), *words]
        command += [word for change in changes for word in ("--set", change)]
        print(*command, flush=True)
        root = HERE.parent.parent
        return subprocess.run(command, check=True, cwd=root, stdout=subprocess.PIPE, text=True).stdout

    def minutes(self, system: str) -> float | None:
        """What a system's training took, on one core, or on two if the road did it; None where that was not
        kept."""
        run, step = self.run_of(system), self.updates(System.of(system).updates)
        spent = run / f"step-{step:06d}" / "spent.json"
        if spent.exists():
            return float(json.loads(spent.read_text())) / 60
        log = run / "metrics.jsonl"
        if not log.exists():
            return None
        lines = log.read_text().splitlines()[:step]
        return sum(float(json.loads(line)["step_s"]) for line in lines) / 60

    # --- videos

    def video(self, system: str, prompt: str, seed: int) -> Path:
        return self.out / "videos" / system / f"{self.prompts.index(prompt):02d}-{seed}.mp4"

    def make_videos(self, system: str) -> None:
        """Every prompt and seed, in batches; what is there already stays."""
        wanted = [(prompt, seed) for seed, prompt in product(self.seeds, self.prompts)]
        missing = [each for each in wanted if not self.video(system, *each).exists()]
        if not missing:
            return
        size = self.bundle.settings.width, self.bundle.settings.height
        source = self._source(system)
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

    def _source(self, system: str) -> Any:
        """(prompts and seeds) -> pieces of their videos, [B, T, 3, H, W] in [-1, 1]."""
        seconds = self.seconds(system)
        if system == "world":
            return lambda batch: self._world(batch, seconds)
        if system in TEACHERS:
            return lambda batch: self._sampled(batch, TEACHERS[system])
        bundle = Bundle(self.model, str(self.student(system)))
        student = bundle.load_student(CPU, torch.float32).eval()
        return lambda batch: self._rolled(bundle, student, batch, seconds)

    @torch.inference_mode()
    def _rolled(
        self, bundle: Bundle, student: Any, batch: Sequence[tuple[str, int]], seconds: float
    ) -> Iterator[Tensor]:
        """The rollout of `sfpp generate`, for several videos at once."""
        settings, decoder = bundle.settings, StreamingDecoder(self.vae)
        frames = bundle.compression.latent_frames(round(seconds * settings.fps))
        chunks = round_up(frames, settings.chunk) // settings.chunk
        shape = (settings.chunk, *self.latent_shape)
        noise = VideoNoise([mixed(seed, self.prompts.index(prompt)) for prompt, seed in batch], shape)
        text = self.text([prompt for prompt, _ in batch])
        for latents in settings.sampler().rollout(student, noise.chunks(0, chunks), text, noise.draw):
            yield decoder(latents)

    @torch.inference_mode()
    def _sampled(self, batch: Sequence[tuple[str, int]], guidance: float) -> Iterator[Tensor]:
        """The teacher's clips, as the ODE pairs were sampled."""
        settings, prompts = self.bundle.settings, [prompt for prompt, _ in batch]
        shape = (self.bundle.teacher_horizon, *self.latent_shape)
        draws = [seeded(seed, self.prompts.index(prompt)) for prompt, seed in batch]
        path = trajectory(
            self.teacher,
            torch.stack([normal(shape, draw) for draw in draws]),
            self.text(prompts),
            self.text([""] * len(prompts)),
            schedule=FlowSchedule(settings.shift),
            steps=settings.steps,
            sampling_steps=TEACHER_STEPS,
            guidance=guidance,
        )
        yield StreamingDecoder(self.vae)(path[:, -1])

    def _world(self, batch: Sequence[tuple[str, int]], seconds: float) -> Iterator[Tensor]:
        """A scene of its own for each of these captions and seeds."""
        size = self.bundle.settings.height, self.bundle.settings.width
        scenes = self.scenes(batch)
        for start in range(0, round(seconds * FPS), FPS):
            yield scenes.render(start, FPS, size) * 2 - 1

    def scenes(self, batch: Sequence[tuple[str, int]]) -> Scenes:
        """The world's scenes of these captions and seeds."""
        numbers = [len(self.prompts) * seed + self.prompts.index(prompt) for prompt, seed in batch]
        words = [parse_caption(prompt) for prompt, _ in batch]
        return draw_scenes(WORLD_SEED, numbers).showing(words)

    # --- measurements

    def rows(self, system: str) -> list[dict[str, Any]]:
        """One for each video: prompt, seed, and what `_measured` finds."""
        found = []
        for prompt, seed in product(self.prompts, self.seeds):
            kept = self._kept(system, prompt, seed)
            if not kept.exists():
                self.make_videos(system)
                row = {"system": system, "prompt": prompt, "seed": seed}
                row |= {"minutes": short(self.minutes(system))} if "@" in system else {}
                row |= self._measured(system, prompt, seed)
                self._keep(system, prompt, seed, json.dumps(row))
            found.append(json.loads(kept.read_text()))
        return found

    def finished(self, system: str) -> bool:
        """Whether all of a system is measured."""
        return all(self._kept(system, *each).exists() for each in product(self.prompts, self.seeds))

    def pack(self, folder: Path) -> None:
        """Every finished system's rows into a file of its own."""
        for measured in sorted(self.out.glob("measured/*")):
            if self.finished(measured.name):
                self.pack_system(measured.name, folder)

    def pack_system(self, system: str, folder: Path) -> None:
        """A line a video."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{json.dumps(row)}\n" for row in self.rows(system))
        atomic_write(folder / f"{system}.jsonl.gz", gzip.compress(lines.encode(), mtime=0))

    def unpack(self, folder: Path) -> None:
        """The other way round: nothing of what is in these files will be measured again."""
        for file in sorted(folder.glob("*.jsonl.gz")):
            for line in gzip.decompress(file.read_bytes()).decode().splitlines():
                row = json.loads(line)
                self._keep(row["system"], row["prompt"], row["seed"], line)

    def _kept(self, system: str, prompt: str, seed: int) -> Path:
        return self.out / "measured" / system / f"{self.prompts.index(prompt):02d}-{seed}.json"

    def _keep(self, system: str, prompt: str, seed: int, row: str) -> None:
        path = self._kept(system, prompt, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, row)

    def _measured(self, system: str, prompt: str, seed: int) -> dict[str, Any]:
        """`metrics`: NAME@END for the window that ends at second END, the reader's shares and means of `sfpp
        evaluate`'s curves; `fired_NAME`, whether that verdict fired on the whole video. `curves`: every
        second's flow, and shares of `KEPT`.
        """
        path = self.video(system, prompt, seed)
        local = measure(path, Parameters())
        video = np.stack(list(read_frames(path)))
        scene = parse_caption(prompt)
        seen = read_video(video, scene.time)
        truth = {name: values.float() for name, values in judge_frames(seen, scene).items()}
        truth["speed_ratio"] = seen.speed.abs() * seen.pixel / SPEED[scene.pace]
        metrics: dict[str, float | None] = {}
        for end in (end for end in ENDS if end <= round(len(video) / FPS)):
            window = slice((end - WINDOW) * FPS, end * FPS)
            shares = {name: float(values[window].mean()) for name, values in truth.items()}
            curves = {name: over(curve, end - WINDOW, end) for name, curve in local["curves"].items()}
            found = {**curves, **shares, "good": shares["in_world"]}
            metrics |= {f"{name}@{end}": short(value) for name, value in found.items()}
        whole = {name: local["metrics"][name] for name in ("local_stability", "flow_variance_max")}
        fired = {f"fired_{name}": float(verdict["fired"]) for name, verdict in local["verdicts"].items()}
        flow = local["curves"]["flow_mean"]
        seconds = range(round(len(video) / FPS))
        kept = {
            name: [short(float(part.mean())) for part in truth[name].split(FPS)][: len(seconds)]
            for name in KEPT
        }
        kept["flow"] = [short(over(flow, second, second + 1)) for second in seconds]
        return {"metrics": metrics | whole | fired, "curves": kept}

    # --- what is loaded once

    @cached_property
    def bundle(self) -> Bundle:
        return Bundle(self.model)

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
        return (self.bundle.transformer_config()["in_channels"], *self.bundle.latent_size)


def over(curve: dict[str, list[float | None]], start: float, end: float) -> float | None:
    """The mean of a curve from second `start` to second `end`."""
    inside = [
        v
        for s, v in zip(curve["seconds"], curve["values"], strict=True)
        if s is not None and v is not None and start <= s < end
    ]
    return float(np.mean(inside)) if inside else None


def short(value: float | None) -> float | None:
    """Four significant digits, so that rows stay small."""
    return None if value is None else float(f"{value:.4g}")
