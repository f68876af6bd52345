"""The toy world's law, and whether its reader finds the truth in frames and notices when it is gone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.data.toyworld.reader import (
    UNIT_AREAS,
    classify_motion,
    judge_videos,
    nearest_motion,
    read_frames,
    speed,
)
from sfpp_cli.data.toyworld.world import (
    BACKGROUND_LUMA,
    BACKGROUNDS,
    LUMA_WEIGHTS,
    MOTIONS,
    OBJECT_COLORS,
    RADIUS,
    SHAPES,
    SPEED,
    SYNONYMS,
    TINT_DEGREES,
    Scenes,
    ToyWorld,
    pixel_grid,
)

Degrade = Callable[[Tensor], Tensor]
LATE = 100_000
"""A video frame more than 100 minutes on."""


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return ToyWorld(seed=7).scenes(range(12))


@pytest.fixture(scope="module")
def videos(scenes: Scenes) -> Tensor:
    return scenes.frames(0, 48)


@pytest.fixture(scope="module")
def many() -> Scenes:
    return ToyWorld(seed=8).scenes(range(300))


def everything_present(track: Tensor) -> Tensor:
    return torch.ones(len(track), dtype=torch.bool)


def as_a_vae_would(frames: Tensor) -> Tensor:
    """Blurred a little, with noise: about 28 dB."""
    tap = torch.tensor([0.25, 0.5, 0.25])
    kernel = (tap[:, None] * tap).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return blurred + 0.06 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))


# --- the world ----------------------------------------------------------------------------------------------


def test_a_scene_is_the_same_alone_in_a_batch_and_in_another_order() -> None:
    world = ToyWorld(seed=3)
    batch = world.scenes([4, 9, 2]).frames(30, 2)
    assert torch.equal(world.scenes([9]).frames(30, 2)[0], batch[1])
    assert torch.equal(world.scenes([2, 4, 9]).frames(30, 2), batch[[2, 0, 1]])
    assert not torch.equal(ToyWorld(seed=4).scenes([9]).frames(30, 2)[0], batch[1])


@pytest.mark.parametrize("variant", [0, 1, 17, 142])
def test_captions_parse_back(many: Scenes, variant: int) -> None:
    def find(names: list[str], words: list[str]) -> int:
        (found,) = (
            i
            for i, name in enumerate(names)
            if {w.split()[0] for w in SYNONYMS.get(name, (name,))} & set(words)
        )
        return found

    for i, caption in enumerate(many[:60].captions([variant] * 60)):
        words = caption.split()
        assert find(list(OBJECT_COLORS), words) == many.color[i]
        assert find(list(SHAPES), words) == many.shape[i]
        assert find(list(MOTIONS), words) == many.motion[i]
        assert find(list(BACKGROUNDS), words) == many.background[i]


def test_motion_is_stationary_and_continuous(many: Scenes) -> None:
    early, late = (many.positions(torch.arange(start, start + 400)) for start in (0, LATE))
    low, high = many.radius + 0.03 - 1e-4, 0.97 - many.radius + 1e-4
    for track in (early, late):
        inside = (track >= low[:, None, None]) & (track <= high[:, None, None])
        assert inside.all()
        steps = (track[:, 1:] - track[:, :-1]).norm(dim=2)
        assert (steps <= many.speed[:, None] * 1.05).all()
    for motion in range(len(MOTIONS)):
        first, last = early[many.motion == motion], late[many.motion == motion]
        assert (first.mean((0, 1)) - last.mean((0, 1))).abs().max() < 0.03
        assert (first.std((0, 1)) - last.std((0, 1))).abs().max() < 0.02


def test_frames_are_slices_of_one_video(scenes: Scenes, videos: Tensor) -> None:
    assert torch.equal(scenes.frames(9, 12), videos[:, 9:21])
    assert torch.equal(scenes[3:5].frames(9, 1), videos[3:5, 9:10])
    assert videos.shape == (12, 48, 3, 64, 64)
    assert videos.min() >= -1
    assert videos.max() <= 1


def test_background_has_the_worlds_luma(scenes: Scenes, videos: Tensor) -> None:
    luma = torch.tensor(LUMA_WEIGHTS)
    assert torch.allclose(scenes.background_colors() @ luma, torch.tensor(BACKGROUND_LUMA), atol=1e-5)
    positions = scenes.positions(torch.arange(48))
    away = (positions - 0.5).norm(dim=2) > 1.4 * RADIUS[
        1
    ] + 0.1  # the frame's centre is clear of object and shadow
    centre = (videos[:, :, :, 31:33, 31:33].mean((3, 4)) + 1) / 2
    assert away.any()
    assert torch.allclose(centre[away] @ luma, torch.tensor(BACKGROUND_LUMA), atol=2e-3)


# --- reading frames -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrade", "error"), [(lambda frames: frames, 0.005), (as_a_vae_would, 0.008)], ids=["clean", "noisy"]
)
def test_the_reader_finds_the_truth(scenes: Scenes, videos: Tensor, degrade: Degrade, error: float) -> None:
    for i in range(len(scenes)):
        seen = read_frames(degrade(videos[i]))
        assert seen.present.all()
        assert seen.in_world.all()
        assert (seen.color == scenes.color[i]).all()
        assert (seen.shape == scenes.shape[i]).float().mean() > 0.97
        assert (seen.background == scenes.background[i]).all()
        assert torch.allclose(seen.background_luma, torch.tensor(BACKGROUND_LUMA), atol=0.005)
        x, y = scenes.positions(torch.arange(48))[i].unbind(-1)
        assert torch.hypot(seen.x - x, seen.y - y).mean() < error
        assert (seen.area / (UNIT_AREAS[scenes.shape[i]] * scenes.radius[i] ** 2)).median() == pytest.approx(
            1, abs=0.12
        )
        assert classify_motion(seen.x, seen.y, seen.present) == scenes.motion[i]
        assert speed(seen.x, seen.y) == pytest.approx(speed(x, y), rel=0.03)


def test_the_reader_reads_other_sizes(scenes: Scenes) -> None:
    seen = read_frames(scenes.frames(5, 1, size=(48, 96))[:, 0])
    x, y = scenes.positions(torch.tensor([5]))[:, 0].unbind(-1)
    visible = (y - 0.5).abs() < 0.25 - scenes.radius
    assert visible.any()
    assert torch.hypot(seen.x - x, seen.y - y)[visible].max() < 0.01
    assert torch.equal(seen.shape[visible], scenes.shape[visible])


def pure_background(scenes: Scenes) -> Tensor:
    """The first frames without object and shadow: an object of negative size covers nothing."""
    return replace(scenes, radius=-torch.ones(len(scenes))).frames(0, 1)[:, 0]


def test_no_object_is_seen_in_a_pure_background(many: Scenes) -> None:
    empty = pure_background(many[:60])
    for frames in (empty, as_a_vae_would(empty)):
        seen = read_frames(frames)
        assert not seen.present.any()
        assert seen.in_range.all()
        assert not seen.in_world.any()
        assert (seen.color == -1).all()
        assert seen.x.isnan().all()
        assert classify_motion(seen.x, seen.y, seen.present) == -1
        assert speed(seen.x, seen.y) == 0


def noise(like: Tensor) -> Tensor:
    return torch.randn(like[:, :1].shape, generator=torch.Generator().manual_seed(1)).mul(0.5).expand_as(like)


@pytest.mark.parametrize(
    "leave",
    [
        lambda frames: 0.7 * frames + 0.3,
        lambda frames: torch.ones_like(frames),
        lambda frames: (frames + 1) / 2 - 1,
        lambda frames: -torch.ones_like(frames),
        lambda frames: frames.mean(1, keepdim=True).expand_as(frames) * 0.9 + 0.3,
        lambda frames: frames.roll(1, dims=1),
        noise,
    ],
    ids=["towards white", "white", "half as bright", "black", "grey and bright", "wrong hue", "noise"],
)
def test_degraded_frames_are_out_of_the_world(videos: Tensor, leave: Degrade) -> None:
    assert read_frames(videos[:, 0]).in_world.all()
    seen = read_frames(leave(videos[:, 0]))
    assert not seen.in_range.any()
    assert not seen.in_world.any()


def test_a_broken_object_is_out_of_the_world(scenes: Scenes, videos: Tensor) -> None:
    frames, empty = videos[:, 0], pure_background(scenes)
    twins = torch.where(scenes.neighbourhood(0, 1).roll(30, 3), frames.roll(30, 3), frames)
    x = scenes.positions(torch.arange(1))[:, 0, 0, None, None, None]
    halved = torch.where(pixel_grid((64, 64))[1] > x, empty, frames)
    magenta = torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    body = (frames - empty).abs().amax(1, keepdim=True) > 0.35
    for broken in (twins, halved, torch.where(body, magenta, frames)):
        assert not read_frames(broken).intact.any()


def test_noise_has_no_object_and_clipping_is_counted(videos: Tensor) -> None:
    frames = videos[:, 0]
    assert not read_frames(noise(frames)).present.any()
    seen = read_frames(frames)
    assert (seen.clipped < 0.05).all()
    assert not replace(seen, clipped=torch.full((12,), 0.2)).in_world.any()
    half = torch.cat([frames[..., :32, :], torch.ones(12, 3, 32, 64)], dim=2)
    assert (read_frames(half).clipped >= 0.5).all()


# --- motion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [40, 81])
def test_the_worlds_motions_are_told_apart(many: Scenes, count: int) -> None:
    tracks = many.positions(torch.arange(LATE, LATE + count))
    tracks = tracks + 0.003 * torch.randn(tracks.shape, generator=torch.Generator().manual_seed(0))
    found = torch.tensor(
        [classify_motion(track[:, 0], track[:, 1], everything_present(track)) for track in tracks]
    )
    assert (found == many.motion).float().mean() > 0.98


@pytest.mark.parametrize(("count", "share"), [(40, 0.8), (81, 0.9)])
def test_the_nearest_motion_forgives_a_jump_and_a_wobble(many: Scenes, count: int, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    tracks = many.positions(torch.arange(LATE, LATE + count))
    plain = [nearest_motion(track[:, 0], track[:, 1], everything_present(track)) for track in tracks]
    assert (torch.tensor(plain) == many.motion).float().mean() > 0.98
    spoilt = tracks + 0.004 * torch.randn(tracks.shape, generator=generator)
    jump = torch.arange(count // 2, count // 2 + 4)
    spoilt[:, jump] += 0.2
    found = torch.tensor(
        [nearest_motion(track[:, 0], track[:, 1], everything_present(track)) for track in spoilt]
    )
    strict = torch.tensor(
        [classify_motion(track[:, 0], track[:, 1], everything_present(track)) for track in spoilt]
    )
    assert (found == many.motion).float().mean() > share
    assert (strict == many.motion).float().mean() < 0.5
    assert nearest_motion(*tracks[0].unbind(-1), torch.zeros(count, dtype=torch.bool)) == -1


T = torch.arange(60) * 0.016
OTHER_TRACKS = {
    "still": (0.4 + 0 * T, 0.6 + 0 * T),
    "creeping": (0.4 + 0.1 * T, 0.6 + 0.05 * T),
    "trembling": (0.4 + 0.002 * torch.cos(200 * T), 0.6 + 0.002 * torch.sin(170 * T)),
    "upright": (0.4 + 0 * T, 0.2 + 0.5 * T),
    "round another centre": (0.3 + 0.12 * torch.cos(T / 0.12), 0.7 + 0.12 * torch.sin(T / 0.12)),
    "to and fro on the orbit": (
        0.5 + 0.25 * torch.cos(torch.sin(T * 6)),
        0.5 + 0.25 * torch.sin(torch.sin(T * 6)),
    ),
}


@pytest.mark.parametrize("track", OTHER_TRACKS.values(), ids=OTHER_TRACKS)
def test_other_motions_are_none_of_the_worlds(track: tuple[Tensor, Tensor]) -> None:
    x, y = track
    assert classify_motion(x, y, everything_present(x)) == -1


def test_a_track_may_have_gaps_but_not_many() -> None:
    x, y = 0.2 + 0.6 * T, 0.3 + 0.4 * T
    present = everything_present(x)
    present[[7, 8, 30]] = False
    x, y = x.where(present, math.nan), y.where(present, math.nan)
    assert MOTIONS[classify_motion(x, y, present)] == "bouncing"
    assert speed(x, y) == pytest.approx(0.016 * math.hypot(0.6, 0.4), rel=0.01)
    present[10:25] = False
    assert classify_motion(x, y, present) == -1


# --- judging videos -----------------------------------------------------------------------------------------


def test_the_worlds_own_videos_pass(scenes: Scenes, videos: Tensor) -> None:
    report = judge_videos(list(videos), scenes)
    for name in ("object", "shape", "background", "in_world", "motion", "nearest_motion"):
        assert report[name] > 0.99, name
    for name in ("out_of_range", "clipped", "broken", "lost", "still", "left", "wandered"):
        assert report[name] == 0, name
    assert report["speed_ratio"] == pytest.approx(1, abs=0.02)
    assert 0.5 * SPEED[0] < report["speed"] < SPEED[1]


def test_swapped_captions_fail_without_leaving_the_world(scenes: Scenes, videos: Tensor) -> None:
    report = judge_videos(list(videos.roll(1, dims=0)), scenes)
    assert report["object"] < 0.4
    assert report["motion"] < 0.7
    assert report["left"] == 0
    assert report["wandered"] > 0.8


def test_leaving_is_told_from_wandering(scenes: Scenes, videos: Tensor, many: Scenes) -> None:
    scene, video = scenes[:1], videos[0]
    frozen = judge_videos([video[:1].expand_as(video)], scene)
    assert (frozen["still"], frozen["left"], frozen["in_world"], frozen["motion"]) == (1, 1, 1, 0)

    fading = judge_videos([video + torch.linspace(0, 1, 48)[:, None, None, None]], scene)
    assert fading["left"] == fading["out_of_range"] > 0.5

    others = videos[(scenes.background != scene.background).nonzero()[0, 0]]
    changed = judge_videos([torch.cat([video[:24], others[24:]])], scene)
    assert changed["left"] == 0
    assert changed["wandered"] == 0.5

    blue = many[(many.background == 0).nonzero()[0, 0] :][:1]
    tints = [
        replace(blue, tint=torch.tensor([tint])).frames(0, 48)[0] for tint in (-TINT_DEGREES, TINT_DEGREES)
    ]
    drifted = judge_videos([torch.cat([tints[0][:24], tints[1][24:]])], blue)
    assert drifted["left"] == 0
    assert drifted["background"] == 1
    assert drifted["wandered"] == 0.5


def test_what_cannot_be_judged_is_refused(scenes: Scenes, videos: Tensor) -> None:
    with pytest.raises(ValueError, match="11 videos for 12 scenes"):
        judge_videos(list(videos[:11]), scenes)
    with pytest.raises(ValueError, match="too short"):
        judge_videos([videos[0, :20]], scenes[:1])
