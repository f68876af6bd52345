"""Checkpoints: complete, written under a temporary name and renamed, refused unless complete.

The exact state goes through `torch.distributed.checkpoint`, so a run continues on any number of ranks. Beside
it lie every model and its EMA as folders in the model's own format.
"""

from __future__ import annotations

import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn, optim
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from sfpp_cli.core.parallel import Ranks, full_tensor
from sfpp_cli.errors import UserError

STATE = "state"
_COMPLETE = ".metadata"
_EMA = "average"
"""The averages' name in a checkpoint; runs of before have it, so it stays."""

States = dict[str, dict[str, Tensor]]
"""State dicts by model name."""


@dataclass(frozen=True)
class State:
    """All that training changes."""

    learners: Sequence[tuple[Mapping[str, nn.Module], optim.Optimizer]]
    """For every player its models by name, and its optimiser."""
    ema: States | None
    """Averages of weights, by model name; None before the first."""

    @property
    def models(self) -> dict[str, nn.Module]:
        return {name: model for models, _ in self.learners for name, model in models.items()}

    def tensors(self) -> dict[str, Any]:
        """As nested dictionaries of the live tensors where possible, so that loading into them is loading."""
        optimizers = {
            "+".join(models): get_optimizer_state_dict(nn.ModuleDict(models), optimizer)
            for models, optimizer in self.learners
        }
        states = {
            "models": {name: model.state_dict() for name, model in self.models.items()},
            "optimizers": optimizers,
        }
        return states if self.ema is None else {**states, _EMA: self.ema}


def path_of(run: Path, step: int) -> Path:
    return run / f"step-{step:06d}"


def saved_steps(run: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    found = (re.fullmatch(r"step-(\d{6,})", folder.name) for folder in run.glob("step-*"))
    return sorted(int(match[1]) for match in found if match and (run / match[0] / STATE / _COMPLETE).exists())


def save(
    run: Path,
    step: int,
    state: State,
    skeletons: Mapping[str, nn.Module],
    ranks: Ranks,
    *,
    keep: int,
    keep_every: int = 0,
    extras: Mapping[str, Callable[[Path], None]] | None = None,
) -> Path:
    """Write the state and every model's folders, whose format `skeletons` (models without weights) know.

    Of all checkpoints the newest `keep` stay, and those whose step is a multiple of `keep_every`. All ranks
    take part.
    """
    final = path_of(run, step)
    temporary = final.with_name(f".{final.name}.part")
    if ranks.first:
        for unfinished in run.glob(".step-*.part"):
            shutil.rmtree(unfinished)
        temporary.mkdir(parents=True)
    ranks.wait()
    for name, model in state.models.items():
        weights = {name: model.state_dict()}
        if state.ema and name in state.ema:
            weights[f"{name}-ema"] = state.ema[name]
        for folder, values in weights.items():
            _export(values, skeletons[name], temporary / folder, ranks)
            if ranks.first and extras and name in extras:
                extras[name](temporary / folder)
    with _one_rank_is_meant():
        save_distributed(state.tensors(), checkpoint_id=temporary / STATE, no_dist=ranks.world == 1)
    if ranks.first:
        for file in temporary.rglob("*.safetensors"):
            file.chmod(
                stat.S_IMODE((temporary / STATE / _COMPLETE).stat().st_mode)
            )  # safetensors writes for the owner's eyes only
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in saved_steps(run)[: -max(1, keep)]:
            if not (keep_every and old % keep_every == 0):
                shutil.rmtree(path_of(run, old))
    ranks.wait()
    return final


def load(run: Path, step: int, state: State, ranks: Ranks) -> None:
    """Put a checkpoint into the live `state`, on any number of ranks.

    UserError unless it is whole and of these very models.
    """
    folder = path_of(run, step)
    tensors = state.tensors()
    saved = _metadata(run, step)
    mine = {
        f"models.{name}.{key}": value.shape
        for name, part in tensors["models"].items()
        for key, value in part.items()
    }
    theirs = {key: getattr(value, "size", None) for key, value in saved.items() if key.startswith("models.")}
    if mine != theirs:
        raise UserError(
            f"{folder} is not of this recipe's models: "
            "resume with the recipe that wrote it, or choose another --out"
        )
    try:
        with _one_rank_is_meant():
            load_distributed(tensors, checkpoint_id=folder / STATE, no_dist=ranks.world == 1)
    except (Exception, CheckpointException) as error:  # a damaged file can fail in any way there is
        raise UserError(
            f"{folder} cannot be resumed ({_reason(error)}); delete it to fall back to an older one"
        ) from error
    for models, optimizer in state.learners:
        set_optimizer_state_dict(nn.ModuleDict(models), optimizer, tensors["optimizers"]["+".join(models)])


def has_ema(run: Path, step: int) -> bool:
    return any(key.startswith(f"{_EMA}.") for key in _metadata(run, step))


def _metadata(run: Path, step: int) -> dict[str, Any]:
    """What the checkpoint holds, by name."""
    try:
        return dict(FileSystemReader(path_of(run, step) / STATE).read_metadata().state_dict_metadata)
    except (Exception, CheckpointException) as error:  # as above
        raise UserError(
            f"{path_of(run, step)} cannot be resumed ({_reason(error)}); delete it to fall back"
        ) from error


def _export(weights: Mapping[str, Tensor], skeleton: nn.Module, folder: Path, ranks: Ranks) -> None:
    """Weights in the format of their model. All ranks gather, the first writes."""
    gathered = {key: full_tensor(value).cpu() for key, value in weights.items()}
    if ranks.first:
        skeleton.load_state_dict(gathered, assign=True)
        skeleton.save_pretrained(folder)  # type: ignore[operator]
        skeleton.to("meta")


@contextmanager
def _one_rank_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _reason(error: BaseException) -> str:
    """The start of the last line of what a library has to say, which is where it names the cause."""
    return (str(error).strip().split("\n")[-1].split(". ")[0] or type(error).__name__)[:200]
