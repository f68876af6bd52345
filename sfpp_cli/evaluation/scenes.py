"""Scenes that a video announces: a change there is meant, and each has a prompt of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sfpp_cli.errors import UserError

Scene = dict[str, Any]
"""`at`, the second at which it begins, its `prompt` and `how` the model was led to it; null where unknown."""


def scenes_of(known: Mapping[str, Any], announced: Sequence[float] = ()) -> list[Scene]:
    """The scenes of a video in order of time: those that the JSON beside it names, which is `known`, or else
    those that begin at 0 and at the seconds `announced`. None if it is a single one."""
    named = known.get("scenes")
    entries = [_scene(entry) for entry in named] if isinstance(named, list) else []
    scenes = [scene for scene in entries if scene] or [
        Scene(at=at, prompt=None, how=None) for at in (0.0, *announced)
    ]
    return sorted(scenes, key=lambda scene: float(scene["at"])) if len(scenes) > 1 else []


def _scene(entry: object) -> Scene | None:
    if not isinstance(entry, dict):
        return None
    at = entry.get("at")
    if not isinstance(at, int | float) or not 0 <= at <= 1e9:
        return None
    texts = {key: entry.get(key) for key in ("prompt", "how")}
    return Scene(
        at=float(at), **{key: text if isinstance(text, str) else None for key, text in texts.items()}
    )


def borders_of(scenes: Sequence[Scene]) -> tuple[float, ...]:
    """The seconds at which a new scene follows another."""
    return tuple(scene["at"] for scene in scenes if scene["at"] > 0)


def clip_prompts(video: Mapping[str, Any]) -> list[str | None]:
    """For each clip of a result's video the prompt of its scene, or the video's where that has none."""
    prompts = [scene["prompt"] or video["prompt"] for scene in video["scenes"]] or [video["prompt"]]
    return [prompts[number] for number in _clip_scenes(video)]


def scene_means(video: Mapping[str, Any], values: Sequence[float | None]) -> list[float | None]:
    """The mean over each scene's clips of `values`, one a clip; None for a scene too short to have any."""
    members: list[list[float]] = [[] for _ in video["scenes"] or [None]]
    for number, value in zip(_clip_scenes(video), values, strict=True):
        if value is not None:
            members[number].append(value)
    return [fmean(known) if known else None for known in members]


def _clip_scenes(video: Mapping[str, Any]) -> list[int]:
    """The number, from 0, of the scene that the middle of each clip belongs to."""
    middles = [(clip["start_seconds"] + clip["end_seconds"]) / 2 for clip in video["clips"]]
    beginnings = [scene["at"] for scene in video["scenes"]]
    return [max(sum(at <= middle for at in beginnings) - 1, 0) for middle in middles]


def parse_scenes(text: str) -> tuple[float, ...]:
    """`20,40` as seconds in order. UserError for anything else."""
    try:
        seconds = sorted(float(part) for part in text.split(","))
    except ValueError:
        seconds = []
    if not seconds or not all(math.isfinite(second) and second > 0 for second in seconds):
        raise UserError(f"--scenes {text}: give the seconds at which new scenes begin, as in 20,40")
    return tuple(seconds)
