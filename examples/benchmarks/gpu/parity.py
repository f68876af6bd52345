"""Small models on the CPU in float32 against the device: float32 without TF32, then bfloat16."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu.measuring import Result, Section, error_of
from gpu.networks import SMALL, TINY, full_cache, fused_blocks, make_network, make_vae, sampler
from sfpp_cli.core.dmd import DistributionMatching
from sfpp_cli.core.dmd_config import DMDConfig
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.objective import Update
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training
from sfpp_cli.models.vae import StreamingDecoder, StreamingEncoder, channels_last

SIZE = (8, 12)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parity(s: Section) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    config = TINY if s.tiny else SMALL
    rollouts(s, config)
    teachers(s, config)
    updates(s, config)
    decoders(s)
    if not s.tiny:
        runs(s, config)
    s.attempt("fused blocks against the project's", lambda: fused_error(s, config))


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(config: dict[str, Any]) -> Tensor:
    return random(1, 16, config["text_dim"])


def placed(
    kind: Any, config: dict[str, Any], device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Any:
    """The same weights on every device."""
    return make_network(kind, config, dtype, "cpu").to(device)


@torch.no_grad()
def roll(
    config: dict[str, Any], context: int, sink: int, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    student = placed(CausalWanModel, config, device, dtype)
    noise = VideoNoise([0], (3, 16, *SIZE), device)
    prompt = text(config).to(device)
    chunks = sampler(context, sink).rollout(student, noise.chunks(0, 7), prompt, noise.draw)
    return torch.cat(list(chunks), dim=1)


def rollouts(s: Section, config: dict[str, Any]) -> None:
    for context, sink in ((9, 3), (8, 1), (21, 0)):  # 8 - 1 is no multiple of 3: the ring wraps in a chunk
        reference = roll(config, context, sink, "cpu", torch.float32)
        for name, dtype in DTYPES.items():
            ours = partial(roll, config, context, sink, s.device, dtype)
            title = f"rollout of 7 chunks, context {context} sink {sink}, {name}"
            s.attempt(title, lambda ours=ours, reference=reference: error_of(ours(), reference))


def teachers(s: Section, config: dict[str, Any]) -> None:
    @torch.no_grad()
    def flow(device: torch.device | str, dtype: torch.dtype) -> Tensor:
        teacher = placed(Teacher, config, device, dtype)
        x = random(1, 6, 16, *SIZE, seed=2).to(device, dtype)
        return teacher(x, torch.tensor([500.0], device=device), text(config).to(device, dtype))

    reference = flow("cpu", torch.float32)
    for name, dtype in DTYPES.items():
        s.attempt(f"teacher, {name}", lambda dtype=dtype: error_of(flow(s.device, dtype), reference))


def matching(
    config: dict[str, Any], device: torch.device | str, *, lower: bool = False, **choices: Any
) -> DistributionMatching:
    """A student, a critic and a teacher; `lower` is the arithmetic in bfloat16."""
    embedded = text(config)
    return DistributionMatching(
        placed(CausalWanModel, config, device).requires_grad_(True),
        placed(Teacher, config, device).requires_grad_(True),
        placed(Teacher, config, device, torch.bfloat16 if lower else torch.float32),
        lambda prompts: embedded.expand(len(prompts), -1, -1),
        ["a"],
        sampler=sampler(context=9),
        horizon=6,
        latent=(16, *SIZE),
        config=DMDConfig(method="self-forcing++", horizon=6, **choices),
        seed=0,
    )


def updates(s: Section, config: dict[str, Any]) -> None:
    """Losses and gradients of one update of the student and one of the critic."""

    def learn(device: torch.device | str, lower: bool, checkpointing: bool) -> tuple[Tensor, Tensor]:
        objective = matching(config, device, lower=lower, frames=15)
        if checkpointing:
            objective.student.enable_gradient_checkpointing()
        losses = []
        for player, loss_of in enumerate((objective.student_loss, objective.critic_loss)):
            kind = torch.device(device).type
            with torch.autocast(kind, torch.bfloat16, enabled=lower, cache_enabled=False):
                loss, _ = loss_of(Update(0, player, 0, (0,)))
            loss.backward()
            losses.append(loss.item())
        trained = [p for model in (objective.student, objective.critic) for p in model.parameters()]
        gradients = [p.grad.flatten().float().cpu() for p in trained if p.grad is not None]
        return torch.tensor(losses), torch.cat(gradients)

    losses, gradients = learn("cpu", lower=False, checkpointing=False)

    def compared(lower: bool, checkpointing: bool) -> Result:
        ours = learn(s.device, lower, checkpointing)
        return {"losses": error_of(ours[0], losses), "gradients": error_of(ours[1], gradients)}

    s.attempt("dmd update, float32", lambda: compared(False, False))
    s.attempt("dmd update, float32, checkpointing", lambda: compared(False, True))
    s.attempt("dmd update, bf16 autocast, checkpointing", lambda: compared(True, True))


def decoders(s: Section) -> None:
    @torch.no_grad()
    def coded(device: torch.device | str, dtype: torch.dtype, layout: bool) -> tuple[Tensor, Tensor]:
        vae = make_vae(True, dtype, "cpu").to(device)
        if layout:
            channels_last(vae)
        latents = random(1, 7, 16, 6, 8, seed=3).to(device, dtype)
        decoder = StreamingDecoder(vae)
        pieces = [decoder(piece) for piece in latents.split([1, 3, 3], dim=1)]
        frames = torch.cat(pieces, dim=1)
        return frames, StreamingEncoder(vae)(frames[:, :9].clamp(-1, 1))

    frames, back = coded("cpu", torch.float32, layout=False)

    def compared(dtype: torch.dtype, layout: bool) -> Result:
        ours = coded(s.device, dtype, layout)
        return {"decode": error_of(ours[0], frames), "encode": error_of(ours[1], back)}

    for name, dtype in DTYPES.items():
        for layout in (False, True):
            title = f"VAE stream, {name}{', channels last' if layout else ''}"
            s.attempt(title, lambda dtype=dtype, layout=layout: compared(dtype, layout))


def runs(s: Section, config: dict[str, Any]) -> None:
    """Two steps of the trainer, saved and resumed."""

    def trained(device: torch.device | str, offload: bool) -> Tensor:
        objective = matching(config, device, frames=12, critic_updates=2)
        training = Training(
            steps=2,
            batch=2,
            micro_batch=1,
            lr=1e-3,
            ema_start=1,
            offload=offload,
            precision="float32",
            save_every=2,
        )
        with tempfile.TemporaryDirectory() as folder:
            Trainer(objective, training, Path(folder)).run()
            Trainer(objective, training, Path(folder)).resume()
        return torch.cat([p.detach().flatten().float().cpu() for p in objective.student.parameters()])

    reference = trained("cpu", offload=False)
    s.attempt("trainer, 2 steps", lambda: error_of(trained(s.device, False), reference), need=8)
    s.attempt("trainer, 2 steps, offload", lambda: error_of(trained(s.device, True), reference), need=8)


@torch.no_grad()
def fused_error(s: Section, config: dict[str, Any]) -> Result:
    student = placed(CausalWanModel, config, s.device, torch.bfloat16 if s.cuda else torch.float32)
    x = torch.randn(1, 3, 16, *SIZE, device=s.device)
    t = torch.tensor([500.0], device=s.device)
    cache = full_cache(student, text(config).to(s.device), SIZE, 9, 12)
    project = student(x, t, cache)  # again, it writes the same slots
    fused_blocks(student)
    return error_of(student(x, t, cache), project)
