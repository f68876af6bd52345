"""From a name to a folder: embedded, on disk, or on the hub. Importing this loads no torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CacheNotFound, constants, errors, scan_cache_dir, snapshot_download

from sfpp_cli.errors import UserError, reason, suggest
from sfpp_cli.models.settings import SETTINGS

_PACKAGE = Path(__file__).resolve().parent.parent
_PLACES = (_PACKAGE / "weights", _PACKAGE.parent / "weights")
EMBEDDED = next((folder for folder in _PLACES if folder.is_dir()), _PLACES[0])
"""Inside the package in a wheel, beside it in a checkout."""

STUDENT_FILES = [
    *("sfpp.json", "config.json", "diffusion_pytorch_model*.json", "diffusion_pytorch_model*.safetensors"),
    *("transformer/*.json", "transformer/*.safetensors"),
]
"""What is fetched. To the hub a star matches slashes too, so every pattern begins with a name."""
MODEL_FILES = [
    *STUDENT_FILES,
    *("teacher/*.json", "teacher/*.safetensors", "vae/*.json", "vae/*.safetensors"),
    *("text_encoder/*.json", "text_encoder/*.safetensors", "tokenizer/*"),
    *("scheduler/*.json", "model_index.json"),
]


def resolve(name: str, *, student: bool = False, offline: bool = False) -> Path:
    """The folder of an embedded model, a path, or a hub id.

    A hub id is downloaded if need be, and an interrupted download goes on. An embedded name wins over a
    folder of that name, which is still reached as ./name. Of a hub id, `student` fetches the causal weights
    only. `offline`, or the variable HF_HUB_OFFLINE, takes what the hub's cache holds and downloads nothing.
    """
    if name in embedded():
        return EMBEDDED / name
    if name in embedded_students():
        model, _, part = name.partition(":")
        return EMBEDDED / model / "students" / part
    path = os.path.expanduser(name)
    if name and os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path):
        remedy = "make one of original weights with `sfpp weights convert`"
        raise UserError(f"{name} is a file, but a model is a folder: {remedy}")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        beside = [part.parent.name for part in sorted(Path(path).parent.glob("*/config.json"))]
        if student and beside:
            why = ", before whose ema_start there is no average" if name.endswith("-ema") else ""
            raise UserError(f"there is no {name} in its run{why}: beside it there is {', '.join(beside)}")
        names = ", ".join(embedded()) or "none here"
        takes = f": it takes an embedded name ({names}), a folder that exists, or a hub id (owner/name)"
        raise UserError(
            f"unknown model '{name}'" + (suggest(name, [*embedded(), *embedded_students()]) or takes)
        )
    return _download(name, STUDENT_FILES if student else MODEL_FILES, offline)


def embedded() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(settings.parent.name for settings in EMBEDDED.glob(f"*/{SETTINGS}"))


def embedded_students() -> list[str]:
    """Names of the students that come with them, for --student: `toyworld:self-forcing`."""
    folders = (config.parent for config in EMBEDDED.glob("*/students/*/config.json"))
    return sorted(f"{folder.parts[-3]}:{folder.name}" for folder in folders)


def cached() -> Iterator[tuple[str, Path]]:
    """Models in the hub's cache: id, and the folder of its main revision, or of the newest there is."""
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        if repo.repo_type == "model" and repo.revisions:
            newest = max(repo.revisions, key=lambda known: ("main" in known.refs, known.last_modified))
            yield repo.repo_id, newest.snapshot_path


def _download(name: str, patterns: list[str], offline: bool) -> Path:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:  # network, transfer library and disk fail each in its own way
        raise UserError(_explain(error, name, offline)) from error
    if not folder.is_dir():
        raise UserError(
            f"'{name}' holds no model in diffusers' layout: original weights are for `sfpp weights convert`"
        )
    return folder


def _explain(error: Exception, name: str, offline: bool) -> str:
    """Why a model cannot be fetched, and what to do."""
    match error:
        case errors.HFValidationError():
            return f"unknown model '{name}': neither a folder that exists nor a valid hub id (owner/name)"
        case errors.GatedRepoError():
            return f"'{name}' is gated: accept its terms at {constants.ENDPOINT}/{name}, then `hf auth login`"
        case errors.RepositoryNotFoundError():
            remedy = "check the spelling, or `hf auth login` if it is private"
            return f"neither a folder '{name}' nor such a model on the hub: {remedy}"
        case errors.LocalEntryNotFoundError():
            absent = f"'{name}' is no folder here and not (fully) in the hub's cache"
            if constants.HF_HUB_OFFLINE:
                return f"{absent}, and HF_HUB_OFFLINE forbids to fetch it: unset that"
            if offline:
                return f"{absent}: fetch it with `sfpp weights pull {name}`"
            remedy = "check the network, or give a folder"
            return f"'{name}' is no folder here and the hub cannot be reached: {remedy}"
    remedy = "try again, it continues where it stopped"
    return f"'{name}' could not be fetched from the hub ({reason(error)}): {remedy}"
