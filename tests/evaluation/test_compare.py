"""Intervals against closed forms, clusters and pairs by hand, and what is said where nothing can be known."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from sfpp_cli.evaluation.compare import compare, differences, group, summarise

RNG = np.random.default_rng(20)


def video(prompt: str | None, seed: int | None, **metrics: Any) -> dict[str, Any]:
    return {"path": f"{prompt}-{seed}.mp4", "prompt": prompt, "seed": seed, "metrics": metrics}


def binomial_quantile(n: int, p: float, level: float) -> int:
    """The smallest count whose cumulative probability reaches `level`."""
    reached = 0.0
    for count in range(n + 1):
        reached += math.comb(n, count) * p**count * (1 - p) ** (n - count)
        if reached >= level:
            return count
    return n


def width(summary: Any) -> float:
    return float(summary["high"] - summary["low"])


def test_one_value_has_a_mean_and_no_interval() -> None:
    summary = summarise([0.25])
    assert summary == {
        "mean": 0.25,
        "low": None,
        "high": None,
        "count": 1,
        "clusters": 1,
        "note": "one value, so no interval",
    }


def test_two_values_bound_the_interval() -> None:
    """A bootstrap mean of two is either value with probability 1/4 each; only 2.5 % are cut off."""
    summary = summarise([1.0, 4.0])
    assert (summary["mean"], summary["low"], summary["high"]) == (2.5, 1.0, 4.0)
    assert summary["note"] == "only 2 clusters: the interval is narrower than its level promises"


@pytest.mark.parametrize(("ones", "n"), [(3, 10), (7, 20), (50, 64), (1, 5)])
def test_shares_follow_the_binomial(ones: int, n: int) -> None:
    """The bootstrap mean of k ones among n is Binomial(n, k/n)/n exactly."""
    summary = summarise([1.0] * ones + [0.0] * (n - ones))
    assert summary["low"] == pytest.approx(binomial_quantile(n, ones / n, 0.025) / n)
    assert summary["high"] == pytest.approx(binomial_quantile(n, ones / n, 0.975) / n)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    data = RNG.normal(3.0, 2.0, 400)
    summary = summarise(data)
    assert width(summary) == pytest.approx(2 * 1.96 * data.std() / 20, rel=0.03)
    assert summary["note"] is None
    assert width(summarise(data, level=0.6827)) == pytest.approx(2 * data.std() / 20, rel=0.03)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered = 0
    for _ in range(300):
        summary = summarise(RNG.exponential(1.0, 60), resamples=400)
        assert summary["low"] is not None
        assert summary["high"] is not None
        covered += summary["low"] <= 1.0 <= summary["high"]
    assert 0.89 <= covered / 300 <= 0.98


def test_seeds_of_one_prompt_are_drawn_together() -> None:
    """Copies of a value add nothing: four seeds with the same score leave the interval as one seed has it."""
    scores = RNG.normal(0.0, 1.0, 50)
    single = summarise(scores)
    copies = np.repeat(scores, 4)
    clustered = summarise(copies, np.repeat(np.arange(50), 4).tolist())
    assert (clustered["low"], clustered["high"]) == pytest.approx((single["low"], single["high"]))
    assert (clustered["count"], clustered["clusters"]) == (200, 50)
    assert width(summarise(copies)) == pytest.approx(
        width(single) / 2, rel=0.06
    )  # what ignoring the clusters would claim


def test_unequal_clusters_weigh_as_many_values_as_they_hold() -> None:
    """Prompts {0, 0, 0} and {1}: drawn twice, once each or the other way; the means are 0, 1/4 and 1."""
    summary = summarise([0, 0, 0, 1], ["a", "a", "a", "b"])
    assert (summary["mean"], summary["low"], summary["high"]) == (0.25, 0.0, 1.0)
    assert summarise([1.0, 2.0], ["a", "a"])["note"] == "one prompt, so no interval"


def test_the_same_seed_draws_the_same_interval() -> None:
    data = RNG.normal(size=40)
    assert summarise(data) == summarise(data)
    assert summarise(data) != summarise(data, seed=1)


def test_many_clusters_are_drawn_piece_by_piece() -> None:
    data = RNG.normal(size=5000)
    assert width(summarise(data, resamples=1000)) == pytest.approx(
        2 * 1.96 * data.std() / math.sqrt(5000), rel=0.12
    )


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf], [[1.0]]])
def test_what_cannot_be_averaged_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="finite values"):
        summarise(values)
    with pytest.raises(ValueError, match="2 clusters"):
        summarise([1.0], ["a", "b"])


def test_videos_are_grouped_in_order() -> None:
    first, second, third = {"system": "b"}, {"system": "a"}, {"system": None}
    assert group([first, second, first]) == {"b": [first, first], "a": [second]}
    assert group([third]) == {"all videos": [third]}
    assert list(group([first, third])) == ["b", "others"]


def test_pairs_are_matched_by_seed_else_by_prompt() -> None:
    first = [
        video("x", 1, m=1.0),
        video("x", 2, m=2.0),
        video("y", 1, m=10.0),
        video("y", 2, m=20.0),
        video("z", 1, m=5),
    ]
    second = [
        video("x", 2, m=7.0),
        video("x", 3, m=9.0),
        video("y", 8, m=40.0),
        video("q", 1, m=1.0),
        video(None, 1, m=1.0),
    ]
    assert differences(first, second, "m") == [("x", 5.0, True), ("y", 25.0, False)]
    assert differences(first, second, "other") == []
    unseeded = [video("x", None, m=1.0)], [video("x", None, m=4.0)]
    assert differences(*unseeded, "m") == [("x", 3.0, False)]


def test_pairing_removes_what_the_prompts_share() -> None:
    """Hard prompts are hard for both: scores spread by 10, their difference by 0.1."""
    difficulty = RNG.normal(50.0, 10.0, 40)
    one = [video(f"p{i}", 0, score=value) for i, value in enumerate(difficulty)]
    two = [video(f"p{i}", 0, score=value + 1.0 + 0.1 * RNG.normal()) for i, value in enumerate(difficulty)]
    result = compare({"one": one, "two": two})
    [pair] = result["pairs"]
    change = pair["metrics"]["score"]
    alone = math.hypot(*(width(result["systems"][name]["metrics"]["score"]) for name in ("one", "two")))
    assert change["low"] > 0.9
    assert change["high"] < 1.1
    assert width(change) < alone / 50
    assert (pair["first"], pair["second"], pair["prompts"], change["same_seed"]) == ("one", "two", 40, 40)


def test_differences_of_one_prompt_are_clustered() -> None:
    one = [video("x", seed, m=0.0) for seed in range(5)]
    two = [video("x", seed, m=float(seed)) for seed in range(5)]
    [pair] = compare({"one": one, "two": two})["pairs"]
    assert (pair["metrics"]["m"]["mean"], pair["metrics"]["m"]["low"]) == (2.0, None)


def test_without_a_prompt_in_common_means_are_compared() -> None:
    """Two independent means: the interval of their difference follows the sum of their variances."""
    one, two = RNG.normal(50.0, 3.0, 200), RNG.normal(60.0, 4.0, 300)
    first = [video(f"a{i}", 0, m=value) for i, value in enumerate(one)]
    second = [video(f"b{i}", 0, m=value) for i, value in enumerate(two)]
    [pair] = compare({"one": first, "two": second})["pairs"]
    change = pair["metrics"]["m"]
    assert (pair["prompts"], change["paired"], change["count"], change["clusters"]) == (0, False, 500, 200)
    assert change["mean"] == pytest.approx(two.mean() - one.mean())
    assert width(change) == pytest.approx(
        2 * 1.96 * math.hypot(one.std(), two.std() / 1.5**0.5) / 200**0.5, rel=0.05
    )
    lone = compare({"one": first, "two": second[:1]})["pairs"][0]["metrics"]["m"]
    assert (lone["low"], lone["note"]) == (None, "one prompt, so no interval")


def test_every_two_systems_are_compared() -> None:
    systems = {name: [video("x", 0, m=value)] for name, value in (("a", 1.0), ("b", 3.0), ("c", 7.0))}
    pairs = compare(systems)["pairs"]
    assert [(pair["first"], pair["second"], pair["metrics"]["m"]["mean"]) for pair in pairs] == [
        ("a", "b", 2.0),
        ("a", "c", 6.0),
        ("b", "c", 4.0),
    ]


def test_missing_values_are_left_out_and_counted() -> None:
    videos = [
        video("x", 0, m=1.0, only=2),
        video("y", 0, m=None),
        video(None, None, m=math.nan, flag=True),
        {"path": "bare"},
    ]
    system = compare({"s": videos})["systems"]["s"]
    assert (system["videos"], system["prompts"]) == (4, 2)
    assert {name: entry["count"] for name, entry in system["metrics"].items()} == {
        "m": 1,
        "only": 1,
        "flag": 1,
    }
    assert compare({})["systems"] == {}


def test_verdicts_are_counted_with_their_median_onset() -> None:
    videos = [
        {
            "verdicts": {
                "flicker": {"fired": True, "onset_seconds": onset},
                "darkening": {"fired": False, "onset_seconds": None},
            }
        }
        for onset in (2.0, None, 8.0)
    ]
    verdicts = compare({"s": [*videos, {}]})["systems"]["s"]["verdicts"]
    assert verdicts["flicker"] == {"fired": 3, "videos": 3, "median_onset_seconds": 5.0}
    assert verdicts["darkening"] == {"fired": 0, "videos": 3, "median_onset_seconds": None}


def test_the_comparison_is_json_and_says_how_it_was_made() -> None:
    result = compare({"s": [video("x", 0, m=np.float64(1.0))], "t": [video("x", 0, m=2)]})
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["schema"], result["level"], result["resamples"], result["seed"]) == (
        "sfpp-comparison/1",
        0.95,
        10_000,
        0,
    )
