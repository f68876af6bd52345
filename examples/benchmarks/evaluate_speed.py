"""How fast are the local metrics, and does memory stay flat?

    python examples/benchmarks/evaluate_speed.py --seconds 10 40

Makes textured videos that pan (832x480 at 16 frames a second unless told otherwise), measures each in a
process of its own, and prints video frames a second of wall time and of CPU time (this process and its
ffmpeg), the ratio to real time, and peak memory; with `-v` also how much processor time each part takes of a
second of video, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np

from sfpp_cli.evaluation import measure
from sfpp_cli.video.writer import VideoWriter


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 40.0])
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--fps", type=float, default=16)
    parser.add_argument("--verbose", "-v", action="store_true")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    print(f"{'seconds':>8}{'frames/s':>10}{'x real time':>13}{'frames/s of CPU':>17}{'peak MB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for seconds in options.seconds:
            path = Path(folder) / f"{seconds}.mp4"
            frames = round(seconds * options.fps)
            write(path, (width, height), options.fps, frames)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                wall, cpu, peak, parts = pool.apply(timed, (path,))
            speed = frames / wall
            print(
                f"{seconds:8g}{speed:10.1f}{speed / options.fps:13.2f}{frames / cpu:17.1f}{peak:9.0f}",
                flush=True,
            )
            if options.verbose:
                each = (f"{name} {part / seconds:.3f}" for name, part in parts.items())
                print(f"{'':8}  CPU seconds a second: {', '.join(each)}", flush=True)


def timed(path: Path) -> tuple[float, float, float, dict[str, float]]:
    """Wall seconds, CPU seconds of this process and its children, peak resident MB of this process, and CPU
    seconds of each part."""
    parts: dict[str, float] = {}
    began = time.perf_counter()
    with patch("time.perf_counter", time.process_time):  # what `measure` tells the time by
        measure(path, seconds=parts)
    wall = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    parts["ffmpeg"] = cpu_seconds(resource.RUSAGE_CHILDREN)
    return wall, sum(parts.values()), peak, parts


def cpu_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def write(path: Path, size: tuple[int, int], fps: float, frames: int) -> None:
    """A pan over soft noise."""
    width, height = size
    noise = np.random.default_rng(0).standard_normal((height, 2 * width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 4)
    levels = np.clip(110 + 40 * soft / soft.std(), 0, 255).astype(np.uint8)
    with VideoWriter(path, size, fps) as writer:
        for index in range(frames):
            writer.write(np.roll(levels, -5 * index, axis=1)[None, :, :width])


if __name__ == "__main__":
    main()
