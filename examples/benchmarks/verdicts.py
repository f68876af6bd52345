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
from scipy.stats import spearmanr

from sfpp_cli.evaluation.metrics.evidence import Evidence
from sfpp_cli.evaluation.metrics.measure import see
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.verdicts import NAMES, find, local_stability
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


@dataclass(frozen=True)
class Row:
    """What the verdicts say of a case.

    `fired`: the onset in seconds of each. `stability`: local stability from the fault on. `cuts`: frames, by
    ours and by PySceneDetect's two detectors.
    """

    case: Case
    onset: float
    fired: dict[str, float]
    stability: float
    cuts: dict[str, list[int]]

    @property
    def wanted(self) -> str | None:
        return faults.FAULTS[self.case.kind][1] if self.case.kind in faults.FAULTS else None


def judged(case: Case) -> Row:
    """A case by the thresholds as they are now."""
    kept = pickle.loads(case.kept.read_bytes())
    evidence = Evidence.of(kept["seen"], Parameters())
    found = find(evidence)
    fired = {name: part.onset / case.fps for name, part in found.items() if part.onset is not None}
    cuts = {"ours": [cut.start for cut in evidence.cuts], **kept["scenes"]}
    stability = float(local_stability(found)[kept["onset"] :].mean())
    return Row(case, kept["onset"] / case.fps, fired, stability, cuts)


MARKER = "<!-- from here on written by verdicts.py -->"
HEAD = (
    "| verdict | recall | on half 0 | on half 1 | precision | fires without a fault | onset, s late |",
    "|---|---|---|---|---|---|---|",
)
STRENGTH = (
    "| fault | weak | middle | strong | rank correlation of lost local stability with strength |",
    "|---|---|---|---|---|",
)


def report(rows: list[Row], planned: int) -> str:
    """The tables as Markdown, which come after the marker in verdicts.md."""
    middle = [row for row in rows if row.case.strength == 1]
    clean = [row for row in middle if row.wanted is None]
    lines = [f"{len(rows)} of {planned} videos of the grid have been seen.", "", *HEAD]
    lines += [_verdict_line(name, middle, clean) for name in NAMES]
    shown = [row for row in clean if row.fired]
    named = [f"{row.case.content} ({row.case.kind}): {', '.join(row.fired)}" for row in shown]
    count = (
        f"{len(shown)} of {len(clean)} videos without a fault (unharmed or under camera work) fire something"
    )
    lines += ["", f"{count}: {'; '.join(named)}.", "", *STRENGTH]
    lines += [_strength_line(kind, rows) for kind in faults.FAULTS]
    return "\n".join([*lines, "", *_cut_lines(middle), ""])


def _verdict_line(name: str, middle: list[Row], clean: list[Row]) -> str:
    mine = [row for row in middle if row.wanted == name]
    hits = np.array([name in row.fired for row in mine], float)
    halves = contents.halves()
    half = np.array([halves[row.case.content] for row in mine])
    others = sum(name in row.fired for row in middle if row.wanted != name)
    late = [row.fired[name] - row.onset for row in mine if name in row.fired]
    draws = np.random.default_rng(0).integers(0, len(hits), (2000, len(hits)))
    low, high = np.quantile(hits[draws].mean(1), [0.025, 0.975])
    parts = [
        name,
        f"{hits.mean():.2f} ({low:.2f} to {high:.2f}) of {len(hits)}",
        *(f"{hits[half == number].mean():.2f} of {(half == number).sum()}" for number in (0, 1)),
        f"{hits.sum() / max(1, hits.sum() + others):.2f}",
        f"{sum(name in row.fired for row in clean)} of {len(clean)}",
        f"{np.median(late):+.1f}" if late else "",
    ]
    return f"| {' | '.join(parts)} |"


def _strength_line(kind: str, rows: list[Row]) -> str:
    wanted = faults.FAULTS[kind][1]
    mine = [row for row in rows if row.case.kind == kind]
    counts = []
    for strength in range(3):
        there = [wanted in row.fired for row in mine if row.case.strength == strength]
        counts.append(f"{sum(there)} of {len(there)}")
    plain = [row for row in rows if row.case.kind == "unharmed"]
    strengths = [row.case.strength + 1 for row in mine] + [0] * len(plain)
    loss = [100 - row.stability for row in mine + plain]
    rank = spearmanr(strengths, loss).statistic
    return f"| {kind} | {' | '.join(counts)} | {rank:.2f} |"


def _cut_lines(middle: list[Row]) -> list[str]:
    """Ours beside PySceneDetect: cuts found to three frames, and cuts where there is none."""
    lines = ["## Cuts, beside PySceneDetect 0.7", "", "| detector | found | false |", "|---|---|---|"]
    there = [row for row in middle if row.cuts.keys() > {"ours"}]
    for name in ("ours", "content", "adaptive"):
        found = wrong = 0
        for row in there:
            place = round(row.onset * row.case.fps)
            near = [abs(cut - place) <= 3 and row.case.kind == "cut" for cut in row.cuts[name]]
            found += any(near)
            wrong += len(near) - sum(near)
        cuts = sum(row.case.kind == "cut" for row in there)
        lines.append(f"| {name} | {found} of {cuts} | {wrong} in {len(there)} videos |")
    return lines


def see_all(cases: list[Case], workers: int) -> None:
    """See what has not been seen yet."""
    for name in sorted({case.content for case in cases}):
        contents.load(name)
    with ProcessPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(look, cases), start=1):
            if done % 20 == 0:
                print(f"{done} of {len(cases)} videos", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only judge what has been seen so far")
    options = parser.parse_args()
    cases = grid(quick=options.quick)
    if not options.table:
        see_all(cases, options.workers)
    seen = [case for case in cases if case.kept.is_file()]
    text = report([judged(case) for case in seen], len(cases))
    page = Path(__file__).with_suffix(".md")
    page.write_text(page.read_text().partition(MARKER)[0] + MARKER + "\n\n" + text)
    print(text)


if __name__ == "__main__":
    main()
