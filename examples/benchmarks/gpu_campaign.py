"""Is sfpp right on a GPU, what is slow, and where does the time go? Answers in under eight minutes.

    python examples/benchmarks/gpu_campaign.py                             # into the folder gpu-out
    python examples/benchmarks/gpu_campaign.py --only decoder,compiled     # some sections alone
    python examples/benchmarks/gpu_campaign.py --tiny --device cpu         # toy sizes: does it work at all?

Every section is a process of its own with a time limit; what it has measured is on disk at once. The sections
of the first stage (correctness; filling the compiler's cache) run side by side, those of the second (timings)
one after another, in order of value. Written: results.json (everything), summary.txt (a line a measurement),
kernels.txt (profiles), log.txt (all output). What the sections measure, and how to bring what a machine
without a network lacks, is in gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not spoil a later fork
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from gpu.attention import attention
from gpu.decoder import decoder, warm_decoder
from gpu.end_to_end import end_to_end
from gpu.machine import machine
from gpu.measuring import START, Section
from gpu.parity import parity
from gpu.processes import Child, run_section
from gpu.project import product, tests
from gpu.student import compiled, student, warm_student
from gpu.training import training

SECTIONS = {
    "machine": machine,
    "tests": tests,
    "parity": parity,
    "product": product,
    "warm_student": warm_student,
    "warm_decoder": warm_decoder,
    "student": student,
    "compiled": compiled,
    "decoder": decoder,
    "attention": attention,
    "end_to_end": end_to_end,
    "training": training,
}
FIRST = ("tests", "parity", "product", "warm_student", "warm_decoder")
SECOND = {
    "student": 40,
    "compiled": 65,
    "decoder": 65,
    "attention": 35,
    "end_to_end": 60,
    "training": 110,
}
"""Most seconds of each; what one leaves over goes to those after it."""


class Campaign:
    """The parent: starts sections, shares out the time, collects what they measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="sfpp-campaign-"))
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.work / "inductor"))
        only = options.only.split(",") if options.only else SECTIONS
        self.chosen = [name for name in SECTIONS if name in only and name not in options.skip.split(",")]

    def left(self) -> float:
        return self.options.budget - (time.time() - START)

    def start(self, name: str, limit: float) -> Child:
        return Child(name, SECTIONS[name], self.work, limit, self.options)

    def run(self) -> dict[str, Any]:
        print(f"imports took {time.time() - START:.1f} s; sections: {', '.join(self.chosen)}", flush=True)
        if "machine" in self.chosen:
            self.machine()
        self.first_stage()
        self.second_stage()
        results = self.collect()
        shutil.rmtree(self.work, ignore_errors=True)
        return results

    def machine(self) -> None:
        self.start("machine", min(45, self.left())).wait(grace=12)
        seen = self.collect().get("machine", {})
        if self.options.device == "cuda" and "gpu" not in seen and not self.options.spawn:
            print("--- no GPU in a forked process; trying new processes instead", flush=True)
            self.options.spawn = True
            self.start("machine", min(45, self.left())).wait(grace=12)
            self.collect()

    def first_stage(self) -> None:
        names = [name for name in FIRST if name in self.chosen]
        share = 1.0 if self.options.tiny else 0.35
        limit = max(20.0, self.left() * share)
        if self.options.serial:
            for name in names:
                self.start(name, limit).wait(grace=12)
        else:
            for child in [self.start(name, limit) for name in names]:
                child.wait(grace=12)
        self.collect()

    def second_stage(self) -> None:
        names = [name for name in SECOND if name in self.chosen]
        for place, name in enumerate(names):
            if self.left() < 12:
                print(f"--- no time for {', '.join(names[place:])}", flush=True)
                return
            later = sum(SECOND[other] for other in names[place + 1 :])
            self.start(name, share(SECOND[name], later, self.left() - 8)).wait(grace=8)
            self.collect()

    def collect(self) -> dict[str, Any]:
        """All results so far, written down."""
        results: dict[str, Any] = {"options": vars(self.options), "seconds": round(time.time() - START, 1)}
        for name in SECTIONS:
            with contextlib.suppress(OSError, ValueError):
                results[name] = json.loads((self.work / f"{name}.json").read_text())
        (self.out / "results.json").write_text(json.dumps(results, indent=1, default=str))
        if (self.work / "kernels.txt").exists():
            shutil.copy(self.work / "kernels.txt", self.out / "kernels.txt")
        return results


def share(wanted: float, later: float, left: float) -> float:
    """Seconds for a section that wants so many, when those after it want `later` and `left` are left."""
    if not later:
        return left
    if left < wanted + later:
        return left * wanted / (wanted + later)
    return wanted + (left - wanted - later) / 2


def summary(results: dict[str, Any]) -> str:
    """One line a measurement: what people want to read."""
    lines = []
    for section, measurements in results.items():
        if section not in SECTIONS or section.startswith("warm"):
            continue
        lines.append(f"[{section}]")
        for key, value in measurements.items():
            lines += [f"  {key}: {told(value)}", *parts(value)]
    return "\n".join(lines)


def told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, dict):
        return str(value)
    if isinstance(value.get("error"), str):
        return f"FAILED {value['error'][:160]}"
    if "skipped" in value:
        return f"skipped ({value['skipped']})"
    shown = {name: item for name, item in value.items() if name not in ("parts", "record")}
    pairs = (
        f"{name} ({told(item)})" if isinstance(item, dict) else f"{name} {told(item)}"
        for name, item in shown.items()
    )
    return ", ".join(pairs)[:260]


def parts(value: Any) -> list[str]:
    """The parts of a training step, a line each."""
    if not isinstance(value, dict) or "parts" not in value:
        return []
    return [
        f"      {name:40s} {part['s']:8.2f} s  peak {part['peak_gb']:6.2f} GB"
        for name, part in value["parts"].items()
    ]


class Tee:
    """Standard output that is also written to a file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w")
        self.out = sys.stdout

    def write(self, text: str) -> int:
        self.file.write(text)
        return self.out.write(text)

    def flush(self) -> None:
        self.file.flush()
        self.out.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes: tests this script")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", default="gpu-out")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds for everything")
    parser.add_argument("--only", default="", help="sections, separated by commas: " + ", ".join(SECTIONS))
    parser.add_argument("--skip", default="", help="sections that are left out")
    parser.add_argument("--match", default="", help="only measurements that this regular expression finds")
    parser.add_argument("--serial", action="store_true", help="the first stage one after another, too")
    parser.add_argument("--spawn", action="store_true", help="new processes instead of forks")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a section")
    parser.add_argument("--offload", action=argparse.BooleanOptionalAction, help="in the training section")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.passed = [argument for argument in sys.argv[1:] if argument != "--spawn"]
    return options


def main() -> None:
    options = parse()
    if options.section:
        section = Section(options.section, Path(options.work), options.limit, options)
        run_section(SECTIONS[options.section], section)
        return
    campaign = Campaign(options)
    sys.stdout = Tee(campaign.out / "log.txt")  # type: ignore[assignment]
    text = summary(campaign.run())
    (campaign.out / "summary.txt").write_text(text + "\n")
    print(f"\n{'=' * 100}\n{text}\n{time.time() - START:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
