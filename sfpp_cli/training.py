"""From a recipe to a running trainer: the pieces that `sfpp train` and `sfpp distill` put together."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch

from sfpp_cli.core import checkpoint
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.flow_matching import FlowMatching
from sfpp_cli.core.objective import Objective
from sfpp_cli.core.ode import TrajectoryRegression, kept_indices, trajectory
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.randomness import normal, seeded
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.trainer import Trainer, Training
from sfpp_cli.data.latents import LatentWindows
from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.data.trajectories import TrajectoryStore, missing_shards, write_shard
from sfpp_cli.devices import pick_device
from sfpp_cli.errors import Interrupted, UserError
from sfpp_cli.models.bundle import Bundle, weights_digest
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.recipes import StudentRecipe, TeacherRecipe, read_recipe, write_recipe
from sfpp_cli.watch import Watch


def overrides(pairs: list[str] | None, steps: int | None, seed: int | None) -> dict[str, str]:
    """`--set key=value`, `--steps` and `--seed` as dotted recipe keys."""
    found = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write it as key=value, for example --set training.lr=1e-4")
        found[key.strip()] = value.strip()
    if steps is not None:
        found["training.steps"] = str(steps)
    if seed is not None:
        found["seed"] = str(seed)
    return found


def train_teacher(path: Path, out: Path, changes: dict[str, str], watch: Watch, *, resume: bool, device: str | None) -> None:
    """Flow matching of a bidirectional teacher (and its text encoder, if the recipe says so)."""
    recipe = read_recipe(path, TeacherRecipe, changes)
    where = pick_device(device, Ranks.from_environment().local)
    bundle = Bundle(recipe.model)
    teacher = bundle.load_teacher(where, torch.float32).train().requires_grad_(True)
    text = bundle.load_text(where, torch.float32)
    models: dict[str, torch.nn.Module] = {"transformer": teacher}
    if recipe.train_text_encoder:
        models["text_encoder"] = text.model.train().requires_grad_(True)
    objective = FlowMatching(
        teacher,
        text,
        LatentWindows(Path(recipe.data.latents), bundle.settings.horizon, recipe.data.mid_stream),
        schedule=FlowSchedule(recipe.shift),
        text_dropout=recipe.data.text_dropout,
        seed=recipe.seed,
        models=models,
    )
    if recipe.training.compile:
        teacher.compile_blocks()
    run(objective, recipe.training, out, recipe, watch, resume=resume, device=where)


def distill_student(
    path: Path, out: Path, changes: dict[str, str], watch: Watch, *, pairs_only: bool, resume: bool, device: str | None
) -> None:
    """ODE pairs from the teacher, then trajectory regression of a student that starts from its weights (or from `init`)."""
    recipe = read_recipe(path, StudentRecipe, changes)
    where = pick_device(device, Ranks.from_environment().local)
    bundle = Bundle(recipe.model)
    prompts = [line.prompt for line in read_prompts(Path(recipe.pairs.prompts))]
    text = EmbeddedPrompts(bundle.load_text(where, torch.float32), ["", *prompts])
    make_pairs(bundle, recipe, prompts, text, watch, where)
    if pairs_only:
        return
    settings = bundle.settings
    if recipe.init is None:
        teacher = bundle.load_teacher(where, torch.float32)
        student = CausalWanModel.from_config(teacher.config)
        student.load_state_dict(teacher.state_dict())
    else:
        student = Bundle(recipe.model, recipe.init).load_student(where, torch.float32).requires_grad_(True)
    objective = TrajectoryRegression(
        student.to(where).train(),
        text,
        TrajectoryStore(Path(recipe.pairs.folder)),
        schedule=FlowSchedule(settings.shift),
        steps=settings.steps,
        chunk=settings.chunk,
        context=settings.context,
        seed=recipe.seed,
    )
    if recipe.training.compile:
        student.compile_blocks()
    run(objective, recipe.training, out, recipe, watch, resume=resume, device=where)


def make_pairs(
    bundle: Bundle, recipe: StudentRecipe, prompts: list[str], text: EmbeddedPrompts, watch: Watch, device: torch.device
) -> None:
    """Generate the missing shards of the teacher's trajectories; ranks share them out, none twice."""
    pairs, settings, ranks = recipe.pairs, bundle.settings, Ranks.from_environment()
    folder, count = Path(pairs.folder), -(-pairs.count // pairs.batch)
    kept_indices(FlowSchedule(settings.shift), settings.steps, pairs.sampling_steps)
    teacher = bundle.load_teacher(device, torch.float32)
    shape = (settings.horizon, teacher.config.in_channels, *bundle.compression.latent_size(settings.width, settings.height))
    origin = {
        "teacher": weights_digest(bundle.teacher, bundle.folder / "text_encoder"),
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16],
        "steps": settings.steps,
        "shift": settings.shift,
        "guidance": pairs.guidance,
        "sampling_steps": pairs.sampling_steps,
        "batch": pairs.batch,
        "seed": recipe.seed,
        "shape": shape,
    }
    missing = missing_shards(folder, count, origin)
    if ranks.first:
        passes = pairs.sampling_steps * (1 if pairs.guidance == 1.0 else 2)
        megabytes = pairs.count * (len(settings.steps) + 1) * math.prod(shape) * 2 / 1e6
        watch.say(
            f"{pairs.count} trajectories: {passes} teacher passes each, {megabytes:.1f} MB in {folder}; "
            f"{len(missing)} of {count} shards to do"
        )
    mine = [shard for shard in missing if shard % ranks.world == ranks.rank]
    with watch.stage("trajectories", len(mine)) as advance:
        for done, shard in enumerate(mine, start=1):
            numbers = range(shard * pairs.batch, min((shard + 1) * pairs.batch, pairs.count))
            chosen = [prompts[number % len(prompts)] for number in numbers]
            path = trajectory(
                teacher,
                torch.stack([normal(shape, seeded(recipe.seed, number)) for number in numbers]).to(device),
                text(chosen).to(device),
                text([""] * len(chosen)).to(device),
                schedule=FlowSchedule(settings.shift),
                steps=settings.steps,
                sampling_steps=pairs.sampling_steps,
                guidance=pairs.guidance,
            )
            write_shard(folder, shard, path.cpu(), chosen, origin)
            advance(done, {})
    ranks.join(device)
    ranks.wait()


def run(
    objective: Objective, training: Training, out: Path, recipe: object, watch: Watch, *, resume: bool, device: torch.device
) -> None:
    """Train, watched; refuse to walk over an earlier run."""
    ranks = Ranks.from_environment()
    if checkpoint.saved_steps(out) and not resume:
        raise UserError(f"{out} holds a run already: continue it with --resume, or choose another --out")
    ranks.join(device)
    if ranks.first:
        write_recipe(recipe, out / "recipe.toml")
    with watch.stage("training", training.steps) as advance:

        def show(record: dict[str, float]) -> None:
            advance(int(record["step"]), {name: f"{value:.4g}" for name, value in record.items() if name != "step"})

        try:
            Trainer(objective, training, out, ranks, show).run()
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; the same command with --resume goes on from the last checkpoint in {out}") from None
    if ranks.first:
        watch.say(f"done: {checkpoint.path_of(out, training.steps)}")
