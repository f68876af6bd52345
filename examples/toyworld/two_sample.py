"""How far apart are two sets of videos, frame by frame? The energy distance between them, and what chance
alone would give.

    python examples/toyworld/two_sample.py runs/world.safetensors runs/samples --span 95 100

Each set is a folder of video files, or a .pt or .safetensors file of frames, as `gates.py` takes them. Prints
one JSON object; `same_set_halves` is the size of the distances between random halves of the first set, so
nothing below it is a difference. (Halves are half as large as the sets: between two whole sets as large as
the first, chance does about half of that.)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from gates import load_videos
from torch import Tensor

from sfpp_cli.core.noise import seeded
from sfpp_cli.data.toyworld.world import FPS

SIZE = 16
"""Frames are compared at this many pixels a side."""


def main() -> None:
    options = parse()
    first = features(options.first, options.frames, moving=options.moving)[: options.videos]
    second = features(options.second, options.frames, options.span, moving=options.moving)[: options.videos]
    if min(len(first), len(second)) < 2:
        raise SystemExit("a set needs two videos or more: only frames of different videos are independent")
    report = {
        "energy_distance": energy_distance(first, second),
        "frames": [first.shape[0] * first.shape[1], second.shape[0] * second.shape[1]],
        "same_set_halves": halves_distance(first) if len(first) >= 4 else None,
    }
    print(json.dumps(report))


def features(
    path: Path, frames: int, span: tuple[float, float] | None = None, *, moving: bool = False
) -> Tensor:
    """Evenly spaced frames of every video, [videos, frames, D]: 16x16 RGB in [0, 1], flat. `span` in seconds.

    `moving` takes each video's median frame away: what is left is what moves, without the background that
    differs most.
    """
    rows = []
    for video in load_videos(path):
        if span is not None:
            video = video[round(FPS * span[0]) : round(FPS * span[1])]
        if not len(video):
            raise SystemExit(f"{path}: a video has no frame in seconds {span}")
        small = F.interpolate((video.float() + 1) / 2, size=(SIZE, SIZE), mode="area")
        if moving:
            small = small - small.median(dim=0).values
        rows.append(small[torch.linspace(0, len(video) - 1, frames).round().long()].flatten(1))
    return torch.stack(rows)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of samples [n, D] and [m, D], Euclidean; 0 in the mean if their
    distributions agree.

    The U-statistic, unbiased, hence sometimes negative. Of samples [videos, frames, D] only pairs of
    different videos count in the last two terms: two frames of one video are closer than two of the set, and
    would make every distance too large. Székely and Rizzo, "Energy statistics: a class of statistics based on
    distances", 2013.
    """
    x, y = (samples.double().reshape(len(samples), -1, samples.shape[-1]) for samples in (x, y))
    return float(2 * distances(x, y).mean() - spread(distances(x, x)) - spread(distances(y, y)))


def halves_distance(x: Tensor, splits: int = 200) -> float:
    """What chance does to the distance: root mean square over random halvings of x [videos, frames, D]."""
    between = distances(x.double(), x.double())
    squares = []
    for split in range(splits):
        order = torch.randperm(len(x), generator=seeded(split))
        a, b = order[: len(x) // 2], order[len(x) // 2 :]
        squares.append(
            (2 * between[a][:, b].mean() - spread(between[a][:, a]) - spread(between[b][:, b])) ** 2
        )
    return float(torch.stack(squares).mean().sqrt())


def spread(between: Tensor) -> Tensor:
    """The mean over all pairs of different videos, of distances [videos, videos] within one set."""
    return (between.sum() - between.diagonal().sum()) / (len(between) * (len(between) - 1))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Mean distance of two frames for every pair of videos, [videos of x, videos of y]."""
    frames = torch.cdist(x.flatten(0, 1), y.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist")
    return frames.reshape(*x.shape[:2], *y.shape[:2]).mean((1, 3))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="folder of video files, .safetensors or .pt")
    parser.add_argument("second", type=Path, help="the set to compare with it")
    parser.add_argument("--frames", type=int, default=8, help="frames of each video")
    parser.add_argument("--videos", type=int, help="only the first so many of each set")
    parser.add_argument(
        "--moving", action="store_true", help="compare what moves: frames less their video's median frame"
    )
    parser.add_argument(
        "--span", type=float, nargs=2, metavar=("FROM", "TO"), help="only these seconds of the second set"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
