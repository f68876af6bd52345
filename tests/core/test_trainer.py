"""The training loop: the update by hand, exact resume, whole checkpoints, ranks that follow one."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from toy_training import TRAINING, Regression, Toy, assert_equal, contents, flip_bit, metrics, train
from two_ranks import on_two_ranks

from sfpp_cli.core import checkpoint
from sfpp_cli.core.objective import Loss, Player, Update
from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.trainer import Trainer
from sfpp_cli.core.training_config import Training
from sfpp_cli.errors import UserError


def test_a_player_says_what_lies_beside_its_weights(tmp_path: Path) -> None:
    """In the folders of its models and of their averages, and in no other."""
    objective = Regression()
    (player,) = objective.players
    other = Toy()
    alone = Player({"other": other}, lambda update: (other(torch.ones(1, 2)).sum(), {}), name="other")
    extra = replace(player, save_extra=lambda folder: (folder / "note.txt").write_text("beside") and None)
    objective.players = (extra, alone)  # type: ignore[assignment]
    Trainer(objective, replace(TRAINING, steps=1, ema_start=1), tmp_path).run()
    notes = sorted(path.parent.name for path in checkpoint.path_of(tmp_path, 1).rglob("note.txt"))
    assert notes == ["toy", "toy-ema"]
    assert (checkpoint.path_of(tmp_path, 1) / "other-ema" / "toy.pt").exists()


def test_gauges_are_logged_and_shown(tmp_path: Path) -> None:
    shown: list[dict[str, float]] = []
    training = replace(TRAINING, steps=2)
    gauges: dict[float, float] = {1: 0.5, 2: 0.25}
    Trainer(
        Regression(),
        training,
        tmp_path,
        on_step=shown.append,
        gauges=lambda record: {"gauge": gauges[record["step"]]},
    ).run()
    assert [record["gauge"] for record in metrics(tmp_path)] == [0.5, 0.25]
    assert [record["gauge"] for record in shown] == [0.5, 0.25]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole")
    train(run)
    return run


def test_the_rate_warms_up_and_stays() -> None:
    training = Training(steps=100, lr=2.0, warmup=4)
    assert [training.lr_scale(step) for step in (0, 1, 3, 4, 5, 99)] == pytest.approx(
        [0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    )
    assert Training(steps=100).lr_scale(0) == 1.0


def test_the_rate_falls_along_a_cosine() -> None:
    training = Training(steps=104, lr=2.0, warmup=4, decay="cosine")
    rates = [training.lr * training.lr_scale(step) for step in range(105)]
    assert rates[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert rates[4] == 2.0
    assert rates[54] == pytest.approx(2.0 * 0.505)
    assert rates[29] == pytest.approx(2.0 * (0.01 + 0.99 * (2 + math.sqrt(2)) / 4))
    assert rates[104] == pytest.approx(0.02)
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_updates_are_clipped_adamw() -> None:
    """Four steps from the formulas, with gradients longer than the clip."""
    training = Training(
        steps=4, batch=2, lr=0.05, betas=(0.5, 0.9), weight_decay=0.1, warmup=2, clip=0.5, ema_start=99
    )
    objective, twin = Regression(), Regression()
    trainer = Trainer(objective, training, Path())
    parameters = list(twin.toy.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(4):
        record = trainer.update()
        loss, figures = twin.loss(Update(step, 0, 0, (2 * step, 2 * step + 1)))
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item()
        assert norm > 0.5, "the clip would not show"
        assert record["step"] == step + 1
        assert record["loss"] == pytest.approx(
            loss.item(), rel=1e-5
        )  # 170 roundings in float32, here and below
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert record["first"] == figures["first"]
        assert record["samples"] == 2 * (step + 1)
        rate = 0.05 * min(1, (step + 1) / 3)
        assert record["lr"] == pytest.approx(rate)
        with torch.no_grad():
            for i, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                clipped = gradient * 0.5 / norm
                first[i] = 0.5 * first[i] + 0.5 * clipped
                second[i] = 0.9 * second[i] + 0.1 * clipped**2
                direction = (
                    first[i] / (1 - 0.5 ** (step + 1)) / ((second[i] / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8)
                )
                p.mul_(1 - rate * 0.1).sub_(rate * direction)
        for ours, theirs in zip(objective.toy.parameters(), parameters, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_average_is_the_recurrence(tmp_path: Path) -> None:
    history = []
    objective = Regression()
    trainer = Trainer(
        objective,
        TRAINING,
        tmp_path,
        on_step=lambda record: history.append(objective.toy.inner.weight.double().clone()),
    )
    trainer.run()
    expected = history[4]
    for weight in history[5:]:
        expected = 0.9 * expected + 0.1 * weight
    assert trainer.ema is not None
    torch.testing.assert_close(
        trainer.ema["toy"]["inner.weight"].double(), expected.detach(), atol=1e-6, rtol=0
    )
    assert (expected - history[-1]).abs().max() > 1e-3
    assert_equal(contents(tmp_path, 12)["toy-ema"], trainer.ema["toy"])
    assert_equal(contents(tmp_path, 12)["toy"], objective.toy.state_dict())


def test_there_is_no_average_before_its_start(tmp_path: Path) -> None:
    train(tmp_path, stop=4)
    assert not (checkpoint.path_of(tmp_path, 4) / "toy-ema").exists()
    assert not checkpoint.has_ema(tmp_path, 4)


@pytest.mark.parametrize("stops", [pytest.param([4], marks=pytest.mark.slow), [8], [10], [2], [5, 6, 9]])
@pytest.mark.parametrize("saving", ["waiting", "background"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_resumed_run_is_the_uninterrupted_one(
    device: str, saving: Literal["waiting", "background"], stops: list[int], tmp_path: Path, whole: Path
) -> None:
    """Stopped at a checkpoint, between two, before the first, and again and again."""
    if device != "cpu":
        whole = tmp_path / "whole"
        train(whole, device=device)
    run = tmp_path / "run"
    training = replace(TRAINING, saving=saving)
    for stop in stops:
        train(run, training, stop=stop, device=device)
    train(run, training, device=device)
    assert checkpoint.saved_steps(run) == checkpoint.saved_steps(whole) == [8, 12]
    for step in (8, 12):
        assert_equal(contents(run, step), contents(whole, step))
    assert metrics(run) == metrics(whole)


def test_a_resumed_run_takes_the_options_of_its_recipe(tmp_path: Path, whole: Path) -> None:
    """Not those of the recipe that wrote the checkpoint; and they show in the weights."""
    train(tmp_path, stop=8)
    changed = replace(TRAINING, betas=(0.5, 0.9), weight_decay=0.5)
    (group,) = train(tmp_path, changed).optimizers[0].param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.5, 0.9), 0.5)
    ours, theirs = (contents(run, 12)["toy"]["outer.weight"] for run in (tmp_path, whole))
    assert (ours - theirs).abs().max() > 1e-3


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    train(tmp_path)
    before = metrics(tmp_path)
    assert train(tmp_path).objective.asked == []  # type: ignore[attr-defined]
    assert metrics(tmp_path) == before


def test_every_sample_number_is_asked_for_once(tmp_path: Path) -> None:
    asked = train(tmp_path, stop=4).objective.asked + train(tmp_path).objective.asked  # type: ignore[attr-defined]
    assert asked == list(range(48))


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [12]), (2, [10, 12]), (4, [6, 8, 10, 12]), (9, [2, 4, 6, 8, 10, 12])]
)
def test_the_newest_checkpoints_are_kept(keep: int, left: list[int], tmp_path: Path) -> None:
    train(tmp_path, Training(steps=12, batch=1, save_every=2, keep=keep))
    assert checkpoint.saved_steps(tmp_path) == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.jsonl",
        *(f"step-{step:06d}" for step in left),
    ]


def test_every_so_many_checkpoints_are_kept_for_good(tmp_path: Path) -> None:
    train(tmp_path, Training(steps=12, batch=1, save_every=2, keep=1, keep_every=4))
    assert checkpoint.saved_steps(tmp_path) == [4, 8, 12]


def test_offloading_changes_no_number(tmp_path: Path, whole: Path) -> None:
    offloading = replace(TRAINING, offload=True)
    train(tmp_path, offloading, stop=6)
    train(tmp_path, offloading)
    assert_equal(contents(tmp_path, 12), contents(whole, 12))
    with pytest.raises(UserError, match="single process"):
        Trainer(Regression(), offloading, tmp_path, Ranks(0, 2))


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path, whole: Path) -> None:
    train(tmp_path, replace(TRAINING, micro_batch=3))
    for ours, theirs in zip(metrics(tmp_path), metrics(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    for key, value in contents(whole, 12)["toy"].items():
        torch.testing.assert_close(contents(tmp_path, 12)["toy"][key], value, atol=1e-5, rtol=0)


def test_players_take_turns() -> None:
    """In order, each as often as it should, at its own rate; the main player's figures have no prefix."""
    updates = []

    class Two:
        def __init__(self) -> None:
            self.toys = Toy(), Toy()
            self.players = (
                Player({"one": self.toys[0]}, self.loss),
                Player({"two": self.toys[1]}, self.loss, name="other", updates=3, lr=0.5, has_ema=False),
            )

        def loss(self, update: Update) -> Loss:
            updates.append(update)
            value = 1.0 + update.player + update.repeat
            return sum(p.sum() for p in self.toys[update.player].parameters()) * 0 + value, {
                "value": 2 * value
            }

    trainer = Trainer(Two(), Training(steps=1, batch=2, lr=0.1, ema_start=0, warmup=1), Path())
    record = trainer.update()
    assert [(update.player, update.repeat) for update in updates] == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert all(update.samples == (0, 1) for update in updates)
    assert {key: record[key] for key in ("loss", "value", "other_loss", "other_value")} == {
        "loss": 1.0,
        "value": 2.0,
        "other_loss": 3.0,
        "other_value": 6.0,
    }
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == [0.05, 0.25]
    assert [record["lr"], record["other_lr"]] == [0.05, 0.25]
    assert 0 < record["update_s"] + record["other_update_s"] <= record["step_s"]
    assert trainer.ema is not None
    assert trainer.ema.keys() == {"one"}


class Duel:
    """Two players; notes whether the other's gradients are there while one learns."""

    def __init__(self) -> None:
        self.toys = [Toy(), Toy()]
        self.players = tuple(
            Player({name: toy}, self.loss, name=name) for name, toy in zip("ab", self.toys, strict=True)
        )
        self.others: list[bool] = []

    def loss(self, update: Update) -> Loss:
        ours = self.toys[update.player]
        other = self.toys[1 - update.player]
        self.others.append(any(p.grad is not None for p in other.parameters()))
        return sum((p.square().sum() for p in ours.parameters()), torch.zeros(())), {}


def test_gradients_are_gone_while_another_learns() -> None:
    objective = Duel()
    trainer = Trainer(objective, Training(steps=2, batch=2, micro_batch=1), Path())
    trainer.update()
    trainer.update()
    assert objective.others == [False] * 8
    assert all(p.grad is None for toy in objective.toys for p in toy.parameters())


class Fake:
    """A model on a GPU that need not be there."""

    def __init__(self) -> None:
        model = nn.Module()
        model.weight = nn.Parameter(torch.empty(3, device="cuda"))
        self.players = (Player({"model": model}, lambda update: (torch.zeros(()), {})),)


@torch.no_grad()
def test_a_gpus_weights_are_updated_in_place() -> None:
    """By the fused kernel: the other makes a copy of all weights first."""
    with FakeTensorMode():
        (optimizer,) = Trainer(Fake(), TRAINING, Path()).optimizers
    assert optimizer.param_groups[0]["fused"]
    (optimizer,) = Trainer(Regression(), TRAINING, Path()).optimizers
    assert not optimizer.param_groups[0]["fused"]


def test_a_gpus_checkpoint_is_resumed_as_suits_the_cpu(tmp_path: Path) -> None:
    trainer = Trainer(Regression(), replace(TRAINING, steps=4), tmp_path)
    trainer.optimizers[0].param_groups[0]["fused"] = True
    trainer.run()
    resumed = Trainer(Regression(), TRAINING, tmp_path)
    resumed.resume()
    assert resumed.step == 4
    assert not resumed.optimizers[0].param_groups[0]["fused"]


def test_the_last_step_is_saved_off_the_beat(tmp_path: Path) -> None:
    train(tmp_path, Training(steps=5, batch=1, save_every=3))
    assert checkpoint.saved_steps(tmp_path) == [3, 5]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_killed_save_leaves_no_half_checkpoint(
    after: int, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the model, before its average, before the state.

    The run goes on from the checkpoint before.
    """
    train(tmp_path, stop=4)
    with monkeypatch.context() as patch:
        patch.setattr(Toy, "save_pretrained", dying(Toy.save_pretrained, [after]))
        patch.setattr(checkpoint, "save_distributed", dying(checkpoint.save_distributed, [0]))
        with pytest.raises(KeyboardInterrupt):
            Trainer(Regression(), TRAINING, tmp_path).run()
    assert checkpoint.saved_steps(tmp_path) == [4]
    assert not checkpoint.path_of(tmp_path, 8).exists()
    train(tmp_path)
    assert_equal(contents(tmp_path, 12), contents(whole, 12))
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


def dying(function: Callable[..., None], left: list[int]) -> Callable[..., None]:
    """The function, for so many calls; then the machine is switched off."""

    def call(*arguments: Any, **options: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        function(*arguments, **options)

    return call


def test_what_is_not_a_checkpoint_is_not_taken_for_one(tmp_path: Path, whole: Path) -> None:
    train(tmp_path, stop=4)
    checkpoint.path_of(tmp_path, 4).rename(tmp_path / ".step-000007.part")
    (tmp_path / "step-000009" / "toy").mkdir(parents=True)
    (tmp_path / "step-last").mkdir()
    assert checkpoint.saved_steps(tmp_path) == []
    assert train(tmp_path).objective.asked == list(range(48))  # type: ignore[attr-defined]
    assert_equal(contents(tmp_path, 12), contents(whole, 12))


@pytest.mark.parametrize(
    "file", ["state/__0_0.distcp", "state/.metadata", "toy/toy.pt", "toy-ema/toy.pt", "SHA256SUMS"]
)
def test_a_damaged_checkpoint_is_passed_over(file: str, tmp_path: Path, whole: Path) -> None:
    """A flipped bit anywhere in it: the run goes on from the one before and ends as if nothing had been."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    flip_bit(checkpoint.path_of(run, 12) / file)
    told: list[str] = []
    trainer = Trainer(Regression(), TRAINING, run, warn=told.append)
    trainer.run()
    assert trainer.objective.asked == list(range(32, 48))  # type: ignore[attr-defined]
    assert_equal(contents(run, 12), contents(whole, 12))
    assert metrics(run) == metrics(whole)
    (line,) = told
    assert "step-000012" in line.partition(";")[0]
    assert f"going on from {checkpoint.path_of(run, 8)}" in line
    assert (run / "step-000012.damaged" / file).exists()
    checkpoint.path_of(run, 8).rename(run / "aside")
    flip_bit(checkpoint.path_of(run, 12) / file)
    with pytest.raises(UserError, match=r"step-000012.* no older checkpoint is whole"):
        train(run)


def test_a_truncated_state_without_digests_is_refused(tmp_path: Path) -> None:
    """Checkpoints of before have none."""
    train(tmp_path, stop=4)
    (checkpoint.path_of(tmp_path, 4) / checkpoint.SUMS).unlink()
    state = next(checkpoint.path_of(tmp_path, 4).rglob("*.distcp"))
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"step-000004 cannot be resumed .* delete it"):
        train(tmp_path)


class Malice:
    """Executes when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("place", ["metadata", "options"])
def test_a_checkpoint_executes_nothing(place: str, tmp_path: Path) -> None:
    """Neither from its metadata nor from what it holds besides tensors."""
    train(tmp_path, stop=4)
    folder = checkpoint.path_of(tmp_path, 4)
    (folder / checkpoint.SUMS).unlink()
    malice = Malice(tmp_path / "executed")
    if place == "metadata":
        (folder / "state/.metadata").write_bytes(pickle.dumps(malice))
    else:
        objective = Regression()
        trainer = Trainer(objective, TRAINING, tmp_path)
        (options,) = trainer._state().tensors()["optimizers"].values()
        state = trainer._state().tensors()
        for name in options["param_groups"][0]:
            if name != "params":
                options["param_groups"][0][name] = malice
        state["optimizers"] = {"toy": options}
        shutil.rmtree(folder / "state")
        checkpoint.save_distributed(state, checkpoint_id=folder / "state", no_dist=True)
    with pytest.raises(UserError, match="cannot be resumed"):
        train(tmp_path)
    assert not malice.witness.exists()


def test_records_tell_the_time(whole: Path) -> None:
    times = [json.loads(line)["time"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert times == sorted(times)
    assert datetime.now(UTC) - datetime.fromisoformat(times[-1]) < timedelta(hours=1)


@pytest.mark.parametrize(
    "line", [b'{"step": 3, "lo', b"\xff\xfe", b"[" * 100_000, b'"step"', b'{"step": "3"}']
)
def test_records_that_are_none_are_dropped(line: bytes, tmp_path: Path, whole: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    log = run / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b"\n", b"\n" + line + b"\n", 1))
    train(run)
    assert metrics(run) == metrics(whole)


def test_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path, stop=4)
    with pytest.raises(UserError, match=r"step-000004 is not of this recipe's models"):
        train(tmp_path, width=4)


@pytest.mark.parametrize(("broken", "figure"), [(0, "loss"), (23, "loss"), (41, "loss"), (23, "first")])
def test_what_is_not_finite_stops_the_run_before_the_update(broken: int, figure: str, tmp_path: Path) -> None:
    """In the first step, between two checkpoints, and once more after resuming."""
    step = broken // 4
    sound = Regression()
    history = [clone(sound)]
    Trainer(sound, TRAINING, tmp_path / "sound", on_step=lambda record: history.append(clone(sound))).run()
    for _ in range(2):
        objective = Regression(broken={broken: figure})
        trainer = Trainer(objective, TRAINING, tmp_path / "run")
        with pytest.raises(UserError, match=rf"step {step + 1}: .*'{figure}': nan.* not finite"):
            trainer.run()
        assert trainer.step == step
        assert_equal(clone(objective), history[step])
        assert checkpoint.saved_steps(tmp_path / "run") == [saved for saved in (4, 8) if saved <= step]


def clone(objective: Regression) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in objective.toy.state_dict().items()}


def test_work_is_shared_out_evenly_or_not_at_all(tmp_path: Path) -> None:
    for world in (1, 2, 3):
        shares = [Ranks(rank, world).share(12) for rank in range(world)]
        assert {len(share) for share in shares} == {12 // world}
        assert sorted(number for share in shares for number in share) == list(range(12))
    with pytest.raises(UserError, match=r"batch 4 .* 3 ranks"):
        Trainer(Regression(), TRAINING, tmp_path, Ranks(0, 3))


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"RANK": "abc"}, "RANK in the environment is 'abc'"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE in the environment is '2.0'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE in the environment is '9999"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK in the environment is '-1'"),
        ({"WORLD_SIZE": "0"}, "rank 0 .* of 0"),
        ({"RANK": "1"}, r"rank 1 \(local 0\) of 1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 .* of 2"),
        ({"LOCAL_RANK": "3"}, r"\(local 3\) of 1"),
        ({"WORLD_SIZE": "2"}, "nothing started 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}, "nothing started 2 processes"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(
    variables: dict[str, str], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=fault):
        Ranks.from_environment()


def test_ranks_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty texts are as if they were not there; a plan is made for ranks that nobody started."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert Ranks.from_environment() == Ranks(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert Ranks.from_environment(launched=False) == Ranks(0, 8, 0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert Ranks.from_environment() == Ranks(0, 8, 0)


def shard_beside_a_gpu(ranks: Ranks, folder: Path) -> None:
    """What `torch.accelerator` says on a machine with a GPU, of a model that is not on it."""
    torch._C._get_accelerator = lambda check=False: torch.device("cuda")  # type: ignore[assignment]
    toy = Toy()
    ranks.shard(toy)
    for parameter in toy.parameters():
        assert isinstance(parameter, DTensor)
        assert parameter.device_mesh.device_type == "cpu"
    (folder / f"{ranks.rank}").touch()


def test_a_model_is_sharded_where_it_is(tmp_path: Path) -> None:
    on_two_ranks(shard_beside_a_gpu, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"0", "1"}


def train_share(ranks: Ranks, folder: Path) -> None:
    objective = Regression()
    Trainer(objective, TRAINING, folder / "run", ranks).run()
    torch.save(objective.asked, folder / f"{ranks.rank}.pt")


def test_two_ranks_follow_one(tmp_path: Path, whole: Path) -> None:
    on_two_ranks(train_share, tmp_path)
    asked = [number for rank in range(2) for number in torch.load(tmp_path / f"{rank}.pt")]
    assert sorted(asked) == list(range(48))
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(whole), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for name in ("toy", "toy-ema"):
        for key, tensor in contents(whole, 12)[name].items():
            torch.testing.assert_close(contents(tmp_path / "run", 12)[name][key], tensor, atol=1e-5, rtol=0)
