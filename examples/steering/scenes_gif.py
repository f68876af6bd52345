"""One video through three scenes, its prompt changed in two ways, side by side as a GIF.

    python examples/steering/scenes_gif.py examples/steering/scenes.gif
    python examples/steering/scenes_gif.py street.gif --model my-world --scene "a street" --scene "a sea"

Both begin alike, bit for bit, until the first change.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.data.prompts import How
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import GenerateOptions, plan
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.progress import Silent
from sfpp_cli.video import Frames

SCENES = (
    "a red circle bouncing over a blue background",
    "a white square sliding over a brown background",
    "a yellow triangle circling over a purple background",
)
SIDES: tuple[How, How] = ("recache", "switch")
COLOURS = 64
STRIP = 18
"""Pixels for the line below the pictures."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--scene", action="append", help="a prompt; the scenes share the time")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=2, help="pixels for each of the video's")
    parser.add_argument("--keep-every", type=int, default=4, help="frames for each of the GIF's")
    options = parser.parse_args()
    scenes = options.scene or SCENES
    starts = [options.seconds * number / len(scenes) for number in range(len(scenes))]
    then = [f"{start}: {scene}" for start, scene in zip(starts[1:], scenes[1:], strict=True)]

    bundle = Bundle(options.model)
    settings = ModelOptions(device=torch.device("cpu"), dtype=torch.float32)
    generator = Generator.load(bundle, settings, scenes, Silent())
    videos = []
    for how in SIDES:
        wish = GenerateOptions(
            prompt=scenes[0], then=then, how=how, seconds=options.seconds, seed=options.seed
        )
        (request,) = plan(wish, bundle)
        videos.append(single(generator.frames(request)))
        borders = [0.0, *(scene.at for scene in request.scenes)]
    pictures = []
    for number, pair in enumerate(zip(*videos, strict=True)):
        if number % options.keep_every == 0:
            second = number / request.fps
            place = max(place for place, border in enumerate(borders) if border <= second)
            picture = drawn(pair, options.scale, second, scenes[place])
            pictures.append(picture.quantize(COLOURS, dither=Image.Dither.NONE))
    milliseconds = round(1000 * options.keep_every / request.fps)
    rest = {"save_all": True, "append_images": pictures[1:], "duration": milliseconds, "loop": 0}
    pictures[0].save(options.out, **rest)


def single(pieces: Iterator[Frames]) -> Iterator[Frames]:
    """Frames one at a time."""
    for piece in pieces:
        yield from piece


def drawn(pair: tuple[Frames, ...], scale: int, second: float, scene: str) -> Image.Image:
    """Both pictures, their names, the time and the prompt."""
    height, width, _ = pair[0].shape
    sheet = Image.new("RGB", (2 * width * scale, height * scale + STRIP), "white")
    font = ImageFont.load_default(size=10)
    pen = ImageDraw.Draw(sheet)
    for place, (picture, how) in enumerate(zip(pair, SIDES, strict=True)):
        large = Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
        sheet.paste(large, (place * width * scale, 0))
        pen.text((place * width * scale + 3, 2), f"{how}  {second:.0f} s", font=font, fill="white")
    pen.text((3, height * scale + 3), scene, font=font, fill="black")
    return sheet


if __name__ == "__main__":
    main()
