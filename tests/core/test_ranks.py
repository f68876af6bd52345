"""Two ranks follow one, sharded by FSDP2, with the objective that asks most of it.

A run of two continues on one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_dmd import matching
from toy_training import untimed
from two_ranks import on_two_ranks

from sfpp_cli.core import checkpoint
from sfpp_cli.core.adapter import add_adapters
from sfpp_cli.core.parallel import ALONE, Ranks
from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training

TRAINING = Training(steps=3, batch=4, micro_batch=1, lr=1e-3, clip=1.0, ema=0.5, ema_start=1, save_every=2)


def run(folder: Path, ranks: Ranks, training: Training = TRAINING) -> None:
    torch.set_num_threads(1)
    objective = matching(critic_updates=2, critic_lr=2e-3)
    trainer = Trainer(objective, training, folder, ranks)
    for model in (objective.student, objective.critic):
        model.enable_gradient_checkpointing()
    trainer.run()


def train_both_ways(ranks: Ranks, folder: Path) -> None:
    run(folder / "run", ranks)
    run(folder / "replicas", ranks, replace(TRAINING, parallel="replicate"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two ranks."""
    folder = tmp_path_factory.mktemp("two")
    on_two_ranks(train_both_ways, folder)
    return folder


def losses(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [untimed(record) for record in records]


def weights(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    model = CausalWanModel.from_pretrained(checkpoint.path_of(run, step) / name)
    return dict(model.state_dict())


def assert_close(ours: Path, theirs: Path, steps: slice) -> None:
    for one, other in zip(losses(ours)[steps], losses(theirs)[steps], strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)  # 170 roundings in float32
    for name in ("student", "student-ema"):
        for key, value in weights(theirs, 3, name).items():
            # A step of Adam is lr = 1e-3 long however small the gradient: near zero, the gradient's rounding
            # decides. So a third of one step is allowed, of three.
            torch.testing.assert_close(weights(ours, 3, name)[key], value, atol=3e-4, rtol=0)


def test_two_ranks_follow_one(two: Path, tmp_path: Path) -> None:
    run(tmp_path, ALONE)
    for kind in ("run", "replicas"):
        assert len(losses(two / kind)) == 3
        assert_close(two / kind, tmp_path, slice(0, 3))
    first, last = losses(tmp_path)[0], losses(tmp_path)[2]
    assert first["critic_loss"] != pytest.approx(last["critic_loss"], rel=1e-3), (
        "or nothing was learned that could differ"
    )


def test_a_run_of_two_ranks_continues_on_one(two: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(two / "run", tmp_path / "run"))
    shutil.rmtree(checkpoint.path_of(again, 3))
    run(again, ALONE)
    assert_close(again, two / "run", slice(2, 3))


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
    run(tmp_path / "parts", ALONE)
    run(tmp_path / "whole", ALONE, replace(TRAINING, micro_batch=None))
    assert_close(tmp_path / "parts", tmp_path / "whole", slice(0, 3))


def adapt(ranks: Ranks, folder: Path) -> None:
    """The critic's adapters are over the teacher's weights."""
    objective = matching(critic_updates=2, critic_lr=2e-2)
    for model in (objective.student, objective.critic):
        add_adapters(model, 2, seed=1)
        model.enable_gradient_checkpointing()
    objective.teacher = objective.critic
    Trainer(objective, replace(TRAINING, lr=1e-2, clip=100.0), folder / f"{ranks.world}", ranks).run()


@pytest.mark.slow
def test_two_ranks_follow_one_with_adapters(tmp_path: Path) -> None:
    on_two_ranks(adapt, tmp_path)
    adapt(ALONE, tmp_path)
    for one, other in zip(losses(tmp_path / "2"), losses(tmp_path / "1"), strict=True):
        assert one == pytest.approx(other, abs=1e-4, rel=1e-4)
    student = weights(tmp_path / "2", 3, "student")
    for key, value in weights(tmp_path / "1", 3, "student").items():
        torch.testing.assert_close(student[key], value, atol=3e-3, rtol=0)
