"""Checkpoints: complete, written under a temporary name and renamed, refused unless complete."""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sfpp_cli.errors import UserError

STATE = "state.pt"


class Saveable(Protocol):
    """Diffusers and transformers models: weights and configuration in one folder."""

    def save_pretrained(self, folder: str | Path) -> Any: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Any: ...


Average = dict[str, dict[str, Tensor]]
"""Moving averages: state dicts by model name."""


def path_of(run: Path, step: int) -> Path:
    return run / f"step-{step:06d}"


def saved_steps(run: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    found = (re.fullmatch(r"step-(\d{6,})", folder.name) for folder in run.glob("step-*"))
    return sorted(int(match[1]) for match in found if match and (run / match[0] / STATE).exists())


def save(
    run: Path, step: int, models: Mapping[str, Saveable], average: Average | None, state: Mapping[str, Any], keep: int
) -> Path:
    """Write `models` and their `average` as folders, `state` beside them; of older checkpoints the newest `keep` stay."""
    final = path_of(run, step)
    temporary = final.with_name(f".{final.name}.part")
    for unfinished in run.glob(".step-*.part"):
        shutil.rmtree(unfinished)
    for name, model in models.items():
        model.save_pretrained(temporary / name)
    if average is not None:
        for name, model in models.items():
            own = {key: value.clone() for key, value in model.state_dict().items()}
            model.load_state_dict(average[name])
            model.save_pretrained(temporary / f"{name}-ema")
            model.load_state_dict(own)
    torch.save({**state, "average": average}, temporary / STATE)
    for file in temporary.rglob("*.safetensors"):
        file.chmod(stat.S_IMODE((temporary / STATE).stat().st_mode))  # safetensors writes for the owner's eyes only
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in saved_steps(run)[: -max(1, keep)]:
        shutil.rmtree(path_of(run, old))
    return final


def load_state(run: Path, step: int) -> dict[str, Any]:
    try:
        state = torch.load(path_of(run, step) / STATE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path_of(run, step)} cannot be resumed ({error}); delete it to fall back to an older one") from error
    return dict(state)


def same_weights(mine: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and shapes."""
    return {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in saved.items()}
