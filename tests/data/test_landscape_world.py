"""The landscape's law: the same from every start, stationary, endless, as captions and truth tell."""

from __future__ import annotations

from dataclasses import astuple, replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfpp_cli.data.landscape import Attributes, Scenes, draw_scenes, parse_caption
from sfpp_cli.data.landscape.captions import DIRECTIONS, PACES, VARIANTS, caption
from sfpp_cli.data.landscape.noise import UNIT, uniform, value_noise
from sfpp_cli.data.landscape.palette import BALLOONS, LANDS, LUMA_WEIGHTS, TIMES, palette
from sfpp_cli.data.landscape.terrain import RIDGES
from sfpp_cli.data.landscape.world import SIZE, SPEED

SMALL = (64, 112)
LATE = 100_000
"""A video frame more than 100 minutes on."""
ALL = [Attributes(*words) for words in product(TIMES, LANDS, BALLOONS, DIRECTIONS, PACES)]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw_scenes(7, range(4))


def luma(frames: Tensor) -> Tensor:
    return torch.einsum("...chw,c->...", frames, torch.tensor(LUMA_WEIGHTS)) / (
        frames.shape[-1] * frames.shape[-2]
    )


def test_frames_are_colours_of_the_asked_size(scenes: Scenes) -> None:
    frames = scenes[:2].render(0, 3)
    assert frames.shape == (2, 3, 3, *SIZE)
    assert frames.dtype == torch.float32
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert frames.flatten(1).std(1).min() > 0.1


@pytest.mark.parametrize("first", [30, LATE])
def test_what_a_frame_shows_does_not_depend_on_where_the_range_begins(scenes: Scenes, first: int) -> None:
    whole = scenes.render(first, 7, SMALL)
    torch.testing.assert_close(scenes.render(first + 4, 3, SMALL), whole[:, 4:], rtol=0, atol=1e-6)
    mask = scenes.balloon_mask(first, 7, SMALL)
    torch.testing.assert_close(scenes.balloon_mask(first + 4, 3, SMALL), mask[:, 4:], rtol=0, atol=1e-6)


def test_each_scene_may_begin_at_its_own_frame(scenes: Scenes) -> None:
    starts = torch.tensor([5, 900, 17, LATE])
    together = scenes.render(starts, 2, SMALL)
    for i, start in enumerate(starts.tolist()):
        torch.testing.assert_close(
            scenes[i : i + 1].render(start, 2, SMALL)[0], together[i], rtol=0, atol=1e-6
        )


def test_a_scene_is_the_same_in_every_batch_and_no_other() -> None:
    scenes = draw_scenes(3, [4, 9, 4])
    alone = draw_scenes(3, [9])
    for one, many in zip(astuple(alone), astuple(scenes), strict=True):
        assert torch.equal(one[0], many[1])
        assert torch.equal(many[0], many[2])
    assert len(set(draw_scenes(3, range(2000)).salt.tolist())) > 1990
    assert not torch.equal(draw_scenes(3, range(50)).sun, draw_scenes(4, range(50)).sun)
    assert len(draw_scenes(2**62, [2**40])) == 1


def test_all_words_are_equally_likely() -> None:
    scenes = draw_scenes(11, range(8000))
    for column, table in zip(astuple(scenes)[:5], (TIMES, LANDS, BALLOONS, DIRECTIONS, PACES), strict=True):
        share = 1 / len(table)
        counts = column.bincount(minlength=len(table)) / len(scenes)
        assert (counts - share).abs().max() < 4 * (share * (1 - share) / len(scenes)) ** 0.5


def test_plain_caption() -> None:
    scene = Attributes(time="sunset", land="spring", balloon="red", direction="left", pace="slowly")
    sentence = "a red hot-air balloon drifts over green hills at sunset, the camera pans slowly to the left"
    assert caption(scene) == sentence
    assert draw_scenes(0, [1]).showing([scene]).captions(variant=0) == [sentence]


def test_captions_are_read_back() -> None:
    sentences = {caption(scene, number % VARIANTS): scene for number, scene in enumerate(ALL)}
    assert len(sentences) == len(ALL)
    assert all(parse_caption(sentence) == scene for sentence, scene in sentences.items())
    forms = {caption(ALL[7], variant) for variant in range(VARIANTS)}
    assert len(forms) == VARIANTS
    assert all(parse_caption(sentence) == ALL[7] for sentence in forms)


def test_a_scene_names_itself(scenes: Scenes) -> None:
    assert [parse_caption(sentence) for sentence in scenes.captions()] == scenes.attributes()
    assert len({sentence.split()[0] for sentence in draw_scenes(0, range(40)).captions()}) > 3


@pytest.mark.parametrize(
    ("sentence", "what"),
    [
        ("a red balloon over sand dunes at noon, panning fast", "direction"),
        ("a pink balloon over sand dunes at noon, panning fast to the left", "balloon"),
        ("a red balloon over sand dunes at noon or at night, panning fast to the left", "time of day"),
    ],
)
def test_a_sentence_of_another_world_is_refused(sentence: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_caption(sentence)


def test_other_words_leave_the_terrain(scenes: Scenes) -> None:
    words = scenes.attributes()
    shown = scenes.showing([replace(scene, time="night", balloon="green") for scene in words])
    assert {scene.time for scene in shown.attributes()} == {"night"}
    assert torch.equal(shown.truth(9, 2).ridges, scenes.truth(9, 2).ridges)
    with pytest.raises(ValueError, match="3 sets of attributes for 4 scenes"):
        scenes.showing(words[:3])


def test_the_mask_holds_all_that_is_the_balloon(scenes: Scenes) -> None:
    recolored = replace(scenes, balloon=(scenes.balloon + 1) % len(BALLOONS))
    change = (scenes.render(40, 4, SMALL) - recolored.render(40, 4, SMALL)).abs().amax(2, keepdim=True)
    mask = scenes.balloon_mask(40, 4, SMALL)
    assert (change[mask == 0] == 0).all()
    assert change[mask > 0.99].gt(0.01).float().mean() > 0.6


@pytest.mark.parametrize("size", [SMALL, SIZE, (64, 64)])
def test_the_balloon_is_always_whole_and_in_the_picture(size: tuple[int, int]) -> None:
    height, width = size
    scenes = draw_scenes(5, range(6))
    box = scenes.truth(0, 500, size).box
    assert box[..., :2].min() >= height / 64
    assert (box[..., 2] <= width - height / 64).all()
    assert box[..., 3].max() <= 0.6 * height
    radius = (box[..., 2] - box[..., 0]) / 2 * 64 / height
    assert radius.min() >= 8
    assert radius.max() <= 9
    area = scenes[:4].balloon_mask(torch.tensor([0, 300, 900, LATE]), 4, size).sum((2, 3, 4))
    assert (area.std(1) / area.mean(1)).max() < 0.02


def test_the_mask_lies_in_the_box(scenes: Scenes) -> None:
    box = scenes.truth(100, 1).box[:, 0]
    mask = scenes.balloon_mask(100, 1)[:, 0, 0]
    for edges, picture in zip(box, mask, strict=True):
        rows, columns = (picture > 0.5).nonzero().T
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (seen - edges).abs().max() < 1.1


def test_the_terrain_moves_as_the_truth_tells() -> None:
    scenes = draw_scenes(0, range(8))
    truth = scenes.truth(500, 13, SMALL)
    assert torch.equal(truth.pan > 0, scenes.direction == DIRECTIONS.index("right"))
    assert torch.equal(truth.pan.abs(), torch.tensor([SPEED[PACES[pace]] for pace in scenes.pace.tolist()]))
    columns = torch.arange(40, 72)
    for k in range(4):
        moved = columns + 12 * truth.flow[:, k, None]
        left = moved.floor().long()
        line = truth.ridges[:, 12, k]
        there = torch.lerp(line.gather(1, left), line.gather(1, left + 1), moved - left)
        assert (there - truth.ridges[:, 0, k, 40:72]).abs().max() < 0.05


def test_the_terrain_never_comes_back() -> None:
    scene = draw_scenes(1, [0])
    step = int(112 / (SPEED["slowly"] * RIDGES[-1].parallax)) + 1
    starts = torch.arange(60) * step
    lines = torch.cat([scene.truth(int(start), 1, SMALL).ridges[0, :, 3] for start in starts])
    distance = torch.cdist(lines, lines) / 112**0.5 + 9 * torch.eye(60)
    assert distance.min() > 0.35


def test_minute_three_has_the_law_of_second_three() -> None:
    scenes = draw_scenes(2, range(64))
    early = luma(scenes.render(48, 1, (32, 56)))[:, 0]
    late = luma(scenes.render(2880, 1, (32, 56)))[:, 0]
    change = late - early
    assert change.mean().abs() < 4 * change.std() / 8
    assert change.abs().max() < 0.05


def test_hue_leaves_luma_alone() -> None:
    kinds = torch.arange(4)
    weights = torch.tensor(LUMA_WEIGHTS)
    plain = palette(kinds, kinds, kinds, torch.zeros(4))
    turned = palette(kinds, kinds, kinds, torch.full((4,), 0.07))
    assert not torch.equal(plain.top, turned.top)
    for before, after in zip(vars(plain).values(), vars(turned).values(), strict=True):
        torch.testing.assert_close(
            before[:, 0, :, 0, 0] @ weights, after[:, 0, :, 0, 0] @ weights, rtol=0, atol=2e-4
        )


def test_a_larger_picture_shows_the_same(scenes: Scenes) -> None:
    small = scenes[:2].render(12, 1, SMALL)[:, 0]
    large = F.interpolate(scenes[:2].render(12, 1, (128, 224))[:, 0], SMALL, mode="area")
    assert (small - large).abs().mean() < 0.006


def test_noise_is_exact_however_far_one_has_gone() -> None:
    salt = torch.tensor([5])
    places = torch.arange(0, 40 * UNIT, UNIT // 3)
    period = 2**32 * 21 * UNIT  # the hash's own, in cells of 21 reference pixels
    far = 10**9 * UNIT
    assert torch.equal(value_noise(places + period, 21.0, salt), value_noise(places, 21.0, salt))
    steps = value_noise(places + far, 21.0, salt).diff().abs()
    assert 0 < steps.max() < 2 / 21 / 3 * 1.1
    values = uniform(torch.arange(100_000), 3)
    assert abs(float(values.mean()) - 0.5) < 4 / (12 * 100_000) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack([values[1:], values[:-1]]))[0, 1])) < 4 / 100_000**0.5


def test_a_scene_is_drawn_on_its_own_device() -> None:
    """The meta device refuses any tensor of another, so it stands in for a GPU."""
    scenes = draw_scenes(0, range(3), device="meta")
    starts = torch.tensor([5, 6, 7])
    assert scenes.render(starts, 4).device.type == "meta"
    assert scenes.balloon_mask(starts, 4).device.type == "meta"
    assert scenes.truth(starts, 4).ridges.device.type == "meta"
