"""From what the user asked for to a list of videos, checked before anything starts. Loads no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any, get_args

from sfpp_cli.core.geometry import Timeline
from sfpp_cli.data.prompts import LONGEST, How, PromptLine, read_prompts, scenes_line, slug
from sfpp_cli.errors import UserError
from sfpp_cli.generation.start import Start, Target, read_start
from sfpp_cli.models.layout import Layout
from sfpp_cli.video.writer import EXTENSIONS

DEFAULT_SECONDS = 10.0
MIN_FPS = 0.01
MAX_FPS = 240
MAX_SIDE = 2**14
MAX_FRAMES = 10**8
MAX_VIDEOS = 100_000
"""More is a slip of the hand: a list of them would fill memory before the first is begun."""
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What to make, and where it goes; None where the user said nothing."""

    prompt: str | None = None
    prompts: Path | None = None
    """A file of prompts, instead of one."""
    seconds: float | None = None
    frames: int | None = None
    """The length in video frames, instead of seconds."""
    seed: int = 0
    seeds: str | None = None
    """Several, such as 0,3,8-11: every prompt with every seed."""
    then: Sequence[str] = ()
    """Later prompts, each "SECONDS: PROMPT"."""
    how: str | None = None
    """How `then` changes the prompt: as `sfpp_cli.core.rollout.How` says, `recache` if not given."""
    start: Path | None = None
    """A picture or video to go on from; lengths are then of what is added."""
    drop_start: bool = False
    """Begin the video after it."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels."""
    fps: float | None = None
    out: Path | None = None
    out_dir: Path | None = None
    sheet: bool = False
    """Write a contact sheet beside the video."""
    save_latents: bool = False
    overwrite: bool = False
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class NextScene:
    """A change of the prompt."""

    chunk: int
    """The first that is made under the new one."""
    at: float
    """Its second in the video."""
    asked: float
    """The second that was asked for, counted after the start."""
    prompt: str
    how: How


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video. All but `out` decides its content."""

    prompt: str
    """Of scenes, the first one's."""
    seed: int
    frames: int
    """All that are shown."""
    width: int
    height: int
    fps: float
    out: Path
    scenes: tuple[NextScene, ...] = ()
    start: Start | None = None

    @property
    def prompts(self) -> list[str]:
        """Of all scenes."""
        return [self.prompt, *(scene.prompt for scene in self.scenes)]

    @property
    def hidden(self) -> int:
        """How many of the first frames are made but not shown."""
        return self.start.hidden if self.start else 0

    @property
    def cuts(self) -> tuple[int, ...]:
        """Chunks that begin the context, and the VAE's, anew."""
        return tuple(scene.chunk for scene in self.scenes if scene.how == "cut")

    def described(self) -> dict[str, Any]:
        """What decides the content; videos of one scene that start from nothing say no more than that."""
        content = {
            name: getattr(self, name) for name in ("prompt", "seed", "frames", "width", "height", "fps")
        }
        if self.scenes:
            first = {"at": 0.0, "prompt": self.prompt, "how": None}
            later = [{"at": scene.at, "prompt": scene.prompt, "how": scene.how} for scene in self.scenes]
            content["scenes"] = [first, *later]
        if self.start:
            content["start"] = self.start.described()
        return content

    def said(self) -> list[str]:
        """What was not possible exactly as it was asked."""
        border = "a prompt changes between two chunks"
        given = (self.start.frames - self.hidden) / self.fps if self.start else 0.0
        late = [
            f"{border}: at {scene.at - given:.2f} s, not {scene.asked:g} s"
            for scene in self.scenes
            if abs(scene.at - given - scene.asked) > 0.5 / self.fps
        ]
        return [*(self.start.said if self.start else ()), *late]


def plan(options: GenerateOptions, model: Layout) -> list[Request]:
    """One request per prompt and seed, in order. UserError for anything that could not be made as asked."""
    if options.seconds is not None and options.frames is not None:
        raise UserError("--seconds and --frames say the same thing: give one of them")
    if options.out is not None and options.out_dir is not None:
        raise UserError("--out names one video and --out-dir a folder for many: give one of them")
    fps = model.settings.fps if options.fps is None else options.fps
    if options.how not in (None, *get_args(How)):
        raise UserError(f"--how {options.how}: it takes {', '.join(get_args(How))}")
    if options.how and not options.then:
        raise UserError("--how says how --then changes the prompt: give --then too")
    if not MIN_FPS <= fps <= MAX_FPS:
        raise UserError(f"--fps {fps:g}: it takes a rate from {MIN_FPS} to {MAX_FPS}")
    width, height = _size(options.size, model)
    if not 0 <= options.seed <= MAX_SEED:
        raise UserError(f"--seed {options.seed}: it takes whole numbers from 0 to {MAX_SEED}")
    seeds = [options.seed] if options.seeds is None else parse_seeds(options.seeds)
    videos = [
        (line, seed)
        for line in _lines(options, model.settings.prompt)
        for seed in (seeds if line.seed is None else [line.seed])
    ]
    if options.out is not None and len(videos) > 1:
        raise UserError(f"--out names one video, but {len(videos)} were asked for: use --out-dir")

    @cache
    def start_of(path: Path, drop: bool) -> Start:
        return read_start(path, Target(width=width, height=height, fps=fps, drop=drop, model=model))

    requests = []
    for position, (line, seed) in enumerate(videos, start=1):
        with _named(line, options):
            path, drop = _start(options, line)
            start = start_of(path, drop) if path else None
            frames = _frames(options, line, fps)
            given = start.frames - start.hidden if start else 0
            request = Request(
                prompt=line.prompt,
                seed=seed,
                frames=given + frames,
                width=width,
                height=height,
                fps=fps,
                out=_out(options, line, seed, position, len(videos)),
                scenes=_scenes(line, fps, frames, start, model),
                start=start,
            )
            requests.append(request)
    return requests


@contextmanager
def _named(line: PromptLine, options: GenerateOptions) -> Iterator[None]:
    """A UserError in the block says which line of a file it is about."""
    try:
        yield
    except UserError as error:
        if options.prompts is None:
            raise
        prompt = shorten(line.prompt, 40, placeholder="...")
        raise UserError(f"{options.prompts}, '{prompt}': {error}") from error


def parse_seeds(text: str) -> list[int]:
    """`0,3,8-11` -> [0, 3, 8, 9, 10, 11]."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:\s*-\s*(\d{1,19}))?\s*", part, re.ASCII)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else -1
        if not first <= last <= MAX_SEED:
            raise UserError(f"--seeds {text}: it takes numbers and ranges, such as 0,3,8-11")
        if len(seeds) + last - first >= MAX_VIDEOS:
            raise UserError(f"--seeds {text}: it takes at most {MAX_VIDEOS} at once")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _lines(options: GenerateOptions, example: str) -> list[PromptLine]:
    """What to show: the lines of the file, or the one prompt, or the model's example."""
    if options.prompts is not None:
        if options.prompt is not None:
            raise UserError("a prompt and --prompts exclude each other: put the prompt into the file")
        if options.then:
            raise UserError("--then and --prompts exclude each other: put 'scenes' into a .jsonl file")
        return read_prompts(options.prompts)
    prompt = example if options.prompt is None else options.prompt
    if not prompt.strip():
        raise UserError("the prompt is empty: say what the video should show")
    if len(prompt) > LONGEST:
        raise UserError(f"the prompt has {len(prompt)} characters: it takes at most {LONGEST}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # bytes of another encoding on the command line
        raise UserError("the prompt is not UTF-8 text: write it in UTF-8") from error
    if options.then:
        return [scenes_line(prompt, options.then, options.how or "recache")]
    return [PromptLine(prompt)]


def _start(options: GenerateOptions, line: PromptLine) -> tuple[Path | None, bool]:
    """What a line's video goes on from, and whether it begins after that."""
    path = options.start
    if line.start is not None and options.prompts is not None:
        path = options.prompts.parent / line.start
    drop = options.drop_start if line.drop_start is None else line.drop_start
    if drop and path is None:
        raise UserError("--drop-start leaves out what --start gives: give --start too")
    return path, drop


def _scenes(
    line: PromptLine, fps: float, frames: int, start: Start | None, model: Layout
) -> tuple[NextScene, ...]:
    """A line's scenes after the first, each from the first chunk on that begins no sooner than it asks.

    `frames` are new ones, after those of `start`. UserError if one would begin after the video's end.
    """
    before = start.frames if start else 0
    hidden = start.hidden if start else 0
    index = start.chunks if start else 0
    timeline = Timeline(model.compression, model.settings.chunk)
    scenes: list[NextScene] = []
    for scene in line.timed()[0]:
        while timeline.frames_before(index) < before + min(scene.at * fps, frames):
            index += 1
        first = timeline.frames_before(index)
        name = f"the scene at {scene.at:g} s"
        if first >= before + frames:
            raise UserError(
                f"{name} has no chunk before the video's end ({frames / fps:g} s): make that longer"
            )
        if scenes and scenes[-1].chunk == index:
            raise UserError(f"{name} begins in the same chunk as the one before it: move them apart")
        if scene.how == "cut":
            timeline = replace(timeline, cuts=(*timeline.cuts, index))
        at = (first - hidden) / fps
        scenes.append(NextScene(chunk=index, at=at, asked=scene.at, prompt=scene.prompt, how=scene.how))
    return tuple(scenes)


def _frames(options: GenerateOptions, line: PromptLine, fps: float) -> int:
    """The length of a line's video in frames; what the line says goes before the flags."""
    if options.frames is not None and line.timed()[1] is None:
        if not 1 <= options.frames <= MAX_FRAMES:
            raise UserError(f"--frames {options.frames}: it takes from 1 to {MAX_FRAMES} video frames")
        return options.frames
    seconds = line.timed()[1]
    if seconds is None:
        seconds = DEFAULT_SECONDS if options.seconds is None else options.seconds
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"--seconds {seconds:g}: it takes a length above 0")
    if seconds * fps > MAX_FRAMES:
        raise UserError(f"--seconds {seconds:g}: it takes at most {MAX_FRAMES} video frames in all")
    return max(1, round(seconds * fps))


def _size(text: str | None, model: Layout) -> tuple[int, int]:
    """(width, height) in pixels, which the VAE and the transformer's patches have to divide."""
    settings = model.settings
    if text is None:
        return settings.width, settings.height
    match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text, re.ASCII)
    if match is None:
        example = f"{settings.width}x{settings.height}"
        raise UserError(f"--size {text}: write it as WIDTHxHEIGHT, such as {example}")
    width = int(match[1])
    height = int(match[2])
    if max(width, height) > MAX_SIDE:
        raise UserError(f"--size {text}: it takes sides of at most {MAX_SIDE} pixels")
    across, down = model.multiples
    if not width or not height or width % across or height % down:
        nearest = f"{max(1, round(width / across)) * across}x{max(1, round(height / down)) * down}"
        raise UserError(
            f"--size {text}: width must be a multiple of {across} and height one of {down}; "
            f"the nearest is {nearest}"
        )
    return width, height


def _out(options: GenerateOptions, line: PromptLine, seed: int, position: int, total: int) -> Path:
    """The file of one of `total` videos: as its line says, as --out says, or after its prompt."""
    folder = options.out_dir or Path()
    if line.out is not None:
        out = folder / line.out
    elif options.out is not None:
        out = options.out
    else:
        number = f"{position:0{len(str(total))}d}-" if total > 1 else ""
        out = folder / f"{number}{slug(line.prompt)}-{seed}.mp4"
    if out.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{out}: unknown kind of video '{out.suffix}'; end the name in {', '.join(EXTENSIONS)}"
        )
    return out
