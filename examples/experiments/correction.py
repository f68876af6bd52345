"""Can the teacher correct? How much of a fault in a rollout do DMD's gradient and a training undo?

    python examples/experiments/correction.py --out runs/experiments/correction

The gradient: a window of the student's own rollout is harmed in pixels and encoded again, D = faulty - clean.
On the faulty window g = f_critic(x_t) - f_teacher(x_t), not normalised, the mean over noise levels; DMD moves
the window to x - g, so <g, D> / <D, D> is the share of the fault that one whole step undoes, and a negative
one makes it worse. The critic decides what the student is taken for: one has followed the student without the
fault, the other the student with it, which is what a training's critic does.

The training: rollouts whose first half, the past, grows the fault and whose second half, the window, has it.
Held-out videos go on from a faulty past, before and after; a control learns as long from the same rollouts
without a fault.

Everything measured is kept under --out and not measured again, so other sizes want another folder;
correction.json, table.md and correction.png are made of it.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from correction_report import write_report
from faults import CPU, DRIFTS, FAULTS, Studio, inject
from torch import Tensor

from sfpp_cli.core.dmd import Videos, critic_loss, score_timesteps
from sfpp_cli.core.noise import mixed, normal, seeded
from sfpp_cli.core.objective import Update
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.files import atomic_write
from sfpp_cli.models.vae import to_uint8
from sfpp_cli.training.objectives import matching_objective
from sfpp_cli.training.preview import gauges
from sfpp_cli.training.recipes import MatchingRecipe, read_recipe

LANDSCAPE = Path(__file__).parents[1] / "landscape"
BATCH = 8


def injected(streams: Tensor, prompts: Sequence[str]) -> Videos:
    """Streams [V, 2 K, C, h, w] in place of rollouts: the past fills the cache, the rest is the window.

    Prompt i is that of stream i.
    """

    def videos(update: Update) -> tuple[list[str], Tensor]:
        chosen = [sample % len(streams) for sample in update.samples]
        return [prompts[number] for number in chosen], streams[chosen]

    return videos


class Experiment:
    """The models, the recipe, the prompts, and what has been measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        changes = {"steps": options.updates, "save_every": options.updates, "warmup": options.warmup}
        overrides = {f"training.{key}": str(value) for key, value in changes.items()}
        # Streams that were not rolled out have no denoising steps of their own.
        overrides |= {"model": options.model, "dmd.noise_init": "renoised"}
        self.recipe = replace(
            read_recipe(options.recipe, MatchingRecipe, overrides=overrides), student=None, seed=options.seed
        )
        self.test = prompts_in(options.prompts)[: options.count]
        self.train = prompts_in(options.train_prompts)[: options.stock]
        self.studio = Studio(self.recipe.model, [self.recipe.dmd.negative_prompt, *self.test, *self.train])
        self.teacher = self.studio.bundle.load_teacher(CPU, torch.float32)
        self.minutes: dict[str, float] = {}

    def cell(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` finds, or found in an earlier start."""
        file = self.out / "cells" / f"{name.replace(' ', '-')}.json"
        if not file.exists():
            began = time.perf_counter()
            found = {"found": measure(), "minutes": (time.perf_counter() - began) / 60}
            atomic_write(file, json.dumps(found) + "\n")
            print(f"{name}: {found['minutes']:.1f} min", flush=True)
        kept = json.loads(file.read_text())
        self.minutes[name] = kept["minutes"]
        return kept["found"]

    def made(self, name: str, make: Callable[[], Any]) -> Any:
        """Tensors that `make` makes, or made in an earlier start."""
        file = self.out / "made" / f"{name.replace(' ', '-')}.pt"
        if not file.exists():
            whole = io.BytesIO()
            torch.save(make(), whole)
            atomic_write(file, whole.getvalue())
            print(f"made {name}", flush=True)
        return torch.load(file, weights_only=True)

    def films(self, prompts: Sequence[str], round_: int) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of films, one of each prompt with its `round_`-th seed.

        Answers which prompts, and frames in [-1, 1].
        """
        kind = "test" if prompts is self.test else "train"
        for first in range(0, len(prompts), BATCH):
            numbers = list(range(first, min(first + BATCH, len(prompts))))
            chosen, seeds = [prompts[i] for i in numbers], self.seeds(kind, numbers, round_)
            yield (
                numbers,
                self.made(f"film {kind} {round_} {first}", partial(self.studio.film, chosen, seeds)),
            )

    def seeds(self, kind: str, numbers: Sequence[int], round_: int) -> list[int]:
        return [mixed(self.options.seed, kind == "test", number, round_) for number in numbers]

    # --- one DMD gradient step
    # ----------------------------------------------------------------------------------------------

    def critic(self, fault: str | None) -> Teacher:
        """A critic that has followed the student.

        From the teacher's weights on; with a `fault`, from there on to windows that have it.
        """
        network: Teacher = (
            copy.deepcopy(self.teacher if fault is None else self.critic(None)).train().requires_grad_(True)
        )
        network.load_state_dict(self.made(f"critic {fault or 'clean'}", lambda: self.follow(network, fault)))
        network.eval().requires_grad_(False)
        return network

    def follow(self, network: Teacher, fault: str | None) -> dict[str, Tensor]:
        """Flow matching on windows of films of training prompts, with `fault` at its full strength."""
        studio, training, dmd = self.studio, self.recipe.training, self.recipe.dmd
        films = torch.cat([film[:, -studio.window :] for _, film in self.films(self.train, 0)])
        windows = torch.cat([studio.encode(self.harmed(part, fault, 1.0)) for part in films.split(BATCH)])
        optimizer = torch.optim.AdamW(network.parameters(), lr=dmd.critic_lr, betas=training.betas)
        for step in range(self.options.critic_steps if fault is None else self.options.critic_steps // 2):
            draws = seeded(self.options.seed, step)
            chosen = torch.randperm(len(windows), generator=draws)[:BATCH]
            x, noise = windows[chosen], normal((len(chosen), *windows.shape[1:]), draws)
            drawn = torch.randint(*dmd.timesteps, (len(chosen),), generator=draws)
            t = score_timesteps(studio.schedule, drawn, dmd.clamp)
            flow = network(
                studio.schedule.add_noise(x, noise, t), t, studio.text([self.train[int(i)] for i in chosen])
            )
            optimizer.zero_grad()
            critic_loss(flow, x, noise).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
            optimizer.step()
        return dict(network.state_dict())

    def harmed(self, frames: Tensor, fault: str | None, strength: float) -> Tensor:
        return frames if fault is None else inject(frames, fault, strength, self.studio.settings.fps)

    def gradients(self) -> list[dict[str, Any]]:
        """A row for every prompt, seed, fault and strength."""
        critics = {fault: self.critic(fault) for fault in (None, *self.options.faults)}
        rows = []
        for strength in self.options.strengths:
            for round_ in range(self.options.seeds):
                for numbers, film in self.films(self.test, round_):
                    frames = film[:, -self.studio.window :]
                    measure = partial(self.gradient_batch, critics, numbers, frames, round_, strength)
                    rows += self.cell(f"gradient {strength} {round_} {numbers[0]}", measure)
        return rows

    def survivals(self) -> dict[str, dict[str, float]]:
        """What the VAE leaves of full drifts.

        Change of luma and saturation over the window, in the pixels and decoded again.
        """
        studio, (_, film) = self.studio, next(self.films(self.test, 0))
        frames, found = film[:, -studio.window :], {}
        for fault in (None, *DRIFTS):
            harmed = self.harmed(frames, fault, 1.0)
            videos = {"injected": harmed, "encoded": studio.decode(studio.encode(harmed))}
            found[fault or "clean"] = {
                f"{gauge} {kind}": value
                for kind, video in videos.items()
                for gauge, value in gauges(to_uint8(video).flatten(0, 1)).items()
            }
        return found

    @torch.no_grad()
    def gradient_batch(
        self,
        critics: Mapping[str | None, Teacher],
        numbers: list[int],
        frames: Tensor,
        round_: int,
        strength: float,
    ) -> list[dict[str, Any]]:
        """Rows of a batch of windows [B, T, 3, H, W].

        Every prompt meets every noise level once over its seeds.
        """
        noises, rounds = self.options.noises, self.options.seeds
        levels = [round_ * noises + k for k in range(noises)]
        text = self.studio.text([self.test[i] for i in numbers])
        clean = self.studio.encode(frames)
        teacher, followers = self.scores(clean, text, critics, levels, numbers[0])
        rows = []
        for fault in self.options.faults:
            faulty = self.studio.encode(self.harmed(frames, fault, strength))
            seen, following = self.scores(
                faulty, text, {kind: critics[kind] for kind in (None, fault)}, levels, numbers[0]
            )
            direction = faulty - clean
            found = {"size": dot(direction, direction) / direction[0].numel()}
            for name, kind in (("clean", None), ("followed", fault)):
                step = (following[kind] - seen).mean(0)
                idle = (followers[kind] - teacher).mean(0)
                found[f"{name}_cosine"] = (
                    dot(step, direction) / (dot(step, step) * dot(direction, direction)).sqrt()
                )
                found[f"{name}_share"] = dot(step, direction) / dot(direction, direction)
                found[f"{name}_idle"] = dot(idle, direction) / dot(direction, direction)
            for level, change in zip(levels, seen - teacher, strict=True):
                timestep = self.timestep(level, noises * rounds)
                found[f"teacher_{timestep:.0f}"] = 1 - dot(change, direction) / dot(direction, direction)
            for place, number in enumerate(numbers):
                values = {name: value[place].item() for name, value in found.items()}
                rows.append(
                    {"prompt": number, "seed": round_, "fault": fault, "strength": strength, **values}
                )
        return rows

    def scores(
        self,
        x: Tensor,
        text: Tensor,
        critics: Mapping[str | None, Teacher],
        levels: Sequence[int],
        batch: int,
    ) -> tuple[Tensor, dict[str | None, Tensor]]:
        """x0 predictions of teacher and critics at the noise levels, each [levels, B, K, C, h, w].

        Noise is the batch's own.
        """
        schedule, dmd = self.studio.schedule, self.recipe.dmd
        negative = self.studio.text([dmd.negative_prompt] * len(x))
        teacher, followers = [], {kind: list[Tensor]() for kind in critics}
        for level in levels:
            noise = normal(x.shape, seeded(self.options.seed, batch, level))
            t = torch.full(x.shape[:1], self.timestep(level, self.options.noises * self.options.seeds))
            x_t = schedule.add_noise(x, noise, t)
            flow = self.teacher.guided(x_t, t, text, negative, dmd.guidance)
            teacher.append(schedule.x0_from_flow(flow, x_t, t))
            for kind, critic in critics.items():
                followers[kind].append(schedule.x0_from_flow(critic(x_t, t, text), x_t, t))
        return torch.stack(teacher), {kind: torch.stack(each) for kind, each in followers.items()}

    def timestep(self, level: int, levels: int) -> float:
        """The middle of one of `levels` equally likely parts of the noise levels that DMD draws."""
        dmd = self.recipe.dmd
        low, high = dmd.timesteps
        middle = torch.tensor(low + (high - low) * (level + 0.5) / levels)
        return score_timesteps(self.studio.schedule, middle, dmd.clamp).item()

    # --- one training
    # -------------------------------------------------------------------------------------------------------

    def trained(self, fault: str | None) -> CausalWanModel:
        """The student after training on streams with `fault`, or the control's; resumed if it can be."""
        studio = self.studio
        name = f"streams {fault or 'clean'}"
        streams = self.made(
            name, lambda: torch.cat([studio.stream(film, fault) for _, film in self.films(self.train, 0)])
        )
        objective = matching_objective(
            self.recipe, studio.bundle, self.train, studio.text, CPU, injected(streams, self.train)
        )
        objective.critic.load_state_dict(self.critic(None).state_dict())
        Trainer(objective, self.recipe.training, self.out / "runs" / name.replace(" ", "-")).run()
        return objective.student

    def watched(self, student: str, past: str | None) -> list[dict[str, float]]:
        """Gauges, a row a prompt, of what a student makes of test prompts after a past with fault `past`."""
        network, rows = self.network(student), list[dict[str, float]]()
        for numbers, film in self.films(self.test, 0):
            behind = self.studio.stream(film, past)[:, : self.studio.horizon]
            chosen, seeds = [self.test[i] for i in numbers], self.seeds("test", numbers, 0)
            rows += self.studio.continuations(network, chosen, seeds, behind)
        return rows

    def trainings(self) -> Iterator[dict[str, dict[str, Any]]]:
        """{student: {past: rows}}, more of it after every fault."""
        found: dict[str, dict[str, Any]] = {}
        for past in ("clean", *self.options.faults):
            for student in ("before", "control") if past == "clean" else ("before", "control", past):
                measure = partial(self.watched, student, None if past == "clean" else past)
                found.setdefault(student, {})[past] = self.cell(f"watched {student} behind {past}", measure)
            yield found

    def network(self, student: str) -> CausalWanModel:
        if student == "before":
            return self.studio.student
        return self.trained(None if student == "control" else student)


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Scalar product of each sample's tensors, [B]."""
    return (first * second).flatten(1).sum(1)


def prompts_in(path: Path) -> list[str]:
    return [line.prompt for line in read_prompts(path)]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    experiment = Experiment(options)
    rows = experiment.gradients()
    survived = experiment.cell("survivals", experiment.survivals)
    write_report(options.out, rows, survived, {}, experiment.minutes)
    for watched in experiment.trainings():
        write_report(options.out, rows, survived, watched, experiment.minutes)
    print((options.out / "table.md").read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/experiments/correction"))
    parser.add_argument(
        "--recipe", type=Path, default=LANDSCAPE / "self-forcing-pp.toml", help="values of DMD"
    )
    parser.add_argument(
        "--model", default="landscape", help="the embedded model, or a folder laid out as it is"
    )
    parser.add_argument("--prompts", type=Path, default=LANDSCAPE / "test.txt", help="prompts to measure on")
    parser.add_argument(
        "--train-prompts", type=Path, default=LANDSCAPE / "prompts.txt", help="prompts to learn on"
    )
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="of a full fault"
    )
    parser.add_argument("--count", type=int, default=16, help="prompts measured")
    parser.add_argument("--seeds", type=int, default=2, help="videos of each, for the gradient")
    parser.add_argument("--noises", type=int, default=1, help="noise levels for each video")
    parser.add_argument("--stock", type=int, default=24, help="films that critics and students learn on")
    parser.add_argument(
        "--critic-steps",
        type=int,
        default=60,
        help="of the critic without a fault; half as many more with one",
    )
    parser.add_argument("--updates", type=int, default=12, help="of the student in each training")
    parser.add_argument(
        "--warmup", type=int, default=2, help="updates over which a training's learning rate rises"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--quick", action="store_true", help="two prompts, one seed, two updates: shows that it runs"
    )
    options = parser.parse_args()
    if options.quick:
        options.count, options.seeds, options.stock, options.critic_steps, options.updates = 2, 1, 2, 2, 2
    return options


if __name__ == "__main__":
    main()
