"""Which of the models that metrics can use are here: a folder of the user's, or one in the hub's cache.
Nothing is downloaded.

Importing this imports neither torch nor transformers, so that an evaluation without models does not wait
for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from sfpp_cli.errors import UserError

CLIP = "openai/clip-vit-base-patch32"
DINO = "facebook/dinov2-base"
"""Looked for in the hub's cache when no other is named: the sizes that VBench uses."""
METRICS = {"clip": "text alignment and background consistency", "dino": "subject consistency"}
"""What each model is for, in the words of the line that says it is skipped."""


@dataclass(frozen=True)
class ModelFolder:
    """A model by the name that results give it, and where its files are."""

    name: str
    path: Path


def find_models(clip: str | None = None, dino: str | None = None) -> tuple[dict[str, ModelFolder], list[str]]:
    """The folders of the models that are here, by "clip" and "dino", and a line for each that is not. By
    default `CLIP` and `DINO` are looked for. UserError for another that is named and not here."""
    folders: dict[str, ModelFolder] = {}
    skipped: list[str] = []
    for kind, named, usual in (("clip", clip, CLIP), ("dino", dino, DINO)):
        name = named or usual
        try:
            folders[kind] = ModelFolder(name, _find(name))
        except UserError as error:
            if named:
                raise UserError(f"--{kind}: {error}") from error
            skipped.append(skip_line(kind, error))
    return folders, skipped


def skip_line(kind: str, error: UserError) -> str:
    """Which metrics are left out, and why."""
    return f"{METRICS[kind]} skipped: {error}"


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        config = None
    if not isinstance(config, str):
        raise UserError(
            f"'{name}' is neither a folder nor in the hub's cache; fetch it with `hf download {name}`, "
            "or give a folder"
        )
    return Path(config).parent
