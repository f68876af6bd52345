"""The students: ODE trajectories, the student that learns from them, then Self-Forcing and Self-Forcing++.

All of it is sfpp's own objectives and trainer, but for the clock, which may end a stage before its last step.

    python examples/landscape/train_students.py pairs --work runs/landscape --minutes 30
    python examples/landscape/train_students.py ode --work runs/landscape --minutes 60
    python examples/landscape/train_students.py self-forcing --work runs/landscape --minutes 90
    python examples/landscape/train_students.py self-forcing-pp --work runs/landscape --minutes 200
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import prompts
import torch
from bundle import assemble
from ranks import cores, even, on_ranks
from road import Clock, Job, Speed, job_of, replace_folder, sheet
from safetensors.torch import load_file
from torch import Tensor, nn

from sfpp_cli.core import checkpoint
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.objective import Objective
from sfpp_cli.core.ode import TrajectoryRegression
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training
from sfpp_cli.data.trajectories import described
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.settings import SETTINGS
from sfpp_cli.models.vae import StreamingDecoder
from sfpp_cli.progress import Silent
from sfpp_cli.training.context import RunContext
from sfpp_cli.training.objectives import embed_prompts, matching_objective
from sfpp_cli.training.pairs import make_pairs
from sfpp_cli.training.recipes import MatchingRecipe, StudentRecipe, read_recipe

HERE = Path(__file__).parent
SPENT = "spent.json"
"""In a checkpoint: seconds of training so far."""
SHOWN = (0, 5, 10, 20, 30, 40)
"""Seconds of the contact sheets."""


class OnDevice:
    """All trajectories that were made, however few, in the device's memory."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        files = sorted(folder.glob("pairs-*.safetensors"))
        self.paths = torch.cat([load_file(file)["trajectories"] for file in files]).to(device)
        self.prompts = [prompt for file in files for prompt in described(file)["prompts"]]

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        number = int(torch.randint(len(self.paths), (), generator=generator))
        return self.paths[number].float(), self.prompts[number]


def context_of(job: Job, name: str, ranks: Ranks) -> RunContext:
    return RunContext(
        out=job.work / "runs" / name, resume=True, device=job.device, ranks=ranks, progress=Silent()
    )


def make_trajectories(job: Job) -> None:
    assemble(job.work, job.work / "teacher-bundle")
    on_ranks(job, cores(job), make_share)


def make_share(job: Job, ranks: Ranks) -> None:
    """This rank's trajectories."""
    recipe, run = ode_recipe(job), context_of(job, "ode", ranks)
    bundle = Bundle(recipe.model)
    captions = prompts.read("prompts")[: recipe.pairs.count]
    text = embed_prompts(bundle, [recipe.pairs.negative_prompt, *captions], None, run)
    make_pairs(bundle, recipe, captions, text, run)
    if ranks.first:
        job.say(f"pairs: {recipe.pairs.count} trajectories")


def train_ode(job: Job) -> None:
    on_ranks(job, even(job.scale.student_batch, cores(job)), ode_on_rank)


def train_matching(name: str, job: Job) -> None:
    """Self-Forcing or Self-Forcing++, from the ODE student."""
    assemble(job.work, job.work / f"model-{name}", job.work / "students" / "ode")
    on_ranks(job, even(job.scale.match_batch, cores(job)), partial(matching_on_rank, name))


def ode_on_rank(job: Job, ranks: Ranks) -> None:
    recipe, run = ode_recipe(job), context_of(job, "ode", ranks)
    bundle = Bundle(recipe.model)
    store = OnDevice(job.work / "pairs", job.device)
    text = embed_prompts(bundle, sorted(set(store.prompts)), None, run)
    teacher = bundle.load_teacher(torch.device("cpu"), torch.float32)
    student = CausalWanModel.from_config(teacher.config)
    student.load_state_dict(teacher.state_dict())
    settings = recipe.settings_for(bundle)
    objective = TrajectoryRegression(
        student.to(job.device).train(),
        text,
        store,
        schedule=FlowSchedule(settings.shift),
        steps=settings.steps,
        chunk=settings.chunk,
        context=settings.context,
        seed=recipe.seed,
        save_extra=lambda folder: settings.write(folder / SETTINGS),
    )
    train(objective, recipe.training, "ode", [], job, ranks)


def matching_on_rank(name: str, job: Job, ranks: Ranks) -> None:
    model = job.work / f"model-{name}"
    changes = {
        "model": str(model),
        "student": str(model / "transformer"),
        "training.batch": str(job.scale.match_batch),
    }
    recipe = read_recipe(HERE / f"{name}.toml", MatchingRecipe, overrides=changes)
    bundle = Bundle(recipe.model)
    captions = prompts.read("prompts")
    run = context_of(job, name, ranks)
    text = embed_prompts(bundle, [recipe.dmd.negative_prompt, *captions], None, run)
    objective = matching_objective(recipe, bundle, captions, text, job.device)
    networks = [objective.student, objective.critic, objective.teacher]
    train(objective, recipe.training, name, networks, job, ranks)


def ode_recipe(job: Job) -> StudentRecipe:
    scale = job.scale
    changes = {
        "model": str(job.work / "teacher-bundle"),
        "pairs.folder": str(job.work / "pairs"),
        "pairs.count": str(scale.pairs),
        "pairs.batch": str(scale.pair_batch),
        "training.batch": str(scale.student_batch),
    }
    return read_recipe(HERE / "student.toml", StudentRecipe, overrides=changes)


def train(
    objective: Objective,
    training: Training,
    name: str,
    networks: Sequence[nn.Module],
    job: Job,
    ranks: Ranks,
) -> None:
    """sfpp's trainer, until the clock says stop, or a constant rate's number of steps is reached.

    `networks` may be compiled on the way. Ranks go by the first one's clock.
    """
    run = job.work / "runs" / name
    trainer = Trainer(objective, training, run, ranks)
    trainer.resume()
    clock = Clock(job, spent_before(run))
    speed = Speed(trainer.step)
    first = trainer.step
    last = training.steps if training.decay == "constant" else sys.maxsize
    while trainer.step < last:
        now = torch.tensor([[clock.done, clock.spent, clock.time_to_save()]], dtype=torch.float64)
        done, spent, due = ranks.gather(now)[0].tolist()
        if done >= 1:
            break
        kept = training.keep_every and trainer.step % training.keep_every == 0
        if trainer.step > first and (due or kept):
            export(trainer, spent, name, job)
        if networks and trainer.step % 5 == 0 and compiling_pays(job):
            compile_all(networks, trainer.step, name, job)
            networks = ()  # once is enough
        if training.decay == "cosine" and trainer.step > first + 10:
            fit_schedule(trainer, clock, done, spent, first)
        record = try_update(trainer, job, name)
        told = trainer.step % (200 if name == "ode" else 20) == 0 or trainer.step in (2, 10)
        if record and told and ranks.first:
            pace = speed.ask(trainer.step)
            job.say(f"{name} step {trainer.step}, {clock.spent:.0f} s: {figures(record)}, {pace:.2f} steps/s")
    export(trainer, clock.spent, name, job)
    if ranks.first:
        job.say(f"{name}: {trainer.step} steps, {clock.spent:.0f} s")


def compiling_pays(job: Job) -> bool:
    """What `warm.py` measured decides, as soon as it has."""
    measured = job.work / "compile-matching.json"
    return not job.careful and measured.exists() and bool(json.loads(measured.read_text())["faster"])


def compile_all(networks: Sequence[nn.Module], step: int, name: str, job: Job) -> None:
    for network in networks:
        network.compile_blocks()  # type: ignore[operator]
    job.say(f"{name}: compiled from step {step} on")


def figures(record: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in record.items() if key not in ("step", "step_s"))


def try_update(trainer: Trainer, job: Job, name: str) -> dict[str, float] | None:
    """A step; None if there was no room for it, and the batch is smaller from now on."""
    try:
        return trainer.update()
    except torch.OutOfMemoryError:
        trainer.training = replace(trainer.training, batch=max(1, trainer.training.batch // 2))
        job.say(f"{name}: out of memory; batch {trainer.training.batch} from now on")
    torch.cuda.empty_cache()
    return None


def fit_schedule(trainer: Trainer, clock: Clock, done: float, spent: float, first: int) -> None:
    """The number of steps that the clock will allow, for the decay of the learning rate."""
    pace = (trainer.step - first) / (spent - clock.before)
    steps = trainer.step + int((1 - done) * clock.budget * pace)
    trainer.training = replace(trainer.training, steps=max(steps, trainer.step + 1))


def spent_before(run: Path) -> float:
    steps = checkpoint.saved_steps(run)
    spent = checkpoint.path_of(run, steps[-1]) / SPENT if steps else None
    return float(json.loads(spent.read_text())) if spent and spent.exists() else 0.0


def export(trainer: Trainer, spent: float, name: str, job: Job) -> None:
    """A checkpoint, which takes all ranks, and the averaged student as float16 where the others are."""
    folder = trainer.save()
    if not trainer.ranks.first:
        return
    (folder / SPENT).write_text(json.dumps(spent))
    best = folder / "student-ema" if (folder / "student-ema").exists() else folder / "student"

    def fill(target: Path) -> None:
        CausalWanModel.from_pretrained(best).half().save_pretrained(target)
        shutil.copy(best / SETTINGS, target)

    (job.work / "students").mkdir(exist_ok=True)
    replace_folder(job.work / "students" / name, fill)


@torch.no_grad()
def look(name: str, job: Job, count: int = 8) -> None:
    """A contact sheet of rollouts far beyond the horizon."""
    bundle = Bundle(str(assemble(job.work, job.work / f"model-{name}", job.work / "students" / name)))
    settings, device = bundle.settings, job.device
    student, vae, text = (
        load(device, torch.float32) for load in (bundle.load_student, bundle.load_vae, bundle.load_text)
    )
    count = min(count, job.scale.judged)
    captions = prompts.read("validation")[:count]
    seconds = [second for second in SHOWN if second <= (40 if job.cuda else 10)]
    frames = bundle.compression.latent_frames(1 + max(seconds) * settings.fps)
    shape = (settings.chunk, student.config.in_channels, *bundle.latent_size)
    noise = VideoNoise(range(count), shape, device)
    chunks = noise.chunks(0, -(-frames // settings.chunk))
    decoder = StreamingDecoder(vae)
    with job.autocast():
        clean = settings.sampler().rollout(student, chunks, text(captions), noise.draw)
        video = [decoder(latents).float().cpu() for latents in clean]
    rows = [[row[second * settings.fps] for second in seconds] for row in torch.cat(video, dim=1)]
    sheet(rows, job.work / f"{name}.png", zoom=1 if job.cuda else 2)
    job.say(f"{name}: seconds {seconds} of {' | '.join(captions)}")


if __name__ == "__main__":
    which = sys.argv.pop(1)
    mine = job_of(__doc__)
    if which == "pairs":
        make_trajectories(mine)
    elif which == "ode":
        train_ode(mine)
    else:
        train_matching(which, mine)
