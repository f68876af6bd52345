"""Put the road's parts together as a model that `sfpp generate --model FOLDER` takes."""

from __future__ import annotations

import shutil
from pathlib import Path

SHARED = ("tokenizer", "scheduler", "vae", "sfpp.json")


def assemble(work: Path, out: Path, student: Path | None = None) -> Path:
    """The teacher alone, or with a student before it; parts are copied as they are."""
    out.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        _copy(work / "init" / name, out / name)
    _copy(work / "teacher" / "text_encoder", out / "text_encoder")
    if student is None:
        _copy(work / "teacher" / "transformer", out / "transformer")
    else:
        _copy(work / "teacher" / "transformer", out / "teacher")
        _copy(student, out / "transformer")
    return out


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)
