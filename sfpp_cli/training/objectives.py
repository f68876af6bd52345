"""From a recipe to what is trained: models, embeddings, data, the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sfpp_cli.core.adapter import add_adapters
from sfpp_cli.core.dmd import DistributionMatching, Videos
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.flow_matching import FlowMatching
from sfpp_cli.core.grpo import GRPO, Decode
from sfpp_cli.core.objective import Objective
from sfpp_cli.core.ode import TrajectoryRegression
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.data.latents import LatentWindows
from sfpp_cli.data.text_store import StoredPrompts, cut_short, store_prompts, text_origin
from sfpp_cli.data.trajectories import TrajectoryStore
from sfpp_cli.devices import pick_dtype
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.decoders import DecoderFile
from sfpp_cli.models.settings import SETTINGS, Settings
from sfpp_cli.models.text import EmbeddedPrompts
from sfpp_cli.models.vae import StreamingDecoder, image_latent, to_uint8
from sfpp_cli.training.context import RunContext
from sfpp_cli.training.preview import Previewer
from sfpp_cli.training.recipes import GRPORecipe, MatchingRecipe, StudentRecipe, TeacherRecipe

EncodeText = Callable[[list[str]], Tensor]
"""Prompts -> padded embeddings [B, L, D], float32."""


@dataclass(frozen=True)
class Task:
    """What the trainer works on."""

    objective: Objective
    networks: Sequence[nn.Module]
    """Transformers that may be compiled, and may recompute their activations; frozen ones too."""
    preview: Callable[[int], dict[str, float]] | None = None
    """(step) -> gauges of a preview that is made at that step."""


def flow_matching(recipe: TeacherRecipe, bundle: Bundle, run: RunContext) -> Task:
    """A bidirectional teacher (and its text encoder, if the recipe says so) on stored latents."""
    teacher = bundle.load_teacher(run.device, torch.float32).train().requires_grad_(True)
    text = bundle.load_text(run.device, torch.float32)
    models: dict[str, nn.Module] = {"transformer": teacher}
    if recipe.train_text_encoder:
        models["text_encoder"] = text.model.train().requires_grad_(True)
    data = recipe.data
    objective = FlowMatching(
        teacher,
        text,
        LatentWindows(Path(data.latents), bundle.teacher_horizon, data.mid_stream),
        schedule=FlowSchedule(recipe.shift),
        text_dropout=data.text_dropout,
        seed=recipe.seed,
        models=models,
    )
    return Task(objective, [teacher])


def trajectory_regression(
    recipe: StudentRecipe, bundle: Bundle, prompts: list[str], text: EncodeText, run: RunContext
) -> Task:
    """A causal student on the teacher's trajectories, which `make_pairs` has made."""
    settings = recipe.settings_for(bundle)
    student = _first_student(recipe, bundle, run.device)
    objective = TrajectoryRegression(
        student,
        text,
        TrajectoryStore(Path(recipe.pairs.folder)),
        schedule=FlowSchedule(settings.shift),
        steps=settings.steps,
        chunk=settings.chunk,
        context=settings.context,
        sink=settings.sink,
        sink_positions=settings.sink_positions,
        seed=recipe.seed,
        save_extra=lambda folder: settings.write(folder / SETTINGS),
    )
    return Task(objective, [student], _preview(recipe, bundle, settings, student, prompts, text, run))


def distribution_matching(
    recipe: MatchingRecipe, bundle: Bundle, prompts: list[str], text: EncodeText, run: RunContext
) -> Task:
    """A student on its own rollouts, judged by teacher and critic; no video data is needed."""
    objective = matching_objective(recipe, bundle, prompts, text, run.device)
    student = objective.student
    networks: list[nn.Module] = [student, objective.critic]
    if objective.teacher is not objective.critic:
        networks.append(objective.teacher)
    settings = recipe.settings_for(bundle)
    return Task(objective, networks, _preview(recipe, bundle, settings, student, prompts, text, run))


def policy_optimisation(
    recipe: GRPORecipe, bundle: Bundle, prompts: list[str], text: EncodeText, run: RunContext
) -> Task:
    """A student on rewards of its own rollouts."""
    from sfpp_cli.training.rewards import Rewards  # OpenCV, which other objectives need not load

    settings = recipe.settings_for(bundle)
    student = _learner(recipe, bundle, run.device)
    reference = None
    if recipe.grpo.kl:
        reference = bundle.load_student(torch.device("cpu"), torch.float32)
    objective = GRPO(
        student,
        text,
        prompts,
        decode=frames_of(bundle, run.device),
        score=Rewards(recipe.reward, settings.fps, run.device),
        sampler=settings.sampler(),
        horizon=bundle.teacher_horizon,
        latent=(student.config.in_channels, *bundle.latent_size),
        config=recipe.grpo,
        seed=recipe.seed,
        reference=reference,
        ranks=run.ranks,
        save_extra=lambda folder: settings.write(folder / SETTINGS),
    )
    preview = _preview(recipe, bundle, settings, student, prompts, text, run, recipe.stop_on)
    return Task(objective, [student], preview)


def frames_of(bundle: Bundle, device: torch.device) -> Decode:
    """The model's decoder: chunks of latents -> of each its frames, one chunk at a time on `device`."""
    vae = bundle.load_vae(device, torch.float32)

    def decode(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        decoder = StreamingDecoder(vae)
        return (to_uint8(decoder(chunk.to(device))).cpu() for chunk in chunks)

    return decode


def matching_objective(
    recipe: MatchingRecipe,
    bundle: Bundle,
    prompts: Sequence[str],
    text: EncodeText,
    device: torch.device,
    videos: Videos | None = None,
) -> DistributionMatching:
    """Student, critic and teacher of a recipe, to be trained on rollouts, or on `videos` if given."""
    settings = recipe.settings_for(bundle)
    student = _learner(recipe, bundle, device)
    critic, teacher = _judges(recipe, bundle, device)
    encode_image = None
    if recipe.dmd.first_frame == "reencode":
        encode_image = partial(image_latent, bundle.load_vae(device, torch.float32))
    return DistributionMatching(
        student,
        critic,
        teacher,
        text,
        prompts,
        sampler=settings.sampler(),
        horizon=bundle.teacher_horizon,
        latent=(student.config.in_channels, *bundle.latent_size),
        config=recipe.dmd,
        seed=recipe.seed,
        image_latent=encode_image,
        videos=videos,
        save_extra=lambda folder: settings.write(folder / SETTINGS),
    )


def embed_prompts(bundle: Bundle, prompts: Sequence[str], store: str | None, run: RunContext) -> EncodeText:
    """Embeddings of the prompts, computed once, in memory or in the folder `store`. The encoder is freed."""
    dtype = pick_dtype(None, run.device)
    if store is None:
        known = EmbeddedPrompts(bundle.load_text(run.device, dtype), prompts)
        if known.too_long and run.ranks.first:
            run.progress.warn(cut_short(known.too_long, known.length))
        return lambda chosen: known(chosen).float()
    store_prompts(
        Path(store),
        prompts,
        lambda: bundle.load_text(run.device, dtype),
        text_origin(bundle, dtype),
        run.ranks,
        run.progress,
    )
    return StoredPrompts(Path(store), bundle.settings.text_length)


def _learner(recipe: MatchingRecipe | GRPORecipe, bundle: Bundle, device: torch.device) -> CausalWanModel:
    """The bundle's student, to be trained: all of it, or adapters over what is frozen."""
    dtype = recipe.training.dtype(device) if recipe.lora_rank else torch.float32
    student: CausalWanModel = bundle.load_student(device, dtype).train().requires_grad_(True)
    if recipe.lora_rank:
        add_adapters(student, recipe.lora_rank, recipe.seed, float8=recipe.lora_base == "float8")
    return student


def _judges(recipe: MatchingRecipe, bundle: Bundle, device: torch.device) -> tuple[Teacher, Teacher]:
    """Critic and teacher: two networks, or one whose adapters are the critic's."""
    # Frozen weights need no more than the precision of the arithmetic.
    teacher = bundle.load_teacher(device, recipe.training.dtype(device))
    if not recipe.lora_rank:
        return bundle.load_teacher(device, torch.float32).train().requires_grad_(True), teacher
    add_adapters(teacher, recipe.lora_rank, recipe.seed, float8=recipe.lora_base == "float8")
    return teacher.train(), teacher


def _first_student(recipe: StudentRecipe, bundle: Bundle, device: torch.device) -> CausalWanModel:
    """The recipe's `init`, or a causal student with the teacher's weights."""
    if recipe.init is not None:
        student = Bundle(recipe.model, recipe.init).load_student(device, torch.float32)
    else:
        teacher = bundle.load_teacher(torch.device("cpu"), torch.float32)
        student = CausalWanModel.from_config(teacher.config)
        student.load_state_dict(teacher.state_dict())
    student.to(device).train().requires_grad_(True)
    return student


def _preview(
    recipe: StudentRecipe | MatchingRecipe | GRPORecipe,
    bundle: Bundle,
    settings: Settings,
    student: CausalWanModel,
    prompts: list[str],
    text: EncodeText,
    run: RunContext,
    stop_on: Sequence[str] = (),
) -> Callable[[int], dict[str, float]] | None:
    """(step) -> gauges of the recipe's preview, nothing at steps without one."""
    wanted = recipe.preview
    if not wanted.every:
        return None
    embeddings = text(prompts[: wanted.count])
    folder = run.out / "previews"
    decoder = DecoderFile.parse(wanted.decoder)
    previewer = Previewer(
        bundle, settings, embeddings, wanted.seconds, folder, run.device, recipe.seed, stop_on, decoder
    )

    def preview(step: int) -> dict[str, float]:
        if step % wanted.every:
            return {}
        with recipe.training.autocast(run.device):
            return previewer(student, step, write=run.ranks.first)

    return preview
