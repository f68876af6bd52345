"""The definitions, against small cases worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.metrics.borders import (
    Changes,
    Jump,
    border_frames,
    border_ratio,
    find_changes,
    find_cuts,
)
from sfpp_cli.evaluation.metrics.evidence import Evidence, Finding, Seen, drift
from sfpp_cli.evaluation.metrics.exposure import exposure, luma_of
from sfpp_cli.evaluation.metrics.measure import measure
from sfpp_cli.evaluation.metrics.motion import (
    Curve,
    FlowMeter,
    clip_ranges,
    is_dynamic,
    spikes,
    stride,
    windowed_variance,
    working_size,
)
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.repetition import (
    NoRepeatMeter,
    best_offset,
    distance,
    norepeat_threshold,
    norepeat_window,
    rms,
    self_similarity,
)
from sfpp_cli.evaluation.metrics.results import shorten
from sfpp_cli.evaluation.metrics.stability import drift_to_white_and_black, reference_frames
from sfpp_cli.evaluation.metrics.verdicts import NAMES, find, local_stability, verdicts
from sfpp_cli.video import Frames
from sfpp_cli.video.writer import VideoWriter

# --- exposure -------------------------------------------------------------------------------------------


def test_exposure_of_a_picture_that_is_half_black_and_half_white() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:, 4:] = 255
    found = exposure(frame, luma_of(frame))
    assert found["luma"] == found["clipped"] == found["crushed"] == 0.5
    assert found["contrast"] == pytest.approx(0.5)
    assert found["saturation"] == 0


def test_luma_is_rec_709_and_saturation_that_of_the_purest_channel() -> None:
    frame = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    found = exposure(frame, luma_of(frame))
    assert found["luma"] == pytest.approx((0.2126 * 200 + 0.7152 * 100 + 0.0722 * 50) / 255, abs=0.5 / 255)
    assert found["saturation"] == pytest.approx(150 / 200, abs=1 / 255)
    assert found["sharpness"] == found["contrast"] == 0


@pytest.mark.parametrize(("level", "clipped", "crushed"), [(250, 1, 0), (249, 0, 0), (5, 0, 1), (6, 0, 0)])
def test_clipped_and_crushed_begin_where_they_are_said_to(level: int, clipped: float, crushed: float) -> None:
    frame = np.full((4, 4, 3), level, np.uint8)  # 0.98 * 255 = 249.9 and 0.02 * 255 = 5.1
    found = exposure(frame, luma_of(frame))
    assert (found["clipped"], found["crushed"]) == (clipped, crushed)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    luma = np.zeros((9, 9), np.uint8)
    luma[4, 4] = 10  # the Laplacian is -40 there and 10 at its four neighbours
    found = exposure(np.repeat(luma[..., None], 3, 2), luma)
    assert found["sharpness"] == pytest.approx((40**2 + 4 * 10**2) / 81)


# --- motion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "fps", "ranges"),
    [
        (81, 16, [(0, 32), (32, 64), (49, 81)]),
        (64, 16, [(0, 32), (32, 64)]),
        (20, 16, [(0, 20)]),
        (32, 16, [(0, 32)]),
        (33, 16, [(0, 32), (1, 33)]),
        (100, 24.97, [(0, 48), (48, 96), (52, 100)]),
    ],
)
def test_clips_are_those_of_vbench_long(frames: int, fps: float, ranges: list[tuple[int, int]]) -> None:
    assert clip_ranges(frames, fps) == ranges


def test_every_clip_is_looked_at_on_its_own_grid() -> None:
    meter = FlowMeter((64, 48), 16, 256, 2)
    for frame in drifting(81, 3):
        meter.update(frame)
    assert [len(top) for top in meter._clips[:2]] == [15, 15]
    assert len(meter._last_clip()) == 15
    assert len(meter._grid) == 40
    assert meter.dynamic()
    assert meter.dynamic_clips() == [True, True, True]


def test_the_last_clip_overlaps_and_is_its_own() -> None:
    meter = FlowMeter((64, 48), 16, 256, 2)
    pictures = drifting(81, 3)
    for index in range(81):
        meter.update(
            pictures[min(index, 60)]
        )  # frozen from frame 60: clip (49, 81) has 5 or 6 moving pairs, a remainder had none
    assert meter.dynamic_clips() == [True, True, True]
    assert meter.top[60] > 2
    assert meter.top[61] == 0


@pytest.mark.parametrize(("fps", "every"), [(8, 1), (16, 2), (24, 3), (25, 3), (30, 4), (20, 2), (4, 1)])
def test_vbench_looks_at_eight_frames_a_second(fps: float, every: int) -> None:
    assert stride(fps) == every


def test_dynamic_needs_a_quarter_of_the_frames_above_the_threshold() -> None:
    size = (
        832,
        480,
    )  # the threshold is 6 * 480 / 256 = 11.25 pixels; 16 frames need 4 pairs, wherever they are
    assert is_dynamic(np.array([11.3, 0, 11.3, 0, 0, 11.3, 0, 11.3]), 16, size)
    assert not is_dynamic(np.array([11.3, 11.3, 11.3, 11.25, 11.2]), 16, size)
    assert not is_dynamic(np.array([11.3] * 9), 41, size)
    assert is_dynamic(np.array([11.3] * 10), 41, size)
    assert not is_dynamic(np.array([]), 1, size)
    assert not is_dynamic(np.array([0.0]), 2, size)  # round(8 / 16) = 0 would make any pair do


@pytest.mark.parametrize("size", [(64, 48), (640, 480)])
def test_flow_is_in_pixels_of_the_video(size: tuple[int, int]) -> None:
    shift = 3 * size[0] // 64
    meter = FlowMeter(size, 16, 256, 2)
    for frame in drifting(6, shift, size, grain=size[0] / 20):
        meter.update(frame)
    assert math.isnan(meter.mean[0])
    np.testing.assert_allclose(meter.mean[1:], shift, rtol=0.15)


def test_equal_pictures_do_not_move() -> None:
    meter = FlowMeter((64, 48), 16, 256, 2)
    for frame in [*drifting(1, 0)] * 40:
        meter.update(frame)
    assert meter.mean[1:] == [0.0] * 39
    assert not meter.dynamic()


@pytest.mark.parametrize(
    ("size", "working"),
    [((832, 480), (444, 256)), ((480, 832), (256, 444)), ((64, 64), (64, 64)), ((8, 6), (21, 16))],
)
def test_flow_is_taken_on_small_pictures(size: tuple[int, int], working: tuple[int, int]) -> None:
    assert working_size(size, 256) == working


def test_variance_in_a_window() -> None:
    values = np.array([np.nan, 1.0, 1.0, 5.0])
    np.testing.assert_allclose(windowed_variance(values, 2), [0, 0, 0, 4])
    np.testing.assert_allclose(windowed_variance(values, 8)[3], np.var([1, 1, 5]))


def test_spikes_stand_out_from_the_second_around_them() -> None:
    values = np.ones(40)
    values[0], values[20] = np.nan, 3.5
    assert np.flatnonzero(spikes(values, 16, 3, 1)).tolist() == [20]
    assert not spikes(values, 16, 3, 3).any()


def drifting(count: int, shift: int, size: tuple[int, int] = (64, 48), grain: float = 3) -> Frames:
    """Smooth noise that moves `shift` pixels a frame, uint8 [count, H, W]."""
    import cv2

    width, height = size
    noise = np.random.default_rng(0).standard_normal((height, width + shift * count))
    soft = cv2.GaussianBlur(noise, (0, 0), grain)
    levels = np.clip(128 + 50 * soft / soft.std(), 0, 255).astype(np.uint8)
    return np.stack(
        [np.ascontiguousarray(levels[:, index * shift : index * shift + width]) for index in range(count)]
    )


# --- repetition -----------------------------------------------------------------------------------------


def flat(*levels: int) -> list[Frames]:
    """Pictures of 3 x 4 pixels, each of one grey."""
    return [np.full((3, 4, 3), level, np.uint8) for level in levels]


def test_norepeat_by_hand() -> None:
    frames = flat(0, 51, 102, 153, 0, 51, 102, 204)
    to_first = [distance(frames[0], frame) for frame in frames]
    pixel = 6.0  # sqrt(36 values)
    assert to_first == pytest.approx(
        [0, 0.2 * pixel, 0.4 * pixel, 0.6 * pixel, 0, 0.2 * pixel, 0.4 * pixel, 0.8 * pixel]
    )
    assert best_offset(to_first, position=4, halfwidth=2) == 4
    assert best_offset(to_first, position=2, halfwidth=1) == 1
    assert best_offset(to_first, position=7, halfwidth=1) == 6  # the window ends with the video
    meter = NoRepeatMeter(position=4, halfwidth=2)
    for frame in frames:
        meter.update(frame)
    assert meter.offset == 4
    d = meter.mean()
    meter.close()
    assert d == pytest.approx(0.2 * pixel / 4)  # three pairs are equal, the last differs by 51 levels
    assert rms(d, (4, 3)) == pytest.approx(0.05)


def test_norepeat_threshold_is_one_rms_at_every_size() -> None:
    assert norepeat_threshold((832, 480)) == 100
    assert rms(100, (832, 480)) == pytest.approx(0.0914, abs=5e-5)
    assert rms(norepeat_threshold((64, 64)), (64, 64)) == pytest.approx(rms(100, (832, 480)))


def test_norepeat_needs_a_video_longer_than_its_window() -> None:
    given = Parameters(norepeat_position=200, norepeat_halfwidth=22)
    assert norepeat_window(223, 16, given) == (200, 22)
    assert norepeat_window(222, 16, given) is None
    assert norepeat_window(480, 16, Parameters()) == (160, 79)  # spans 81 .. 239
    assert norepeat_window(3, 16, Parameters()) is None


def test_norepeat_of_a_file_is_that_of_its_frames(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (60, 6, 8, 3), dtype=np.uint8)
    frames[40] = frames[0] // 2
    with VideoWriter(tmp_path / "noise.png", (8, 6), 16) as writer:
        writer.write(frames)
    found = measure(writer.path, Parameters(norepeat_position=35, norepeat_halfwidth=10))["metrics"]
    scaled = frames.astype(np.float64) / 255
    d = np.mean([np.linalg.norm((scaled[i] - scaled[i + 40]).ravel()) for i in range(20)])
    assert (found["norepeat_offset"], found["norepeat_position"], found["norepeat_halfwidth"]) == (40, 35, 10)
    assert found["norepeat_distance"] == pytest.approx(d, rel=1e-5)
    assert found["norepeat"] == 100.0


def test_self_similarity_finds_a_loop_wherever_it_begins() -> None:
    generator = np.random.default_rng(0)
    moments = generator.integers(0, 256, (400, 768), dtype=np.uint8)
    for index in range(250, 400):
        moments[index] = moments[index - 100]
    found = self_similarity(moments, 16, Parameters())
    assert found is not None
    assert (found.offset, found.period) == (100, 100)
    assert not found.repeats[:250].any()
    assert found.repeats[250:].all()
    assert found.share == pytest.approx(0.5)


def test_a_short_loop_shows_at_a_multiple_and_its_period_is_found() -> None:
    round_trip = np.random.default_rng(0).integers(0, 256, (30, 768), dtype=np.uint8)
    found = self_similarity(np.concatenate([round_trip] * 12), 16, Parameters())
    assert found is not None
    assert (found.offset, found.period, found.rms, found.share) == (90, 30, pytest.approx(0, abs=1e-3), 1)


def test_a_slow_loop_is_found_under_the_noise_of_its_coding() -> None:
    """Four levels of change a second, and half a level of noise: each picture is new, but for that."""
    generator = np.random.default_rng(0)
    way = np.sin(2 * np.pi * np.arange(160) / 32)[:, None] * 3 * generator.standard_normal(768)
    noise = 0.5 * generator.standard_normal(way.shape)
    found = self_similarity(np.rint(120 + way + noise).astype(np.uint8), 16, Parameters())
    assert found is not None
    assert found.period == 32
    assert found.share > 0.9
    onward = np.arange(160)[:, None] / 8 * generator.standard_normal(768)
    found = self_similarity(np.rint(120 + onward + noise).clip(0, 255).astype(np.uint8), 16, Parameters())
    assert found is not None
    assert found.share == 0


def test_what_does_not_move_does_not_repeat() -> None:
    found = self_similarity(np.full((300, 768), 90, np.uint8), 16, Parameters())
    assert found is not None
    assert found.share == 0
    assert not found.repeats.any()


# --- borders --------------------------------------------------------------------------------------------


def test_chunks_begin_at_9_21_33() -> None:
    assert np.flatnonzero(border_frames(40)).tolist() == [9, 21, 33]
    assert np.flatnonzero(border_frames(10, first=0, period=4)).tolist() == [4, 8]


def test_border_ratio_by_hand() -> None:
    changes = np.ones(40)
    changes[[9, 21, 33]] = 4
    assert border_ratio(changes, border_frames(40)) == 4
    assert border_ratio(np.zeros(40), border_frames(40)) is None
    assert border_ratio(changes[:5], border_frames(5)) is None


def test_a_bounce_is_not_flicker_and_pictures_shown_twice_are_no_jumps() -> None:
    place = np.abs(np.arange(100) % 60 - 30) * 4.0
    pictures = np.clip(120 + place[:, None] * np.random.default_rng(0).uniform(-1, 1, 768), 0, 255).astype(
        np.uint8
    )
    for shown in (pictures, np.repeat(pictures, 2, axis=0)):
        still = np.zeros(len(shown))
        curves = {"luma": still + 0.5, "light_step": still}
        found = find_changes(shown, curves, np.zeros((len(shown), 2)), (64, 64), 24, Parameters())
        assert not found.reversing.any()
        assert not found.jumps


def test_another_scene_is_a_large_jump_and_an_object_that_is_elsewhere_a_jump_of_size_0() -> None:
    pictures = np.full((60, 256, 3), 90, np.uint8)
    pictures[:20, :20], pictures[20:, 100:120] = 200, 200
    pictures[40:] += 20
    nothing = np.zeros((60, 2))
    curves = {"luma": np.full(60, 0.4), "light_step": np.zeros(60)}
    found = find_changes(pictures.reshape(60, -1), curves, nothing, (64, 64), 16, Parameters())
    assert [(jump.start, jump.end) for jump in found.jumps] == [(20, 21), (40, 41)]
    assert [jump.size for jump in found.jumps] == pytest.approx([0, 20 / 255])


def test_a_jerk_of_the_flow_counts_only_where_the_picture_changes() -> None:
    shift, still = np.zeros((60, 2)), np.full((60, 256, 3), 90, np.uint8)
    shift[30] = (5, 0)
    moved = still.copy()
    moved[30:, ::2], moved[30:, 1::2] = 93, 87
    for pictures, starts in ((still, []), (moved, [30])):
        curves = {"luma": np.full(60, 0.4), "light_step": np.zeros(60)}
        found = find_changes(pictures.reshape(60, -1), curves, shift, (64, 64), 16, Parameters())
        assert [jump.start for jump in found.jumps] == starts


STEADY = {
    **{"luma": 0.4, "clipped": 0, "crushed": 0, "contrast": 0.2, "flow_top5": 1, "unmatched": 0.03},
    **{"chroma": 20, "lightness": 50, "colour_a": 5, "colour_b": 5, "detail": 0.5, "noise": 0.5},
    "sharpness": 100,
    **dict.fromkeys(("light_step", "gain_step", "cast_a_step", "cast_b_step"), 0),
}
"""The curves of a calm video."""


def seen(saturation: Any = 1.0, blue: Any = 1.0, **changed: Any) -> Seen:
    """Ten calm seconds at 16 frames a second of one picture, but for these curves; its colours are
    `saturation` (a number, or one a frame) times as far from grey, and its blue is `blue` times as strong."""
    curves = {name: np.full(160, float(level)) for name, level in STEADY.items()} | changed
    picture = np.random.default_rng(0).integers(60, 200, (1, 256, 3)).astype(np.float64)
    grey = picture.mean(2, keepdims=True)
    factor = np.broadcast_to(saturation, 160).reshape(160, 1, 1)
    pictures = grey + (picture - grey) * factor
    pictures[..., 2] *= np.broadcast_to(blue, 160).reshape(160, 1)
    pictures = np.clip(pictures, 0, 255).astype(np.uint8)
    return Seen(curves, pictures.reshape(160, -1), np.zeros((160, 2)), (64, 64), 16)


def jumping(*jumps: Jump) -> dict[str, Any]:
    """Verdicts on ten calm seconds with these sudden changes."""
    changes = Changes(np.zeros(160), np.zeros(160, np.bool_), list(jumps))
    return verdicts(find(Evidence(seen(), changes, None, Parameters())), 16)


def test_flicker_is_jumps_at_border_after_border() -> None:
    five = [Jump(frame, frame + 1, 0.0) for frame in (56, 68, 80, 92, 104)]
    found = jumping(Jump(9, 10, 0.0), *five)["flicker"]
    assert (found["fired"], found["onset_seconds"], found["most_in_a_row"]) == (True, 3.5, 5)
    assert (found["sudden_changes"], found["period_frames"]) == (6, 12)
    found = jumping(Jump(9, 10, 0.0), *five[:2], *five[3:])["flicker"]
    assert (found["fired"], found["onset_seconds"], found["most_in_a_row"]) == (False, None, 2)
    assert jumping()["flicker"]["most_in_a_row"] == 0


@pytest.mark.parametrize(("rest", "onset"), [(48, 5.0), (47, None)])
@pytest.mark.parametrize("every", [1, 2])
def test_three_seconds_of_rest_are_stagnation_wherever_they_are(
    rest: int, onset: float | None, every: int
) -> None:
    """Also among pictures that are shown twice; frame 79 is the last that moves before."""
    flow = np.where(np.arange(160) % every == (every - 1), 4.0, 0.0)  # pixels, one short side a second
    flow[80 : 80 + rest] = 0.1
    flow[80 + rest] = 4.0
    found = verdicts(find(Evidence.of(seen(flow_top5=flow), Parameters())), 16)["stagnation"]
    assert (found["fired"], found["onset_seconds"]) == (onset is not None, onset)
    assert found["still_seconds"] == rest / 16


def test_jumps_without_a_beat_are_no_flicker() -> None:
    found = jumping(*(Jump(frame, frame + 1, 0.0) for frame in (56, 60, 74, 81, 96, 103)))["flicker"]
    assert (found["fired"], found["most_in_a_row"]) == (False, 6)


def test_a_cut_is_a_lone_moment_at_which_nothing_matches_and_the_layout_changes() -> None:
    def starts(unmatched: dict[int, float], levels: tuple[int, int, int]) -> list[int]:
        """Cuts where the picture has these levels until frame 80, at 80 and 81, and later."""
        share = np.full(160, 0.1)
        for frame, value in unmatched.items():
            share[frame] = value
        pictures = np.full((160, 768), levels[0], np.uint8)
        pictures[80:82] = levels[1]
        pictures[82:] = levels[2]
        found = find_cuts({"unmatched": share}, pictures, 16, Parameters())
        return [cut.start for cut in found]

    assert starts({80: 0.9}, (60, 120, 120)) == [80]
    assert starts({80: 0.9, 81: 0.4}, (60, 120, 120)) == [80]
    assert starts({80: 0.4}, (60, 120, 120)) == []
    assert starts({80: 0.9, 82: 0.9}, (60, 200, 60)) == []  # a flash
    assert starts(dict.fromkeys(range(76, 85), 0.8), (60, 90, 120)) == []  # a whip pan
    assert starts({4: 0.9}, (60, 60, 60)) == []  # a decoder's first frames


def test_a_flash_over_what_changes_anyhow_is_no_cut() -> None:
    def starts(levels: Curve) -> list[int]:
        pictures = np.repeat(levels[:, None], 768, axis=1).astype(np.uint8)
        return [cut.start for cut in find_cuts({"unmatched": share}, pictures, 16, Parameters())]

    share = np.full(160, 0.1)
    share[80] = 0.9
    frames = np.arange(160)
    brighter = np.clip(100 + 4 * (frames - 80), 20, 180)  # by 12 levels in three frames
    assert starts(brighter) == []
    assert starts(brighter + 40 * (frames >= 80)) == [80]
    share[88] = 0.9
    assert starts(brighter + 40 * (frames >= 80) - 90 * (frames >= 88)) == [80, 88]


# --- the rest -------------------------------------------------------------------------------------------


def test_the_way_to_white_and_to_black() -> None:
    white, black = drift_to_white_and_black(np.array([0.4, 0.7, 1.0, 0.1]), 0.4)
    np.testing.assert_allclose(white, [0, 0.5, 1, 0])
    np.testing.assert_allclose(black, [0, 0, 0, 0.75])


def test_the_reference_is_a_third_of_a_short_video() -> None:
    assert reference_frames(1600, 16) == 80
    assert reference_frames(81, 16) == 27
    assert reference_frames(1, 16) == 1


def test_local_stability_follows_the_worst_measure_over_its_threshold() -> None:
    def finding(level: float) -> Finding:
        return Finding(np.full(3, level), None, "", {})

    for worst, score in ((0, 100), (0.5, 100), (0.75, 75), (1, 50), (1.5, 0), (4, 0)):
        assert local_stability({"a": finding(worst), "b": finding(0.1)}).tolist() == [score] * 3


LATE = np.arange(160) >= 100
DRIFTS: dict[str, dict[str, Any]] = {
    "over_exposure": {"luma": 0.4 + 0.5 * LATE, "lightness": 50.0 + 30 * LATE},
    "darkening": {"luma": 0.4 - 0.3 * LATE, "lightness": 50.0 - 30 * LATE},
    "over_saturation": {"chroma": 20.0 + 20 * LATE, "saturation": 1 + 0.8 * LATE},
    "desaturation": {"chroma": 20.0 - 15 * LATE, "saturation": 1 - 0.7 * LATE},
    "colour_cast": {"colour_b": 5.0 + 20 * LATE, "blue": 1 - 0.4 * LATE},
    "blur": {"detail": 0.5 - 0.2 * LATE},
    "noise": {"noise": 0.5 + 5 * LATE},
}
MATCHED = {"over_exposure": "light_step", "over_saturation": "gain_step", "colour_cast": "cast_b_step"}


@pytest.mark.parametrize("name", DRIFTS)
def test_a_drift_of_what_stays_in_the_picture_is_one_verdict_with_an_onset(name: str) -> None:
    step = np.zeros(160)
    step[100] = {"light_step": 30, "gain_step": 0.7, "cast_b_step": 20}.get(MATCHED.get(name, ""), 0)
    matched = {MATCHED[name]: step} if name in MATCHED else {}
    if name in ("darkening", "desaturation"):
        step[100] = -30 if name == "darkening" else -1.4
        matched = {"light_step" if name == "darkening" else "gain_step": step}
    found = verdicts(find(Evidence.of(seen(**DRIFTS[name], **matched), Parameters())), 16)
    assert [verdict for verdict in NAMES if found[verdict]["fired"]] == [name]
    # measures are means over a second, so what is sudden begins half a second early
    assert found[name]["onset_seconds"] == pytest.approx(100 / 16, abs=0.75)
    assert found[name]["sentence"].endswith("s on.")
    assert found[name]["measure"] > found[name]["threshold"]


TIMES = np.arange(0, 40, 1 / 16)


def rise(start: float, end: float, level: float) -> Curve:
    """From 0 to a level within some seconds [T], float64."""
    return np.asarray(level * np.clip((TIMES - start) / (end - start), 0, 1))


@pytest.mark.parametrize(
    ("severity", "onset", "tolerance"),
    [
        (rise(10, 13, 2), 10, 0.1),
        (rise(5, 25, 1.5), 5, 0.1),
        (rise(4, 5, 0.6) + rise(10, 13, 2), 10, 0.4),  # what a scene did before is not where it began
        (rise(4, 5, 0.4) + rise(10, 13, 2), 10, 0.4),
        (rise(4, 5, 0.8) - rise(6, 7, 0.8) + rise(15, 18, 2), 15, 0.1),
        (0.2 + 0.15 * np.sin(1.3 * TIMES) + rise(15, 18, 2), 15, 0.7),
        (1.6 - 1.6 * np.exp(-np.maximum(TIMES - 8, 0) / 4), 8, 0.5),
        (TIMES / 20, 5, 0.1),  # without a knee: when it last was below a quarter of the threshold
        (rise(10, 13, 0.99), None, 0),
    ],
)
def test_a_drift_began_at_the_knee_of_its_measure(
    severity: Curve, onset: float | None, tolerance: float
) -> None:
    scene = seen()
    found = drift(Evidence.of(scene, Parameters()), severity, "", 0.75)
    assert found.onset is None if onset is None else abs(found.onset / 16 - onset) <= tolerance


@pytest.mark.parametrize(
    "name", ["over_exposure", "darkening", "over_saturation", "desaturation", "colour_cast"]
)
def test_new_terrain_is_no_drift(name: str) -> None:
    """The means change as in a drift, but nothing that stays in the picture does, and the view is another."""
    scene = seen(**DRIFTS[name])
    scene.miniatures[100:] = np.roll(scene.miniatures[100:], 384, axis=1)
    found = verdicts(find(Evidence.of(scene, Parameters())), 16)
    assert not found[name]["fired"]


def test_soft_textures_that_blur_lose_sharpness_in_the_same_view_and_some_detail() -> None:
    scene = seen(sharpness=100 - 95 * LATE, detail=0.5 - 0.05 * LATE)
    blur = verdicts(find(Evidence.of(scene, Parameters())), 16)["blur"]
    assert blur["onset_seconds"] == pytest.approx(100 / 16, abs=0.75)
    assert blur["measure"] < blur["threshold"]
    assert blur["largest_edge_loss"] == pytest.approx(np.log2(20) / 2, abs=0.1)  # a variance is a square
    assert blur["sentence"].startswith("Edges and textures fell to 2")
    scene.miniatures[100:] = np.roll(scene.miniatures[100:], 384, axis=1)  # another view
    assert not verdicts(find(Evidence.of(scene, Parameters())), 16)["blur"]["fired"]
    sharp = seen(sharpness=100 - 95 * LATE)
    assert not verdicts(find(Evidence.of(sharp, Parameters())), 16)["blur"]["fired"]


def test_curves_are_averaged_into_few_points() -> None:
    found = shorten(np.arange(1000.0), 10, 100)
    assert len(found["values"]) == len(found["seconds"]) == 100
    assert found["values"][0] == 4.5
    assert found["seconds"][0] == 0.45
    assert shorten(np.array([np.nan, 2.0]), 16, 300) == {"seconds": [0.0, 1 / 16], "values": [None, 2.0]}


def test_parameters_are_checked() -> None:
    with pytest.raises(UserError, match="norepeat_position and norepeat_halfwidth go together"):
        Parameters(norepeat_position=200)
    with pytest.raises(UserError, match="reference_seconds is 0"):
        Parameters(reference_seconds=0)
    assert Parameters().key() != Parameters(clip_seconds=3).key()
