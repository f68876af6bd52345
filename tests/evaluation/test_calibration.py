"""Videos with one known fault each: its detector fires, the others do not; none does on clean videos."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sfpp_cli.data.landscape import draw_scenes
from sfpp_cli.evaluation.metrics.measure import measure
from sfpp_cli.evaluation.metrics.verdicts import NAMES
from sfpp_cli.video.writer import VideoWriter

Picture = NDArray[np.float64]
Stream = Iterator[Picture]
Content = Callable[[int, float, tuple[int, int], int], Stream]
"""(frames, fps, (W, H), seed) -> pictures in 0..1."""
SIZE, SECONDS = (96, 64), 16
FADE, FREEZE, CUT = (6.0, 13.0), 10.0, 9.0
"""When things happen, in seconds."""
HOPS = (33, 45, 57, 93, 129, 213)
"""Frames at which the balloon of `hops` jumps, at borders of chunks."""
FAR = 0.1
"""How far along its path, in turns."""


# --- contents -------------------------------------------------------------------------------------------


def texture(size: tuple[int, int], seed: int, grain: float) -> Picture:
    """Smooth coloured noise over uneven light."""
    generator, (width, height) = np.random.default_rng(seed), size
    fine = cv2.GaussianBlur(generator.standard_normal((height, width, 3)), (0, 0), grain)
    broad = cv2.GaussianBlur(generator.standard_normal((height, width)), (0, 0), grain * 5)[..., None]
    return np.clip(fine / fine.std() * 0.09 + broad / broad.std() * 0.07 + 0.42, 0.03, 0.95)


def ball(frames: int, fps: float, size: tuple[int, int], seed: int) -> Stream:
    """A ball bounces off the walls with periods whose ratio is irrational."""
    width, height = size
    radius, background = 0.16 * height, texture(size, seed + 50, 6) * 0.6 + 0.12
    color = np.array([(0.9, 0.55, 0.2), (0.2, 0.7, 0.9)][seed % 2])
    room = np.array([width, height]) - 2 * radius
    y, x = np.mgrid[:height, :width]
    for index in range(frames):
        way = np.mod(
            np.array([0.3 * width, 0.4 * height]) + np.array([0.31 * width, 0.412 * height]) * index / fps,
            2 * room,
        )
        cx, cy = radius + np.where(way > room, 2 * room - way, way)
        cover = np.clip(radius - np.hypot(x - cx, y - cy) + 0.5, 0, 1)[..., None]
        yield background * (1 - cover) + color * (1 - 0.12 * (x - cx + y - cy) / radius)[..., None] * cover


def pan(frames: int, fps: float, size: tuple[int, int], seed: int) -> Stream:
    """The camera passes along a landscape that never comes again, nodding."""
    width, height = size
    speed = 0.22 * width / fps
    landscape = texture((width + int(speed * frames) + 8, height + 16), seed, 2)
    for index in range(frames):
        nod = -6 - 5 * np.sin(0.9 * index / fps)
        yield cv2.warpAffine(landscape, np.array([[1, 0, -speed * index], [0, 1, nod]]), size)


@lru_cache(maxsize=1)
def scene(frames: int, size: tuple[int, int], seed: int, borders: Collection[int] = ()) -> list[Picture]:
    """A scene of the landscape; at each of `borders` its balloon is suddenly elsewhere."""
    scenes = draw_scenes(seed, [0])
    pictures: list[Picture] = []
    for jumps, (start, end) in enumerate(pairwise([0, *borders, frames])):
        moved = replace(scenes, phases=scenes.phases + FAR * jumps)
        for first in range(start, end, 32):
            drawn = moved.render(first, min(32, end - first), (size[1], size[0]))[0]
            pictures.extend(drawn.permute(0, 2, 3, 1).double().numpy())
    return pictures


def land(frames: int, fps: float, size: tuple[int, int], seed: int) -> Stream:
    """What the embedded model shows: a landscape before a panning camera, and a balloon."""
    yield from scene(frames, size, seed)


def hops(frames: int, fps: float, size: tuple[int, int], seed: int) -> Stream:
    """The same, but at some chunk borders the balloon is suddenly elsewhere, as a small model draws it: a
    glitch, yet neither flicker nor another scene."""
    yield from scene(frames, size, seed, HOPS)


CONTENTS: dict[str, Content] = {"ball": ball, "pan": pan, "land": land, "hops": hops}


# --- faults ---------------------------------------------------------------------------------------------


def fade(target: float, share: float = 1.0) -> Callable[[Stream, float], Stream]:
    """To white or black, up to `share`, which it keeps."""

    def change(stream: Stream, fps: float) -> Stream:
        for index, picture in enumerate(stream):
            mixed = share * float(np.clip((index / fps - FADE[0]) / (FADE[1] - FADE[0]), 0, 1))
            yield picture * (1 - mixed) + target * mixed

    return change


def gain(stream: Stream, fps: float) -> Stream:
    """Exposure rises until highlights clip."""
    for index, picture in enumerate(stream):
        yield picture * (1 + 1.6 * float(np.clip((index / fps - FADE[0]) / (FADE[1] - FADE[0]), 0, 1)))


def freeze(stream: Stream, fps: float) -> Stream:
    for index, picture in enumerate(stream):
        last = picture if index < FREEZE * fps else last  # noqa: F821
        yield last


def loop(seconds: float) -> Callable[[Stream, float], Stream]:
    def change(stream: Stream, fps: float) -> Stream:
        kept: list[Picture] = []
        for index, picture in enumerate(stream):
            if index < round(seconds * fps):
                kept.append(picture)
            yield kept[index % len(kept)]

    return change


def flicker(period: int, amount: float = 0.05) -> Callable[[Stream, float], Stream]:
    """Brighter and back every `period` frames, at chunk borders."""

    def change(stream: Stream, fps: float) -> Stream:
        for index, picture in enumerate(stream):
            yield picture + amount * ((index - 9) // period % 2)

    return change


def sawtooth(stream: Stream, fps: float) -> Stream:
    """Each chunk brightens, the next falls back."""
    for index, picture in enumerate(stream):
        yield picture + 0.06 * ((index - 9) % 12 / 12 - 0.5)


def shake(stream: Stream, fps: float) -> Stream:
    """The picture jumps to the side and back at chunk borders; its mean luma does not change."""
    for index, picture in enumerate(stream):
        yield np.roll(picture, picture.shape[1] // 24 * ((index - 9) // 12 % 2), axis=1)


def cut_to(content: Content) -> Callable[[Stream, float], Stream]:
    def change(stream: Stream, fps: float) -> Stream:
        for index, picture in enumerate(stream):
            if not index:
                others = content(round(SECONDS * fps), fps, picture.shape[1::-1], 7)
            other = next(others)
            yield picture if index < CUT * fps else other

    return change


def untouched(stream: Stream, fps: float) -> Stream:
    return stream


def doubled(stream: Stream, fps: float) -> Stream:
    """Every second picture is shown twice, as in 12 frames a second stored as 24."""
    for index, picture in enumerate(stream):
        shown = picture if index % 2 == 0 else shown  # noqa: F821
        yield shown


FAULTS: dict[str, tuple[Callable[[Stream, float], Stream], str | None, float]] = {
    "clean": (untouched, None, 0),
    "white": (fade(1.0), "over_exposure", FADE[0]),
    "dark": (fade(0.0), "darkening", FADE[0]),
    "frozen": (freeze, "stagnation", FREEZE),
    "loop-6s": (loop(6), "repetition", 6),
    "flicker-12": (flicker(12), "flicker", 0.6),
    "cut": (cut_to(pan), "scene_change", CUT),
}
"""Name -> (what is done, the verdict that has to fire, when it begins)."""
MORE_FAULTS: dict[str, tuple[Callable[[Stream, float], Stream], str | None, float]] = {
    "doubled": (doubled, None, 0),
    "white-60%": (fade(1.0, 0.6), "over_exposure", FADE[0]),
    "gain": (gain, "over_exposure", FADE[0]),
    "dark-60%": (fade(0.0, 0.6), "darkening", FADE[0]),
    "loop-3s": (loop(3), "repetition", 3),
    **{f"flicker-{period}": (flicker(period), "flicker", 0.6) for period in (1, 2, 3, 5)},
    "flicker-12-faint": (flicker(12, 0.025), "flicker", 0.6),
    "sawtooth": (sawtooth, "flicker", 0.6),
    "shake": (shake, "flicker", 0.6),
    "cut-to-ball": (cut_to(ball), "scene_change", CUT),
}


def written(path: Path, pictures: Stream, size: tuple[int, int], fps: float) -> Path:
    with VideoWriter(path, size, fps) as writer:
        for picture in pictures:
            writer.write(np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)[None])
    return path


def judged(
    folder: Path,
    content: str,
    fault: str,
    fps: float,
    extension: str,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> dict[str, Any]:
    """What is measured of such a video."""
    change = (FAULTS | MORE_FAULTS)[fault][0]
    pictures = change(CONTENTS[content](round(SECONDS * fps), fps, size, seed), fps)
    return measure(written(folder / f"video{extension}", pictures, size, fps))


def check(found: dict[str, Any], fault: str) -> None:
    """The right verdict and no other, within a good second of its moment; fades need longer to be noticed."""
    _, wanted, moment = (FAULTS | MORE_FAULTS)[fault]
    fired = [name for name in NAMES if found["verdicts"][name]["fired"]]
    expected = [wanted] if wanted else []
    if fault in ("white", "dark"):  # in the end nothing is left
        expected.append("blank")
        assert found["verdicts"]["blank"]["onset_seconds"] == pytest.approx(FADE[1], abs=1)
    assert fired == expected, found["verdicts"]
    assert all((found["verdicts"][name]["onset_seconds"] is None) == (name not in fired) for name in NAMES)
    if wanted:
        late = 3.5 if wanted in ("over_exposure", "darkening") else 0.8
        assert -1.1 < found["verdicts"][wanted]["onset_seconds"] - moment < late
    assert (found["metrics"]["local_stability"] < 90) == (wanted is not None)


QUICK: dict[tuple[str, int, str], Collection[str]] = {
    ("ball", 16, ".mp4"): FAULTS,
    ("pan", 24, ".webm"): ("clean", "white", "cut"),
    ("land", 16, ".gif"): ("clean", "dark", "loop-6s"),
    ("hops", 16, ".webm"): ("clean", "frozen", "flicker-12"),
}
"""Every fault twice, on two contents; the slow test has all."""


@pytest.mark.parametrize(
    ("content", "fps", "extension", "fault"),
    [(*video, fault) for video, faults in QUICK.items() for fault in faults],
)
def test_each_detector_fires_on_its_own_fault_alone(
    tmp_path: Path, content: str, fps: float, extension: str, fault: str
) -> None:
    check(judged(tmp_path, content, fault, fps, extension), fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*FAULTS, *MORE_FAULTS])
@pytest.mark.parametrize("extension", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("fps", [16, 24])
@pytest.mark.parametrize("content", CONTENTS)
def test_in_every_combination(tmp_path: Path, content: str, fps: float, extension: str, fault: str) -> None:
    check(judged(tmp_path, content, fault, fps, extension), fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("size", [(160, 96), (64, 64), (320, 240)])
@pytest.mark.parametrize("content", CONTENTS)
def test_at_other_sizes(tmp_path: Path, content: str, size: tuple[int, int], fault: str) -> None:
    check(judged(tmp_path, content, fault, 16, ".mp4", size, seed=1), fault)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 10))
@pytest.mark.parametrize("content", CONTENTS)
def test_clean_videos_raise_no_alarm(tmp_path: Path, content: str, seed: int) -> None:
    check(judged(tmp_path, content, "clean", 16, ".mp4", seed=seed), "clean")


def test_a_video_that_never_moves_is_stagnant_from_the_start(tmp_path: Path) -> None:
    still = (next(ball(1, 16, SIZE, 0)) * 255).astype(np.uint8)
    with VideoWriter(tmp_path / "still.mp4", SIZE, 16) as writer:
        writer.write(np.repeat(still[None], 160, axis=0))
    found = measure(tmp_path / "still.mp4")
    assert [name for name in NAMES if found["verdicts"][name]["fired"]] == ["stagnation"]
    assert found["verdicts"]["stagnation"]["onset_seconds"] < 1  # the encoder takes a moment to settle
    assert found["metrics"]["dynamic_degree_dis"] == found["metrics"]["dynamic_degree_dis_whole"] == 0


def test_an_object_that_jumps_at_border_after_border_flickers_and_is_no_cut(tmp_path: Path) -> None:
    borders = range(9, 256, 12)
    found = measure(written(tmp_path / "video.webm", iter(scene(256, SIZE, 0, borders)), SIZE, 16))
    assert [name for name in NAMES if found["verdicts"][name]["fired"]] == ["flicker"]
    assert found["verdicts"]["flicker"]["onset_seconds"] == pytest.approx(9 / 16, abs=0.01)
    # A jump that ends near where it began is none to see.
    assert found["verdicts"]["flicker"]["most_in_a_row"] > 0.8 * len(borders)
    assert found["verdicts"]["flicker"]["period_frames"] == 12
