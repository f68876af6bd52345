"""A procedural captioned world: an endless landscape from a panning camera, with one hot-air balloon.

It stands in for video data that cannot be shipped, and is made for studying long videos:

- stationary: minute three has the law of second three;
- endless: terrain, trees and clouds are hashed noise that never comes back, so new content must be made for
  ever at one edge;
- the caption fixes time of day, land, the balloon's colour, the pan's direction and pace, and with them the
  luma of every part of the picture, so a video that darkens, whitens or greys leaves the world at once;
- the rest is uncaptioned (terrain, clouds, the sun's place, phases, a few degrees of hue), so a
  student has to carry it through its own history and can lose it.

    scenes = draw_scenes(seed=0, indices=range(8), device="cuda")
    scenes.render(start=400, frames=81)     # [8, 81, 3, 96, 160] in [0, 1]
    scenes.captions()                       # eight sentences
    scenes.truth(start=400, frames=81)      # where the balloon is, how the camera moves, where the ridges lie

Everything is a tensor over scenes, frames and pixels; rendering takes about 60 bytes of memory for each pixel
of each frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sfpp_cli.data.landscape.balloon import ABOVE, BELOW, PERIODS, RADIUS, Path, cover, draw_balloon, follow
from sfpp_cli.data.landscape.captions import DIRECTIONS, PACES, VARIANTS, Attributes, caption
from sfpp_cli.data.landscape.noise import uniform
from sfpp_cli.data.landscape.palette import BALLOONS, LANDS, TIMES, palette
from sfpp_cli.data.landscape.sky import draw_clouds, draw_sky, sun_at
from sfpp_cli.data.landscape.terrain import RIDGES, Land, draw_ridge, ridge_line
from sfpp_cli.data.landscape.view import View

FPS = 16
SIZE = (96, 160)
SPEED = {"slowly": 0.8, "fast": 1.6}
"""Of the camera, in reference pixels (64 a frame's height) a video frame. Within a latent frame, four video
frames, the nearest ridge moves by 4 and by 8 of them: a slower pan is hard to tell from none in latents of 8
pixels, and small models then learn a land that stands still."""
SUN_X = (0.16, 0.84)
HUE = math.radians(4)
"""Place of the sun in frame widths; how far the hue of sky and land may be turned, either way."""


@dataclass(frozen=True)
class Truth:
    """What frames of a batch of scenes show. Lengths are in pixels of the rendered size."""

    box: Tensor
    """Balloon's left, top, right and bottom edge, [B, T, 4]."""
    centre: Tensor
    """x and y of the middle of that box, [B, T, 2]."""
    pan: Tensor
    """Camera's speed in pixels a video frame, [B]: positive to the right, when all scenery moves left."""
    flow: Tensor
    """Horizontal speed of the four ridges in the picture, far to near, in pixels a video frame, [B, 4]."""
    ridges: Tensor
    """Row of the crest of each ridge in each column, [B, T, 4, W]."""


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes, each field [B] but for `phases`; words are indices into their tables."""

    time: Tensor
    land: Tensor
    balloon: Tensor
    direction: Tensor
    pace: Tensor
    variant: Tensor
    """Form of the caption."""
    salt: Tensor
    """Of all noise."""
    sun: Tensor
    """Place in frame widths."""
    hue: Tensor
    """In radians."""
    clouds: Tensor
    radius: Tensor
    """Of the balloon, reference pixels."""
    period: Tensor
    """Of the balloon's path, video frames."""
    phases: Tensor
    """Of the balloon's path, in turns, [B, 4]."""

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, which: slice | Tensor) -> Scenes:
        return Scenes(*(getattr(self, field.name)[which] for field in fields(self)))

    def to(self, device: str | torch.device) -> Scenes:
        return Scenes(*(getattr(self, field.name).to(device) for field in fields(self)))

    def showing(self, attributes: Sequence[Attributes]) -> Scenes:
        """The same scenes with other captioned attributes, one set a scene."""

        def column(name: str, table: Sequence[str]) -> Tensor:
            return torch.tensor(
                [table.index(getattr(words, name)) for words in attributes], device=self.time.device
            )

        if len(attributes) != len(self):
            raise ValueError(f"{len(attributes)} sets of attributes for {len(self)} scenes")
        return replace(
            self,
            time=column("time", TIMES),
            land=column("land", LANDS),
            balloon=column("balloon", BALLOONS),
            direction=column("direction", DIRECTIONS),
            pace=column("pace", PACES),
        )

    def attributes(self) -> list[Attributes]:
        """What the captions tell, in words."""
        columns = torch.stack([self.time, self.land, self.balloon, self.direction, self.pace], 1).tolist()
        return [
            Attributes(TIMES[t], LANDS[n], BALLOONS[b], DIRECTIONS[d], PACES[p]) for t, n, b, d, p in columns
        ]

    def captions(self, variant: int | None = None) -> list[str]:
        """A sentence a scene, in its own form or all in form `variant`, of which 0 is the plain one."""
        variants = self.variant.tolist() if variant is None else [variant] * len(self)
        return [caption(scene, form) for scene, form in zip(self.attributes(), variants, strict=True)]

    def render(self, start: int | Tensor, frames: int, size: tuple[int, int] = SIZE) -> Tensor:
        """Video frames `start .. start + frames`: float32 [B, T, 3, H, W] in [0, 1].

        `start` is one number, or int64 [B] with one a scene. What a frame shows does not depend on where a
        range begins.
        """
        view = self._view(start, frames, size)
        colors = palette(self.time, self.land, self.balloon, self.hue)
        land = self._land(view)
        still = draw_sky(view, colors, self.time, self.salt, land.sun)
        canvas = still.repeat(1, frames, 1, 1, 1)
        draw_clouds(canvas, view, colors, land.sun, land.speed, self.salt, self.clouds)
        for k in range(len(RIDGES)):
            if k == len(RIDGES) - 1:
                draw_balloon(canvas, view, self._path(view), colors, self.time, land.sun)
            draw_ridge(canvas, view, land, colors, k)
        return canvas.clamp_(0, 1)

    def balloon_mask(self, start: int | Tensor, frames: int, size: tuple[int, int] = SIZE) -> Tensor:
        """Share of each pixel that the balloon covers, for losses to weigh up: float32 [B, T, 1, H, W]."""
        view = self._view(start, frames, size)
        return cover(view, self._path(view))[:, :, None]

    def truth(self, start: int | Tensor, frames: int, size: tuple[int, int] = SIZE) -> Truth:
        """Where things are in video frames `start .. start + frames`, in pixels of `size`."""
        view = self._view(start, frames, size)
        path = self._path(view)
        land = self._land(view)
        top = path.y - path.radius * ABOVE
        bottom = path.y + path.radius * BELOW
        box = torch.stack([path.x - path.radius, top, path.x + path.radius, bottom], -1) / view.pixel
        speed = self.camera_speed()
        lines = [ridge_line(land, k, view.places(speed * ridge.parallax)) for k, ridge in enumerate(RIDGES)]
        parallax = torch.tensor([ridge.parallax for ridge in RIDGES], device=view.device)
        return Truth(
            box=box,
            centre=(box[..., :2] + box[..., 2:]) / 2,
            pan=speed / view.pixel,
            flow=-speed[:, None] * parallax / view.pixel,
            ridges=torch.stack(lines, 2) / view.pixel,
        )

    def camera_speed(self) -> Tensor:
        """In reference pixels a video frame, [B]: positive to the right."""
        speed = torch.tensor([SPEED[name] for name in PACES], device=self.pace.device)[self.pace]
        return torch.where(self.direction == DIRECTIONS.index("left"), -speed, speed)

    def _view(self, start: int | Tensor, frames: int, size: tuple[int, int]) -> View:
        first = torch.as_tensor(start, device=self.time.device).expand(len(self))
        return View(first[:, None] + torch.arange(frames, device=self.time.device), *size)

    def _path(self, view: View) -> Path:
        return follow(view.frames, view.breadth, self.radius, self.period, self.phases)

    def _land(self, view: View) -> Land:
        return Land(
            self.time, self.land, self.salt, self.camera_speed(), sun_at(self.sun * view.breadth, self.time)
        )


def draw_scenes(seed: int, indices: Sequence[int], device: str | torch.device = "cpu") -> Scenes:
    """Scenes by number: the same (seed, index) is the same scene in every batch and on every device."""
    number = torch.tensor(list(indices), dtype=torch.int64, device=device)
    columns = [uniform(number, 0x10001 * seed + 0x51 * column) for column in range(17)]

    def pick(column: int, count: int) -> Tensor:
        return (columns[column] * count).long()

    def between(column: int, low: float, high: float) -> Tensor:
        return low + columns[column] * (high - low)

    return Scenes(
        time=pick(0, len(TIMES)),
        land=pick(1, len(LANDS)),
        balloon=pick(2, len(BALLOONS)),
        direction=pick(3, len(DIRECTIONS)),
        pace=pick(4, len(PACES)),
        variant=pick(5, VARIANTS),
        salt=pick(6, 1 << 24) * 4099,
        sun=between(8, *SUN_X),
        hue=between(9, -HUE, HUE),
        clouds=columns[10],
        radius=between(11, *RADIUS),
        period=between(12, *PERIODS).long(),
        phases=torch.stack(columns[13:17], 1),
    )
