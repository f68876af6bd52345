"""Videos laid out for VBench and VBench-Long (github.com/Vchitect/VBench), with the commands to run in a
checkout of it.

What the tools ask for, as read in their code (metrics.md, section 3):
- VBench-Long groups clips by what stands before the first underscore of a file name, so names have none;
- it reuses clips that it has cut only if names end in a hyphen and a number;
- it reads `.mp4`, not `.webm` or `.gif`;
- it finds its folders by the words in `_RESERVED`, so the path must not hold them;
- in custom mode VBench takes prompts from an object {file name: prompt} that covers every video.
"""

from __future__ import annotations

import filecmp
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sfpp_cli.data.prompts import slug
from sfpp_cli.errors import UserError, reason
from sfpp_cli.files import atomic_write, natural

DIMENSIONS = (
    *("subject_consistency", "background_consistency", "motion_smoothness"),
    *("dynamic_degree", "aesthetic_quality", "imaging_quality"),
)
"""What both tools support for videos of one's own."""
TEXT_DIMENSION = "overall_consistency"
"""Needs the prompts; with a CLIP score it is half of the paper's text alignment (metrics.md, section 5)."""
VIDEOS = "videos"
PROMPTS = "prompts.json"
SOURCES = "sources.json"
SCRIPT = "run.sh"
"""Names in the folder that is laid out."""

_HEAD = (
    "#!/bin/sh",
    "# Run this in the root of a checkout of https://github.com/Vchitect/VBench, "
    "on a machine with a CUDA GPU.",
    "set -e",
)
_RESERVED = ("split_clip", "filtered_clips")
_LONGEST_NAME = 200


def lay_out(videos: Sequence[Path], out: Path, prompts: Sequence[str | None] | None = None) -> list[str]:
    """Put `videos` under `out` as both tools expect them; the commands to run are returned and in `run.sh`.

    `out` gets `videos/NAME-0.mp4` (hard links, or copies where linking is impossible), `sources.json` {name:
    path}, and, if every video has one of `prompts` (in the order of the videos), `prompts.json` {name:
    prompt}. Without them the prompt-dependent dimension is left out, which a comment among the commands says.
    Laying out the same videos again changes nothing. UserError, before anything is written, for what `plan`
    refuses.
    """
    named = plan(videos, out)
    texts = list(prompts) if prompts is not None else [None] * len(videos)
    if len(texts) != len(videos):
        raise ValueError(f"{len(videos)} videos, but {len(texts)} prompts")
    _place(out.resolve() / VIDEOS, named)
    known = {name: text for name, text in zip(named, texts, strict=True) if text and text.strip()}
    commands = _commands(out.resolve(), [name for name in named if name not in known])
    sources = {name: str(path.resolve()) for name, path in named.items()}
    atomic_write(out / SOURCES, json.dumps(sources, indent=2) + "\n")
    if len(known) == len(named):
        atomic_write(out / PROMPTS, json.dumps(known, indent=2) + "\n")
    else:
        (out / PROMPTS).unlink(missing_ok=True)
    atomic_write(out / SCRIPT, "\n".join([*_HEAD, *commands, ""]))
    return commands


def plan(videos: Sequence[Path], out: Path) -> dict[str, Path]:
    """{name: video} as they would lie in `out`, in order; nothing is written. UserError: no videos, not
    `.mp4`, two of one name, other videos in `out` already, or a path that would mislead the tools."""
    named = _name(videos)
    place = out.resolve() / VIDEOS
    if word := next((word for word in _RESERVED if word in str(place)), None):
        raise UserError(
            f"{out}: VBench-Long takes '{word}' in a path for a folder of its own; choose another folder"
        )
    _refuse_others(place, named)
    return named


def _name(videos: Sequence[Path]) -> dict[str, Path]:
    """{name: video}, in order; all problems at once."""
    problems: list[str] = []
    named: dict[str, Path] = {}
    for path in videos:
        if not path.is_file():
            problems.append(f"{path} is not a file")
        elif path.suffix.lower() != ".mp4":
            problems.append(f"{path} is not .mp4, all that VBench-Long reads")
        elif (name := f"{slug(path.stem, _LONGEST_NAME)}-0.mp4") in named:
            problems.append(f"{path} and {named[name]} would both be called {name}; rename one")
        else:
            named[name] = path
    if problems:
        raise UserError(f"cannot be laid out for VBench: {'; '.join(problems)}")
    if not named:
        raise UserError("no videos to lay out for VBench; give some")
    return named


def _refuse_others(place: Path, named: dict[str, Path]) -> None:
    """The tools measure whatever lies in the folder, and reuse what they cut from videos of earlier runs."""
    if not os.path.exists(place):
        return
    entries = sorted(place.iterdir(), key=natural) if place.is_dir() else [place]
    files = [entry.name for entry in entries if not entry.is_dir()]
    strange = next(
        (name for name in files if name not in named or not _same(place / name, named[name])), None
    )
    if strange is None and len(files) < len(named) and len(files) < len(entries):
        strange = "what was cut from other videos"
    if strange is not None:
        remedy = "choose another folder, or empty it"
        raise UserError(f"{place} holds {strange} already, which would be measured too; {remedy}")


def _same(one: Path, other: Path) -> bool:
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def _place(place: Path, named: dict[str, Path]) -> None:
    """Link or copy; a file appears under its name only when it is whole."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, path in named.items():
            if not (place / name).exists():
                _link(path.resolve(), place / name)
    except OSError as error:
        remedy = "check permissions and free space"
        raise UserError(f"{place} cannot be filled ({reason(error)}); {remedy}") from error


def _link(source: Path, target: Path) -> None:
    with suppress(OSError):  # another file system, or one without hard links
        os.link(source, target)
        return
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    os.replace(part, target)


def _commands(out: Path, without: Sequence[str]) -> list[str]:
    """The commands to run in the root of a VBench checkout. VBench-Long weighs clip-to-clip scores only with
    --dev_flag, which its own scripts give."""
    videos, prompts, once, long = (
        shlex.quote(str(out / name)) for name in (VIDEOS, PROMPTS, "vbench", "vbench-long")
    )
    dimensions = " ".join(DIMENSIONS)
    text = f"--prompt_file {prompts} --dimension {dimensions} {TEXT_DIMENSION}"
    note = []
    if without:
        text = f"--dimension {dimensions}"
        names = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        note = [f"# {TEXT_DIMENSION} is left out, for there is no prompt of {names}"]
    return [
        f"python evaluate.py --videos_path {videos} --output_path {once} --mode=custom_input {text}",
        *note,
        f"python vbench2_beta_long/eval_long.py --videos_path {videos} --output_path {long} --full_json_dir "
        f"vbench/VBench_full_info.json --mode=long_custom_input --dev_flag --dimension {dimensions}",
    ]
