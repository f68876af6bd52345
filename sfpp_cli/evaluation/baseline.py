"""An evaluation beside an earlier one: what has changed since, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from sfpp_cli.errors import UserError, reason
from sfpp_cli.evaluation.compare import Video, group, pair_of, tally, verdict_names
from sfpp_cli.schema import STRICT, Faults, validate

_OPEN = ConfigDict(**{**STRICT, "extra": "ignore"})


@dataclass(frozen=True, config=_OPEN)
class _Verdict:
    fired: bool
    onset_seconds: float | None = None


@dataclass(frozen=True, config=_OPEN)
class _Video:
    path: str
    prompt: str | None
    seed: int | None
    system: str | None
    metrics: dict[str, float | None]
    verdicts: dict[str, _Verdict]


@dataclass(frozen=True, config=_OPEN)
class _Reference:
    path: str


@dataclass(frozen=True, config=_OPEN)
class _Result:
    """What has to be right in a file that may be a stranger's."""

    schema: Literal["sfpp-evaluation/1"]
    versions: dict[str, str]
    parameters: dict[str, Any]
    videos: list[_Video]
    reference: _Reference | None = None


_RESULT = TypeAdapter(_Result)


def read_baseline(place: Path) -> dict[str, Any]:
    """An earlier result with its `path`: a results.json, or the folder of a report. UserError for another."""
    path = place / "results.json" if place.is_dir() else place
    takes = "--baseline takes the results.json of an earlier `sfpp evaluate --out`, or its folder"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        validate(_RESULT, result)
    except Faults as error:
        raise UserError(f"{path} is of another kind ({error.faults[0].text}): {takes}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): {takes}") from error
    return {**result, "path": str(path)}


def against(result: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """`baseline` of a result: this evaluation minus the earlier one, as results.schema.json describes it.

    Systems are matched by name; where both results have but one, whatever it is called. Videos are matched by
    prompt and seed, those without a prompt by file name.
    """
    now = group([_with_key(video) for video in result["videos"]])
    before = group([_with_key(video) for video in baseline["videos"]])
    if len(now) == len(before) == 1:
        before = dict(zip(now, before.values(), strict=True))
    systems = {name: _changes(before[name], now[name]) for name in now if name in before}
    return {"path": baseline["path"], "notes": _notes(result, baseline, now, systems), "systems": systems}


def _changes(before: Sequence[Video], now: Sequence[Video]) -> dict[str, Any]:
    names = [name for name in verdict_names(now) if name in verdict_names(before)]
    verdicts = {name: {"now": tally(now, name), "before": tally(before, name)} for name in names}
    return {**pair_of(before, now), "verdicts": verdicts}


def _with_key(video: Video) -> Video:
    return {**video, "prompt": video.get("prompt") or Path(str(video["path"])).name}


def _notes(
    result: Mapping[str, Any],
    baseline: Mapping[str, Any],
    now: Mapping[str, Any],
    systems: Mapping[str, Any],
) -> list[str]:
    """What may explain a difference besides the videos."""
    notes = [f"{name} is not in the baseline" for name in now if name not in systems]
    for part in ("versions", "parameters"):
        old = baseline[part]
        new = result[part]
        changed = [name for name in {**new, **old} if new.get(name) != old.get(name)]
        if changed:
            notes.append(f"the baseline was measured with other {part}: {', '.join(changed)}")
    references = [(part.get("reference") or {}).get("path") for part in (result, baseline)]
    if all(references) and references[0] != references[1]:
        notes.append(f"the baseline was held against another reference: {references[1]}")
    return notes


def baseline_lines(baseline: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """What has changed, as text: a line for each of the `metrics`, and for each verdict that fires in another
    share of the videos."""
    lines = []
    for system, changes in baseline["systems"].items():
        lines.append(f"{system}, change since {baseline['path']}:")
        for name in metrics:
            change = changes["metrics"].get(name)
            if change:
                lines.append(f"  {name} {change['mean']:+.3g}{_interval(change)}")
        for name, tallies in changes["verdicts"].items():
            before = tallies["before"]
            now = tallies["now"]
            was = f"{before['fired']} of {before['videos']}"
            is_now = f"{now['fired']} of {now['videos']}"
            if was != is_now and (before["fired"] or now["fired"]):
                lines.append(f"  {name} in {is_now}, before in {was}")
    return [*lines, *(f"note: {note}" for note in baseline["notes"])]


def _interval(change: Mapping[str, Any]) -> str:
    if change["low"] is None:
        return f" ({change['note']})"
    note = f"; {change['note']}" if change["note"] else ""
    return f" (95 % interval {change['low']:+.3g} to {change['high']:+.3g}{note})"
