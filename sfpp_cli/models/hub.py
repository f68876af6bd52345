"""From a name to a folder: embedded, on disk, or on the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from sfpp_cli.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent
EMBEDDED = next(folder for folder in (_PACKAGE / "weights", _PACKAGE.parent / "weights") if folder.is_dir())
"""Inside the package in a wheel, beside it in a checkout."""

PATTERNS = ["*.json", "*/*.json", "*/*.safetensors", "*/*.model", "*/*.txt", "*.safetensors"]


def resolve(name: str, *, offline: bool | None = None) -> Path:
    """The folder of an embedded model, a path, or a hub id (downloaded if need be; interrupted downloads continue).

    `HF_HUB_OFFLINE=1` is respected: then only what the hub's cache holds is found.
    """
    if (EMBEDDED / name).is_dir() and "/" not in name:
        return EMBEDDED / name
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    known = ", ".join(sorted(folder.name for folder in EMBEDDED.iterdir() if folder.is_dir()))
    if path.exists() or path.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise UserError(f"unknown model '{name}': it is none of the embedded ({known}), no folder and no hub id (owner/name)")
    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS, local_files_only=bool(offline)))
    except HFValidationError as error:
        raise UserError(f"unknown model '{name}': neither a folder nor a valid hub id") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no model '{name}', or it is private: check the id, or log in with `hf auth login`") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"'{name}' is not a folder here and could not be fetched from the hub ({reason})") from error
