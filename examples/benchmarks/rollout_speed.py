"""Is a chunk as cheap after a thousand chunks as after ten, and does memory stay flat?

    python examples/benchmarks/rollout_speed.py --chunks 1000

Prints the median time of a chunk (denoise passes and context pass) around several positions of one rollout,
their ratio to the first, the size of the cache, and resident memory. No VAE and no ffmpeg is involved.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.devices import peak_megabytes, pick_device, pick_dtype, synchronize
from sfpp_cli.models.bundle import Bundle


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--student")
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--span", type=int, default=20, help="chunks in each median")
    parser.add_argument("--sink", type=int, default=0)
    parser.add_argument("--sink-positions", choices=("absolute", "relative"), default="relative")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, help="CPU threads")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    bundle = Bundle(options.model, options.student)
    settings, size = (
        bundle.settings,
        bundle.compression.latent_size(bundle.settings.width, bundle.settings.height),
    )
    student = bundle.load_student(device, pick_dtype(None, device))
    text = bundle.load_text(device, torch.float32)
    with torch.no_grad():
        embedded = text([settings.prompt]).to(student.dtype)
    sampler = replace(settings.sampler(sink=options.sink), sink_positions=options.sink_positions)
    cache = student.new_cache(embedded, size, context=settings.context, sink=options.sink)
    print(f"cache: {cache.nbytes / 1e6:.2f} MB for {settings.context} latent frames, whatever the length")

    noise = VideoNoise([0], (settings.chunk, student.config.in_channels, *size), device)
    chunks = sampler.rollout(student, noise.chunks(0, options.chunks), embedded, noise.draw)
    seconds, resident = [], []
    began = time.perf_counter()
    for x0 in chunks:
        synchronize(device)
        now = time.perf_counter()
        seconds.append(now - began)
        resident.append(peak_megabytes(torch.device("cpu")))
        began = now
        assert torch.isfinite(x0).all()
    report(seconds, resident, options.span, settings.chunk * bundle.compression.temporal)


def report(seconds: list[float], resident: list[float], span: int, frames: int) -> None:
    positions = [start for start in (10, 100, 300, 1000, 3000) if start + span <= len(seconds)]
    positions = [*positions, len(seconds) - span]
    first = statistics.median(seconds[positions[0] : positions[0] + span])
    print(f"{'chunks':>14}{'ms a chunk':>12}{'video fps':>11}{'ratio':>8}{'peak MB':>10}")
    for start in positions:
        median = statistics.median(seconds[start : start + span])
        label = f"{start}..{start + span - 1}"
        print(
            f"{label:>14}{median * 1e3:12.1f}{frames / median:11.1f}{median / first:8.2f}"
            f"{resident[start + span - 1]:10.0f}"
        )


if __name__ == "__main__":
    main()
