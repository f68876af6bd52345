"""Flow matching of a teacher: the loss written out, and a run that stops and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import CONFIG, SIZE, gaussian, loss_of, make_teacher, prompts
from torch import Tensor

from sfpp_cli.core import checkpoint
from sfpp_cli.core.flow import FlowSchedule
from sfpp_cli.core.flow_matching import FlowMatching
from sfpp_cli.core.noise import normal, seeded
from sfpp_cli.core.teacher import Teacher
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training


class Clips:
    """Six clips of 3 latent frames."""

    latents = gaussian(6, 3, CONFIG["in_channels"], *SIZE)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, str]:
        index = int(torch.randint(6, (), generator=generator))
        return self.latents[index], f"clip {index}"


class Encoder:
    """Notes what it encodes."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: list[str]) -> Tensor:
        self.seen += texts
        return torch.cat([prompts(1, seed=int(text.split()[-1]) if text else 99) for text in texts])


def objective(text_dropout: float = 0.3) -> FlowMatching:
    teacher = make_teacher()
    models = {"transformer": teacher}
    return FlowMatching(
        teacher,
        Encoder(),
        Clips(),
        schedule=FlowSchedule(5),
        text_dropout=text_dropout,
        seed=4,
        models=models,
    )


@torch.no_grad()
def by_hand(number: int, text_dropout: float) -> float:
    generator = seeded(4, number)
    x0, caption = Clips().draw(generator)
    dropped, level = torch.rand(2, generator=generator).tolist()
    noise = normal(x0.shape, generator)
    sigma = 5 * level / (1 + 4 * level)
    text = Encoder()(["" if dropped < text_dropout else caption])
    flow = make_teacher()(((1 - sigma) * x0 + sigma * noise)[None], torch.tensor([1000 * sigma]), text)
    return (flow[0] - (noise - x0)).square().mean().item()


@torch.no_grad()
def test_the_loss_is_the_flows_squared_error() -> None:
    expected = [by_hand(number, 0.3) for number in range(5)]
    fit = objective()
    for number, wanted in enumerate(expected):
        assert loss_of(fit, [number])[0].item() == pytest.approx(wanted, rel=1e-5)  # 170 roundings in float32
    assert loss_of(fit, range(5))[0].item() == pytest.approx(sum(expected) / 5, rel=1e-5)
    torch.manual_seed(7)
    assert torch.equal(loss_of(fit, range(5))[0], loss_of(fit, range(5))[0])


@torch.no_grad()
@pytest.mark.parametrize("text_dropout", [0.0, 0.3, 1.0])
def test_captions_are_dropped_as_often_as_asked(text_dropout: float) -> None:
    fit = objective(text_dropout)
    loss_of(fit, range(400))
    seen: list[str] = fit.encode_text.seen  # type: ignore[attr-defined]
    assert seen.count("") / 400 == pytest.approx(text_dropout, abs=0.07)
    assert len(set(seen)) == (text_dropout < 1) * 6 + (text_dropout > 0)


def test_a_teacher_in_training_stops_and_goes_on(tmp_path: Path) -> None:
    """Bitwise, and what is saved are diffusers folders: the weights and their average."""
    training = Training(steps=4, batch=2, lr=1e-3, ema=0.5, ema_start=2, save_every=2)
    Trainer(objective(), training, tmp_path / "whole").run()

    def stop(record: dict[str, float]) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(objective(), training, tmp_path / "run", on_step=stop).run()
    resumed = Trainer(objective(), training, tmp_path / "run")
    resumed.run()
    assert resumed.ema is not None
    for name, state in (
        ("transformer", resumed.models["transformer"].state_dict()),
        ("transformer-ema", resumed.ema["transformer"]),
    ):
        for run in ("run", "whole"):
            saved = Teacher.from_pretrained(checkpoint.path_of(tmp_path / run, 4) / name).state_dict()
            assert saved.keys() == state.keys()
            assert all(torch.equal(tensor, saved[key]) for key, tensor in state.items())
