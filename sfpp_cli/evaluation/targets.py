"""Which videos to measure: those that files, folders and a manifest name, with what is known of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.errors import UserError, reason
from sfpp_cli.files import natural

VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
"""What a folder is searched for."""


@dataclass(frozen=True)
class Target:
    """A video to measure, and what is known of it."""

    path: Path
    system: str | None = None
    prompt: str | None = None
    seed: int | None = None


def find_targets(
    places: Sequence[Path], manifest: Path | None, prompts: Path | None, *, compare: bool
) -> tuple[list[Target], list[dict[str, str]]]:
    """The videos of a manifest, then of `places` (files and folders); and the folders that hold none.

    The latter are entries of a result's `failed`. With `compare` each place is a system of its own, named
    after itself. `prompts` is a prompt file with a line for each video. UserError for a manifest or prompt
    file that does not fit.
    """
    targets = _manifest(manifest) if manifest else []
    failed: list[dict[str, str]] = []
    names = _system_names(places) if compare else [None] * len(places)
    for place, name in zip(places, names, strict=True):
        files = [place]
        if place.is_dir():
            files = [file for file in place.iterdir() if file.suffix.lower() in VIDEOS]
            files.sort(key=natural)
        if not files:
            error = f"{place} holds no videos: it takes {', '.join(VIDEOS)}"
            failed.append({"path": str(place), "error": error})
        targets += [Target(file, name) for file in files]
    if prompts is not None:
        targets = _with_prompts(targets, prompts)
    return targets, failed


def _with_prompts(targets: Sequence[Target], path: Path) -> list[Target]:
    """The targets with the prompts of a file, and with its seeds where no other is known."""
    lines = read_prompts(path)
    if len(lines) != len(targets):
        counts = f"{len(lines)} prompts for {len(targets)} videos"
        raise UserError(f"{path} has {counts}: give one for each, in their order")
    return [
        replace(target, prompt=line.prompt, seed=line.seed if target.seed is None else target.seed)
        for target, line in zip(targets, lines, strict=True)
    ]


def _system_names(places: Sequence[Path]) -> list[str | None]:
    """Names of the files or folders, or whole paths where two have the same name."""
    short = [place.stem if place.is_file() else place.resolve().name for place in places]
    return [name if short.count(name) == 1 else str(place) for name, place in zip(short, places, strict=True)]


def _manifest(path: Path) -> list[Target]:
    """What `sfpp generate --json` prints, or a list of such videos; relative paths start at the manifest."""
    takes = "the JSON that `sfpp generate --json` prints"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        videos = content["videos"] if isinstance(content, dict) else content
        return [
            Target(path.parent / video["path"], video.get("system"), video.get("prompt"), video.get("seed"))
            for video in videos
        ]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): give {takes}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no manifest ({error!r}): it takes {takes}") from error
