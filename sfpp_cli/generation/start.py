"""What a video goes on from: a picture, any video, or one of sfpp's with its latents. Loads no torch.

Pictures are encoded to whole chunks. Where they do not fill them, and so for a single picture, the first is
repeated before them; repeats are not shown. The student then continues a picture that has stood still for a
chunk: of the ways that were tried the one with the smallest jump (examples/benchmarks/start.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sfpp_cli.core.geometry import Timeline
from sfpp_cli.errors import UserError, reason
from sfpp_cli.models.layout import Layout
from sfpp_cli.video import Frames
from sfpp_cli.video.ffmpeg import EXACT, open_video, reading
from sfpp_cli.video.reader import VideoInfo, probe


@dataclass(frozen=True, kw_only=True)
class Target:
    """The videos that a start is for."""

    width: int
    height: int
    fps: float
    drop: bool
    """Whether they begin after the start."""
    model: Layout

    @property
    def timeline(self) -> Timeline:
        return Timeline(self.model.compression, self.model.settings.chunk)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The chunks that a video begins with."""

    file: Path
    """Of pictures, or of latents."""
    digest: str
    """Of what the model is given of it."""
    chunks: int
    frames: int
    """Video frames before the first new one."""
    hidden: int
    """How many of them are not shown."""
    kept_latents: bool = False
    passed: int = 0
    """Pictures of the file that are too early to be seen."""
    repeats: int = 0
    """How often the first picture is repeated before it."""
    said: tuple[str, ...]
    """What the user is told."""

    def described(self) -> dict[str, Any]:
        """What of it decides the video's content."""
        through = "latents" if self.kept_latents else "pixels"
        return {"sha256": self.digest, "through": through, "frames": self.frames, "hidden": self.hidden}

    def pictures(self, width: int, height: int, fps: float) -> Iterator[Frames]:
        """All `frames`, one [H, W, 3] at a time, of a start that has no latents."""
        with reading(self.file):
            pictures = islice(_fitted(self.file, width, height, fps), self.passed, None)
            first = next(pictures)
            yield from chain(repeat(first, self.repeats + 1), pictures)


def read_start(path: Path, target: Target) -> Start:
    """UserError if the file is no start."""
    if not path.is_file():
        raise UserError(f"--start {path} is no file; give the path of a picture or a video")
    said = []
    latents = path.with_suffix(".safetensors")
    if latents.is_file():
        try:
            return _of_latents(path, latents, target)
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            said.append(f"--start {path}: the latents beside it do not serve, since {reason(error)}")
    info = probe(path)
    digest = hashlib.sha256()
    count = 0
    with reading(path):
        for picture in _fitted(path, target.width, target.height, target.fps):
            digest.update(picture.data)
            count += 1
    if not count:
        raise UserError(f"--start {path} is shorter than a frame at {target.fps:g} fps: give a longer video")
    said.append(f"--start {path}: {_change(info, target, count)}")
    used = (
        min(count, target.model.compression.video_frames(target.model.settings.context))
        if target.drop
        else count
    )
    chunks = target.timeline.chunks(used)
    frames = target.timeline.frames_before(chunks)
    return Start(
        file=path,
        digest=digest.hexdigest(),
        chunks=chunks,
        frames=frames,
        hidden=frames if target.drop else frames - used,
        passed=count - used,
        repeats=frames - used,
        said=tuple(said),
    )


def _of_latents(path: Path, latents: Path, target: Target) -> Start:
    """A video of sfpp's. Errors of many kinds where its latents are not what this model would have made."""
    from sfpp_cli.models.bundle import fingerprint  # loads torch

    beside = json.loads(path.with_suffix(".json").read_text())
    if beside["video"] != path.name:
        raise ValueError("they are of another video")
    if (beside["width"], beside["height"], beside["fps"]) != (target.width, target.height, target.fps):
        raise ValueError("they are of another size or rate")
    if beside["weights"] != fingerprint(target.model):
        raise ValueError("they are of another model")
    if any(scene["how"] == "cut" for scene in beside.get("scenes", ())):
        raise ValueError("there is a cut in them")
    hidden = int(beside["start"]["hidden"]) if "start" in beside else 0
    frames = hidden + int(beside["frames"])
    chunk = target.model.settings.chunk
    with safe_open(latents, framework="np") as tensors:
        lengths = {name: tensors.get_slice(name).get_shape()[0] for name in tensors.keys()}  # noqa: SIM118
    if lengths["latents"] != target.timeline.latent_frames(frames) or sum(lengths.values()) % chunk:
        raise ValueError("they are not complete")
    return Start(
        file=latents,
        digest=hashlib.sha256(latents.read_bytes()).hexdigest(),
        chunks=sum(lengths.values()) // chunk,
        frames=frames,
        hidden=frames if target.drop else hidden,
        kept_latents=True,
        said=(f"--start {path}: the video goes on from the latents beside it",),
    )


def _fitted(path: Path, width: int, height: int, fps: float) -> Iterator[Frames]:
    """Pictures [H, W, 3] of that size at that rate: scaled until they cover it, the rest cut off evenly."""
    size = f"scale={width}:{height}:force_original_aspect_ratio=increase:{EXACT},crop={width}:{height}"
    # A picture has no rate, and at a lower one than ffmpeg takes it for it might be lost.
    rate = "" if probe(path).frames == 1 else f"fps={fps:g},"
    options = ("-map", "0:v:0", "-vf", f"{rate}{size},format=rgb24", "-f", "rawvideo", "pipe:1")
    length = width * height * 3
    with open_video(path, *options) as stream:
        while len(pixels := stream.read(length)) == length:
            yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def _change(info: VideoInfo, target: Target, count: int) -> str:
    """What was done to a file's pictures."""
    scale = max(target.width / info.width, target.height / info.height)
    lost = 1 - target.width * target.height / (info.width * info.height * scale**2)
    what = "a picture"
    if info.frames > 1:
        what = f"{info.frames} frames at {info.fps:g} fps become {count} at {target.fps:g} fps"
    cut = f", {math.ceil(lost * 100)} % of it cut off" if lost > 1e-3 else ""
    return f"{what}, {info.width}x{info.height} scaled to {target.width}x{target.height}{cut}"
