"""Read the landscape's truth back off frames: what a video shows, and whether it is still this world.

Nothing here is learned. Light and colour are held against the band that the world itself keeps (`features`),
the balloon is the world's own laid over the picture (`find_balloon`), the pan is the displacement of the
nearest ridge (`pan`). Two failures are kept apart. A video has *left* the world when light or colour is out
of its range, ridges are missing, its balloon is lost, broken or doubled, or the camera stands still. It has
*wandered* when it shows a good scene of the world that is not the captioned one.

Its own error, on 160 unseen scenes of 33 frames at 160x96 (`examples/landscape/reader_error.py`): every
captioned word was read right; one scene was called out of the range of hue, and no other fault was seen where
there was none. The worst frame of a scene was off by 0.047 pixels a frame in speed (0.47 in the worst scene;
pans are 1.2 and 2.4) and by 0.5 pixels in the balloon's place (1.1). Told in all frames: gains of 0.8 and
1.2, saturation 0.5, a frozen, balloonless, doubled or smeared video; in part: gain 0.9 (91 %), saturation
0.75 (96 %), half a balloon (99.8 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.data.landscape.captions import Attributes
from sfpp_cli.data.landscape.features import (
    CONTRAST,
    CREST,
    FEATURES,
    HUE,
    LUMA,
    crest_strength,
    read_features,
    reference_frames,
    world_bands,
)
from sfpp_cli.data.landscape.find_balloon import Finding, better, find_balloon, join
from sfpp_cli.data.landscape.palette import BALLOONS, LANDS, TIMES
from sfpp_cli.data.landscape.pan import FAST, STOPPED, camera_speed
from sfpp_cli.data.landscape.repeats import seen_before
from sfpp_cli.data.landscape.view import HEIGHT


@dataclass(frozen=True)
class Reading:
    """What each of T frames shows, each [T] unless said; on the CPU."""

    features: Tensor
    """`FEATURES`: luma, hue and contrast of the frame, of its ground and of its sky, [T, 11]."""
    outside: Tensor
    """How far each feature lies outside the band of each time and land, [T, 16, 11]."""
    kind: Tensor
    """Time and land that it looks most like: 4 times the index in TIMES and that in LANDS."""
    ridges: Tensor
    """Which of the four ridges, far to near, have a crest, bool [T, 4]."""
    balloon: Finding
    """Lengths in pixels of the video."""
    speed: Tensor
    """Camera's, in the video's pixels a video frame: positive to the right, when all scenery moves left."""
    repeated: Tensor
    """Whether the terrain is one that the camera has left behind, bool."""
    pixel: float
    """Width of a pixel in the world's reference pixels."""

    @property
    def in_range(self) -> Tensor:
        """Some time and land of the world has this light and this colour."""
        return (self.outside.amax(2) == 0).any(1)

    @property
    def moving(self) -> Tensor:
        return self.speed.abs() * self.pixel > STOPPED

    @property
    def intact(self) -> Tensor:
        """There is one balloon, and it is whole."""
        return self.balloon.whole & ~self.balloon.doubled

    @property
    def in_world(self) -> Tensor:
        return self.in_range & self.ridges.all(1) & self.intact & self.moving

    def attributes(self) -> Attributes:
        """What the video shows, taken as a whole: what most of its frames show."""
        kind = int(self.kind.mode().values)
        speed = float(self.speed.median()) * self.pixel
        return Attributes(
            time=TIMES[kind // len(LANDS)],
            land=LANDS[kind % len(LANDS)],
            balloon=BALLOONS[int(self.balloon.color.mode().values)],
            direction="right" if speed > 0 else "left",
            pace="fast" if abs(speed) > FAST else "slowly",
        )


def read_video(video: Tensor | np.ndarray, time: str | None = None) -> Reading:
    """Read a video, uint8 [T, H, W, 3], of 5 frames and more.

    Raises ValueError for another shape or a shorter one.
    `time` is the time of day it should show, if that is known: a darkened noon may look like an evening, and
    its balloon is still lit as at noon.
    """
    frames = reference_frames(video)
    pixel = HEIGHT / video.shape[1]
    column = (
        video.shape[2] / frames.shape[-1]
    )  # not quite the reverse of `pixel`: the reference has whole columns
    features = read_features(frames).cpu()
    bands = world_bands()
    kind = bands.nearest(features)
    times = kind // len(LANDS)
    balloon = _find_by_time(frames, times)
    speed = _steady(camera_speed(frames).cpu())
    if time is not None and (times != TIMES.index(time)).any():
        balloon = better(balloon, find_balloon(frames, TIMES.index(time)))
    return Reading(
        features=features,
        outside=bands.outside(features),
        kind=kind,
        ridges=crest_strength(frames).cpu() > CREST * bands.crests[kind],
        balloon=replace(balloon, x=balloon.x * column, y=balloon.y / pixel),
        speed=speed * column,
        repeated=seen_before(frames, speed).cpu(),
        pixel=pixel,
    )


def judge_video(video: Tensor | np.ndarray, scene: Attributes) -> dict[str, float]:
    """How well a video shows the scene that its caption tells of: means over frames of `judge_frames`."""
    found = judge_frames(read_video(video, scene.time), scene)
    return {name: float(values.float().mean()) for name, values in found.items()}


def judge_frames(seen: Reading, scene: Attributes) -> dict[str, Tensor]:
    """The same frame by frame, [T]: true or false, but for the shifts and the speed.

    - as captioned: `palette` (light and colour in the band of that time and land), `balloon` (whole, one,
      that colour), `direction`, `pace`;
    - against the captioned band: `luma_out`, of it `over` (too light somewhere) and `under`; `hue_out`;
      `contrast_out`, of it `grey` and `vivid` (too little, too much colour); `luma_shift` and
      `ground_luma_shift` are differences from its middle, with their sign;
    - against the world: `out_of_range` (in no band), `ridge_missing`, `lost`, `broken`, `doubled`, `stopped`,
      `repeated` (terrain that was left behind comes back);
    - `in_world`, `left` (any of `out_of_range` to `stopped`) and `wandered` (in the world, not as captioned);
      `speed` in pixels a video frame.
    """
    bands = world_bands()
    kind = TIMES.index(scene.time) * len(LANDS) + LANDS.index(scene.land)
    outside = seen.outside[:, kind] > 0
    shift = seen.features - bands.middle[kind]
    color = seen.balloon.color == BALLOONS.index(scene.balloon)
    heading = torch.where(seen.speed > 0, 1, -1) == (1 if scene.direction == "right" else -1)
    paced = (seen.speed.abs() * seen.pixel > FAST) == (scene.pace == "fast")
    palette = ~outside.any(1)
    luma = _columns(LUMA)
    return {
        "palette": palette,
        "balloon": seen.intact & color,
        "direction": seen.moving & heading,
        "pace": seen.moving & paced,
        "luma_out": outside[:, luma].any(1),
        "over": (outside & (shift > 0))[:, luma].any(1),
        "under": (outside & (shift < 0))[:, luma].any(1),
        "hue_out": outside[:, _columns(HUE)].any(1),
        "contrast_out": outside[:, _columns(CONTRAST)].any(1),
        "grey": (outside & (shift < 0))[:, FEATURES.index("saturation")],
        "vivid": (outside & (shift > 0))[:, FEATURES.index("saturation")],
        "out_of_range": ~seen.in_range,
        "ridge_missing": ~seen.ridges.all(1),
        "lost": ~seen.balloon.present,
        "broken": seen.balloon.present & ~seen.balloon.whole,
        "doubled": seen.balloon.doubled,
        "stopped": ~seen.moving,
        "repeated": seen.repeated,
        "in_world": seen.in_world,
        "left": ~seen.in_world,
        "wandered": seen.in_world & ~(palette & color & heading & paced),
        "luma_shift": shift[:, FEATURES.index("luma")],
        "ground_luma_shift": shift[:, FEATURES.index("ground_luma")],
        "speed": seen.speed,
    }


def judge_videos(videos: Sequence[Tensor | np.ndarray], scenes: Sequence[Attributes]) -> dict[str, float]:
    """Means of `judge_video` over videos, one scene each."""
    rows = [judge_video(video, scene) for video, scene in zip(videos, scenes, strict=True)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _find_by_time(frames: Tensor, time: Tensor) -> Finding:
    """`find_balloon` on each frame with the light of its time of day."""
    order = torch.cat([(time == number).nonzero()[:, 0] for number in range(len(TIMES))])
    found = [
        find_balloon(frames[(time == number).to(frames.device)], number) for number in time.unique().tolist()
    ]
    return join(found)[order.argsort()]


def _steady(speed: Tensor, width: int = 9) -> Tensor:
    """Running median of a speed [T]: one misread frame is none."""
    padded = F.pad(speed[None, None], (width // 2, width // 2), mode="replicate")[0, 0]
    return padded.unfold(0, width, 1).median(1).values


def _columns(names: tuple[str, ...]) -> list[int]:
    return [FEATURES.index(name) for name in names]
