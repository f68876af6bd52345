"""Does the landscape's reader find the truth in frames, and notice when it is gone?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.data.landscape import Attributes, Scenes, draw_scenes
from sfpp_cli.data.landscape.features import FEATURES, measure_bands, world_bands
from sfpp_cli.data.landscape.reader import judge_video, judge_videos, read_video
from sfpp_cli.data.landscape.repeats import seen_before

SIZE = (64, 112)
FRAMES = 17
SCENES = [
    Attributes("dawn", "snow", "blue", "left", "slowly"),
    Attributes("noon", "spring", "red", "right", "fast"),
    Attributes("sunset", "autumn", "purple", "left", "fast"),
    Attributes("night", "desert", "green", "right", "slowly"),
]
Spoil = Callable[[Scenes, Tensor], Tensor]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """Their balloons keep to the left third, so that a mirrored one is another balloon."""
    drawn = draw_scenes(21, range(len(SCENES))).showing(SCENES)
    return replace(
        drawn, period=torch.full((4,), 480), phases=torch.tensor([0.72, 0.74, 0.1, 0.6]).expand(4, 4)
    )


@pytest.fixture(scope="module")
def frames(scenes: Scenes) -> Tensor:
    return scenes.render(0, FRAMES, SIZE)


def to_uint8(frames: Tensor) -> Tensor:
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1)


def mirrored(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """The same scenes with the balloon on the other side, and where it is."""
    other = replace(scenes, phases=scenes.phases + 0.5)
    return other.render(0, FRAMES, SIZE), (other.balloon_mask(0, FRAMES, SIZE) > 0).float()


def without_balloon(scenes: Scenes, frames: Tensor) -> Tensor:
    return torch.lerp(frames, mirrored(scenes)[0], (scenes.balloon_mask(0, FRAMES, SIZE) > 0).float())


def half_a_balloon(scenes: Scenes, frames: Tensor) -> Tensor:
    middle = scenes.truth(0, FRAMES, SIZE).centre[..., 0, None, None, None]
    return torch.where(torch.arange(SIZE[1]) > middle, without_balloon(scenes, frames), frames)


def no_basket(scenes: Scenes, frames: Tensor) -> Tensor:
    box = scenes.truth(0, FRAMES, SIZE).box[..., None, None, None]
    below = torch.arange(SIZE[0])[:, None] > torch.lerp(box[:, :, 1], box[:, :, 3], 0.78)
    return torch.where(below, without_balloon(scenes, frames), frames)


def smeared(scenes: Scenes, frames: Tensor) -> Tensor:
    return F.avg_pool2d(frames.flatten(0, 1), 5, 1, 2, count_include_pad=False).unflatten(0, frames.shape[:2])


def test_the_world_is_read_as_it_is(scenes: Scenes, frames: Tensor) -> None:
    truth = scenes.truth(0, FRAMES, SIZE)
    for i, video in enumerate(to_uint8(frames)):
        seen = read_video(video)
        assert seen.attributes() == SCENES[i]
        assert seen.in_world.all()
        assert (seen.balloon.color == scenes.balloon[i]).all()
        assert (seen.balloon.x - truth.centre[i, :, 0]).abs().max() < 0.4
        assert (seen.balloon.y - truth.box[i, :, 1] - scenes.radius[i]).abs().max() < 0.4
        assert (seen.speed - truth.pan[i]).abs().max() < 0.03


def test_fresh_scenes_of_another_size_are_read() -> None:
    scenes = draw_scenes(22, range(12))
    videos = to_uint8(scenes.render(torch.arange(12) * 1000, 10, (96, 160)))
    truth = scenes.truth(torch.arange(12) * 1000, 10, (96, 160))
    readings = [read_video(video) for video in videos]
    assert [seen.attributes() for seen in readings] == scenes.attributes()
    assert torch.stack([seen.in_world for seen in readings]).float().mean() > 0.97
    speed = torch.stack([seen.speed.median() for seen in readings])
    assert (speed / truth.pan - 1).abs().max() < 0.05
    judged = judge_videos(list(videos), scenes.attributes())
    assert judged["palette"] > 0.97
    assert judged["wandered"] < 0.03
    assert abs(judged["luma_shift"]) < 0.01


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda scenes, frames: frames * 0.85, "luma_out"),
        (lambda scenes, frames: frames * 0.85, "out_of_range"),
        (lambda scenes, frames: frames * 0.8 + 0.2, "luma_out"),
        (lambda scenes, frames: frames**1.4, "out_of_range"),
        (lambda scenes, frames: torch.lerp(frames.mean(2, keepdim=True), frames, 0.6), "contrast_out"),
        (
            lambda scenes, frames: torch.lerp(frames.mean((2, 3, 4), keepdim=True), frames, 0.65),
            "contrast_out",
        ),
        (lambda scenes, frames: frames * torch.tensor([1.15, 1.0, 0.85])[:, None, None], "hue_out"),
        (lambda scenes, frames: frames[:, :1].expand_as(frames), "stopped"),
        (without_balloon, "lost"),
        (lambda scenes, frames: torch.lerp(frames, *mirrored(scenes)), "doubled"),
        (smeared, "ridge_missing"),
    ],
    ids=[
        "dark",
        "dark-anywhere",
        "whitened",
        "gamma",
        "greyed",
        "flat",
        "tinted",
        "frozen",
        "no-balloon",
        "doubled",
        "smeared",
    ],
)
def test_a_fault_is_told_and_leaves_the_world(
    scenes: Scenes, frames: Tensor, spoil: Spoil, fault: str
) -> None:
    for video, words in zip(to_uint8(spoil(scenes, frames)), SCENES, strict=True):
        judged = judge_video(video, words)
        assert judged[fault] == 1
        assert judged["left"] == 1
        assert judged["wandered"] == 0


@pytest.mark.parametrize("spoil", [half_a_balloon, no_basket])
def test_a_broken_balloon_is_none(scenes: Scenes, frames: Tensor, spoil: Spoil) -> None:
    for video, words in zip(to_uint8(spoil(scenes, frames)), SCENES, strict=True):
        judged = judge_video(video, words)
        assert judged["lost"] + judged["broken"] > 0.9
        assert judged["balloon"] < 0.1
        assert judged["out_of_range"] == 0


def test_a_darkened_balloon_is_still_one(scenes: Scenes, frames: Tensor) -> None:
    judged = judge_videos(list(to_uint8(frames * 0.6)), SCENES)
    assert judged["balloon"] == 1
    assert judged["direction"] == 1
    assert -0.25 < judged["luma_shift"] < -0.1


@pytest.mark.parametrize(
    "change",
    [{"time": "noon"}, {"land": "spring"}, {"balloon": "yellow"}, {"direction": "left"}, {"pace": "slowly"}],
    ids=lambda change: next(iter(change)),
)
def test_another_scene_of_the_world_has_wandered(change: dict[str, str]) -> None:
    words = Attributes("sunset", "desert", "red", "right", "fast")
    video = to_uint8(draw_scenes(23, [0]).showing([replace(words, **change)]).render(0, FRAMES, SIZE)[0])
    judged = judge_video(video, words)
    assert judged["left"] == 0
    assert judged["wandered"] == 1
    assert judged["balloon"] == (0 if "balloon" in change else 1)


def test_numbers_are_read_as_well_from_numpy(frames: Tensor) -> None:
    video = to_uint8(frames[1])
    assert judge_video(video.numpy(), SCENES[1]) == judge_video(video, SCENES[1])


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(20, 64, 112, 3), "uint8"),
        (torch.zeros(20, 3, 64, 112, dtype=torch.uint8), "uint8"),
        (torch.zeros(4, 64, 112, 3, dtype=torch.uint8), "4 video frames are too few"),
    ],
)
def test_what_is_no_video_is_refused(video: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_video(video)


def test_the_table_of_bands_is_this_worlds() -> None:
    """Whoever changes the picture measures the bands anew: examples/landscape/measure_bands.py."""
    table = world_bands()
    fresh = measure_bands(seed=99, scenes=8, width=107)
    assert table.low.shape == (16, len(FEATURES))
    assert ((fresh.middle - table.middle).abs() < 5 * table.spread / 8**0.5 + 1e-4).all()
    assert (fresh.crests / table.crests - 1).abs().max() < 0.2


def test_terrain_that_comes_back_is_told_and_the_worlds_never_does(scenes: Scenes) -> None:
    fast, period, count = scenes[1:2], 160, 400
    frames = fast.render(0, count, SIZE)[0]
    speed = fast.camera_speed().expand(count)
    assert not seen_before(frames, speed).any()
    looped = seen_before(frames[torch.arange(count) % period], speed)
    assert not looped[:period].any()
    assert looped[period + 8 :].all()
    assert not seen_before(frames[:1].expand(count, -1, -1, -1), torch.zeros(count)).any(), "it stands still"


@pytest.mark.parametrize(
    ("factor", "told"), [(0.6, ("under",)), (1.3, ("over",)), (1.0, ())], ids=["dark", "light", "right"]
)
def test_the_sign_of_a_fault_of_light_is_told(
    factor: float, told: tuple[str, ...], scenes: Scenes, frames: Tensor
) -> None:
    judged = judge_video(to_uint8(frames[1] * factor), SCENES[1])
    assert {name: judged[name] for name in ("over", "under")} == {
        name: float(name in told) for name in ("over", "under")
    }


def test_grey_and_vivid_are_told_apart(frames: Tensor) -> None:
    grey = frames[1].mean(1, keepdim=True)
    dull = judge_video(to_uint8(torch.lerp(grey, frames[1], 0.5)), SCENES[1])
    loud = judge_video(to_uint8(torch.lerp(grey, frames[1], 1.5)), SCENES[1])
    assert (dull["grey"], dull["vivid"], loud["grey"], loud["vivid"]) == (1, 0, 0, 1)
