"""Original weights into a bundle: Self-Forcing's and its relatives' checkpoints become folders that every command takes."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfpp_cli.core.student import CausalWanModel
from sfpp_cli.devices import DTYPES
from sfpp_cli.errors import UserError
from sfpp_cli.models.convert import infer_config, load_original, student_from_original, transformer_keys
from sfpp_cli.models.layout import SHARED, Layout, read_config
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.settings import SETTINGS, Settings

_COPIED = (*SHARED, "scheduler", "teacher")


def convert(
    source: Path,
    target: Path,
    changes: Mapping[str, Any],
    *,
    base: str | None = None,
    which: str | None = None,
    num_heads: int | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `source` to the folder `target`: the student, `sfpp.json`, and everything else of `base` if there is one.

    `changes` are settings that differ from the base's (or Wan's). `dtype` is the source's by default. The folder appears complete
    or not at all. Raises UserError if anything is wrong, before anything is written where that can be known.
    """
    quiet_libraries()
    _check_target(target, overwrite)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: it takes {', '.join(DTYPES)}")
    layout = None if base is None else Layout(base)
    settings = _settings(layout, changes)
    student = _student(source, which, num_heads, layout, dtype)
    parts = (
        []
        if layout is None
        else [layout.folder / part for part in _COPIED if (layout.folder / part).is_dir()]
    )
    try:
        _write(target, student, settings, parts)
    except OSError as error:
        raise UserError(
            f"cannot write {target} ({error.strerror or error}): choose another folder, or make room"
        ) from error
    return target


def parse_steps(text: str) -> list[int]:
    """`1000,750,500,250` -> the list of them."""
    try:
        return [int(step) for step in text.split(",")]
    except ValueError:
        raise UserError(f"--steps {text}: it takes timesteps such as 1000,750,500,250") from None


def _check_target(target: Path, overwrite: bool) -> None:
    """Never walk over anything but an earlier conversion, and over that only if told to."""
    if not target.exists():
        return
    if not (target / SETTINGS).exists():
        raise UserError(f"{target} exists and is no converted model: choose another folder")
    if not overwrite:
        raise UserError(f"{target} exists: use --overwrite, or choose another folder")


def _settings(layout: Layout | None, changes: Mapping[str, Any]) -> Settings:
    try:
        return (layout.settings if layout else Settings()).changed(changes)
    except ValueError as error:
        raise UserError(f"the student's settings: {error}") from None


def _student(
    source: Path, which: str | None, num_heads: int | None, layout: Layout | None, dtype: str | None
) -> CausalWanModel:
    weights = transformer_keys(load_original(source, which))
    student = student_from_original(weights, infer_config(weights, num_heads or _heads_of(layout, weights)))
    if layout is not None:
        layout.check_fit(student.config, str(source))
    stored = weights["patch_embedding.weight"].dtype
    student.to(DTYPES[dtype] if dtype else stored if stored in DTYPES.values() else torch.float32)
    broken = next(
        (name for name, tensor in student.state_dict().items() if not tensor.isfinite().all()), None
    )
    if broken is not None:
        raise UserError(
            f"{source}: {broken} is not finite in {student.dtype}: fetch it again, or use a wider --dtype"
        )
    return student


def _heads_of(layout: Layout | None, weights: Mapping[str, Tensor]) -> int | None:
    """The base's number of heads, if its transformer is as wide as these weights."""
    if layout is None or "patch_embedding.bias" not in weights:
        return None
    config = read_config(layout.student)
    heads, head_dim = config.get("num_attention_heads"), config.get("attention_head_dim")
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        return None
    return heads if heads * head_dim == len(weights["patch_embedding.bias"]) else None


def _write(target: Path, student: CausalWanModel, settings: Settings, parts: list[Path]) -> None:
    """Everything under a temporary name beside `target`, then one rename; whatever happens, the temporary folder goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        new = Path(scratch, "new")
        student.save_pretrained(new / "transformer")
        for part in parts:
            shutil.copytree(part, new / part.name)
        settings.write(new / SETTINGS)
        for file in new.rglob("*.safetensors"):
            file.chmod(
                stat.S_IMODE((new / SETTINGS).stat().st_mode)
            )  # safetensors writes for the owner's eyes only
        if target.exists():
            target.rename(Path(scratch, "old"))
        new.rename(target)
