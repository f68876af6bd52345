"""Rebuild every table and figure of the experiments, from training to Markdown.

    python examples/experiments/run.py                   # all: hours on two cores; goes on where stopped
    python examples/experiments/run.py horizon budget    # some
    python examples/experiments/run.py --workers 2       # processes of one thread (default: one a core)
    python examples/experiments/run.py --quick           # minutes: every step, tiny; its numbers mean nothing

Students, videos and measurements lie under `--out`; `results/NAME.md`, `NAME.png` and `NAME-strip.png` there
are what is shown, and `results/measured.jsonl.gz` has what was measured of every video.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import memory
from report import (
    COMPARED,
    Systems,
    differences_table,
    draw_curves,
    draw_filmstrips,
    draw_flow,
    drifted,
    interval,
    markdown,
    shown,
    table,
    verdicts_table,
)
from study import ENDS, FULL, HERE, QUICK, WINDOW, Study

from sfpp_cli.files import atomic_write


@dataclass(frozen=True)
class Comparison:
    """Systems side by side. Those of `LONG` make videos of 100 s, the others of 50 s."""

    title: str
    systems: dict[str, str]
    """What is shown -> the system."""
    reference: str
    """Which of them the others are compared with."""
    ends: tuple[int, ...] = (5, 50)
    also: tuple[Callable[[Study, Systems], str], ...] = field(default=())
    """Further parts of the report."""


LONG = ("sf@100", "pp@100")


def flow(study: Study, systems: Systems) -> str:
    """Experiment 5: motion over time, and how much it jumps."""
    draw_flow(systems, study.out / "results" / "flow-seconds.png")
    lines = []
    for name, rows in systems.items():
        last = max(end for end in ENDS if f"flow_mean@{end}" in rows[0]["metrics"])
        metrics = (
            "flow_mean@5",
            f"flow_mean@{last}",
            "flow_variance@5",
            f"flow_variance@{last}",
            "flow_variance_max",
        )
        lines.append([name, *(shown(interval(rows, metric), percent=False) for metric in metrics)])
    lines.append(["Self-Forcing++ with GRPO", "not built yet", *[""] * 4])
    variance = "variance in 8 frames"
    return markdown(
        ["system", "flow, first 5 s", "last 5 s", f"{variance}, first 5 s", "last 5 s", "its largest"], lines
    )


def longest(study: Study, systems: Systems) -> str:
    """Experiment 7: how long a budget lasts."""
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
    return markdown(
        ["budget", "'in the world' stays within 10 % of the first 5 s until", "local stability, 0..100"],
        lines,
    )


def minutes(study: Study, systems: Systems) -> str:
    """What the students' updates took, from their logs."""
    lines = []
    for name, rows in systems.items():
        student, _, updates = rows[0]["system"].partition("@")
        log = (
            (study.out / "students" / student / "metrics.jsonl")
            .read_text()
            .splitlines()[: study.updates(int(updates))]
        )
        lines.append([name, str(len(log)), f"{sum(json.loads(line)['step_s'] for line in log) / 60:.1f}"])
    return markdown(["student", "updates", "minutes of training, one thread"], lines)


COMPARISONS = {
    "horizon": Comparison(
        "1. Beyond the horizon",
        {
            "world": "world",
            "teacher": "teacher",
            "ODE": "ode",
            "Self-Forcing": "sf@100",
            "Self-Forcing++": "pp@100",
        },
        "Self-Forcing",
        ends=(5, 10, 25, 50, 100),
    ),
    "ablation": Comparison(
        "2. Rollouts of 50 s, and what they need",
        {
            "full": "pp@50",
            "no backward noise": "pp-random@50",
            "Beta(1,2) windows": "pp-beta@50",
            "uniform gradient step": "pp-uniform@50",
            "10 s rollouts": "pp-10s@50",
            "Self-Forcing": "sf@50",
            "Self-Forcing, last gradient step": "sf-last@50",
        },
        "full",
    ),
    "context": Comparison(
        "3. Context",
        {
            "Self-Forcing, 9": "sf-9@50",
            "Self-Forcing, 15": "sf-15@50",
            "Self-Forcing, 21": "sf@50",
            "++, 9": "pp-9@50",
            "++, 15": "pp-15@50",
            "++, 21": "pp@50",
        },
        "++, 21",
    ),
    "flow": Comparison(
        "5. Motion over time",
        {"Self-Forcing": "sf@100", "Self-Forcing++": "pp@100"},
        "Self-Forcing",
        also=(flow,),
    ),
    "budget": Comparison(
        "7. Budget",
        {"1x, 25 updates": "pp@25", "2x, 50": "pp@50", "4x, 100": "pp@100", "8x, 200": "pp@200"},
        "1x, 25 updates",
        also=(longest,),
    ),
    "minutes": Comparison(
        "Equal minutes",
        {
            "Self-Forcing, 50 updates": "sf@50",
            "Self-Forcing, 150 updates": "sf@150",
            "++, 50 updates": "pp@50",
        },
        "++, 50 updates",
        also=(minutes,),
    ),
}


def main() -> None:
    options = parse()
    study = Study(options.out, QUICK if options.quick else FULL)
    if options.systems:
        for system in options.systems:
            study.rows(system, seconds(system))
        return
    chosen = options.experiments or [*COMPARISONS, "memory", "correction"]
    compared = [COMPARISONS[name] for name in chosen if name in COMPARISONS]
    share_work(options, {system for comparison in compared for system in comparison.systems.values()})
    for name in chosen:
        if name == "memory":
            text = "# 6. Memory\n\n" + memory.table(study.seconds(100))
        elif name == "correction":
            text = correction(study)
        else:
            text = compare(study, name, COMPARISONS[name])
        path = study.out / "results" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text + "\n")
        print(f"written to {path}")
    study.pack(study.out / "results" / "measured.jsonl.gz")


def share_work(options: argparse.Namespace, systems: Iterable[str]) -> None:
    """Make and measure systems in processes side by side; those of one student, which learns on from one to
    the next, in one."""
    groups: dict[str, list[str]] = {}
    for system in sorted(systems, key=lambda system: int(system.partition("@")[2] or 0)):
        groups.setdefault(system.partition("@")[0], []).append(system)
    words = [
        sys.executable,
        __file__,
        "--out",
        str(options.out),
        *(["--quick"] if options.quick else []),
        "--systems",
    ]
    run = partial(subprocess.run, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    longest = sorted(groups.values(), key=lambda group: int(group[-1].partition("@")[2] or 0), reverse=True)
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda group: run([*words, *group]), longest))


def seconds(system: str) -> int:
    """How long a system's videos are."""
    return 100 if system in LONG else 50


def compare(study: Study, name: str, chosen: Comparison) -> str:
    """The report of one comparison."""
    systems = {shown_as: study.rows(system, seconds(system)) for shown_as, system in chosen.systems.items()}
    counts = {f"{len(study.prompts)} prompts x {len(study.seeds)} seeds, mean (95 % interval over prompts)"}
    parts = [f"# {chosen.title}", *counts]
    measured = {end for rows in systems.values() for end in ENDS if f"object@{end}" in rows[0]["metrics"]}
    for end in sorted(measured & {round(study.seconds(end)) for end in chosen.ends}):
        there = {
            shown_as: rows for shown_as, rows in systems.items() if f"object@{end}" in rows[0]["metrics"]
        }
        parts += [f"Seconds {end - 5} to {end}:", table(there, end)]
        if chosen.reference in there and len(there) > 1:
            parts.append(differences_table(there, chosen.reference, end))
        if end > WINDOW:
            changes = drifted(there, end)
            parts += [
                f"The same less each video's first {WINDOW} s:",
                table(changes, end, COMPARED, sign=True),
            ]
            if chosen.reference in there and len(there) > 1:
                parts.append(differences_table(changes, chosen.reference, end))
    parts += [
        "Verdicts of `sfpp evaluate` on whole videos:",
        verdicts_table(systems),
        *(part(study, systems) for part in chosen.also),
    ]
    results = study.out / "results"
    draw_curves(systems, results / f"{name}.png")
    first = study.prompts[0], study.seeds[0]
    draw_filmstrips(
        [study.video(system, *first) for system in chosen.systems.values()], results / f"{name}-strip.png"
    )
    parts.append(
        f"Filmstrip, from above: {', '.join(chosen.systems)}; '{first[0]}', seed {first[1]}, "
        "the first of the list."
    )
    return "\n\n".join(parts)


def correction(study: Study) -> str:
    """Experiment 4 has a script of its own."""
    out = study.out / "correction"
    words = [
        sys.executable,
        str(HERE / "correction.py"),
        "--out",
        str(out),
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
    names = [*COMPARISONS, "memory", "correction"]
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(names)}; all if none is named"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes that train and measure (default: cores)",
    )
    parser.add_argument(
        "--systems", nargs="+", metavar="SYSTEM", help="only make and measure these, such as pp@50"
    )
    parser.add_argument("--quick", action="store_true", help="tiny: to see that it works")
    options = parser.parse_args()
    if unknown := sorted(set(options.experiments) - set(names)):
        parser.error(f"no experiment named {', '.join(unknown)}: there are {', '.join(names)}")
    return options


if __name__ == "__main__":
    main()
