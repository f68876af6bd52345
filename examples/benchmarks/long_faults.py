"""What `sfpp evaluate` says of 43 videos of 20 s: 34 with a fault from 10 s on, 2 zooms and 7 unharmed.

    python examples/benchmarks/long_faults.py                   # makes the videos, evaluates, prints a table
    python examples/benchmarks/long_faults.py --before ../old   # beside an earlier checkout of this project

Seven shots that pip packages ship (see contents.py), 320 pixels wide, 16 and 24 frames a second, H.264 and
VP9; one that is shorter is played forth and back. Faults are those of faults.py. Videos and what is seen of
them are kept, so an interrupted run goes on where it was and another rule or threshold measures nothing anew.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contents
import cv2
import faults
import numpy as np

from sfpp_cli.evaluation.metrics.evidence import Evidence
from sfpp_cli.evaluation.metrics.measure import see
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.verdicts import find, verdicts
from sfpp_cli.video import Frames
from sfpp_cli.video.writer import VideoWriter

WIDTH, SECONDS, ONSET = 320, 20, 10
EARLY, NEAR = 1.0, 0.25
"""Seconds by which an onset may lie before the fault, and a cut's second beside the cut."""
FILM = contents.CLIPS[0]
CLIPS = {clip.name: clip for clip in contents.CLIPS} | {
    "tree": contents.Clip(
        "film-tree", FILM.package, FILM.member, 3052, 3510, 1, 0, "animation, characters, a hand close by"
    ),
    "den": contents.Clip("film-den", FILM.package, FILM.member, 810, 1135, 1, 0, "animation, a slow shot"),
}
SHOTS = {
    "tree": (24, "mp4"),
    "den": (16, "mp4"),
    "snow-run": (16, "mp4"),
    "robot": (16, "mp4"),
    "held": (16, "webm"),
    "woman": (24, "webm"),
    "talk-near": (16, "mp4"),
}
"""Frames a second and the file format of each."""
WEAK, MIDDLE, STRONG = range(3)
INJECTED = {
    "over-exposure": (STRONG, "tree", "snow-run", "talk-near"),
    "darkening": (STRONG, "den", "held", "woman"),
    "freeze": (STRONG, "tree", "robot", "held", "talk-near"),
    "loop": (MIDDLE, "den", "snow-run", "talk-near"),
    "flicker": (STRONG, "tree", "woman"),
    "faint flicker": (WEAK, "robot", "talk-near"),
    "desaturation": (STRONG, "snow-run", "talk-near"),
    "over-saturation": (STRONG, "tree", "held"),
    "colour cast": (STRONG, "den", "robot"),
    "blur": (STRONG, "tree", "robot", "woman"),
    "noise": (STRONG, "den", "held"),
    "zoom": (MIDDLE, "tree", "talk-near"),
    "unharmed": (MIDDLE, *SHOTS),
}
"""Strength and shots of each kind; the last two are no faults."""
CUTS = {
    "tree": ("held", "robot"),
    "den": ("tree", "snow-run"),
    "snow-run": ("robot", "den"),
    "robot": ("held", "talk-near"),
    "woman": ("talk-near", "den"),
    "talk-near": ("woman",),
}
"""What a shot is cut to, `CUT_SECONDS` apart."""
CUT_SECONDS = 4


@dataclass(frozen=True)
class Case:
    """A video."""

    kind: str
    shot: str
    strength: int

    @property
    def file(self) -> str:
        return f"{self.kind}-{self.shot}.{SHOTS[self.shot][1]}".replace(" ", "-")

    @property
    def wanted(self) -> str | None:
        """The verdict that should fire."""
        known = faults.FAULTS.get(self.kind.removeprefix("faint "))
        return known[1] if known else None

    @property
    def cuts(self) -> list[float]:
        """The seconds of its cuts."""
        return (
            [ONSET + CUT_SECONDS * place for place in range(len(CUTS[self.shot]))]
            if self.kind == "cut"
            else []
        )


def cases() -> Iterator[Case]:
    for kind, (strength, *shots) in INJECTED.items():
        yield from (Case(kind, shot, strength) for shot in shots)
    yield from (Case("cut", shot, MIDDLE) for shot in CUTS)


def frames_of(shot: str, fps: int) -> Frames:
    """`SECONDS` of a shot [T, H, W, 3], turned back at its ends."""
    frames = contents.natural(CLIPS[shot], WIDTH)
    index = np.arange(SECONDS * fps) % (2 * len(frames))
    return frames[np.minimum(index, 2 * len(frames) - 1 - index)]


def injected(case: Case) -> Frames:
    fps = SHOTS[case.shot][0]
    frames = frames_of(case.shot, fps)
    if case.kind == "cut":
        for second, other in zip(case.cuts, CUTS[case.shot], strict=True):
            place = round(second * fps)
            frames[place:] = fitted(frames_of(other, fps), frames.shape[1])[: len(frames) - place]
        return frames
    name = case.kind.removeprefix("faint ")
    change = faults.FAULTS[name][0] if name in faults.FAULTS else faults.CAMERA[name]
    return np.ascontiguousarray(change(frames, ONSET * fps, case.strength, 0))  # seed 0: the zoom goes out


def fitted(frames: Frames, height: int) -> Frames:
    """With the rows in the middle, or with the outermost ones again."""
    rows = np.arange(height) + (frames.shape[1] - height) // 2
    return frames[:, np.clip(rows, 0, frames.shape[1] - 1)]


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        if not (folder / case.file).is_file():
            frames = injected(case)
            with VideoWriter(folder / case.file, (WIDTH, frames.shape[1]), SHOTS[case.shot][0]) as writer:
                writer.write(frames)


def judged(path: Path) -> dict[str, Any]:
    """The verdicts of this checkout on a video, whose seen signals are kept beside it."""
    kept = path.with_name(f"{path.name}.pkl")
    if not kept.is_file():
        cv2.setNumThreads(1)
        kept.write_bytes(pickle.dumps(see(path, Parameters())))
    seen = pickle.loads(kept.read_bytes())
    return {"verdicts": verdicts(find(Evidence.of(seen, Parameters())), seen.fps)}


def evaluated(folder: Path, tree: Path) -> dict[str, Any]:
    """The videos by file name, as another checkout `tree` sees them."""
    files = [str(folder.resolve() / case.file) for case in cases()]
    command = (sys.executable, "-m", "sfpp_cli", "evaluate", *files, "--json", "--workers", "1")
    # in the checkout, since `-m` looks in the working directory before anywhere else
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    found = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return {Path(video["path"]).name: video for video in json.loads(found.stdout)["videos"]}


def commit(tree: Path) -> str:
    """Which commit a checkout stands at, with "-dirty" where it was changed since."""
    command = ("git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude", "*")
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Tally:
    """What one version says of the videos of a kind: how many faults there are and were `named`, None where
    no verdict exists for them; the onsets given."""

    there: int
    named: int | None
    onsets: list[float]

    def __str__(self) -> str:
        if self.named is None:
            return f"0 of {self.there}, no verdict"
        seconds = [f"{second:.1f}" for second in (min(self.onsets), max(self.onsets))] if self.onsets else []
        given = f", {' to '.join(dict.fromkeys(seconds))} s" if seconds else ""
        return f"{self.named} of {self.there}{given}"


def tally(kind: str, videos: dict[str, Any]) -> Tally:
    there = 0
    named: int | None = 0
    onsets: list[float] = []
    for case in cases():
        if case.kind != kind:
            continue
        verdict = videos[case.file]["verdicts"].get(case.wanted)
        there += len(case.cuts) or 1
        if verdict is None or named is None:
            named = None
        elif case.cuts:
            said = verdict["cuts_seconds"]
            found = [second for second in said if any(abs(second - cut) <= NEAR for cut in case.cuts)]
            named += len(found)
            onsets += found
        elif verdict["fired"] and verdict["onset_seconds"] >= ONSET - EARLY:
            named += 1
            onsets.append(verdict["onset_seconds"])
    return Tally(there, named, onsets)


def false_alarms(case: Case, video: dict[str, Any]) -> list[str]:
    """Verdicts that fired and should not have, or too early."""
    wrong = []
    for name, verdict in video["verdicts"].items():
        if name != case.wanted:
            right = not verdict["fired"]
        elif case.cuts:
            right = all(any(abs(s - cut) <= NEAR for cut in case.cuts) for s in verdict["cuts_seconds"])
        else:
            right = not verdict["fired"] or verdict["onset_seconds"] >= ONSET - EARLY
        if not right:
            wrong.append(name)
    return wrong


def table(versions: dict[str, dict[str, Any]]) -> str:
    """The versions' verdicts side by side, as Markdown."""
    kinds = dict.fromkeys(case.kind for case in cases() if case.wanted)
    lines = [f"| fault, from {ONSET} s on | {' | '.join(versions)} |", "|---" * (len(versions) + 1) + "|"]
    for kind in kinds:
        lines.append(f"| {kind} | {' | '.join(str(tally(kind, videos)) for videos in versions.values())} |")
    for heading, chosen in (
        ("false verdicts in videos with a fault", True),
        ("in zooms and unharmed", False),
    ):
        said = [_false(videos, chosen) for videos in versions.values()]
        lines.append(f"| {heading} | {' | '.join(said)} |")
    return "\n".join(lines)


def _false(videos: dict[str, Any], faulty: bool) -> str:
    wrong = [false_alarms(case, videos[case.file]) for case in cases() if bool(case.wanted) == faulty]
    counted = Counter(name for names in wrong for name in names)
    named = [f"{name} in {count}" for name, count in counted.most_common()]
    return f"{sum(map(bool, wrong))} of {len(wrong)}" + (f": {', '.join(named)}" if named else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=contents.CACHE / "long", help="where the videos are kept"
    )
    parser.add_argument("--before", type=Path, help="an earlier checkout")
    options = parser.parse_args()
    make(options.folder)
    now = {case.file: judged(options.folder / case.file) for case in cases()}
    versions = {f"now ({commit(Path(__file__).parent)})": now}
    if options.before:
        before = evaluated(options.folder, options.before)
        versions = {f"before ({commit(options.before)})": before, **versions}
    print(table(versions))
    for case in cases():
        wrong = false_alarms(case, now[case.file])
        if wrong:
            print(f"{case.file}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
