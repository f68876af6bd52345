"""How well do the verdicts of `sfpp evaluate` hold? Precision and recall on injected faults.

    python examples/benchmarks/verdicts.py --quick            # a few contents
    python examples/benchmarks/verdicts.py --workers 2        # the whole grid; writes verdicts.md

Every content (see contents.py) is encoded unharmed, under camera work that is no fault, and with each fault
of faults.py. What is seen of each video is kept in the cache folder, so an interrupted run goes on where it
was and a change of thresholds measures nothing anew.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import contents
import cv2
import faults
import numpy as np

from sfpp_cli.evaluation.metrics.measure import see
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.writer import VideoWriter

CACHE = contents.CACHE / "seen"
LONGEST = 144
"""Frames of a video, 9 s at 16 a second."""


@dataclass(frozen=True)
class Case:
    """A video of the grid. `strength`: 0 weak, 1 middle, 2 strong."""

    content: str
    kind: str
    strength: int
    onset: float
    codec: str
    fps: int

    @property
    def kept(self) -> Path:
        name = "+".join(str(part) for part in astuple(self)).replace(" ", "-")
        return CACHE / f"{name}.pkl"

    @property
    def seed(self) -> int:
        return zlib.crc32(f"{self.content}+{self.kind}".encode()) % 9973


def grid(*, quick: bool) -> list[Case]:
    """Onset, codec and rate rotate over contents and faults; the strengths beside the middle one are tried on
    every third content."""
    names = sorted(contents.halves())
    cases = [Case(name, "unharmed", 1, 0.5, "mp4", 16) for name in names]
    middle = [
        _case(name, kind, 1, i + j) for j, kind in enumerate(faults.FAULTS) for i, name in enumerate(names)
    ]
    camera = [
        _case(name, kind, 1, i + j)
        for j, kind in enumerate(faults.CAMERA)
        for i, name in enumerate(names)
        if kind != "unharmed" and (i + j) % 2 == 0
    ]
    if quick:
        return cases[::4] + middle[::12] + camera[::12]
    others = [
        _case(name, kind, strength, i + j + strength)
        for strength in (0, 2)
        for j, kind in enumerate(faults.FAULTS)
        for i, name in enumerate(names)
        if (i + j + strength) % 3 == 0
    ]
    again = [Case(name, "unharmed", 1, 0.5, "webm", 24) for name in names]
    return cases + middle[::4] + camera[::2] + middle[2::4] + middle[1::2] + camera[1::2] + others + again


def _case(name: str, kind: str, strength: int, place: int) -> Case:
    slow = kind in ("freeze", "loop")  # which take seconds to be seen
    fps = 16 if slow else (16, 16, 24)[place % 3]
    return Case(name, kind, strength, (0.45, 0.6)[place % 2], ("mp4", "mp4", "webm")[place // 2 % 3], fps)


def video(case: Case) -> tuple[Frames, int]:
    """The frames of a case, and the first faulty one."""
    frames = contents.load(case.content)[:LONGEST]
    onset = round(len(frames) * case.onset)
    change = faults.FAULTS[case.kind][0] if case.kind in faults.FAULTS else faults.CAMERA[case.kind]
    return np.ascontiguousarray(change(frames, onset, case.strength, case.seed)), onset


def look(case: Case) -> None:
    """See a case's video and keep what was seen, with the cuts that PySceneDetect finds."""
    if case.kept.is_file():
        return
    cv2.setNumThreads(1)
    frames, onset = video(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video.{case.codec}"
        with VideoWriter(path, (frames.shape[2], frames.shape[1]), case.fps) as writer:
            writer.write(frames)
        seen = see(path, Parameters())
        others = scenes(path, case.fps) if case.kind in ("cut", *faults.CAMERA) else {}
    CACHE.mkdir(parents=True, exist_ok=True)
    part = case.kept.with_suffix(".part")
    part.write_bytes(pickle.dumps({"onset": onset, "seen": seen, "scenes": others}))
    part.replace(case.kept)


def scenes(path: Path, fps: float) -> dict[str, list[int]]:
    """The cuts that PySceneDetect's two detectors find, in frames, on the pictures that ours sees."""
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

    detectors = {"content": ContentDetector(min_scene_len=8), "adaptive": AdaptiveDetector(min_scene_len=8)}
    found: dict[str, list[int]] = {name: [] for name in detectors}
    for index, frame in enumerate(read_frames(path)):
        for name, detector in detectors.items():
            cuts = detector.process_frame(
                FrameTimecode(index, float(fps)), np.ascontiguousarray(frame[..., ::-1])
            )
            found[name] += [cut.frame_num for cut in cuts]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    cases = grid(quick=options.quick)
    for name in sorted({case.content for case in cases}):
        contents.load(name)
    if options.workers == 1:
        for done, case in enumerate(cases, start=1):
            look(case)
            if done % 20 == 0:
                print(f"{done} of {len(cases)} videos", flush=True)
    else:
        with ProcessPoolExecutor(options.workers) as pool:
            list(pool.map(look, cases))


if __name__ == "__main__":
    main()
