"""Does a longer video take more memory? Runs `sfpp generate` at several lengths and compares what it reports.

MB is the resident memory over the last 32 chunks (median), the ratio that to the first length's. The peak is
the highest of many short-lived allocations, so it wanders upwards with the number of chunks tried, not with
the length.

python examples/benchmarks/generate_memory.py --seconds 20 100
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sfpp_cli import DEFAULT_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[20, 100])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    options = parser.parse_args()
    print("seconds   wall s  loop fps  VAE fps  end to end  first frame s       MB  ratio  peak MB")
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for seconds in options.seconds:
            wall, made = generate(options.model, seconds, Path(folder) / f"{seconds:g}.mp4")
            speed, used = made["speed"], made["memory_mb"]
            first = first or used
            print(
                f"{seconds:7g}{wall:9.1f}{speed['loop_fps']:10.1f}{speed['vae_fps']:9.1f}"
                f"{speed['end_to_end_fps']:12.1f}{speed['time_to_first_frame_s']:15.2f}{used:9d}"
                f"{used / first:7.3f}{made['peak_memory_mb']:9d}"
            )


def generate(model: str, seconds: float, out: Path) -> tuple[float, dict]:
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "sfpp_cli",
        "generate",
        "--model",
        model,
        "--seconds",
        str(seconds),
        "-o",
        str(out),
        "--json",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, json.loads(done.stdout)["videos"][0]


if __name__ == "__main__":
    main()
