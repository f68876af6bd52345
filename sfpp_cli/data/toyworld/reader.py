"""Read the toy world's truth back off frames: which object, where, over which background, is it this world.

Nothing here is learned: a smooth background is fitted to each frame and the object is what differs from it by
more than a shadow does. Two failures are kept apart. A video has *left* the world when its background is out
of range, its pixels clip or its object is broken, lost or still. It has *wandered* when it shows a good scene
of the world that is not the one it was.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.data.toyworld.world import (
    BACKGROUND_LUMA,
    BACKGROUNDS,
    FPS,
    LUMA_WEIGHTS,
    MOTIONS,
    OBJECT_COLORS,
    RADIUS,
    SPEED,
    TINT_DEGREES,
    Scenes,
    pixel_grid,
    shape_distance,
)

LUMA_MARGIN = 0.05
"""How far the background's luma may be from `BACKGROUND_LUMA`; reading errs by less than 0.005."""
CHROMA_MARGIN = 0.08
"""How far its `chroma` may be from every named background: 7 degrees past the tint, 1/8 of the saturation."""
COLOR_MARGIN = 0.25
"""How far an object's mean colour may be from the nearest named one, as a distance in RGB of [0, 1]."""
DARK, BRIGHT = 0.02, 0.98
CLIPPED_MARGIN = 0.08
"""Luma of a clipped pixel, and the share of them a frame may have: the lit half of a large white object is
the world's own."""

SHADOW = 0.55
"""A shadow leaves at least this share of the background's light; the world's deepest leaves 0.65."""
CONTRAST = 0.12
"""RGB distance from the background, shadow forgiven, from which on a pixel is foreground."""
EDGE = 0.4
"""The object's outline lies where the contrast falls to this share of what it is inside."""
OVERLAP, WHOLE = 0.75, 0.8
"""Intersection over union of an intact object and its ideal shape; its share of the foreground."""
UNIT_AREAS = (math.pi, 1.76**2, 3 * math.sqrt(3) * 0.62**2)
"""Area of each of SHAPES at radius 1."""
AREA = (min(UNIT_AREAS) * RADIUS[0] ** 2 / 2, max(UNIT_AREAS) * RADIUS[1] ** 2 * 2)
"""Anything from half the smallest object to twice the largest counts as an object."""

LAG = 4
"""Velocity is taken over this many video frames, so that the reader's jitter averages out."""
STILL = 0.2 * SPEED[0]
"""Mean speed below which a clip is still. A slider turning round keeps 0.27 of its speed in a short clip."""
FLAT, ROUND = 0.012, 0.015
"""Standard deviation of a slider's height and of an orbit's radius, at most; frame widths."""
CLIP, SHORTEST_CLIP = 81, 40
"""Motion is judged on clips of this many video frames, and a rest of at least the second."""
BLOCK = 128
"""Video frames read at once."""


@dataclass(frozen=True)
class Reading:
    """What each of T frames shows, [T] unless said; lengths in frame widths, colours and luma in [0, 1].

    Where no object is present, `color` and `shape` are -1 and `x`, `y` NaN. `color_error` is the distance of
    the object's mean colour from the named one, `gradient` the background's change of luma across the frame,
    `clipped` a share of the pixels.
    """

    present: Tensor
    intact: Tensor
    color: Tensor
    color_error: Tensor
    shape: Tensor
    x: Tensor
    y: Tensor
    area: Tensor
    background: Tensor
    background_luma: Tensor
    background_chroma: Tensor
    """[T, 2], see `chroma`."""
    gradient: Tensor
    in_range: Tensor
    """The background has the world's luma, and a hue and saturation near one of the named ones."""
    clipped: Tensor

    @property
    def background_hue(self) -> Tensor:
        """In degrees, 0 is red. Means little over grey."""
        across, along = self.background_chroma.unbind(-1)
        return torch.rad2deg(torch.atan2(along, across)) % 360

    @property
    def in_world(self) -> Tensor:
        return self.intact & self.in_range & (self.clipped < CLIPPED_MARGIN)


def read_frames(frames: Tensor) -> Reading:
    """Read video frames [T, 3, H, W] in [-1, 1]. Each is read by itself: blocks of a video will do."""
    pixels = (frames.float().clamp(-1, 1) + 1) / 2
    luma_weights = torch.tensor(LUMA_WEIGHTS).to(pixels)
    plane = _fit_background(pixels)
    luma, hue = plane[:, 0] @ luma_weights, chroma(plane[:, 0])
    misfit = (
        torch.cdist(hue, _named_chroma().to(hue).flatten(0, 1)).unflatten(1, (len(BACKGROUNDS), -1)).amin(2)
    )
    brightness = torch.einsum("tchw,c->thw", pixels, luma_weights)
    return Reading(
        **_read_object(pixels, plane),
        background=misfit.argmin(1),
        background_luma=luma,
        background_chroma=hue,
        gradient=(plane[:, 1:] @ luma_weights).norm(dim=1),
        in_range=((luma - BACKGROUND_LUMA).abs() < LUMA_MARGIN) & (misfit.amin(1) < CHROMA_MARGIN),
        clipped=((brightness < DARK) | (brightness > BRIGHT)).float().mean((1, 2)),
    )


def chroma(rgb: Tensor) -> Tensor:
    """Colour without brightness: RGB [..., 3] -> a point [..., 2]: angle is hue, length is saturation."""
    red, green, blue = rgb.unbind(-1)
    point = torch.stack([2 * red - green - blue, math.sqrt(3) * (green - blue)], -1)
    return point / rgb.sum(-1, keepdim=True).clamp_min(1e-3)


def _named_chroma() -> Tensor:
    """Where the named backgrounds lie, over their tints: [backgrounds, tints, 2]."""
    tints = torch.linspace(-TINT_DEGREES, TINT_DEGREES, 9).tolist()
    rows = [
        [colorsys.hls_to_rgb((hue + t) % 360 / 360, 0.4, s) for t in tints] for hue, s in BACKGROUNDS.values()
    ]
    return chroma(torch.tensor(rows))


def _plane_terms(pixels: Tensor) -> Tensor:
    """1, x and y from the frame's centre for each pixel, [H * W, 3]."""
    height, width = pixels.shape[2:]
    ys, xs = torch.broadcast_tensors(*pixel_grid((height, width)))
    return torch.stack([torch.ones_like(xs), xs - 0.5, ys - 0.5], -1).flatten(0, 1).to(pixels)


def _fit_background(pixels: Tensor) -> Tensor:
    """The plane a + b x + c y through each channel, [T, 3 terms, 3 channels].

    Reweighted least squares from the median colour on, stricter each round: the object and its shadow end up
    with no say.
    """
    terms = _plane_terms(pixels)
    targets = pixels.flatten(2).mT
    plane = F.pad(targets.median(dim=1, keepdim=True).values, (0, 0, 0, 2))
    for scale in (0.3, 0.15, 0.08, 0.06):
        error = (targets - terms @ plane).square().sum(2, keepdim=True)
        weighted = terms / (1 + error / scale**2).square()
        plane = torch.linalg.solve(weighted.mT @ terms, weighted.mT @ targets)
    return plane


def _read_object(pixels: Tensor, plane: Tensor) -> dict[str, Tensor]:
    """The fields of a `Reading` that concern the object."""
    contrast = _contrast(pixels, plane)
    foreground = contrast > CONTRAST
    part = _largest_part(foreground)
    core = _share(_interior(part))
    body = part & (contrast > EDGE * (contrast * core).sum((1, 2), keepdim=True))

    height, width = pixels.shape[2:]
    ys, xs = (axis.to(pixels) for axis in pixel_grid((height, width)))
    area = body.sum((1, 2)) / width**2
    share = _share(body)
    x, y = ((share * axis).sum((1, 2), keepdim=True) for axis in (xs, ys))
    overlap, shape = _overlap(body, xs - x, ys - y, area).max(1)
    mean = torch.einsum("thw,tchw->tc", core, pixels)
    color_error, color = torch.cdist(mean, torch.tensor(list(OBJECT_COLORS.values())).to(mean)).min(1)

    present = (area > AREA[0]) & (area < AREA[1])
    whole = part.sum((1, 2)) > WHOLE * foreground.sum((1, 2))
    return {
        "present": present,
        "intact": present & whole & (overlap > OVERLAP) & (color_error < COLOR_MARGIN),
        "color": color.where(present, -1),
        "color_error": color_error,
        "shape": shape.where(present, -1),
        "x": x[:, 0, 0].where(present, math.nan),
        "y": y[:, 0, 0].where(present, math.nan),
        "area": area,
    }


def _contrast(pixels: Tensor, plane: Tensor) -> Tensor:
    """RGB distance of each pixel from the background at whatever light a shadow may have left, [T, H, W]."""
    background = (_plane_terms(pixels) @ plane).mT.reshape(pixels.shape).clamp(0.02, 1)
    light = (pixels * background).sum(1, keepdim=True) / background.square().sum(1, keepdim=True)
    return (pixels - light.clamp(SHADOW, 1.05) * background).square().sum(1).sqrt()


def _largest_part(mask: Tensor) -> Tensor:
    """The connected part of each mask [T, H, W] around its densest spot."""
    height, width = mask.shape[1:]
    allowed = mask.float()[:, None]
    reach = width // 16
    density = F.avg_pool2d(allowed, 2 * reach + 1, stride=1, padding=reach) * allowed
    part = F.one_hot(density.flatten(1).argmax(1), height * width).reshape(allowed.shape) * allowed
    for _ in range(height + width):
        grown = F.max_pool2d(part, 3, stride=1, padding=1) * allowed
        if torch.equal(grown, part):
            break
        part = grown
    return part[:, 0].bool()


def _interior(mask: Tensor) -> Tensor:
    """The mask [T, H, W] less its rim of one pixel, where object and background mix."""
    return F.max_pool2d((~mask).float()[:, None], 3, stride=1, padding=1)[:, 0] == 0


def _share(mask: Tensor) -> Tensor:
    """Weights [T, H, W] that sum to one over each mask; zeros for an empty one."""
    return mask / mask.sum((1, 2), keepdim=True).clamp_min(1)


def _overlap(body: Tensor, dx: Tensor, dy: Tensor, area: Tensor) -> Tensor:
    """Intersection over union of each body [T, H, W] and the ideal shapes of its area, [T, shapes]."""
    scores = []
    for shape, unit in enumerate(UNIT_AREAS):
        ideal = shape_distance(torch.tensor(shape), dx, dy, (area / unit).sqrt()[:, None, None]) < 0
        scores.append((body & ideal).sum((1, 2)) / (body | ideal).sum((1, 2)).clamp_min(1))
    return torch.stack(scores, 1)


def speed(x: Tensor, y: Tensor) -> float:
    """Mean speed along a track [T] in frame widths per video frame; 0 if no object was seen."""
    steps = torch.hypot(_velocity(x), _velocity(y))
    return float(steps.nanmean().nan_to_num(0.0))


def classify_motion(x: Tensor, y: Tensor, present: Tensor) -> int:
    """Index in MOTIONS of a track [T] of 40 to 81 video frames; -1 if still, often missing, or any other.

    Sliding keeps its height, circling its distance from the frame's centre and its sense of turning, bouncing
    its velocity on both axes but for the sign.
    """
    x, y = x[present], y[present]
    if present.float().mean() < 0.8 or speed(x, y) < STILL:
        return -1
    if y.std() < FLAT:
        return MOTIONS.index("sliding")
    turn = _turn(x - 0.5, y - 0.5)
    if torch.hypot(x - 0.5, y - 0.5).std() < ROUND and turn.mean().abs() > 0.9 * turn.abs().mean():
        return MOTIONS.index("circling")
    velocity = torch.stack([_velocity(x), _velocity(y)]).abs()
    usual = velocity.median(dim=1, keepdim=True).values
    steady = ((velocity - usual).abs() < (usual / 4).clamp_min(STILL)).all(0)
    if usual.min() > STILL / 2 and steady.float().mean() > 0.5:
        return MOTIONS.index("bouncing")
    return -1


def nearest_motion(x: Tensor, y: Tensor, present: Tensor) -> int:
    """Index in MOTIONS of the motion that a track [T] departs from least; -1 if the object was hardly seen.

    The same three signs as in `classify_motion`, each over the track's better part and measured in what a
    true one may depart: a jump or a wobble does not spoil a clip. A choice among three, so guessing scores
    one in three.
    """
    x, y = x[present], y[present]
    if len(x) < SHORTEST_CLIP // 2:
        return -1
    velocity = torch.stack([_velocity(x), _velocity(y)]).abs()
    usual = velocity.median(dim=1, keepdim=True).values
    unsteady = ((velocity - usual).abs() / (usual / 4).clamp_min(STILL)).amax(0).median()
    turn = _turn(x - 0.5, y - 0.5)
    one_way = turn.mean().abs() > 0.6 * turn.abs().mean()
    departures = {
        "sliding": _spread(y) / FLAT,
        "circling": _spread(torch.hypot(x - 0.5, y - 0.5)) / ROUND if one_way else math.inf,
        "bouncing": unsteady if usual.min() > STILL / 2 else math.inf,
    }
    return MOTIONS.index(min(departures, key=lambda motion: float(departures[motion])))


def _spread(values: Tensor) -> Tensor:
    """What four fifths of the values stay within, about their median."""
    return (values - values.median()).abs().quantile(0.8)


def _velocity(track: Tensor) -> Tensor:
    """Change of a coordinate [T] per video frame, smoothed, [T - 2 LAG]; NaN around gaps."""
    smooth = F.avg_pool1d(track[None], LAG + 1, stride=1)[0]
    return (smooth[LAG:] - smooth[:-LAG]) / LAG


def _turn(dx: Tensor, dy: Tensor) -> Tensor:
    """Angle turned about the origin in LAG frames, [T - LAG], in radians."""
    cross = dx[:-LAG] * dy[LAG:] - dy[:-LAG] * dx[LAG:]
    return torch.atan2(cross, dx[:-LAG] * dx[LAG:] + dy[:-LAG] * dy[LAG:])


def judge_videos(videos: Sequence[Tensor], scenes: Scenes) -> dict[str, float]:
    """How well videos, each [T, 3, H, W] in [-1, 1], show the scenes (one a video) they are meant to show.

    Shares of frames: `object` (there, its colour as captioned), `shape`, `background` (as captioned),
    `in_world`, and why not: `out_of_range`, `clipped`, `broken`, `lost`. Shares of clips: `motion` (as
    captioned, all along), `nearest_motion` (the captioned one is nearest; guessing scores 1/3), `still`.
    `speed_ratio` is the mean speed over that of the scenes themselves. `left` is the share of frames that are
    not in the world or in a still clip, `wandered` that of frames in it whose object or background is not the
    captioned one or whose background's hue is not the first second's. Means over videos. Raises ValueError
    for videos too short to show a motion.
    """
    if len(videos) != len(scenes):
        raise ValueError(f"{len(videos)} videos for {len(scenes)} scenes")
    rows = [_judge(video, scenes[i : i + 1]) for i, video in enumerate(videos)]
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    return {**means, "speed_ratio": means["speed"] / means["world_speed"]}


def _judge(video: Tensor, scene: Scenes) -> dict[str, float]:
    """One video's row of `judge_videos`."""
    if len(video) < SHORTEST_CLIP:
        raise ValueError(
            f"a video of {len(video)} frames is too short to judge: motion takes {SHORTEST_CLIP}"
        )
    seen = _read_blocks(video)
    clips = [clip for clip in torch.arange(len(video)).split(CLIP) if len(clip) >= SHORTEST_CLIP]
    motions = [classify_motion(seen.x[clip], seen.y[clip], seen.present[clip]) for clip in clips]
    nearest = [nearest_motion(seen.x[clip], seen.y[clip], seen.present[clip]) for clip in clips]
    speeds = [speed(seen.x[clip], seen.y[clip]) for clip in clips]
    still = torch.tensor(speeds) < STILL
    moving = torch.ones(len(video), dtype=torch.bool)
    for clip, stopped in zip(clips, still, strict=True):
        moving[clip] = ~stopped

    colored, shaped = seen.color == scene.color, seen.shape == scene.shape
    background = seen.background == scene.background
    opening = seen.background_chroma[:FPS].median(dim=0).values
    steady = (seen.background_chroma - opening).norm(dim=1) < CHROMA_MARGIN
    here = seen.in_world & moving
    x, y = scene.positions(torch.arange(len(video)))[0].unbind(-1)
    shares = {
        "object": colored,
        "shape": shaped,
        "background": background,
        "in_world": seen.in_world,
        "out_of_range": ~seen.in_range,
        "clipped": seen.clipped >= CLIPPED_MARGIN,
        "broken": seen.present & ~seen.intact,
        "lost": ~seen.present,
        "motion": torch.tensor(motions) == scene.motion,
        "nearest_motion": torch.tensor(nearest) == scene.motion,
        "still": still,
        "left": ~here,
        "wandered": here & ~(colored & shaped & background & steady),
    }
    means = {name: float(share.float().mean()) for name, share in shares.items()}
    return {**means, "speed": sum(speeds) / len(speeds), "world_speed": speed(x, y)}


def _read_blocks(video: Tensor) -> Reading:
    """`read_frames` on a video of any length, the answer on the CPU."""
    blocks = [read_frames(block) for block in video.split(BLOCK)]
    return Reading(
        *(torch.cat([getattr(block, field.name).cpu() for block in blocks]) for field in fields(Reading))
    )
