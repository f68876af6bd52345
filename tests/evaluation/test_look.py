"""Colour, detail, noise and subject: each changes in a way that is known, and the number follows."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from sfpp_cli.evaluation.metrics.borders import Changes
from sfpp_cli.evaluation.metrics.evidence import Evidence, Finding, Seen
from sfpp_cli.evaluation.metrics.exposure import luma_of
from sfpp_cli.evaluation.metrics.grey import grey_shift
from sfpp_cli.evaluation.metrics.look import LookMeter
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.repetition import SIDE, miniature, similarity_by_distance
from sfpp_cli.evaluation.metrics.subject import subject
from sfpp_cli.video import Frames

SIZE = (160, 96)
STILL = np.zeros((SIZE[1], SIZE[0], 2), np.float32)


def patches(seed: int = 0) -> Frames:
    """Soft patches of many colours with fine grain over them, uint8 [H, W, 3]."""
    noise = np.random.default_rng(seed).standard_normal((SIZE[1], SIZE[0], 3))
    broad = cv2.GaussianBlur(noise, (0, 0), 8)
    fine = cv2.GaussianBlur(noise, (0, 0), 0.8)
    picture = 120 + 30 * broad / broad.std() + 6 * fine / fine.std()
    return np.clip(picture, 0, 255).astype(np.uint8)


def in_lab(frame: Frames, gain: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Frames:
    """The picture with its CIELAB chroma multiplied, and its neutral grey shifted."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lab[..., 1:] = lab[..., 1:] * gain + np.array(shift, np.float32)
    rgb = cv2.cvtColor(lab, cv2.COLOR_Lab2RGB)
    return np.clip(np.rint(rgb * 255), 0, 255).astype(np.uint8)


def last_of(*frames: Frames, flow: np.ndarray = STILL) -> dict[str, float]:
    """The last value of each curve."""
    meter = LookMeter(SIZE)
    for index, frame in enumerate(frames):
        meter.update(frame, luma_of(frame), flow if index else None)
    return {name: float(curve[-1]) for name, curve in meter.curves().items()}


def test_chroma_that_grows_on_what_stays_is_a_gain_and_no_cast() -> None:
    found = last_of(patches(), in_lab(patches(), gain=1.05))
    assert found["gain_step"] == pytest.approx(np.log(1.05), abs=0.01)
    assert np.hypot(found["cast_a_step"], found["cast_b_step"]) < 0.3
    assert abs(found["light_step"]) < 0.3


def test_grey_that_shifts_is_a_cast() -> None:
    found = last_of(patches(), in_lab(patches(), shift=(0.0, 2.0)))
    assert found["cast_b_step"] == pytest.approx(2, abs=0.3)
    assert abs(found["cast_a_step"]) < 0.3


def test_what_moves_along_the_flow_has_not_changed_and_a_cut_matches_nothing() -> None:
    moved = np.roll(patches(), 6, axis=1)
    flow = STILL + np.array([6, 0], np.float32)
    found = last_of(patches(), moved, flow=flow)
    assert found["unmatched"] < 0.15
    assert abs(found["gain_step"]) < 0.01
    assert last_of(patches(), patches(1))["unmatched"] > 0.8


def test_detail_falls_with_blur_and_noise_is_measured_in_levels() -> None:
    sharp = last_of(patches())
    assert last_of(cv2.GaussianBlur(patches(), (0, 0), 2.0))["detail"] < 0.7 * sharp["detail"]
    generator = np.random.default_rng(3)
    flat = np.full((SIZE[1], SIZE[0], 1), 128.0)
    noisy = [
        np.repeat(np.rint(flat + 10 * generator.standard_normal(flat.shape)), 3, axis=2) for _ in range(2)
    ]
    found = last_of(*(np.clip(frame, 0, 255).astype(np.uint8) for frame in noisy))
    assert found["noise"] == pytest.approx(10, rel=0.3)  # by chance less in the calmest tenth of small blocks


def spread(frame: Frames) -> float:
    """How far the colours of a picture are apart."""
    seen = Seen({"luma": np.zeros(1)}, miniature(frame)[None], np.zeros((1, 2)), SIZE, 16)
    nothing = Changes(np.zeros(1), np.zeros(1, np.bool_), [])
    return float(Evidence(seen, nothing, None, Parameters()).colour_spread[0])


@pytest.mark.parametrize("gains", [(1.22, 0.96, 0.75), (0.75, 0.96, 1.22)])
def test_saturation_pulls_colours_apart_and_a_cast_does_not(gains: tuple[float, ...]) -> None:
    usual = spread(patches())
    assert spread(in_lab(patches(), gain=1.5)) == pytest.approx(1.5 * usual, rel=0.06)  # some are clipped
    assert spread(in_lab(patches(), gain=0.5)) == pytest.approx(0.5 * usual, rel=0.01)
    turned = np.clip(np.rint(patches() * np.array(gains)), 0, 255).astype(np.uint8)
    assert abs(np.log2(spread(turned) / usual)) < 0.1


# --- the subject ----------------------------------------------------------------------------------------


def evidence(places: list[tuple[int, int] | None], levels: Sequence[int] = (110,)) -> Evidence:
    """Pictures of these grey levels, stretched over the video, with a red block of 4 x 4 cells at (row,
    column), or without one."""
    count = len(places)
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    pictures[:] = np.repeat(levels, count // len(levels))[:, None, None, None]
    for picture, place in zip(pictures, places, strict=True):
        if place is not None:
            picture[max(0, place[0]) : place[0] + 4, max(0, place[1]) : place[1] + 4] = (220, 30, 30)
    curves = {"luma": np.full(count, 0.4), "unmatched": np.zeros(count), "light_step": np.zeros(count)}
    seen = Seen(curves, pictures.reshape(count, -1), np.zeros((count, 2)), (64, 64), 16)
    return Evidence.of(seen, Parameters())


def test_a_subject_that_vanishes_is_lost_and_one_that_leaves_is_not() -> None:
    still: list[tuple[int, int] | None] = [(6, 6)] * 100
    calm = np.zeros(160)
    look = {"colour_cast": Finding(calm, None, "", {})}
    lost = subject(evidence([*still, *[None] * 60]), look)
    assert lost.onset == pytest.approx(100, abs=9)
    assert lost.numbers["measure"] == 0
    walking: list[tuple[int, int] | None] = [(6, 6 + step // 2) for step in range(30)]
    assert subject(evidence([*still, *walking, *[None] * 30]), look).onset is None
    assert subject(evidence([(6, 6)] * 160), look).onset is None
    assert subject(evidence([None] * 160), look).numbers["measure"] is None
    assert subject(evidence([*still[:70], *[None] * 50, *still[:40]]), look).onset is None  # was hidden


def test_a_subject_that_is_covered_or_whose_colour_spreads_is_not_lost() -> None:
    look = {"colour_cast": Finding(np.zeros(160), None, "", {})}
    for rows, columns, color in (
        (slice(4, 12), slice(4, 12), (240, 240, 240)),  # something larger comes before it
        (slice(6, 10), slice(0, 16), (220, 30, 30)),  # its colour reaches the rim
    ):
        scene = evidence([*[(6, 6)] * 100, *[None] * 60])
        scene.seen.miniatures.reshape(160, SIDE, SIDE, 3)[100:, rows, columns] = color
        assert subject(scene, look).onset is None


@pytest.mark.parametrize(("shade", "lost"), [((110, 15, 15), True), ((30, 60, 200), False)])
def test_a_thing_in_light_and_shade_is_one_subject_by_its_hue(
    shade: tuple[int, int, int], lost: bool
) -> None:
    """Beside something white that stays; each shade is there for half of the time."""
    look = {"colour_cast": Finding(np.zeros(160), None, "", {})}
    scene = evidence([*[(3, 3)] * 100, *[None] * 60])
    pictures = scene.seen.miniatures.reshape(160, SIDE, SIDE, 3)
    pictures[:, 9:13, 9:13] = 240
    pictures[:100][np.arange(100) // 8 % 2 == 1, 3:7, 3:7] = shade
    onset = subject(scene, look).onset
    assert onset == (pytest.approx(100, abs=9) if lost else None)


def test_a_subject_may_be_lost_before_a_camera_that_moves_on_but_not_in_a_turn() -> None:
    look = {"colour_cast": Finding(np.zeros(160), None, "", {})}
    lost: list[tuple[int, int] | None] = [*[(6, 6)] * 100, *[None] * 60]
    slow = subject(evidence(lost, levels=range(60, 140)), look)
    assert slow.onset == pytest.approx(100, abs=9)
    assert slow.numbers["measure"] == 0
    turned = [60] * 10 + [140] * 6
    assert subject(evidence(lost, levels=turned), look).onset is None


def test_a_held_scene_is_alike_at_every_distance_and_another_one_is_not() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 256, (2, 768), dtype=np.uint8)
    held = similarity_by_distance(np.repeat(one[None], 60, axis=0), 10)
    assert held["values"] == pytest.approx([1] * len(held["values"]))
    assert held["seconds"][-1] == 4.0
    cut = similarity_by_distance(np.stack([one] * 30 + [other] * 30), 10)["values"]
    assert cut[0] > 0.9
    assert cut[-1] < 0.2


def test_grey_tells_a_cast_from_saturation_even_where_strong_colours_are_cut_off() -> None:
    generator = np.random.default_rng(0)
    first = generator.normal((55.0, 4.0, 10.0), (12.0, 8.0, 8.0), (60, 3))
    strong = np.hypot(*first.T[1:]) > 15
    tint = np.array([6.0, 9.0])
    light = (first[:, :1] + 16) / 66
    saturated = first.copy()
    saturated[~strong, 1:] *= 1.6
    tinted = first.copy()
    tinted[:, 1:] += tint * light
    both = saturated.copy()
    both[:, 1:] += tint * light
    moved = tinted.copy()
    moved[:12] = (50, -20, -30)  # something blue has come
    shifts, weights = grey_shift(np.stack([first, saturated, tinted, both, moved]).astype(np.float32), first)
    at_mid_light = shifts * (weights / light[:, 0]).mean()
    np.testing.assert_allclose(at_mid_light[0], 0, atol=1e-3)
    np.testing.assert_allclose(at_mid_light[2], tint, rtol=0.02)
    assert np.hypot(*at_mid_light[1]) < 2
    for shift in at_mid_light[3:]:
        assert np.linalg.norm(shift - tint) < 2
