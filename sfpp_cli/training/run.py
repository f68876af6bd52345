"""From a recipe to a running trainer: the pieces that `sfpp train` and `sfpp distill` put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sfpp_cli.core import checkpoint
from sfpp_cli.core.dmd import DistributionMatching, Videos
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.flow_matching import FlowMatching
from sfpp_cli.core.objective import Objective
from sfpp_cli.core.ode import TrajectoryRegression
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.trainer import Trainer, Training
from sfpp_cli.data.latents import LatentWindows
from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.data.text_store import StoredPrompts, store_prompts, text_origin
from sfpp_cli.data.trajectories import TrajectoryStore
from sfpp_cli.devices import peak_megabytes, pick_dtype
from sfpp_cli.errors import Interrupted, UserError
from sfpp_cli.models.bundle import SETTINGS, Bundle
from sfpp_cli.models.settings import Settings
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.models.vae import image_latent
from sfpp_cli.progress import Watch
from sfpp_cli.training.memory import forecast, layout_of
from sfpp_cli.training.pairs import make_pairs
from sfpp_cli.training.preview import Previewer
from sfpp_cli.training.recipes import (
    MatchingRecipe,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    read_recipe,
    write_recipe,
)

EncodeText = Callable[[list[str]], Tensor]
"""Prompts -> padded embeddings [B, L, D], float32."""


@dataclass(frozen=True)
class How:
    """How a command wants a recipe to be run."""

    out: Path
    resume: bool
    dry_run: bool
    device: torch.device
    watch: Watch


def overrides(
    pairs: list[str] | None,
    steps: int | None = None,
    seed: int | None = None,
    preview_seconds: float | None = None,
) -> dict[str, str]:
    """`--set key=value` and the flags that stand for one, as dotted recipe keys."""
    found = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write it as key=value, for example --set training.lr=1e-4")
        found[key.strip()] = value.strip()
    flags = {"training.steps": steps, "seed": seed, "preview.seconds": preview_seconds}
    return found | {key: str(value) for key, value in flags.items() if value is not None}


def train(path: Path, changes: dict[str, str], how: How) -> str | None:
    """`sfpp train`: the objective that the recipe names. A dry run answers the plan."""
    recipe = read_recipe(path, TeacherRecipe, MatchingRecipe, overrides=changes)
    plan = forecast(recipe, layout_of(recipe), Ranks.from_environment().world, how.device, how.out)
    if how.dry_run:
        return plan
    how.watch.say(plan)
    if isinstance(recipe, TeacherRecipe):
        train_teacher(recipe, how)
    else:
        match_distributions(recipe, how)
    return None


def train_teacher(recipe: TeacherRecipe, how: How) -> None:
    """Flow matching of a bidirectional teacher (and its text encoder, if the recipe says so)."""
    bundle = Bundle(recipe.model)
    teacher = bundle.load_teacher(how.device, torch.float32).train().requires_grad_(True)
    text = bundle.load_text(how.device, torch.float32)
    models: dict[str, nn.Module] = {"transformer": teacher}
    if recipe.train_text_encoder:
        models["text_encoder"] = text.model.train().requires_grad_(True)
    objective = FlowMatching(
        teacher,
        text,
        LatentWindows(Path(recipe.data.latents), bundle.teacher_horizon, recipe.data.mid_stream),
        schedule=FlowSchedule(recipe.shift),
        text_dropout=recipe.data.text_dropout,
        seed=recipe.seed,
        models=models,
    )
    run(objective, recipe, how, networks=[teacher])


def distill(path: Path, changes: dict[str, str], how: How, *, pairs_only: bool) -> str | None:
    """`sfpp distill`: ODE pairs, then trajectory regression of a student that starts from the teacher's weights (or `init`).

    A dry run answers the plan.
    """
    recipe = read_recipe(path, StudentRecipe, overrides=changes)
    plan = forecast(recipe, layout_of(recipe), Ranks.from_environment().world, how.device, how.out)
    if how.dry_run:
        return plan
    how.watch.say(plan)
    bundle = Bundle(recipe.model)
    prompts = [line.prompt for line in read_prompts(Path(recipe.pairs.prompts))][: recipe.pairs.count]
    text = embedded(
        bundle, [recipe.pairs.negative_prompt, *prompts], recipe.text_store, how.device, how.watch
    )
    make_pairs(bundle, recipe, prompts, text, how.watch, how.device)
    if not pairs_only:
        regress(bundle, recipe, prompts, text, how)
    return None


def regress(bundle: Bundle, recipe: StudentRecipe, prompts: list[str], text: EncodeText, how: How) -> None:
    """The second stage of `distill`."""
    settings = bundle.settings.changed({"horizon": bundle.teacher_horizon})
    if recipe.init is None:
        teacher = bundle.load_teacher(torch.device("cpu"), torch.float32)
        student = CausalWanModel.from_config(teacher.config)
        student.load_state_dict(teacher.state_dict())
        del teacher
    else:
        student = (
            Bundle(recipe.model, recipe.init).load_student(how.device, torch.float32).requires_grad_(True)
        )
    objective = TrajectoryRegression(
        student.to(how.device).train(),
        text,
        TrajectoryStore(Path(recipe.pairs.folder)),
        schedule=FlowSchedule(settings.shift),
        steps=settings.steps,
        chunk=settings.chunk,
        context=settings.context,
        seed=recipe.seed,
    )
    look = previews_of(student, bundle, recipe, text(prompts[: recipe.preview.count]), how)
    run(objective, recipe, how, networks=[student], look=look, settings=settings)


def match_distributions(recipe: MatchingRecipe, how: How) -> None:
    """Self-Forcing or Self-Forcing++: a student learns from its own rollouts; no video data is needed."""
    bundle = Bundle(recipe.model, recipe.student)
    bundle.settings = recipe.rolled(bundle.settings)
    prompts = [line.prompt for line in read_prompts(Path(recipe.prompts))]
    text = embedded(bundle, [recipe.dmd.negative_prompt, *prompts], recipe.text_store, how.device, how.watch)
    objective = matching_objective(recipe, bundle, prompts, text, how.device)
    settings = bundle.settings.changed(
        {"horizon": recipe.dmd.frames or objective.length * bundle.settings.chunk}
    )
    look = previews_of(objective.student, bundle, recipe, text(prompts[: recipe.preview.count]), how)
    networks: list[nn.Module] = [objective.student, objective.critic, objective.teacher]
    run(objective, recipe, how, networks=networks, look=look, settings=settings)


def matching_objective(
    recipe: MatchingRecipe,
    bundle: Bundle,
    prompts: Sequence[str],
    text: EncodeText,
    device: torch.device,
    videos: Videos | None = None,
) -> DistributionMatching:
    """Student, critic and teacher of a recipe, ready to learn; from `videos` instead of rollouts if given."""
    student = bundle.load_student(device, torch.float32).train().requires_grad_(True)
    if recipe.lora_rank:
        add_adapter(student, recipe.lora_rank)
    latent = None
    if recipe.dmd.first_frame == "reencode":
        latent = partial(image_latent, bundle.load_vae(device, torch.float32))
    settings = bundle.settings
    try:
        return DistributionMatching(
            student,
            bundle.load_teacher(device, torch.float32).train().requires_grad_(True),
            bundle.load_teacher(device, torch.float32),
            text,
            prompts,
            sampler=replace(settings.sampler(), context_noise=recipe.dmd.context_noise),
            horizon=recipe.dmd.horizon or bundle.teacher_horizon,
            latent=(
                student.config.in_channels,
                *bundle.compression.latent_size(settings.width, settings.height),
            ),
            config=recipe.dmd,
            seed=recipe.seed,
            image_latent=latent,
            videos=videos,
        )
    except ValueError as error:
        raise UserError(f"dmd: {error}") from None


def embedded(
    bundle: Bundle, prompts: Sequence[str], store: str | None, device: torch.device, watch: Watch
) -> EncodeText:
    """Embeddings of the prompts, computed once; the text encoder is gone afterwards. In memory, or in the folder `store`."""
    dtype = pick_dtype(None, device)
    if store is None:
        known = EmbeddedPrompts(bundle.load_text(device, dtype), prompts)
        return lambda chosen: known(chosen).float()
    ranks = Ranks.from_environment()
    ranks.join(device)
    store_prompts(
        Path(store),
        prompts,
        lambda: bundle.load_text(device, dtype),
        text_origin(bundle, dtype),
        ranks,
        watch,
    )
    return StoredPrompts(Path(store), bundle.settings.text_length)


def previews_of(
    student: CausalWanModel, bundle: Bundle, recipe: StudentRecipe | MatchingRecipe, text: Tensor, how: How
) -> Callable[[int], dict[str, float]]:
    """(step) -> gauges of the recipe's preview, if it wants one at that step."""
    wanted, ranks = recipe.preview, Ranks.from_environment()
    if not wanted.every:
        return lambda step: {}
    preview = Previewer(bundle, text, wanted.seconds, how.out / "previews", how.device, recipe.seed)

    def look(step: int) -> dict[str, float]:
        if step % wanted.every:
            return {}
        with recipe.training.autocast(how.device):
            return preview(student, step, write=ranks.first)

    return look


def add_adapter(student: CausalWanModel, rank: int) -> None:
    """Low-rank adapters on every attention projection and feed-forward layer; they alone learn (arXiv 2106.09685)."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("lora_rank needs the peft library: pip install 'sfpp[lora]'") from None
    layers = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    student.requires_grad_(False)
    student.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights="gaussian")
    )


def prepare(networks: Sequence[nn.Module], training: Training) -> None:
    """What a recipe asks of the networks themselves."""
    for network in networks:
        if training.gradient_checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        if training.compile:
            network.compile_blocks()  # type: ignore[operator]


def run(
    objective: Objective,
    recipe: Recipe,
    how: How,
    *,
    networks: Sequence[nn.Module],
    look: Callable[[int], dict[str, float]] = lambda step: {},
    settings: Settings | None = None,
) -> None:
    """Train, watched; refuse to walk over an earlier run.

    `networks` are those that may be compiled or forget activations, `look` makes previews, `settings` are saved with students.
    """
    ranks, training, out = Ranks.from_environment(), recipe.training, how.out
    if checkpoint.saved_steps(out) and not how.resume:
        raise UserError(f"{out} holds a run already: continue it with --resume, or choose another --out")
    ranks.join(how.device)
    if ranks.first:
        write_recipe(recipe, out / "recipe.toml")

    def observe(record: dict[str, float]) -> dict[str, float]:
        seen = {"peak_mb": round(peak_megabytes(how.device), 1)}
        if "critic_loss" in record:
            seen["ratio"] = record["loss"] / record["critic_loss"]
        return seen | look(int(record["step"]))

    def describe(folder: Path) -> None:
        """Students tell how they want to be rolled out."""
        if settings:
            for saved in folder.glob("student*"):
                settings.write(saved / SETTINGS)

    with how.watch.stage("training", training.steps) as advance:

        def show(record: dict[str, float]) -> None:
            advance(
                int(record["step"]),
                {name: f"{value:.4g}" for name, value in record.items() if name != "step"},
            )

        try:
            trainer = Trainer(objective, training, out, ranks, show, observe, describe)
            prepare(networks, training)
            trainer.run()
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; the same command with --resume goes on from the last checkpoint in {out}"
            ) from None
    if ranks.first:
        from sfpp_cli.training.curves import plot_run

        how.watch.say(f"done: {checkpoint.path_of(out, training.steps)}; curves in {plot_run(out)}")
