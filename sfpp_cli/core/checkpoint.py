"""Checkpoints: complete, written under a temporary name and renamed, refused unless they are as written.

The exact state goes through `torch.distributed.checkpoint`, so a run continues on any number of ranks. Beside
it lie every model and its EMA as folders in the model's own format, and the SHA-256 of every file, as
`sha256sum -c` reads them.
"""

from __future__ import annotations

import pickle
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn, optim
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from sfpp_cli.core.adapter import folded, learned
from sfpp_cli.core.parallel import Ranks, full_tensor
from sfpp_cli.errors import UserError
from sfpp_cli.files import file_digest, remove

STATE = "state"
SUMS = "SHA256SUMS"
_COMPLETE = ".metadata"
_EMA = "average"
"""The averages' name in a checkpoint; runs of before have it, so it stays."""

_ADMITTED = {
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING", "TensorProperties"),
        *("TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata"),
    },
}
"""Names, by module, that a checkpoint's metadata are pickled with."""

States = dict[str, dict[str, Tensor]]
"""State dicts by model name."""
Export = tuple[str, str, dict[str, Tensor]]
"""A model's name, the folder that gets its weights, and these, whole."""


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
            "models": {name: learned(model) for name, model in self.models.items()},
            "optimizers": optimizers,
        }
        return states if self.ema is None else {**states, _EMA: self.ema}


def path_of(run: Path, step: int) -> Path:
    return run / f"step-{step:06d}"


def saved_steps(run: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    found = (re.fullmatch(r"step-(\d{6,})", folder.name) for folder in run.glob("step-*"))
    return sorted(int(match[1]) for match in found if match and (run / match[0] / STATE / _COMPLETE).exists())


class Saver:
    """Writes a run's checkpoints, one at a time, in the background if asked."""

    def __init__(
        self,
        run: Path,
        skeletons: Mapping[str, nn.Module],
        ranks: Ranks,
        *,
        keep: int,
        keep_every: int = 0,
        extras: Mapping[str, Callable[[Path], None]] | None = None,
        background: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """`skeletons`, models without weights, know their format; `extras` write beside them.

        Of all checkpoints the newest `keep` stay, and those whose step is a multiple of `keep_every`. In the
        background ranks wait `timeout` minutes for one another.
        """
        self.run = run
        self.skeletons = skeletons
        self.ranks = ranks
        self.keep = max(1, keep)
        self.keep_every = keep_every
        self.extras = extras or {}
        self.writer = ThreadPoolExecutor(1, "checkpoint") if background else None
        # What is written in the background must not wait for the passes of a step, or they for it.
        self.group = ranks.cpu_group(timeout) if background else None
        self.pending: Future[None] | None = None

    def save(self, step: int, state: State) -> None:
        """Write the state and every model's folders; in the background, copies of them. All ranks take part.

        UserError if this, or the checkpoint before, cannot be written.
        """
        _expect_one_rank()
        self.finish()
        where: dict[str, Any] = {"checkpoint_id": self._part(step) / STATE, "no_dist": self.ranks.world == 1}
        with self._whole_or_gone(step):
            if self.ranks.first:
                self._clear()
                self._part(step).mkdir(parents=True)
            self.ranks.wait()
            if self.writer is None:
                self._write(step, self._exports(state), partial(save_distributed, state.tensors(), **where))
                self.ranks.wait()
                return
            exports = list(self._exports(state, copy=True))
            written = async_save(state.tensors(), process_group=self.group, **where)
        assert isinstance(written, Future)
        self.pending = self.writer.submit(self._write, step, exports, written.result)

    def finish(self) -> None:
        """Wait until the checkpoint begun last is whole, on all ranks. UserError if it cannot be written."""
        if self.pending is not None:
            self.settle()
            self.ranks.wait()

    def settle(self) -> None:
        """Wait for this rank's part of the checkpoint begun last."""
        if self.pending is not None:
            error = self.pending.exception()  # an interrupt leaves here, and what is pending to the next call
            self.pending = None
            if error is not None:
                raise error

    def _part(self, step: int) -> Path:
        return self.run / f".{path_of(self.run, step).name}.part"

    def _exports(self, state: State, *, copy: bool = False) -> Iterator[Export]:
        """Of every model its weights and their EMA, whole, on the first rank. All ranks gather."""
        for name, model in state.models.items():
            versions = {name: model.state_dict()}
            if state.ema and name in state.ema:
                versions[f"{name}-ema"] = {**model.state_dict(), **state.ema[name]}
            for folder, weights in versions.items():
                whole = {key: full_tensor(value).detach() for key, value in weights.items()}
                if self.ranks.first:
                    yield name, folder, {key: value.to("cpu", copy=copy) for key, value in whole.items()}

    def _write(self, step: int, exports: Iterable[Export], write_state: Callable[[], object]) -> None:
        """Everything under a temporary name, then the name."""
        part = self._part(step)
        with self._whole_or_gone(step):
            for name, folder, weights in exports:
                self._export(name, part / folder, weights)
            write_state()
            if self.ranks.first:
                _sum_up(part)
                self._put_in_place(step)

    @contextmanager
    def _whole_or_gone(self, step: int) -> Iterator[None]:
        """What fails in the block leaves nothing half written. UserError if it is the disk."""
        try:
            yield
        except BaseException as error:
            if self.ranks.first:
                self._clear()
            if not isinstance(error, OSError | SafetensorError | CheckpointException):
                raise
            whole = saved_steps(self.run)
            kept = f"the last one is {path_of(self.run, whole[-1])}" if whole else "there is none yet"
            raise UserError(
                f"the checkpoint {path_of(self.run, step)} cannot be written ({_reason(error)}), {kept}: "
                "see to free space and permissions, then go on with --resume"
            ) from error

    def _export(self, name: str, folder: Path, weights: dict[str, Tensor]) -> None:
        """Weights in the format of their model."""
        skeleton = self.skeletons[name]
        skeleton.load_state_dict(folded(weights), assign=True)
        skeleton.save_pretrained(folder)  # type: ignore[operator]
        skeleton.to("meta")
        if name in self.extras:
            self.extras[name](folder)

    def _put_in_place(self, step: int) -> None:
        """Rename what is complete."""
        final = path_of(self.run, step)
        remove(final)
        self._part(step).rename(final)
        self.prune()

    def prune(self) -> None:
        """Remove what need not be kept, and what a killed process was writing or deleting."""
        self._clear()
        for old in saved_steps(self.run)[: -self.keep]:
            if not (self.keep_every and old % self.keep_every == 0):
                remove(path_of(self.run, old))

    def _clear(self) -> None:
        """Remove what is half written or half deleted."""
        for folder in (*self.run.glob(".step-*.part"), *self.run.glob("step-*.old")):
            shutil.rmtree(folder, ignore_errors=True)


def newest(run: Path, ranks: Ranks, warn: Callable[[str], None]) -> int | None:
    """The last step whose checkpoint is as it was written; None where nothing was saved.

    Damaged ones after it are set aside, and `warn` is told. UserError if all are. All ranks take part.
    """
    damaged: dict[int, Path] = {}
    for step in reversed(saved_steps(run)):
        file = _damaged_file(path_of(run, step), ranks)
        if file is None:
            break
        damaged[step] = file
    else:
        step = None
    if not damaged:
        return step
    files = ", ".join(map(str, damaged.values()))
    if step is None:
        raise UserError(
            f"damaged: {files}; no older checkpoint is whole: "
            "delete these step-* folders to start anew, or choose another --out"
        )
    if ranks.first:
        for folder in (path_of(run, broken) for broken in damaged):
            aside = folder.with_name(f"{folder.name}.damaged")
            remove(aside)
            folder.rename(aside)
        warn(f"damaged: {files}; going on from {path_of(run, step)}, what is damaged is set aside")
    return step


def load(run: Path, step: int, state: State, ranks: Ranks) -> None:
    """Put a checkpoint into the live `state`, on any number of ranks.

    UserError unless it is whole and of these very models.
    """
    _expect_one_rank()
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
        load_distributed(
            tensors, checkpoint_id=folder / STATE, planner=_PlainPlanner(), no_dist=ranks.world == 1
        )
    except (Exception, CheckpointException) as error:  # a damaged file can fail in any way there is
        raise UserError(
            f"{folder} cannot be resumed ({_reason(error)}); delete it to fall back to an older one"
        ) from error
    for models, optimizer in state.learners:
        set_optimizer_state_dict(nn.ModuleDict(models), optimizer, tensors["optimizers"]["+".join(models)])


def has_ema(run: Path, step: int) -> bool:
    return any(key.startswith(f"{_EMA}.") for key in _metadata(run, step))


class _PlainUnpickler(pickle.Unpickler):
    """Admits what a checkpoint's metadata are made of, and no code."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ADMITTED.get(module, ()):
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and code is never executed")
        return super().find_class(module, name)


class _PlainPlanner(DefaultLoadPlanner):
    """Reads what is no tensor (an optimiser's options) without executing anything."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        torch.load(value, weights_only=True)  # raises where the next line would execute
        value.seek(0)
        super().load_bytes(read_item, value)


def _metadata(run: Path, step: int) -> dict[str, Any]:
    """What the checkpoint holds, by name."""
    folder = path_of(run, step)
    try:
        with (folder / STATE / _COMPLETE).open("rb") as file:
            return dict(_PlainUnpickler(file).load().state_dict_metadata)
    except Exception as error:  # as above
        raise UserError(f"{folder} cannot be resumed ({_reason(error)}); delete it to fall back") from error


def _sum_up(folder: Path) -> None:
    """Write the digests of all files in a folder, which everybody may read whom the umask lets."""
    mode = stat.S_IMODE((folder / STATE / _COMPLETE).stat().st_mode)
    lines = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        file.chmod(mode)  # safetensors writes for the owner's eyes only
        lines.append(f"{file_digest(file)}  {file.relative_to(folder).as_posix()}\n")
    (folder / SUMS).write_text("".join(lines))


def _damaged_file(folder: Path, ranks: Ranks) -> Path | None:
    """The first file that is not as it was written, or None. Ranks share out the reading."""
    sums = folder / SUMS
    if not sums.exists():  # of a run of before
        return None
    pairs = [line.partition("  ")[::2] for line in sums.read_text(errors="replace").splitlines()]
    if f"{STATE}/{_COMPLETE}" not in [name for _, name in pairs]:
        return sums
    mine = [pairs[i] for i in ranks.share(len(pairs))]
    faults = [name for digest, name in mine if not _is_as_written(folder / name, digest)]
    first = next((i for i, (_, name) in enumerate(pairs) if name in faults), len(pairs))
    found = int(ranks.gather(torch.tensor([first])).min())
    return folder / pairs[found][1] if found < len(pairs) else None


def _is_as_written(file: Path, digest: str) -> bool:
    try:
        return file_digest(file) == digest
    except (OSError, ValueError):
        return False


def _expect_one_rank() -> None:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _reason(error: BaseException) -> str:
    """The start of the last line of what a library has to say, which is where it names the cause."""
    return (str(error).strip().split("\n")[-1].split(". ")[0] or type(error).__name__)[:200]
