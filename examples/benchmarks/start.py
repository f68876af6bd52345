"""How does a video go on from a picture or another video? The seam, and ten joins in a row.

    python examples/benchmarks/start.py seam
    python examples/benchmarks/start.py joins

`seam`: scenes of the landscape that no training saw. `--start` with a picture, in the way that was chosen
(the picture stands still for a chunk, "still") and two others: its one latent frame alone in the cache
("single"), and a first chunk whose first frame is set to it after every denoising step ("held"). `--start`
with a video of 33 frames. Printed are change (mean absolute difference of pixels, of 255) and flow (95 %
quantile, in pixels) between neighbouring frames at the border, over the 11 steps after it, and later, where
the video is the student's own; and luma of the first new frame and of one 8 later less the given one's.

`joins`: a video is continued ten times, 2 s each, through pixels (an mp4 without latents) and through kept
latents. Printed is the mean colour of every part less the first part's, over videos, and the same for a clip
that is only encoded, decoded and written again and again: what the round trip alone does.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.core.noise import VideoNoise
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.data.landscape import draw_scenes
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import GenerateOptions, plan
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.vae import StreamingDecoder, StreamingEncoder, to_uint8
from sfpp_cli.progress import Silent
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.writer import VideoWriter

CPU = torch.device("cpu")
WAYS = ("still", "single", "held", "video")
CLIP = 33
"""Frames of a given video."""
CHUNKS = 4
"""That are made after the start."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("seam", "joins"))
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--joins", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    bundle = Bundle(DEFAULT_MODEL)
    scenes = draw_scenes(seed=77, indices=range(options.videos))
    settings = bundle.settings
    generator = Generator.load(
        bundle, ModelOptions(device=CPU, dtype=torch.float32), scenes.captions(), Silent()
    )
    with torch.no_grad():
        if options.what == "seam":
            clips = scenes.render(40, CLIP, (settings.height, settings.width)) * 2 - 1
            seam(generator, clips, scenes.captions())
        else:
            joins(generator, bundle, scenes.captions(), options.joins, options.seconds)


# --- the seam


class Held(Sampler):
    """A sampler whose first chunk is given its first frame."""

    given: Tensor

    def _predict(self, student, x, t, cache):  # type: ignore[no-untyped-def]
        x0 = super()._predict(student, x, t, cache)
        return torch.cat([self.given, x0[:, 1:]], dim=1) if cache.frame == 0 else x0


def seam(generator: Generator, clips: Tensor, prompts: list[str]) -> None:
    print(f"{'':8}{'change':>27}{'flow':>27}{'luma':>16}")
    print(f"{'way':8}" + 2 * f"{'border':>9}{'after':>9}{'later':>9}" + f"{'first':>8}{'8 later':>8}")
    for way in WAYS:
        rows = []
        for number, prompt in enumerate(prompts):
            frames, border = continued(generator, way, clips[number : number + 1], prompt, number)
            given = to_uint8(clips[number : number + 1])[0, -1 if way == "video" else 0].numpy()
            rows.append([*steps(frames, border), *(luma(frames[border + k]) - luma(given) for k in (1, 8))])
        mean = np.mean(rows, axis=0)
        print(f"{way:8}" + "".join(f"{v:9.2f}" for v in mean[:6]) + "".join(f"{v:+8.2f}" for v in mean[6:]))


def continued(generator: Generator, way: str, clip: Tensor, prompt: str, seed: int) -> tuple[Frames, int]:
    """The frames, and the number of the last that was given."""
    sampler, vae = generator.sampler, generator.vae
    picture = clip[:, :1]
    first = sampler.chunk * 4 - 3
    past = {
        "still": lambda: StreamingEncoder(vae)(picture.expand(-1, first, -1, -1, -1)),
        "single": lambda: StreamingEncoder(vae)(picture),
        "held": lambda: StreamingEncoder(vae)(picture)[:, :0],
        "video": lambda: StreamingEncoder(vae)(clip),
    }[way]()
    if way == "held":
        fields = {name: getattr(sampler, name) for name in sampler.__dataclass_fields__}
        sampler = Held(**fields)
        object.__setattr__(sampler, "given", StreamingEncoder(vae)(picture))
    chunks = past.split(sampler.chunk, dim=1) if past.shape[1] else ()
    noise = VideoNoise([seed], (sampler.chunk, *past.shape[2:]))
    made = sampler.rollout(
        generator.student,
        noise.chunks(len(chunks), len(chunks) + CHUNKS),
        generator.text([prompt]),
        noise.draw,
        past=chunks,
    )
    frames = to_uint8(StreamingDecoder(vae)(torch.cat([past, *made], dim=1)))[0].numpy()
    return frames, 4 * max(past.shape[1], 1) - 4


def steps(frames: Frames, border: int) -> list[float]:
    """Change and flow at the border, in the eleven steps after it, and later."""
    pairs = [(frames[k], frames[k + 1]) for k in range(border, len(frames) - 1)]
    change = [np.abs(after.astype(float) - before).mean() for before, after in pairs]
    moved = [flow(before, after) for before, after in pairs]
    return [float(part) for values in (change, moved) for part in split(values)]


def split(values: list[float]) -> tuple[float, float, float]:
    return values[0], float(np.mean(values[1:12])), float(np.mean(values[12:]))


def flow(before: Frames, after: Frames) -> float:
    """95 % quantile of the length of DIS optical flow, in pixels."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after)]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return float(np.quantile(np.linalg.norm(dis.calc(*grey, None), axis=-1), 0.95))


def luma(frame: Frames) -> float:
    return float((frame @ np.array([0.2126, 0.7152, 0.0722])).mean())


# --- ten joins


def joins(generator: Generator, bundle: Bundle, prompts: list[str], count: int, seconds: float) -> None:
    routes = {"latents": [], "pixels": [], "round trip": []}
    for seed, prompt in enumerate(prompts):
        with tempfile.TemporaryDirectory() as folder:
            routes["latents"].append(through_latents(generator, bundle, prompt, seed, count, seconds))
            pixels, first = through_pixels(generator, bundle, prompt, seed, count, seconds, Path(folder))
            routes["pixels"].append(pixels)
            routes["round trip"].append(
                round_trips(generator, first, count, Path(folder), bundle.settings.fps)
            )
    print("red, green, blue and saturation (of 255) of every part less the first's, mean over videos")
    print(f"{'join':>5}" + "".join(f"{name:^32}" for name in routes))
    shifts = {name: np.array(values) - np.array(values)[:, :1] for name, values in routes.items()}
    for join in range(1, count + 1):
        print(f"{join:5}" + "".join(f"{cells(shift[:, join].mean(0)):^32}" for shift in shifts.values()))
    print(f"{'size':>5}" + "".join(f"{np.abs(shift[:, -1]).mean():^32.2f}" for shift in shifts.values()))


def cells(values: NDArray[np.float64]) -> str:
    return "".join(f"{value:+7.2f}" for value in values)


def through_latents(
    generator: Generator, bundle: Bundle, prompt: str, seed: int, count: int, seconds: float
) -> list[list[float]]:
    """With kept latents a video that goes on is the long one, bit for bit: it is made at once."""
    wish = GenerateOptions(prompt=prompt, seed=seed, seconds=seconds * (count + 1))
    (request,) = plan(wish, bundle)
    frames = np.concatenate(list(generator.frames(request)))
    return [colour(part) for part in np.split(frames, count + 1)]


def through_pixels(
    generator: Generator, bundle: Bundle, prompt: str, seed: int, count: int, seconds: float, folder: Path
) -> tuple[list[list[float]], Frames]:
    """Colours of the parts, and the first part's frames."""
    parts: list[Frames] = []
    for number in range(count + 1):
        start = folder / f"{number - 1}.mp4" if number else None
        wish = GenerateOptions(
            prompt=prompt, seed=seed + 1000 * number, seconds=seconds, start=start, drop_start=number > 0
        )
        (request,) = plan(wish, bundle)
        parts.append(np.concatenate(list(generator.frames(request))))
        written(folder / f"{number}.mp4", parts[-1], request.fps)
    return [colour(part) for part in parts], parts[0]


def round_trips(
    generator: Generator, frames: Frames, count: int, folder: Path, fps: float
) -> list[list[float]]:
    """Colours of a clip after so many round trips."""
    frames = frames[: 1 + (len(frames) - 1) // 4 * 4]
    colours = [colour(frames)]
    for _ in range(count):
        written(folder / "again.mp4", frames, fps)
        pixels = torch.from_numpy(np.stack(list(read_frames(folder / "again.mp4"))))
        latents = StreamingEncoder(generator.vae)(pixels.movedim(-1, 1)[None] / 127.5 - 1)
        frames = to_uint8(StreamingDecoder(generator.vae)(latents))[0].numpy()
        colours.append(colour(frames))
    return colours


def written(path: Path, frames: Frames, fps: float) -> None:
    with VideoWriter(path, (frames.shape[2], frames.shape[1]), fps) as writer:
        writer.write(frames)


def colour(frames: Frames) -> list[float]:
    """Mean red, green, blue and saturation."""
    saturation = frames.max(-1).astype(float) - frames.min(-1)
    return [*frames.mean((0, 1, 2)), saturation.mean()]


if __name__ == "__main__":
    main()
