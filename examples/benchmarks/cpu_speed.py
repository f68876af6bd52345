"""How much faster is this tree than an older one on a CPU? Interleaved runs of both, medians, ratios.

    git worktree add ../base b211562
    python examples/benchmarks/cpu_speed.py --base ../base

Both trees make the same videos with one model, this tree's embedded one unless `--model` names a folder, and
the same updates of a student; each run is a process of its own, and the two take turns, so that what else the
machine does meets both alike.
Quantities are seconds, so a ratio below 1 is a gain; `processor` is the time that a run's processes spent
computing, which a busy neighbour changes least. With `--busy` a process keeps each core busy meanwhile, with
`--ranks 2` two processes of this tree share an update's samples.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sfpp_cli import DEFAULT_MODEL

HERE = Path(__file__).resolve().parents[2]
RECIPE = HERE / "examples" / "landscape" / "self-forcing-pp.toml"
CHUNK = 12
"""Video frames in a chunk."""


def main() -> None:
    options = parse()
    trees = {"base": options.base.resolve(), "this": HERE}
    model = options.model.resolve()
    cases: dict[str, Callable[[Path], dict[str, float]]] = {
        "video": lambda tree: video(tree, model, options.seconds),
        "short": lambda tree: short(tree, model),
        "update": lambda tree: update(tree, model, options.ranks if tree == HERE else 1),
    }
    with neighbours(os.cpu_count() or 1 if options.busy else 0):
        print(f"{'seconds':45}{'base':>9}{'this':>9}{'ratio':>8}", flush=True)
        for name in options.only:
            rounds = [
                {side: cases[name](tree) for side, tree in trees.items()} for _ in range(options.rounds)
            ]
            for quantity in rounds[0]["base"]:
                base, this = (statistics.median(row[side][quantity] for row in rounds) for side in trees)
                print(f"{quantity:45}{base:9.3f}{this:9.3f}{this / base:8.2f}", flush=True)


def video(tree: Path, model: Path, seconds: float) -> dict[str, float]:
    """One video: the whole command, and what it says of its stages."""
    wall, processor, made = generate(tree, model, "--seconds", str(seconds))
    speed = made["speed"]
    return {
        f"{seconds:g} s of video": wall,
        "  processor": processor,
        "  chunk of the student": CHUNK / speed["loop_fps"],
        "  chunk of the decoder": CHUNK / speed["vae_fps"],
        "  from the loop's start to a picture": speed["time_to_first_frame_s"],
    }


def short(tree: Path, model: Path) -> dict[str, float]:
    """What starting takes: a video of one frame is hardly anything else."""
    wall, processor, _ = generate(tree, model, "--frames", "1")
    return {"one frame, start-up included": wall, "  processor ": processor}


def update(tree: Path, model: Path, ranks: int) -> dict[str, float]:
    """One update of Self-Forcing++ and its critic's, of a smaller rollout than the recipe's."""
    with tempfile.TemporaryDirectory() as folder:
        # What windows start from is called by other names in older trees: each takes its own default.
        lines = RECIPE.read_text().splitlines()
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text("\n".join(line for line in lines if not line.startswith("noise_init")))
        changes = {
            "model": model,
            "student": model / "students" / "ode",
            "prompts": RECIPE.with_name("prompts.txt"),
            "dmd.frames": 30,
            "training.batch": 2,
            "training.save_every": 100,
            "training.keep_every": 100,
        }
        sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        before = used()
        out = Path(folder) / "run"
        words = ("train", str(recipe), *sets, "--steps", "3", "--device", "cpu", "--out", str(out))
        run(tree, *words, ranks=ranks)
        processor = used() - before
        records = (out / "metrics.jsonl").read_text().splitlines()
    step = statistics.median(json.loads(record)["step_s"] for record in records[1:])
    return {"++ update": step, "three of them, processor, start-up included": processor}


def generate(tree: Path, model: Path, *length: str) -> tuple[float, float, dict]:
    """Seconds on the wall and of the processor, and the video's description."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "v.mp4")
        words = ("--model", str(model), *length, "--device", "cpu", "-o", out, "--json")
        began = time.perf_counter()
        before = used()
        answer = run(tree, "generate", *words)
        return time.perf_counter() - began, used() - before, json.loads(answer)["videos"][0]


def used() -> float:
    """Processor seconds of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def run(tree: Path, *words: str, ranks: int = 1) -> str:
    """A command of one tree, with the number of threads that it chooses itself; its answer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "sfpp_cli", *words]
    return subprocess.run(
        command,
        cwd=tree,
        env=environment | {"PYTHONPATH": str(tree)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that compute without end."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="worktree of the older commit")
    parser.add_argument("--model", type=Path, default=HERE / "weights" / DEFAULT_MODEL, help="for both trees")
    parser.add_argument("--only", nargs="+", default=["video", "short", "update"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=100.0, help="length of the video")
    parser.add_argument("--ranks", type=int, default=1, help="processes of this tree's updates")
    parser.add_argument("--busy", action="store_true", help="keep a process busy on each core meanwhile")
    return parser.parse_args()


if __name__ == "__main__":
    main()
