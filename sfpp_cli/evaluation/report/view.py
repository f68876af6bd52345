"""What the report's page says of a whole evaluation. Nothing here is HTML; the template escapes it all."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from sfpp_cli.evaluation.compare import FEW, Video
from sfpp_cli.evaluation.json_text import plain
from sfpp_cli.evaluation.report import labels
from sfpp_cli.evaluation.report.drift import Drift
from sfpp_cli.evaluation.report.videos import onset_marks


def page_of(
    result: Mapping[str, Any],
    systems: Mapping[str, Sequence[Video]],
    compared: Mapping[str, Any],
    panels: Sequence[Drift],
) -> dict[str, Any]:
    """Variables of `templates/report.html.j2`: a result (schema `sfpp-evaluation/1`), its videos by system,
    and the systems compared."""
    videos: list[Video] = list(result.get("videos") or [])
    summaries = compared["systems"]
    return {
        "title": _title(videos, systems),
        "lead": _lead(result, compared),
        "systems": summaries,
        "colors": {name: place for place, name in enumerate(systems)},
        "verdicts": labels.verdict_names(list(summaries.values())),
        "metrics": {name for summary in summaries.values() for name in summary["metrics"]},
        "pairs": compared["pairs"],
        "level": compared["level"],
        "few": FEW,
        "means_note": _means_note(compared),
        "panels": panels,
        "marks": onset_marks(videos[0]) if len(videos) == 1 else {},
        "drift_note": _drift_note(panels, systems),
        "failed": [_failure(entry) for entry in result.get("failed") or []],
        "skipped": result.get("skipped") or [],
        "command": _command(result.get("command")),
        "schema": result.get("schema", "no schema"),
        "versions": _exact(result.get("versions")),
        "parameters": _exact(result.get("parameters")),
    }


def _title(videos: Sequence[Video], systems: Mapping[str, Sequence[Video]]) -> str:
    if not videos:
        return "No video measured"
    counted = labels.plural(len(videos), "video")
    if len(systems) > 1:
        return f"{counted} of {labels.plural(len(systems), 'system')}"
    [name] = systems
    return f"{counted} of {name}" if any(video.get("system") for video in videos) else counted


def _lead(result: Mapping[str, Any], compared: Mapping[str, Any]) -> str:
    videos: list[Video] = list(result.get("videos") or [])
    said = [_verdicts_in_short(videos, compared), *map(_first_difference, compared["pairs"][:1])]
    if result.get("failed"):
        said.append(f"{labels.plural(len(result['failed']), 'input')} could not be measured.")
    return " ".join(filter(None, said)) or "Nothing was judged."


def _verdicts_in_short(videos: Sequence[Video], compared: Mapping[str, Any]) -> str:
    """In how many videos no verdict fired, and in how many each did."""
    judged = [video for video in videos if video.get("verdicts")]
    if not judged:
        return ""
    silent = sum(not labels.fired_verdicts(video) for video in judged)
    if silent == len(judged):
        said = "No failure signature fired."
    elif silent:
        said = f"No failure signature in {silent} of {labels.plural(len(judged), 'video')}."
    elif len(judged) > 1:
        said = "Every video shows a failure signature."
    else:
        said = "A failure signature fired."
    tallies = [system["verdicts"] for system in compared["systems"].values()]
    counts = {
        name: sum(tally[name]["fired"] for tally in tallies if name in tally)
        for name in labels.verdict_names(videos)
    }
    fired = [f"{labels.verdict_title(name).lower()} in {count}" for name, count in counts.items() if count]
    return f"{said} Fired: {', '.join(fired)}." if fired else said


def _first_difference(pair: Mapping[str, Any]) -> str:
    """The paired difference in local stability, where it has an interval."""
    change = pair["metrics"].get("local_stability")
    if not change or change["low"] is None:
        return ""
    decimals = labels.places([change["low"], change["high"]])
    mean = labels.signed(change["mean"], decimals)
    interval = labels.interval(change, decimals, signs=True)
    prompts = labels.plural(pair["prompts"], "common prompt")
    return f"Local stability, {pair['second']} minus {pair['first']}: {mean} ({interval}) over {prompts}."


def _means_note(compared: Mapping[str, Any]) -> str:
    metrics = [entry for system in compared["systems"].values() for entry in system["metrics"].values()]
    few = ""
    if any(1 < entry["clusters"] < FEW for entry in metrics):
        few = f" Below {FEW} prompts such intervals are narrower than they should be."
    return (
        f"Mean over videos, with its {100 * compared['level']:g} % interval ({compared['method']}; "
        f"{compared['resamples']:,} resamples, seed {compared['seed']}).{few} "
        "Onsets are medians over the videos that fired."
    )


def _drift_note(panels: Sequence[Drift], systems: Mapping[str, Sequence[Video]]) -> str:
    if not panels:
        return ""
    lengths = [float(video.get("seconds") or 0) for videos in systems.values() for video in videos]
    span = f"{panels[0].reference:.3g} s"
    said = f"Grey: where 90 % of the values of the first {span} lie"
    said += " (all systems together)." if len(systems) > 1 else "."
    if any(band.videos > 1 for panel in panels for band in panel.systems.values()):
        said += " Line: mean over a system's videos; band: the middle 80 % of them."
    if max(lengths) - min(lengths) > 0.5:
        said += f" From {min(lengths):.0f} s on, shorter videos have ended and the mean is over the rest."
    return f"{said} Below each: the mean of the first and of the last {span}."


def _failure(entry: Mapping[str, Any]) -> tuple[str, str]:
    """The path, and the error without the path that most errors begin with."""
    path = str(entry.get("path"))
    error = str(entry.get("error"))
    return path, error.removeprefix(path) if error.startswith(path) else f": {error}"


def _command(command: object) -> str:
    """The command line, given as text or as a list of words."""
    if isinstance(command, list | tuple):
        return shlex.join(map(str, command))
    return command if isinstance(command, str) else ""


def _exact(facts: Mapping[str, Any] | None) -> dict[str, str]:
    """Names and values as JSON has them, text without quotes."""
    facts = facts or {}
    return {key: fact if isinstance(fact, str) else json.dumps(plain(fact)) for key, fact in facts.items()}
