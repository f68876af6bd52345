"""An evaluation beside an earlier one, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.baseline import against, baseline_lines, read_baseline


def result(scores: list[float], system: str | None = None, **more: Any) -> dict[str, Any]:
    videos = [
        {
            "path": f"somewhere/{index}.mp4",
            "prompt": None,
            "seed": None,
            "system": system,
            "metrics": {"luma": score},
            "verdicts": {
                "darkening": {"fired": score < 0.3, "onset_seconds": 2.0 if score < 0.3 else None},
                "blur": {"fired": False, "onset_seconds": None},
            },
        }
        for index, score in enumerate(scores)
    ]
    return {"schema": "sfpp-evaluation/1", "versions": {}, "parameters": {}, "videos": videos, **more}


def test_videos_without_a_prompt_are_matched_by_file_name(tmp_path: Path) -> None:
    earlier = tmp_path / "results.json"
    earlier.write_text(json.dumps(result([0.5, 0.2, 0.9], "old name", versions={"metrics": "2"})))
    assert read_baseline(tmp_path) == read_baseline(earlier)
    now = result([0.6, 0.4], "new name", versions={"metrics": "3"}, parameters={"clip_seconds": 2})
    changes = against(now, read_baseline(tmp_path))
    system = changes["systems"]["new name"]
    assert (system["prompts"], system["metrics"]["luma"]["count"]) == (2, 2)
    assert system["metrics"]["luma"]["mean"] == pytest.approx(0.15)
    assert system["metrics"]["luma"]["low"] == pytest.approx(0.1)
    tallies = {when: tally["fired"] for when, tally in system["verdicts"]["darkening"].items()}
    assert tallies == {"now": 0, "before": 1}
    assert changes["notes"] == [
        "the baseline was measured with other versions: metrics",
        "the baseline was measured with other parameters: clip_seconds",
    ]
    lines = baseline_lines(changes, ["luma", "absent"])
    assert [line for line in lines if "note" not in line] == [
        f"new name, change since {earlier}:",
        "  luma +0.15 (95 % interval +0.1 to +0.2; only 2 clusters: "
        "the interval is narrower than its level promises)",
        "  darkening in 0 of 2, before in 1 of 3",
    ]


def test_another_reference_is_told() -> None:
    now, before = (result([0.5], reference={"path": path}) for path in ("now", "then"))
    assert against(now, before | {"path": "r"})["notes"] == [
        "the baseline was held against another reference: then"
    ]
    assert against(now, result([0.5]) | {"path": "r"})["notes"] == []


def test_systems_are_matched_by_name() -> None:
    now, before = (result([0.5], "a"), result([0.7], "a"))
    now["videos"] += result([0.5], "b")["videos"]
    before["videos"] += result([0.1], "c")["videos"]
    changes = against(now, {**before, "path": "results.json"})
    assert list(changes["systems"]) == ["a"]
    assert changes["notes"] == ["b is not in the baseline"]
    assert baseline_lines(changes, ["luma"])[1] == "  luma -0.2 (one value, so no interval)"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "{}",
            "[" * 100_000,
            '{"schema": "sfpp-comparison/1"}',
            '{"schema": "sfpp-evaluation/1"}',
        ),
        *(
            json.dumps(result([0.5]) | {key: value})
            for key, value in (
                ("schema", "sfpp-evaluation/2"),
                ("versions", 3),
                ("parameters", [1]),
                ("reference", "teacher"),
                ("videos", [1]),
                ("videos", [{"path": "a.mp4"}]),
                ("videos", [result([0.5])["videos"][0] | {"metrics": {"luma": "bright"}}]),
                ("videos", [result([0.5])["videos"][0] | {"verdicts": {"darkening": True}}]),
            )
        ),
    ],
)
def test_what_is_no_report_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(
        UserError, match=r"results\.json .*--baseline takes the results\.json of an earlier"
    ) as told:
        read_baseline(tmp_path)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_baseline(tmp_path / "absent.json")
