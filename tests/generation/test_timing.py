"""Speeds without the warm-up."""

from __future__ import annotations

import pytest

from sfpp_cli.generation.timing import Pace, Timing


def test_the_warm_up_does_not_count_unless_it_is_all_there_is() -> None:
    pace = Pace()
    assert pace.fps == 0
    pace.add(10.0, 9)
    assert pace.fps == 0.9
    pace.add(0.5, 12)
    pace.add(0.5, 12)
    assert pace.fps == 24


def test_the_four_figures() -> None:
    timing = Timing()
    for seconds in (0.5, 1.0, 2.0):
        timing.loop.add(0.1, 12)
        timing.vae.add(0.2, 12)
        timing.arrived(seconds, 600.0)
    assert timing.figures(36) == {
        "loop_fps": pytest.approx(120),
        "vae_fps": pytest.approx(60),
        "end_to_end_fps": 18,
        "time_to_first_frame_s": 0.5,
    }
