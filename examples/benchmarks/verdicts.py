"""How well do the verdicts of `sfpp evaluate` hold? Precision and recall on injected faults.

    python examples/benchmarks/verdicts.py --quick            # a few contents; only prints
    python examples/benchmarks/verdicts.py --workers 2        # the whole grid; writes verdicts.md
    python examples/benchmarks/verdicts.py --choose           # thresholds by half 0 of the contents

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
SLOW = ("freeze", "loop")
"""Faults that take seconds to be seen."""
FAST = 30
"""Frames a second of some more videos, counted by themselves."""


LOOK = {*list(faults.FAULTS)[:7], "flicker"}
SEEN = 1.0
"""A fault of the look that changes the picture by less, in CIELAB units, is none: grey that fades, black that
flickers."""


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
    first = cases + middle[::4] + camera[::2] + middle[2::4] + middle[1::2] + camera[1::2]
    return first + others + again + _fast(names)


def _fast(names: list[str]) -> list[Case]:
    """Every fault that shows within a second, on a content of each half, and four unharmed, at `FAST`."""
    long = [name for name in names if name not in contents.SHORT]
    halves = [[name for name in long if contents.halves()[name] == half] for half in (0, 1)]
    kinds = [kind for kind in faults.FAULTS if kind not in SLOW] + ["unharmed"] * 2
    return [
        Case(half[place % len(half)], kind, 1, 0.45, "mp4", FAST)
        for place, kind in enumerate(kinds)
        for half in halves
    ]


def _case(name: str, kind: str, strength: int, place: int) -> Case:
    fps = 16 if kind in SLOW else (16, 16, 24)[place % 3]
    # a fault takes 48 frames to reach its strength: in a short shot the later onset leaves too few
    onset = 0.45 if name in contents.SHORT else (0.45, 0.6)[place % 2]
    return Case(name, kind, strength, onset, ("mp4", "mp4", "webm")[place // 2 % 3], fps)


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
    difference = visible(frames, contents.load(case.content)[:LONGEST])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video.{case.codec}"
        with VideoWriter(path, (frames.shape[2], frames.shape[1]), case.fps) as writer:
            writer.write(frames)
        seen = see(path, Parameters())
        others = scenes(path, case.fps) if case.kind in ("cut", *faults.CAMERA) else {}
    CACHE.mkdir(parents=True, exist_ok=True)
    part = case.kept.with_suffix(".part")
    part.write_bytes(pickle.dumps({"onset": onset, "seen": seen, "scenes": others, "visible": difference}))
    part.replace(case.kept)


def visible(faulty: Frames, unharmed: Frames) -> float:
    """How far the pictures of the last second are from unharmed ones, in CIELAB units: the mean over the
    picture, of the picture that differs most."""
    differences = []
    for index in range(max(0, len(faulty) - 16), len(faulty), 4):
        pair = np.stack([faulty[index], unharmed[index]]).astype(np.float32) / 255
        one, other = (cv2.cvtColor(picture, cv2.COLOR_RGB2Lab) for picture in pair)
        differences.append(float(np.linalg.norm(one - other, axis=2).mean()))
    return max(differences)


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

    `fired`: the onset in seconds of each. `held`: the highest measure over its threshold that each verdict
    held for as long as a drift has to. `stability`: local stability from the fault on. `cuts`: frames, by
    ours and by PySceneDetect's two detectors.
    """

    case: Case
    onset: float
    fired: dict[str, float]
    held: dict[str, float]
    stability: float
    cuts: dict[str, list[int]]
    visible: bool

    @property
    def wanted(self) -> str | None:
        return faults.FAULTS[self.case.kind][1] if self.case.kind in faults.FAULTS else None

    @property
    def half(self) -> int:
        return contents.halves()[self.case.content]


def judged(case: Case) -> Row:
    """A case by the thresholds as they are now."""
    kept = pickle.loads(case.kept.read_bytes())
    parameters = Parameters()
    evidence = Evidence.of(kept["seen"], parameters)
    found = find(evidence)
    fired = {name: part.onset / case.fps for name, part in found.items() if part.onset is not None}
    length = round(parameters.drift_seconds * case.fps)
    held = {
        name: float(np.lib.stride_tricks.sliding_window_view(part.severity, length).min(1).max())
        for name, part in found.items()
    }
    cuts = {"ours": [cut.start for cut in evidence.cuts], **kept["scenes"]}
    stability = float(local_stability(found)[kept["onset"] :].mean())
    visible = case.kind not in LOOK or kept["visible"] >= SEEN
    return Row(case, kept["onset"] / case.fps, fired, held, stability, cuts, visible)


CHOSEN = {
    "over_saturation": "saturation_rise",
    "desaturation": "saturation_fall",
    "colour_cast": "cast_units",
}
"""Verdict -> its threshold that `--choose` sets."""


def choose(rows: list[Row]) -> str:
    """Thresholds by half 0 alone: four fifths of what nine in ten visible faults of middle strength hold, if
    no video without a fault reaches it."""
    lines = []
    for name, parameter in CHOSEN.items():
        mine = [row for row in rows if row.half == 0 and row.case.strength == 1 and row.visible]
        faulty = [row.held[name] for row in mine if row.wanted == name]
        clean = max(row.held[name] for row in mine if row.wanted is None)
        now = getattr(Parameters(), parameter)
        chosen = 0.8 * np.quantile(faulty, 0.1) * now
        lines.append(
            f"{parameter}: {chosen:.3g}, now {now:.3g}; at most {clean * now:.3g} without a fault, "
            f"{len(faulty)} faults"
        )
    return "\n".join(lines)


MARKER = "<!-- from here on written by verdicts.py -->"
HEAD = (
    "| verdict | recall, half 1 | recall, half 0 | precision, half 1 | half 0 | onset, s late |",
    "|---|---|---|---|---|---|",
)
STRENGTH = (
    "| fault | weak | middle | strong | rank correlation of lost local stability with strength |",
    "|---|---|---|---|---|",
)


def report(rows: list[Row], planned: int) -> str:
    """The tables as Markdown, which come after the marker in verdicts.md."""
    fast = [row for row in rows if row.case.fps == FAST]
    rows = [row for row in rows if row.case.fps != FAST]
    middle = [row for row in rows if row.case.strength == 1]
    clean = [row for row in middle if row.wanted is None]
    hidden = [row for row in middle if not row.visible]
    names = ", ".join(f"{row.case.kind} of {row.case.content}" for row in hidden)
    lines = [
        f"{len(rows) + len(fast)} of {planned} videos of the grid have been seen. Not counted below, since",
        f"they change the picture by less than a CIELAB unit: {names}.",
        "",
        *HEAD,
    ]
    lines += [_verdict_line(name, middle) for name in NAMES if name in {row.wanted for row in middle}]
    lines.append("")
    for half in (1, 0):
        mine = [row for row in clean if row.half == half]
        shown = [row for row in mine if row.fired]
        named = [f"{row.case.content} ({row.case.kind}): {', '.join(row.fired)}" for row in shown]
        lines.append(
            f"Half {half}: {len(shown)} of {len(mine)} videos without a fault, under camera work or none, "
            f"fire something{': ' * bool(named)}{'; '.join(named)}."
        )
    lines += ["", *STRENGTH]
    lines += [_strength_line(kind, rows) for kind in faults.FAULTS]
    return "\n".join([*lines, "", *_cut_lines(middle), "", *_fast_lines(fast), ""])


def _verdict_line(name: str, middle: list[Row]) -> str:
    recalls = []
    precisions = []
    late = []
    for half in (1, 0):
        mine = [row for row in middle if row.half == half and row.visible]
        hits = np.array([name in row.fired for row in mine if row.wanted == name], float)
        wrong = sum(name in row.fired for row in mine if row.wanted != name)
        late += [row.fired[name] - row.onset for row in mine if row.wanted == name and name in row.fired]
        draws = np.random.default_rng(0).integers(0, len(hits), (2000, len(hits)))
        low, high = np.quantile(hits[draws].mean(1), [0.025, 0.975])
        recalls.append(f"{hits.mean():.2f} ({low:.2f} to {high:.2f}) of {len(hits)}")
        precisions.append(f"{hits.sum() / max(1, hits.sum() + wrong):.2f}")
    onset = f"{np.median(late):+.1f}" if late else ""
    return f"| {' | '.join([name, *recalls, *precisions, onset])} |"


def _strength_line(kind: str, rows: list[Row]) -> str:
    wanted = faults.FAULTS[kind][1]
    mine = [row for row in rows if row.case.kind == kind and row.visible]
    counts = []
    for strength in range(3):
        there = [wanted in row.fired for row in mine if row.case.strength == strength]
        counts.append(f"{sum(there)} of {len(there)}")
    plain = [row for row in rows if row.case.kind == "unharmed"]
    strengths = [row.case.strength + 1 for row in mine] + [0] * len(plain)
    loss = [100 - row.stability for row in mine + plain]
    rank = spearmanr(strengths, loss).statistic
    return f"| {kind} | {' | '.join(counts)} | {rank:.2f} |"


def _fast_lines(fast: list[Row]) -> list[str]:
    wanted = [row for row in fast if row.wanted and row.visible]
    missed = [f"{row.case.kind} of {row.case.content}" for row in wanted if row.wanted not in row.fired]
    wrong = [
        f"{name} in {row.case.kind} of {row.case.content}"
        for row in fast
        for name in row.fired
        if name != row.wanted
    ]
    return [
        f"## At {FAST} frames a second",
        "",
        f"{len(wanted) - len(missed)} of {len(wanted)} faults are named"
        f"{'; missed: ' * bool(missed)}{', '.join(missed)}.",
        f"False in {len(fast)} videos: {', '.join(wrong) or 'none'}.",
    ]


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
    parser.add_argument("--choose", action="store_true", help="thresholds by what has been seen of half 0")
    options = parser.parse_args()
    cases = grid(quick=options.quick)
    if options.choose:
        half = [case for case in cases if contents.halves()[case.content] == 0 and case.kept.is_file()]
        print(choose([judged(case) for case in half if case.strength == 1]))
        return
    if not options.table:
        see_all(cases, options.workers)
    seen = [case for case in cases if case.kept.is_file()]
    text = report([judged(case) for case in seen], len(cases))
    if not options.quick:
        page = Path(__file__).with_suffix(".md")
        page.write_text(page.read_text().partition(MARKER)[0] + MARKER + "\n\n" + text)
    print(text)


if __name__ == "__main__":
    main()
