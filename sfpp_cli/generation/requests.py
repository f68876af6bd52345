"""From what the user asked for to a list of videos, checked in full before anything starts."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfpp_cli.data.prompts import PromptLine, read_prompts, slug
from sfpp_cli.errors import UserError, reason
from sfpp_cli.generation.generator import Request
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.video.writer import EXTENSIONS, output_path

DEFAULT_SECONDS = 10.0


@dataclass(frozen=True)
class Wish:
    """The command's flags that say what to make; None where the user said nothing."""

    prompt: str | None = None
    prompts: Path | None = None
    seconds: float | None = None
    frames: int | None = None
    seed: int = 0
    seeds: str | None = None
    size: str | None = None
    fps: float | None = None
    out: Path | None = None
    out_dir: Path | None = None


def plan(wish: Wish, bundle: Bundle) -> list[Request]:
    """One request per prompt and seed, in order. Raises UserError for anything that could not be made as asked."""
    if wish.seconds is not None and wish.frames is not None:
        raise UserError("--seconds and --frames say the same thing: give one of them")
    if wish.out is not None and wish.out_dir is not None:
        raise UserError("--out names one video and --out-dir a folder for many: give one of them")
    settings = bundle.settings
    fps = settings.fps if wish.fps is None else wish.fps
    if not 0 < fps <= 240:
        raise UserError(f"--fps {fps:g}: it takes a rate above 0 and at most 240")
    width, height = _size(wish.size, bundle)
    lines = _prompts(wish, settings.prompt)
    seeds = [wish.seed] if wish.seeds is None else parse_seeds(wish.seeds)
    wanted = [(line, seed) for line in lines for seed in ([line.seed] if line.seed is not None else seeds)]
    if wish.out is not None and len(wanted) > 1:
        raise UserError(f"--out names one video, but {len(wanted)} were asked for: use --out-dir")
    requests = [
        Request(
            line.prompt,
            seed,
            _frames(wish, line, fps),
            width,
            height,
            fps,
            _out(wish, line, seed, position, len(wanted)),
        )
        for position, (line, seed) in enumerate(wanted, start=1)
    ]
    _apart(requests)
    for folder in dict.fromkeys(request.out.parent for request in requests):
        _writable(folder)
    return requests


def _apart(requests: Sequence[Request]) -> None:
    """What lies beside a video is named by its stem, so no two videos may share one."""
    owners: dict[Path, Path] = {}
    for request in requests:
        other = owners.setdefault(request.out.with_suffix(""), request.out)
        if other is not request.out:
            raise UserError(
                f"{other} and {request.out} share a name: give every video its own 'out', and leave --seeds to lines without"
            )


def refuse_existing(requests: Sequence[Request]) -> None:
    """Outputs that exist are not walked over."""
    existing = [request.out for request in requests if output_path(request.out).exists()]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UserError(
            f"{existing[0]}{more} exists: use --overwrite, another --out, or --resume if it is this very video"
        )


def parse_seeds(text: str) -> list[int]:
    """`0,3,8-11` -> [0, 3, 8, 9, 10, 11]."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise UserError(f"--seeds {text}: it takes numbers and ranges, such as 0,3,8-11")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def _prompts(wish: Wish, example: str) -> list[PromptLine]:
    if wish.prompts is not None:
        if wish.prompt is not None:
            raise UserError("a prompt and --prompts exclude each other: put the prompt into the file")
        return read_prompts(wish.prompts)
    prompt = example if wish.prompt is None else wish.prompt
    if not prompt.strip():
        raise UserError("the prompt is empty: say what the video should show")
    return [PromptLine(prompt)]


def _frames(wish: Wish, line: PromptLine, fps: float) -> int:
    if wish.frames is not None and line.seconds is None:
        if wish.frames < 1:
            raise UserError(f"--frames {wish.frames}: it takes at least 1 video frame")
        return wish.frames
    seconds = (
        line.seconds
        if line.seconds is not None
        else DEFAULT_SECONDS
        if wish.seconds is None
        else wish.seconds
    )
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"--seconds {seconds:g}: it takes a length above 0")
    return max(1, round(seconds * fps))


def _size(text: str | None, bundle: Bundle) -> tuple[int, int]:
    settings = bundle.settings
    if text is None:
        return settings.width, settings.height
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if match is None:
        raise UserError(
            f"--size {text}: write it as WIDTHxHEIGHT, such as {settings.width}x{settings.height}"
        )
    patch = bundle.transformer_config()["patch_size"]
    width, height = int(match[1]), int(match[2])
    steps = bundle.compression.spatial * patch[2], bundle.compression.spatial * patch[1]
    if not width or not height or width % steps[0] or height % steps[1]:
        near = max(1, round(width / steps[0])) * steps[0], max(1, round(height / steps[1])) * steps[1]
        raise UserError(
            f"--size {text}: width must be a multiple of {steps[0]} and height of {steps[1]}; the nearest is {near[0]}x{near[1]}"
        )
    return width, height


def _out(wish: Wish, line: PromptLine, seed: int, position: int, total: int) -> Path:
    folder = wish.out_dir or Path()
    if line.out is not None:
        out = folder / line.out
    elif wish.out is not None:
        out = wish.out
    else:
        number = f"{position:0{len(str(total))}d}-" if total > 1 else ""
        out = folder / f"{number}{slug(line.prompt)}-{seed}.mp4"
    if out.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{out}: unknown kind of video '{out.suffix}'; end the name in {', '.join(EXTENSIONS)}"
        )
    return out


def _writable(folder: Path) -> None:
    """See that a file can be written into the folder, or into what exists of its path; nothing stays behind."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(os.urandom(4096))
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({reason(error)}): choose another folder, or make room"
        ) from error
