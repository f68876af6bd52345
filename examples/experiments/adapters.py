"""Adapters against full weights: the same updates of Self-Forcing++, and the world's metrics side by side.

    python examples/experiments/adapters.py --out runs/adapters

Students learn from the embedded ODE student, on rollouts of 63 latent frames (15 s) and batches of 4, with
all weights, with adapters over one frozen teacher, and with these over weights in eight bits. Prints the
table of `README.md` beside this file. Adapters begin at zero and have larger rates, by a factor of 5.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import arms
import study
from arms import Arm
from study import Scale, Study

SMALL = (
    "dmd.frames=63",
    "dmd.shared_rollout=true",
    "training.batch=4",
    "training.warmup=4",
)
ADAPTERS = (*SMALL, "lora_rank=16", "training.lr=5e-4", "dmd.critic_lr=2e-3")
STUDENTS = {
    "all weights": Arm("self-forcing-pp", SMALL),
    "adapters of rank 16": Arm("self-forcing-pp", ADAPTERS),
    "the same over eight bits": Arm("self-forcing-pp", (*ADAPTERS, "lora_base=float8")),
}
COLUMNS = {
    "in the world": "good",
    "captioned palette": "palette",
    "captioned balloon": "balloon",
    "balloon lost": "lost",
    "balloon broken": "broken",
    "speed": "speed_ratio",
}


def main() -> None:
    options = parse()
    arms.ARMS.update({name.replace(" ", "-"): student for name, student in STUDENTS.items()})
    made = Study(options.out, Scale(prompts=options.prompts))
    systems = {"before (ODE)": "ode"}
    systems |= {name: f"{name.replace(' ', '-')}@{options.updates}" for name in STUDENTS}
    arms.SECONDS.update(dict.fromkeys(systems.values(), options.seconds))
    print(f"| seconds {options.seconds - study.WINDOW} to {options.seconds} | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, system in systems.items():
        rows = [row["metrics"] for row in made.rows(system)]
        known = {key: [row[f"{key}@{options.seconds}"] for row in rows] for key in COLUMNS.values()}
        means = [fmean(value for value in known[key] if value is not None) for key in COLUMNS.values()]
        print(f"| {name} | {' | '.join(f'{mean:.2f}' for mean in means)} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=10, choices=study.ENDS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
