"""Has a student stopped getting better? Its kept checkpoints on captions that it does not learn on.

    python examples/landscape/stop.py pp --road runs/landscape-work     # pp: Self-Forcing++, sf: Self-Forcing

The 16 captions of validation.txt, 25 s each; the captions of test.txt are kept for measuring. Prints a line a
checkpoint, and for every one its difference to the one before, caption by caption: where the interval of
'in the world' reaches down to zero or below twice running, more updates do not help any more.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "experiments"))

import arms
from report import differences_table, table
from study import Scale, Study

SECONDS = 25
SHOWN = ("good", "palette", "balloon", "direction", "stopped", "speed_ratio")


def main() -> None:
    options = parse()
    name = arms.ROADS_OWN[options.arm]
    model, run = options.road / f"model-{name}", options.road / "runs" / name
    study = Study(
        options.out, Scale(prompts=options.captions), str(model), options.road, captions="validation"
    )
    steps = sorted(int(folder.name.partition("-")[2]) for folder in run.glob("step-*"))
    systems = [f"{options.arm}@{step}" for step in steps]
    arms.SECONDS.update(dict.fromkeys(systems, SECONDS))
    rows = {system: study.rows(system) for system in systems}
    print(table(rows, SECONDS, SHOWN))
    for before, after in pairwise(systems):
        print(f"\n{differences_table({name: rows[name] for name in (before, after)}, before, SECONDS)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arm", choices=arms.ROADS_OWN)
    parser.add_argument("--road", type=Path, required=True, help="work folder of all.py")
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/stop"), help="videos and measures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
