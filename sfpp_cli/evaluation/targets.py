"""Which videos to measure: those that files, folders and a manifest name, with what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.errors import UserError, reason
from sfpp_cli.files import natural
from sfpp_cli.schema import STRICT, load_json, validate

VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
"""What a folder is searched for."""


@dataclass(frozen=True, config=ConfigDict(**{**STRICT, "extra": "ignore"}))
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
            files = sorted(filter(_is_video, place.iterdir()), key=natural)
            if not files and next(place.glob("*.png"), None):
                files = [place]
        if not files:
            error = f"{place} holds no videos: it takes {', '.join(VIDEOS)}, or PNG frames"
            failed.append({"path": str(place), "error": error})
        targets += [Target(file, name) for file in files]
    if prompts is not None:
        targets = _with_prompts(targets, prompts)
    return targets, failed


def _is_video(path: Path) -> bool:
    """A video file, or a folder of frames as `sfpp generate -o NAME.png` makes one."""
    if path.is_dir():
        return next(path.glob(f"{escape(path.name)}-*[0-9].png"), None) is not None
    return path.suffix.lower() in VIDEOS


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
        content = load_json(path)
        videos = validate(_MANIFEST, content if isinstance(content, dict) else {"videos": content}).videos
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no manifest ({reason(error)}): it takes {takes}") from error
    return [replace(video, path=path.parent / video.path) for video in videos]


@dataclass(frozen=True, config=ConfigDict(**{**STRICT, "extra": "ignore"}))
class _Manifest:
    videos: list[Target]


_MANIFEST = TypeAdapter(_Manifest)
