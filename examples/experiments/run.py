"""Rebuild every table and figure of the experiments, from training to Markdown.

    python examples/experiments/run.py                   # all: hours on two cores; goes on where stopped
    python examples/experiments/run.py horizon budget    # some
    python examples/experiments/run.py --hours 8         # begin nothing after that, and tell what was cut
    python examples/experiments/run.py --road runs/landscape-work   # whose students are not trained again
    python examples/experiments/run.py --quick           # minutes: every step, tiny; its numbers mean nothing

Students, videos and measurements lie under `--out`; `results/NAME.md`, `NAME.png` and `NAME-strip.png` there
are what is shown, and `results/rows` has what was measured of every video, a file for each finished system.
design.md says what is compared, and why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import judge
import memory
from arms import family
from report import (
    COMPARED,
    Systems,
    differences_table,
    draw_claim,
    draw_curves,
    draw_filmstrips,
    draw_flow,
    drifted,
    interval,
    markdown,
    seeds_table,
    shown,
    table,
    verdicts_table,
)
from study import ENDS, FULL, HERE, MODEL, QUICK, WINDOW, Study

from sfpp_cli.files import atomic_write


@dataclass(frozen=True)
class Comparison:
    """Systems side by side."""

    title: str
    systems: dict[str, str]
    """What is shown -> the system."""
    reference: str
    """Which of them the others are compared with."""
    ends: tuple[int, ...] = (5, 50)
    again: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What is shown -> the same with other training seeds."""
    also: tuple[Callable[[Study, Systems], str], ...] = ()
    """Further parts of the report."""

    @property
    def made(self) -> list[str]:
        """All systems that it needs."""
        return [*self.systems.values(), *(system for systems in self.again.values() for system in systems)]


def claim(study: Study, systems: Systems) -> str:
    """The figure for those who read no more."""
    students = {name: rows for name, rows in systems.items() if len(rows[0]["curves"]["flow"]) > WINDOW}
    draw_claim(students, study.out / "results" / "claim.png")
    return "The same in one figure: claim.png."


def flow(study: Study, systems: Systems) -> str:
    """Motion over time, and how much it jumps."""
    draw_flow(systems, study.out / "results" / "flow-seconds.png")
    lines = []
    for name, rows in systems.items():
        last = last_end(rows)
        metrics = ("flow_mean@5", f"flow_mean@{last}", "flow_variance@5", f"flow_variance@{last}")
        cells = [shown(interval(rows, name), percent=False) for name in (*metrics, "flow_variance_max")]
        lines.append([name, *cells])
    variance = "variance in 8 frames"
    head = ["system", "flow, first 5 s", "last 5 s", f"{variance}, first 5 s", "last 5 s", "its largest"]
    return markdown(head, lines)


def longest(study: Study, systems: Systems) -> str:
    """How long a budget lasts."""
    lines = []
    for name, rows in systems.items():
        lasting, ends = 0, [end for end in ENDS if f"good@{end}" in rows[0]["metrics"]]
        for end in ends:
            first, now = (interval(rows, f"good@{at}") for at in (5, end))
            if first is None or now is None or now["mean"] < 0.9 * first["mean"]:
                break
            lasting = end
        whole = ", all of it" if lasting == ends[-1] else ""
        lines.append([name, f"{lasting} s{whole}", shown(interval(rows, "local_stability"), percent=False)])
    head = ["budget", "'in the world' stays within 10 % of the first 5 s until", "local stability, 0..100"]
    return markdown(head, lines)


def minutes(study: Study, systems: Systems) -> str:
    """What the students' training took."""
    trained = {name: rows[0] for name, rows in systems.items() if rows[0].get("minutes")}
    lines = [[name, f"{row['minutes']:.1f}"] for name, row in trained.items()]
    return markdown(["student", "minutes of training (the road's: two cores, others one)"], lines)


def last_end(rows: Sequence[object]) -> int:
    """The last second at which a window of these rows ends."""
    return max(end for end in ENDS if f"good@{end}" in rows[0]["metrics"])  # type: ignore[index]


COMPARISONS = {
    "horizon": Comparison(
        "1. Beyond the horizon",
        {
            "world": "world",
            "teacher": "teacher",
            "ODE": "ode",
            "Self-Forcing": "sf@320",
            "Self-Forcing++": "pp@320",
        },
        "Self-Forcing",
        ends=(5, 10, 25, 50, 100, 255),
        again={"Self-Forcing": ("sf~1@320",), "Self-Forcing++": ("pp~1@320",)},
        also=(claim, minutes),
    ),
    "minutes": Comparison(
        "1. Equal minutes",
        {"Self-Forcing, 320 updates": "sf@320", "++, 200 updates": "pp@200"},
        "Self-Forcing, 320 updates",
        ends=(5, 50, 100),
        also=(minutes,),
    ),
    "rollout": Comparison(
        "2. What the long rollout needs",
        {
            "++, 50 s": "pp4@60",
            "25 s": "pp4-25s@60",
            "10 s": "pp4-10s@60",
            "5 s": "pp4-5s@60",
            "re-noised": "pp4-renoised@60",
            "noise of its own": "pp4-random@60",
            "drawn step": "pp4-uniform@60",
            "Beta(1,2) windows": "pp4-beta@60",
            "Self-Forcing": "sf4@60",
            "Self-Forcing, drawn step": "sf4-uniform@60",
        },
        "++, 50 s",
        again={
            "++, 50 s": ("pp4~1@60",),
            "10 s": ("pp4-10s~1@60",),
            "re-noised": ("pp4-renoised~1@60",),
            "Beta(1,2) windows": ("pp4-beta~1@60",),
        },
        also=(minutes,),
    ),
    "context": Comparison(
        "3. Context",
        {
            "Self-Forcing, 9": "sf4-9@60",
            "Self-Forcing, 15": "sf4-15@60",
            "Self-Forcing, 21": "sf4@60",
            "Self-Forcing, 9 with sink": "sf4-9-sink@60",
            "Self-Forcing, 15 with sink": "sf4-15-sink@60",
            "Self-Forcing, 21 with sink": "sf4-21-sink@60",
            "++, 9": "pp4-9@60",
            "++, 15": "pp4-15@60",
            "++, 21": "pp4@60",
            "++, 9 with sink": "pp4-9-sink@60",
            "++, 15 with sink": "pp4-15-sink@60",
            "++, 21 with sink": "pp4-21-sink@60",
        },
        "++, 21",
    ),
    "flow": Comparison(
        "5. Motion over time",
        {
            "Self-Forcing": "sf@320",
            "Self-Forcing++": "pp@320",
            "++ with GRPO": "grpo@30",
            "its control": "grpo-control@30",
        },
        "Self-Forcing++",
        also=(flow,),
    ),
    "budget": Comparison(
        "6. Budget",
        {"1x, 40 updates": "pp@40", "2x, 80": "pp@80", "4x, 160": "pp@160", "8x, 320": "pp@320"},
        "1x, 40 updates",
        also=(longest,),
    ),
}
ALONE = ("judge", "correction", "memory")
"""Claims that compare no systems: 8, 4, 7."""


ASKED_FOR = {
    "guidance": Comparison(
        "1. If it fails: guidance",
        {
            **{f"teacher, guidance {scale}": f"teacher-{scale}" for scale in (1, 2, 3, 4)},
            "++, guidance 3": "pp4@60",
            "++, guidance 1": "pp4-guidance1@60",
        },
        "++, guidance 3",
    ),
    "adapters": Comparison(
        "Adapters of rank 16, over frozen weights and over these in eight bits",
        {
            "before (ODE)": "ode",
            "all weights": "pp4-15s@30",
            "adapters": "pp4-15s-lora@30",
            "the same over eight bits": "pp4-15s-lora8@30",
        },
        "all weights",
        ends=(5, 10, 50),
    ),
}
"""What is made only where it is named."""
EMBEDDED = Comparison(
    "The embedded students",
    {"world": "world", "ODE": "ode", "Self-Forcing": "sf@320", "Self-Forcing++": "pp@320"},
    "Self-Forcing",
    ends=(5, 25, 50, 100),
)
"""What `measure.py` of ../landscape shows."""


def main() -> None:
    options = parse()
    study = Study(options.out, QUICK if options.quick else FULL, options.model, options.road)
    if options.systems:
        until = time.monotonic() + 3600 * options.hours
        for system in options.systems:
            if time.monotonic() < until:
                study.rows(system)
        return
    chosen = options.experiments or [*COMPARISONS, *ALONE]
    known = COMPARISONS | ASKED_FOR
    compared = [known[name] for name in chosen if name in known]
    share_work(options, [system for comparison in compared for system in comparison.made])
    study.pack(study.out / "results" / "rows")
    for name in chosen:
        if name == "memory":
            text = "# 7. Memory and time\n\n" + memory.table(options.model, study.shortened(100))
        elif name == "judge":
            text = "# 8. `sfpp evaluate` as a judge\n\n" + judge.table(everything(study))
        elif name == "correction":
            text = correction(study)
        else:
            text = compare(study, name, known[name])
        path = study.out / "results" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text + "\n")
        print(f"written to {path}")


def share_work(options: argparse.Namespace, systems: Sequence[str]) -> None:
    """Make and measure systems in processes side by side, in this order; those of one family in one.

    After `--hours` nothing new is begun.
    """
    groups: dict[str, list[str]] = {}
    for system in dict.fromkeys(systems):
        groups.setdefault(family(system), []).append(system)
    words = [sys.executable, __file__, "--out", str(options.out), "--model", options.model]
    words += ["--road", str(options.road)] if options.road else []
    words += ["--quick"] if options.quick else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    deadline = time.monotonic() + 3600 * options.hours

    def make(group: list[str]) -> None:
        ordered = sorted(group, key=lambda system: (system.startswith("grpo"), updates(system)))
        hours = (deadline - time.monotonic()) / 3600
        command = [*words, "--hours", str(hours), "--systems", *ordered]
        subprocess.run(command, check=True, env=environment)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(make, groups.values()))


def updates(system: str) -> int:
    return int(system.partition("@")[2] or 0)


def everything(study: Study) -> list[dict[str, object]]:
    """The rows of all finished systems that are compared anywhere."""
    made = dict.fromkeys(system for comparison in COMPARISONS.values() for system in comparison.made)
    return [row for system in made if study.finished(system) for row in study.rows(system)]


def compare(study: Study, name: str, chosen: Comparison) -> str:
    """The report of one comparison, on what is finished."""
    systems = {
        shown_as: study.rows(system) for shown_as, system in chosen.systems.items() if study.finished(system)
    }
    counts = f"{len(study.prompts)} captions x {len(study.seeds)} seeds, mean (95 % interval over captions)"
    parts = [f"# {chosen.title}", counts]
    cut = [system for system in chosen.made if not study.finished(system)]
    if cut:
        parts.append(f"Cut, for want of time: {', '.join(cut)}.")
    ends = sorted({round(study.shortened(end)) for end in chosen.ends} & set(ENDS))
    for end in ends:
        there = {shown_as: rows for shown_as, rows in systems.items() if f"good@{end}" in rows[0]["metrics"]}
        if there:
            parts += window_tables(there, chosen.reference, end)
    again = {
        shown_as: [study.rows(system) for system in (chosen.systems[shown_as], *others)]
        for shown_as, others in chosen.again.items()
        if all(study.finished(system) for system in (chosen.systems[shown_as], *others))
    }
    if again:
        parts.append(seeds_table(again, ends))
    parts += ["Verdicts of `sfpp evaluate` on whole videos:", verdicts_table(systems)]
    parts += [part(study, systems) for part in chosen.also]
    parts.append(draw(study, name, chosen, systems))
    return "\n\n".join(parts)


def window_tables(systems: Systems, reference: str, end: int) -> list[str]:
    """What is true of one window, and how it has changed since the first."""
    parts = [f"Seconds {end - WINDOW} to {end}:", table(systems, end)]
    compared = reference in systems and len(systems) > 1
    if compared:
        parts.append(differences_table(systems, reference, end))
    if end > WINDOW:
        changes = drifted(systems, end)
        parts += [f"The same less each video's first {WINDOW} s:", table(changes, end, COMPARED, sign=True)]
        if compared:
            parts.append(differences_table(changes, reference, end))
    return parts


def draw(study: Study, name: str, chosen: Comparison, systems: Systems) -> str:
    """Curves and filmstrip; says what the latter shows."""
    results = study.out / "results"
    draw_curves(systems, results / f"{name}.png")
    first = study.prompts[0], study.seeds[0]
    videos = [study.video(chosen.systems[shown_as], *first) for shown_as in systems]
    draw_filmstrips(videos, results / f"{name}-strip.png")
    return (
        f"Filmstrip, from above: {', '.join(systems)}; '{first[0]}', seed {first[1]}, the first of the list."
    )


def correction(study: Study) -> str:
    """Experiment 4 has a script of its own."""
    out = study.out / "correction"
    words = [
        sys.executable,
        str(HERE / "correction.py"),
        "--out",
        str(out),
        "--model",
        study.model,
        *(["--quick"] if study.quick else []),
    ]
    subprocess.run(words, check=True, cwd=HERE.parent.parent)
    results = study.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / "correction.png", results / "correction.png")
    return f"# 4. Can the teacher correct?\n\n{(out / 'table.md').read_text().rstrip()}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*COMPARISONS, *ALONE, *ASKED_FOR]
    parser.add_argument(
        "experiments",
        nargs="*",
        metavar="EXPERIMENT",
        help=f"of {', '.join(names)}; if none is named, all but the last two",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes that train and measure (default: cores)",
    )
    parser.add_argument("--model", default=MODEL, help="the embedded model, or a folder laid out as it is")
    parser.add_argument("--road", type=Path, help="work folder of ../landscape/all.py")
    parser.add_argument("--hours", type=float, default=1e6, help="begin no system after so long")
    parser.add_argument(
        "--systems", nargs="+", metavar="SYSTEM", help="only make and measure these, such as pp@320"
    )
    parser.add_argument("--quick", action="store_true", help="tiny: to see that it works")
    options = parser.parse_args()
    if unknown := sorted(set(options.experiments) - set(names)):
        parser.error(f"no experiment named {', '.join(unknown)}: there are {', '.join(names)}")
    return options


if __name__ == "__main__":
    main()
