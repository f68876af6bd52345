"""One Self-Forcing++ step of three 1.3B networks: time and peak memory by part."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu.measuring import Result, Section
from gpu.networks import full_cache, make_network, sampler, sizes
from sfpp_cli.core.dmd import DistributionMatching
from sfpp_cli.core.dmd_config import DMDConfig
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training

CRITIC_UPDATES = 5


def training(s: Section) -> None:
    with tempfile.TemporaryDirectory(prefix="sfpp-train-") as folder:
        built: list[Trainer] = []

        def build_one() -> Result:
            built.append(build(s, Path(folder)))
            return {"peak_gb": s.peak_gb()}

        s.reset_peak()
        s.attempt("build", build_one, need=20)
        if built:
            steps(s, built[0])


def build(s: Section, folder: Path) -> Trainer:
    """A trainer with random weights; rollouts of N = 42 latent frames."""
    z = sizes(s.tiny)
    small = s.cuda and torch.cuda.get_device_properties(0).total_memory < 100e9
    options = Training(
        steps=1,
        batch=1,
        micro_batch=1,
        gradient_checkpointing=True,
        offload=small if s.options.offload is None else s.options.offload,
        ema_start=1,
        precision="bfloat16",
    )
    student = make_network(CausalWanModel, z.config, torch.float32, s.device)
    critic = make_network(Teacher, z.config, torch.float32, s.device)
    for network in (student, critic):
        network.train().requires_grad_(True).enable_gradient_checkpointing()
    text = torch.randn(1, z.text, z.text_dim)
    objective = DistributionMatching(
        student,
        critic,
        make_network(Teacher, z.config, options.dtype(s.device), s.device),
        lambda prompts: text.expand(len(prompts), -1, -1),
        ["a"],
        sampler=sampler(),
        horizon=21,
        latent=(16, *z.latent),
        config=DMDConfig(method="self-forcing++", frames=42, horizon=21),
        seed=0,
    )
    return Trainer(objective, options, folder)


def steps(s: Section, trainer: Trainer) -> None:
    s.attempt("N = 42, window at frame 18", lambda: Step(s, trainer, 6).measure(critics=1), need=20)
    s.attempt("a denoising pass as in training", lambda: passes(s, trainer.objective), need=6)
    if s.tiny:
        return
    s.attempt("N = 402, window in the middle", lambda: Step(s, trainer, 64).measure(critics=1), need=75)
    s.attempt("N = 42 again, with moments", lambda: Step(s, trainer, 6).measure(critics=2), need=40)


class Step:
    """A training step, with a clock and a memory gauge between its parts."""

    def __init__(self, s: Section, trainer: Trainer, start: int) -> None:
        """The window starts at chunk `start`."""
        self.s = s
        self.trainer = trainer
        self.start = start
        self.parts: dict[str, dict[str, float]] = {}
        self.last = 0.0

    def measure(self, critics: int) -> Result:
        objective: Any = self.trainer.objective
        trainer: Any = self.trainer
        objective.draw_start = lambda draws: self.start
        hooks = [
            objective.student.register_forward_pre_hook(lambda *_: self.mark_learning("1 rollout")),
            objective.student.register_forward_hook(lambda *_: self.mark_learning("2 passes that learn")),
        ]
        scores = ("1 rollout", "3 scores: critic, teacher twice")
        update = ("4 student's backward, clipping", "5 student's AdamW")
        self.begin()
        with self.marked(objective, "score_difference", *scores), self.marked(trainer, "_step", *update):
            record = trainer._update_player(0, 0)
        for hook in hooks:
            hook.remove()
        update = ("6 critic forward, backward, clipping", "7 critic's AdamW")
        with self.marked(trainer, "_step", *update):
            for repeat in range(critics):
                trainer._update_player(1, repeat)
        trainer.step += 1
        trainer._update_ema()
        self.mark("8 average")
        scale = {name: CRITIC_UPDATES / critics if name[0] in "67" else 1 for name in self.parts}
        whole = sum(part["s"] * scale[name] for name, part in self.parts.items())
        return {
            "parts": self.parts,
            "record": record,
            "offload": trainer.training.offload,
            f"a whole step of one sample ({CRITIC_UPDATES} critic updates) s": round(whole, 1),
            "rolled out chunks": self.start + objective.length,
        }

    def begin(self) -> None:
        self.s.sync()
        self.s.reset_peak()
        self.mark("0 weights alone")
        self.parts["0 weights alone"]["s"] = 0.0

    def mark(self, name: str) -> None:
        """What has happened since the last mark was the part `name`."""
        self.s.sync()
        part = self.parts.setdefault(name, {"s": 0.0, "peak_gb": 0.0})
        part["s"] = round(part["s"] + time.perf_counter() - self.last, 3)
        part["peak_gb"] = max(part["peak_gb"], self.s.peak_gb())
        self.s.reset_peak()
        self.last = time.perf_counter()

    def mark_learning(self, name: str) -> None:
        """As `mark`, around the student's passes with gradient alone."""
        if torch.is_grad_enabled():
            self.mark(name)

    def marked(self, owner: Any, name: str, before: str, after: str) -> Marked:
        return Marked(self.mark, owner, name, before, after)


class Marked:
    """While it lasts, calls of a method end the part `before` and are the part `after`."""

    def __init__(self, mark: Callable[[str], None], owner: Any, name: str, before: str, after: str) -> None:
        self.mark = mark
        self.owner = owner
        self.name = name
        self.before = before
        self.after = after

    def __enter__(self) -> None:
        plain = getattr(self.owner, self.name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.mark(self.before)
            answer = plain(*arguments, **options)
            self.mark(self.after)
            return answer

        setattr(self.owner, self.name, call)

    def __exit__(self, *_: object) -> None:
        delattr(self.owner, self.name)


@torch.no_grad()
def passes(s: Section, objective: Any) -> Result:
    """The student amid a rollout; 21 frames through float32 weights under autocast, and through bfloat16."""
    z = sizes(s.tiny)
    text = torch.randn(1, z.text, z.text_dim, device=s.device)
    x = torch.randn(1, 3, 16, *z.latent, device=s.device)
    clip = torch.randn(1, 21, 16, *z.latent, device=s.device)
    t = torch.full((1,), 625.0, device=s.device)
    result = {}
    with torch.autocast(s.device.type, torch.bfloat16, cache_enabled=False):
        cache = full_cache(objective.student, text, z.latent, 21, 60)
        result["student ms"] = s.timed(lambda: objective.student(x, t, cache), n=4)["ms"]
        for name, network in (("float32", objective.critic), ("bfloat16", objective.teacher)):
            timed = s.timed(lambda network=network: network(clip, t, text), n=2, warm=1)
            result[f"teacher of {name} weights ms"] = timed["ms"]
    return result
