"""The files of videos: names of their own, nothing in the way, nothing replaced unasked. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sfpp_cli.errors import UserError
from sfpp_cli.files import check_writable
from sfpp_cli.generation.requests import GenerateOptions, Request
from sfpp_cli.schema import load_json
from sfpp_cli.video.writer import output_path

NAME_BYTES = 255
"""The longest name of a file that Linux and macOS take."""


def files_of(request: Request, options: GenerateOptions) -> list[Path]:
    """All that there will be of a video: itself, its description, and what else was asked for."""
    beside = {".json": True, ".sheet.png": options.sheet, ".safetensors": options.save_latents}
    endings = [ending for ending, wanted in beside.items() if wanted]
    return [output_path(request.out), *(request.out.with_suffix(ending) for ending in endings)]


def check_outputs(requests: Sequence[Request], options: GenerateOptions) -> None:
    """See that every video has names of its own, which the system takes, in a folder that can be written."""
    owners: dict[Path, Path] = {}
    files = {request.out: files_of(request, options) for request in requests}
    taken = {file for each in files.values() for file in each}
    for request in requests:
        # The files beside a video are called as it is but for the extension, so that part has to differ.
        other = owners.setdefault(request.out.with_suffix(""), request.out)
        if other is not request.out:
            raise UserError(
                f"{other} and {request.out} share a name: give every video its own 'out', "
                "and leave --seeds to lines without"
            )
        if inside := taken.intersection(request.out.parents):
            raise UserError(
                f"{request.out}: {inside.pop()} is a file of another video; give it another 'out'"
            )
        _check_names(request.out, files[request.out])
    for folder in dict.fromkeys(request.out.parent for request in requests):
        check_writable(folder)


def refuse_existing(requests: Sequence[Request], options: GenerateOptions) -> None:
    """Never replace a file unasked, except what belonged to a video of this name that is gone."""
    existing = []
    for request in requests:
        video, description, *more = files_of(request, options)
        if video.exists():
            existing.append(video)
        elif not _describes(description, video):
            existing += [file for file in (description, *more) if file.exists()]
    if existing:
        more_exist = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise UserError(
            f"{existing[0]}{more_exist}: use --overwrite, another --out, or --resume if it is this very video"
        )


def _check_names(out: Path, files: Sequence[Path]) -> None:
    """UserError for what would be in the way of a video's files when all is done."""
    frames = [out.with_name(f"{out.stem}-000001.png")] if out.suffix.lower() == ".png" else []
    for path in (out, *files, *frames):
        length = len(os.fsencode(path.name))
        if length > NAME_BYTES:
            raise UserError(f"{path}: a name of {length} bytes, and {NAME_BYTES} are possible; shorten --out")
    for path in filter(Path.is_dir, files[1:]):
        raise UserError(f"{path} is a directory, where a file beside {out} goes; choose another --out")


def _describes(description: Path, video: Path) -> bool:
    """Whether a file is what sfpp wrote beside a video of this name."""
    try:
        return bool(load_json(description)["video"] == video.name)
    except (OSError, ValueError, LookupError, TypeError):
        return False
