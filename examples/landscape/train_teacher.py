"""Train the landscape's bidirectional teacher and its text encoder: 1 latent frame, then 5, then 21.

The shorter phases draw their stretch anywhere in a clip. One that does not begin with the clip has no image
latent, which its caption tells by its last word. Muon moves the blocks' matrices, AdamW the rest.

    python examples/landscape/train_teacher.py --work runs/landscape --minutes 120
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from encode_world import balloon_share, drawn
from muon import Muon
from ranks import cores, even, on_ranks
from road import TEACHER_SEED, Clock, Job, Speed, job_of, load_state, replace_folder, save_state
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from sfpp_cli.core.constants import TRAIN_STEPS
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.data.latents import INDEX, MID_STREAM

SHIFT = 2.0
"""Of the timesteps in training. What the camera does is learned between a half and four fifths of noise."""
MATRIX_LR, OTHER_LR = 4e-3, 1e-3
WHOLE = 0.6
"""Learning rates on whole clips, as a share: at the full ones the little that tells a pan drowns in noise."""
WARMUP = 50
COOLDOWN = 0.08
"""Share of the time, at its end, in which the learning rates fall."""
TEXT_DROPOUT = 0.1
BEGINNINGS = 0.5
"""Share of stretches that begin with their clip, in the phases in which they need not."""
EMA = 0.995
CLIP = 1.0
FOREGROUND = 4.0
"""Weight of the error where the balloon is. What is best to tell does not change; it is learned sooner."""


@dataclass(frozen=True)
class Clips:
    """Latents [N, F, C, H, W] and their captions as tokens [N, V, L], plain and as of mid-stream."""

    latents: Tensor
    weights: Tensor
    """Of the error at each place, [N, F, 1, H, W]."""
    tokens: Tensor
    continued: Tensor
    empty: Tensor
    """Tokens of no caption, [L]."""

    @classmethod
    def read(cls, job: Job, tokenizer: PreTrainedTokenizerBase) -> Clips:
        folder, device = job.work / "latents", job.device
        rows = [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]
        shards = {
            name: load_file(folder / name)["latents"] for name in dict.fromkeys(row["shard"] for row in rows)
        }
        captions = [row["captions"] for row in rows]
        cells = next(iter(shards.values())).shape[-2:]
        shares = [
            balloon_share(*drawn(number, len(shard), device), job.scale.size, cells)
            for number, shard in enumerate(shards.values())
        ]
        return cls(
            torch.stack([shards[row["shard"]][row["row"]] for row in rows]).to(device),
            1 + (FOREGROUND - 1) * torch.cat(shares),
            tokenized(tokenizer, captions).to(device),
            tokenized(
                tokenizer, [[f"{caption} {MID_STREAM}" for caption in choices] for choices in captions]
            ).to(device),
            tokenized(tokenizer, [[""]])[0, 0].to(device),
        )

    def draw(self, frames: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random stretches [B, frames, C, H, W], their weights, and tokens [B, L], some of no caption."""
        device = self.latents.device
        which = torch.randint(len(self.latents), (batch,), device=device)
        start = torch.randint(self.latents.shape[1] - frames + 1, (batch,), device=device)
        start = start * (torch.rand(batch, device=device) >= BEGINNINGS)
        choice = torch.randint(self.tokens.shape[1], (batch,), device=device)
        at = start[:, None] + torch.arange(frames, device=device)
        tokens = torch.where(start[:, None] > 0, self.continued[which, choice], self.tokens[which, choice])
        silent = torch.rand(batch, 1, device=device) < TEXT_DROPOUT
        where = which[:, None], at
        return self.latents[where].float(), self.weights[where], torch.where(silent, self.empty, tokens)


class Text(nn.Module):
    """The text encoder over tokens, padded with zeros as sfpp's own."""

    def __init__(self, encoder: UMT5EncoderModel, padding: int) -> None:
        super().__init__()
        self.encoder, self.padding = encoder, padding

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != self.padding).long()
        return self.encoder(tokens, attention_mask=mask).last_hidden_state * mask[..., None]


class Trainer:
    """Teacher and text encoder, their optimiser and average, and where they are on their way."""

    def __init__(self, job: Job, ranks: Ranks) -> None:
        self.job, self.ranks = job, ranks
        self.done = 0.0
        torch.manual_seed(TEACHER_SEED)
        self.tokenizer = AutoTokenizer.from_pretrained(job.work / "init" / "tokenizer")
        self.teacher = Teacher.from_pretrained(job.work / "init" / "transformer").to(job.device).train()
        encoder = UMT5EncoderModel.from_pretrained(job.work / "init" / "text_encoder").to(job.device).train()
        self.text = Text(encoder, self.tokenizer.pad_token_id)
        self.models = nn.ModuleDict({"transformer": self.teacher, "text": self.text})
        self.parameters = list(self.models.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = self.new_optimizer()
        self.step = 0
        state = load_state(job.work / "teacher-state.pt", job.device)
        self.clock = Clock(job, state["spent"] if state else 0.0)
        if state:
            self.restore(state)
        else:
            self.begin_from_earlier()
        torch.manual_seed(TEACHER_SEED + self.step + 1_000_003 * ranks.rank)
        self.schedule = FlowSchedule(SHIFT)
        self.clips = Clips.read(job, self.tokenizer)
        self.batches = {frames: batch // ranks.world for frames, batch, _ in job.scale.curriculum}
        self.good = self.state()
        self.compiled = False

    def begin_from_earlier(self) -> None:
        """Weights that a call elsewhere has left, without their optimiser; the average begins at them."""
        raw = load_state(self.job.work / "teacher-raw.pt", self.job.device)
        if raw is None:
            return
        self.models.load_state_dict(raw["models"])
        self.step = raw["step"]
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.copy_(parameter.detach())
        self.say(f"teacher: goes on from the weights of step {self.step}, {raw['spent']:.0f} s")

    def compile_if_it_pays(self, frames: int) -> None:
        """What `warm.py` measured decides, as soon as it has; nothing measured, nothing compiled."""
        measured = self.job.work / "compile-teacher.json"
        pays = (
            not self.job.careful
            and measured.exists()
            and frames in json.loads(measured.read_text())["frames"]
        )
        if pays == self.compiled:
            return
        self.compiled = pays
        for block in self.teacher.blocks:
            if pays:
                block.compile()
            else:
                block._compiled_call_impl = None
        self.say(f"teacher: {'compiled' if pays else 'not compiled'} from step {self.step} on")

    def new_optimizer(self) -> Muon:
        blocks = [p for p in self.teacher.blocks.parameters() if p.ndim == 2 and min(p.shape) > 8]
        return Muon(self.parameters, blocks, betas=(0.9, 0.99), weight_decay=0.0)

    def run(self) -> None:
        speed, losses, phase = Speed(), [], 0
        while self.time_is_left():
            frames = self.frames_now()
            if frames != phase:
                batch = self.batches[frames] * self.ranks.world
                where = f"batch {batch} on {self.ranks.world} ranks, from {self.clock.spent:.0f} s on"
                self.say(f"teacher: {frames} latent frames, {where}")
                phase, losses = frames, []
                self.compile_if_it_pays(frames)
                speed.ask(self.step)
            if self.step % 50 == 0:
                self.compile_if_it_pays(frames)
            loss = self.try_update(frames)
            if loss is None:
                continue
            losses.append(loss)
            if self.step % 50 == 0 and not self.healthy(loss):
                losses = []
            if losses and (self.step % 200 == 0 or self.step == 10):
                mean = torch.stack(losses).mean().item()
                told = f"loss {mean:.4f}, {speed.ask(self.step):.1f} steps/s"
                self.say(f"teacher {frames} frames, step {self.step}, {self.clock.spent:.0f} s: {told}")
                losses = []
            if self.clock.time_to_save():
                self.save()
        self.save()

    def time_is_left(self) -> bool:
        """By the first rank's clock, so that all ranks are always in the same phase."""
        clock = torch.tensor([self.clock.done], dtype=torch.float64)
        self.done = self.ranks.gather(clock)[0].item()
        return self.done < 1

    def say(self, text: str) -> None:
        if self.ranks.first:
            self.job.say(text)

    def frames_now(self) -> int:
        """The phase that the clock is in."""
        end = 0.0
        for frames, _, share in self.job.scale.curriculum:
            end += share
            if self.done < end:
                return frames
        return frames

    def try_update(self, frames: int) -> Tensor | None:
        """An update; None if there was no room for it, and the batch is smaller from now on."""
        try:
            return self.update(frames)
        except torch.OutOfMemoryError:
            self.batches[frames] = max(1, self.batches[frames] // 2)
            self.job.say(f"teacher: out of memory; batch {self.batches[frames]} from now on")
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        return None

    def update(self, frames: int) -> Tensor:
        x0, weights, tokens = self.clips.draw(frames, self.batches[frames])
        loss = flow_matching_loss(self.teacher, self.text, x0, weights, tokens, self.schedule, self.job)
        self.optimizer.zero_grad()
        loss.backward()
        self.ranks.average(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        share = min(1.0, (self.step + 1) / WARMUP) * self.decay()
        if frames == self.clips.latents.shape[1]:
            share *= WHOLE
        self.optimizer.step(MATRIX_LR * share, OTHER_LR * share)
        self.step += 1
        self.follow()
        return self.ranks.gather(loss.detach()[None]).mean()

    def decay(self) -> float:
        """Of the learning rates: none until `COOLDOWN`, so that the time may be prolonged."""
        return max(0.02, min(1.0, (1 - self.done) / COOLDOWN))

    @torch.no_grad()
    def follow(self) -> None:
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)

    def healthy(self, loss: Tensor) -> bool:
        """Remember a good state; go back to the last one if the loss is no number any more."""
        if torch.isfinite(loss):
            self.good = self.state()
            return True
        self.say(f"teacher: loss is not finite at step {self.step}; going back to step {self.good['step']}")
        self.restore(self.good)
        return False

    def state(self) -> dict[str, object]:
        tensors = {
            "models": self.models.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        return copy.deepcopy(tensors) | {"step": self.step, "spent": self.clock.spent}

    def restore(self, state: dict[str, object]) -> None:
        self.models.load_state_dict(state["models"])
        for mine, theirs in zip(self.average, state["average"], strict=True):
            mine.copy_(theirs)
        self.step = state["step"]
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])

    def save(self) -> None:
        if not self.ranks.first:
            return
        save_state(self.job.work / "teacher-state.pt", self.state())
        raw = {name: value.to(torch.bfloat16) for name, value in self.models.state_dict().items()}
        save_state(
            self.job.work / "teacher-raw.pt", {"models": raw, "step": self.step, "spent": self.clock.spent}
        )
        replace_folder(self.job.work / "teacher", self.store)

    def store(self, folder: Path) -> None:
        """The average in a model's layout, as float16, as it will be published."""
        with averaged(self):
            copied = Teacher.from_config(self.teacher.config)
            copied.load_state_dict(
                {name: value.detach().cpu().clone() for name, value in self.teacher.state_dict().items()}
            )
            copied.half().save_pretrained(folder / "transformer")
            self.text.encoder.save_pretrained(folder / "text_encoder")


class averaged:
    """Inside, the models hold their average."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.trainer.parameters, self.trainer.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


def flow_matching_loss(
    teacher: Teacher,
    text: Callable[[Tensor], Tensor],
    x0: Tensor,
    weights: Tensor,
    tokens: Tensor,
    schedule: FlowSchedule,
    job: Job,
) -> Tensor:
    """Weighted squared error of the flow; timesteps are spread evenly over a batch, then shifted."""
    batch = len(x0)
    uniform = (torch.arange(batch, device=x0.device) + torch.rand(batch, device=x0.device)) / batch
    timestep = schedule.shift_timesteps(TRAIN_STEPS * uniform)
    sigma = (timestep / TRAIN_STEPS).view(-1, 1, 1, 1, 1)
    noise = torch.randn_like(x0)
    with job.autocast():
        flow = teacher((1 - sigma) * x0 + sigma * noise, timestep, text(tokens))
    return (weights * (flow.float() - (noise - x0)).square()).mean()


def tokenized(tokenizer: PreTrainedTokenizerBase, captions: list[list[str]]) -> Tensor:
    """[N, V, L] from N lists of V captions."""
    flat = [caption for choices in captions for caption in choices]
    tokens = tokenizer(flat, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens.view(len(captions), len(captions[0]), -1)


def run(job: Job) -> None:
    """On every core, if each phase's batch can be shared out evenly."""
    on_ranks(job, min(even(batch, cores(job)) for _, batch, _ in job.scale.curriculum), train)


def train(job: Job, ranks: Ranks) -> None:
    Trainer(job, ranks).run()


if __name__ == "__main__":
    run(job_of(__doc__))
