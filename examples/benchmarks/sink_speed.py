"""What does a sink that moves along cost? Chunks of three rollouts, interleaved, in CPU time of this process.

python examples/benchmarks/sink_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.models.bundle import Bundle


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--chunks", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    bundle = Bundle(options.model)
    settings = bundle.settings
    student = bundle.load_student(cpu, torch.float32)
    size = bundle.compression.latent_size(settings.width, settings.height)
    plain = settings.sampler()
    samplers = {
        "no sink": plain,
        "sink 3, absolute": replace(plain, sink=3, sink_positions="absolute"),
        "sink 3, relative": replace(plain, sink=3, sink_positions="relative"),
    }
    with torch.no_grad():
        text = bundle.load_text(cpu, torch.float32)([settings.prompt])
        noise = VideoNoise([0], (settings.chunk, student.config.in_channels, *size))
        rollouts = {
            name: sampler.rollout(student, noise.chunks(0, options.chunks), text, noise.draw)
            for name, sampler in samplers.items()
        }
        took: dict[str, list[float]] = {name: [] for name in samplers}
        for index in range(options.chunks):
            for name, chunks in rollouts.items():
                began = time.process_time()
                next(chunks)
                if index > settings.context // settings.chunk:  # the context is full
                    took[name].append(time.process_time() - began)
    base = statistics.median(took["no sink"])
    for name, seconds in took.items():
        median = statistics.median(seconds)
        print(f"{name:18}{median * 1e3:8.1f} ms a chunk{median / base:8.3f}")


if __name__ == "__main__":
    main()
