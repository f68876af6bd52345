"""How often does the landscape's reader err, on scenes that nobody has seen?

    python examples/landscape/reader_error.py                       # 160x96, 160 scenes of 33 frames
    python examples/landscape/reader_error.py --size 64 112

First the world itself: what is misread, and what is called a fault that is none. Then the same scenes with
one fault each, and the share of frames in which the reader tells it. Prints two tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sfpp_cli.data.landscape import Scenes, draw_scenes
from sfpp_cli.data.landscape.captions import Attributes
from sfpp_cli.data.landscape.reader import judge_video, read_video

SEED = 2_000_003
FRAMES = 33
ALARMS = (
    "luma_out",
    "hue_out",
    "contrast_out",
    "out_of_range",
    "ridge_missing",
    "lost",
    "broken",
    "doubled",
    "stopped",
    "left",
)
ASIDE = 0.14
"""The balloon is to be so far from the frame's middle, in frame widths, that its mirror image is another
balloon."""


def main() -> None:
    options = parse()
    size = tuple(options.size)
    rows = [measure(draw_scenes(SEED, [index]), size) for index in range(options.scenes)]
    print(f"{options.scenes} scenes of {FRAMES} frames, {size[1]}x{size[0]}\n")
    print_table("world: misread or called a fault", [row["world"] for row in rows])
    for name in rows[0]["told"]:
        told = torch.tensor([row["told"][name] for row in rows])
        print(f"{name:34s} told in {float(told.mean()):.2%} of frames")


def measure(scene: Scenes, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """One scene: its own errors, and the share of frames in which each fault is told."""
    start = start_aside(scene, size)
    words = scene.attributes()[0]
    frames = scene.render(start, FRAMES, size)[0]
    truth = scene.truth(start, FRAMES, size)
    seen = read_video(to_uint8(frames))
    judged = judge_video(to_uint8(frames), words)
    read = seen.attributes()
    named = {name: float(getattr(read, name) != getattr(words, name)) for name in vars(words)}
    top = truth.box[0, :, 1] + scene.radius / 64 * size[0]
    world = {
        **{f"{name} (share of videos)": wrong for name, wrong in named.items()},
        **{f"{name} (share of frames)": judged[name] for name in ALARMS},
        "balloon's place (pixels)": float(
            torch.hypot(seen.balloon.x - truth.centre[0, :, 0], seen.balloon.y - top).max()
        ),
        "speed (pixels a frame)": float((seen.speed - truth.pan[0]).abs().max()),
    }
    told = {
        name: tell(to_uint8(spoil(scene, frames, start, size)), words)
        for name, (spoil, tell) in FAULTS.items()
    }
    return {"world": world, "told": told}


def start_aside(scene: Scenes, size: tuple[int, int]) -> int:
    """A video frame from which on the balloon stays away from the frame's middle for a while."""
    for start in range(0, 4000, 20):
        x = scene.truth(start, FRAMES, size).centre[0, :, 0] / size[1]
        if (x - 0.5).abs().min() > ASIDE:
            return start
    raise ValueError("the balloon never leaves the middle")


def print_table(title: str, rows: list[dict[str, float]]) -> None:
    print(f"{title:44s} {'mean':>8s} {'worst':>8s}")
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows])
        print(f"{name:44s} {float(values.mean()):8.4f} {float(values.max()):8.4f}")
    print()


def other(scene: Scenes, start: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same scene with its balloon mirrored, [T, 3, H, W], and where that balloon is, [T, 1, H, W]."""
    mirrored = replace(scene, phases=scene.phases + 0.5)
    mask = mirrored.balloon_mask(start, FRAMES, size)[0]
    return mirrored.render(start, FRAMES, size)[0], (mask > 0).float()


def without_balloon(scene: Scenes, frames: Tensor, start: int, size: tuple[int, int]) -> Tensor:
    mask = (scene.balloon_mask(start, FRAMES, size)[0] > 0).float()
    return torch.lerp(frames, other(scene, start, size)[0], mask)


def half_a_balloon(scene: Scenes, frames: Tensor, start: int, size: tuple[int, int]) -> Tensor:
    middle = scene.truth(start, FRAMES, size).centre[0, :, 0]
    right = torch.arange(size[1]) > middle[:, None, None, None]
    return torch.where(right, without_balloon(scene, frames, start, size), frames)


def two_balloons(scene: Scenes, frames: Tensor, start: int, size: tuple[int, int]) -> Tensor:
    return torch.lerp(frames, *other(scene, start, size))


def smeared(scene: Scenes, frames: Tensor, start: int, size: tuple[int, int]) -> Tensor:
    width = size[0] // 12 | 1
    return torch.nn.functional.avg_pool2d(frames, width, 1, width // 2, count_include_pad=False)


def gain(factor: float) -> Callable[..., Tensor]:
    return lambda scene, frames, start, size: frames * factor


def saturation(factor: float) -> Callable[..., Tensor]:
    return lambda scene, frames, start, size: torch.lerp(frames.mean(1, keepdim=True), frames, factor)


def frozen(scene: Scenes, frames: Tensor, start: int, size: tuple[int, int]) -> Tensor:
    return frames[:1].expand_as(frames)


def share(*names: str) -> Callable[[Tensor, Attributes], float]:
    """The largest of these shares."""

    def tell(video: Tensor, words: Attributes) -> float:
        judged = judge_video(video, words)
        return max(judged[name] for name in names)

    return tell


FAULTS = {
    "gain 0.9": (gain(0.9), share("luma_out")),
    "gain 0.8": (gain(0.8), share("luma_out")),
    "gain 1.2": (gain(1.2), share("luma_out")),
    "saturation 0.75": (saturation(0.75), share("contrast_out", "hue_out")),
    "saturation 0.5": (saturation(0.5), share("contrast_out", "hue_out")),
    "frozen": (frozen, share("stopped")),
    "no balloon": (without_balloon, share("lost")),
    "half a balloon (lost or broken)": (
        half_a_balloon,
        lambda video, words: 1 - float(read_video(video).intact.float().mean()),
    ),
    "two balloons": (two_balloons, share("doubled")),
    "smeared (ridges missing)": (smeared, share("ridge_missing")),
}


def to_uint8(frames: Tensor) -> Tensor:
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=160)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 160), metavar=("HEIGHT", "WIDTH"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
