"""What the report's page says of a whole evaluation. Nothing here is HTML; the template escapes it all."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from sfpp_cli.evaluation.compare import FEW, Video
from sfpp_cli.evaluation.json_text import plain
from sfpp_cli.evaluation.report import answer, labels
from sfpp_cli.evaluation.report.drift import Drift
from sfpp_cli.evaluation.report.videos import onset_marks
from sfpp_cli.evaluation.scenes import borders_of


def page_of(
    result: Mapping[str, Any],
    systems: Mapping[str, Sequence[Video]],
    compared: Mapping[str, Any],
    panels: Sequence[Drift],
    cards: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Variables of `templates/report.html.j2`: a result (schema `sfpp-evaluation/1`), its videos by system
    and one by one, and the systems compared."""
    videos: list[Video] = list(result.get("videos") or [])
    summaries = compared["systems"]
    ranks = answer.standings(systems, compared) if videos else []
    numbers = {id(card["video"]): number for number, card in enumerate(cards, start=1)}
    return {
        "title": answer.title(ranks, videos),
        "subtitle": answer.subtitle(ranks),
        "about": _about(videos, systems),
        "lead": _lead(result, ranks, compared) or ["Nothing was judged."],
        "ranks": [(rank, numbers.get(id(rank.example))) for rank in ranks],
        "ranked_by": answer.ranked_by(compared) if videos else "",
        "systems": {rank.name: summaries[rank.name] for rank in ranks},
        "colors": {name: place for place, name in enumerate(systems)},
        "videos": cards,
        "rows": _worst_first(cards),
        "faults": labels.faults_of(videos, fired=True),
        "absent": [labels.fault(name).title.lower() for name in _never_fired(videos)],
        "metrics": {name for summary in summaries.values() for name in summary["metrics"]},
        "pairs": _best_first(compared["pairs"], ranks),
        "baseline": result.get("baseline"),
        "level": compared["level"],
        "few": FEW,
        "means_note": _means_note(compared),
        "few_note": _few_note(compared),
        "panels": panels,
        "marks": onset_marks(videos[0]) if len(videos) == 1 else {},
        "borders": _common_borders(videos),
        "drift_note": _drift_note(panels, systems, result.get("reference")),
        "failed": [_failure(entry) for entry in result.get("failed") or []],
        "skipped": result.get("skipped") or [],
        "command": _command(result.get("command")),
        "schema": result.get("schema", "no schema"),
        "versions": _exact(result.get("versions")),
        "parameters": _exact(result.get("parameters")),
    }


def _about(videos: Sequence[Video], systems: Mapping[str, Sequence[Video]]) -> str:
    """What was measured: videos, systems, prompts, lengths."""
    prompts = {video.get("prompt") for video in videos} - {None}
    lengths = sorted(float(video.get("seconds") or 0) for video in videos)
    parts = [labels.plural(len(videos), "video")]
    if len(systems) > 1:
        parts.append(labels.plural(len(systems), "system"))
    if prompts:
        parts.append(labels.plural(len(prompts), "prompt"))
    if lengths and lengths[-1]:
        same = lengths[-1] - lengths[0] < 0.5
        span = f"{lengths[-1]:.0f}" if same else f"{lengths[0]:.0f} to {lengths[-1]:.0f}"
        parts.append(f"{span}\N{NO-BREAK SPACE}s")
    return " \N{MIDDLE DOT} ".join(parts)


def _lead(
    result: Mapping[str, Any], ranks: Sequence[answer.Standing], compared: Mapping[str, Any]
) -> list[str]:
    """The answer in sentences, what has changed, and what is missing."""
    said = answer.lead(ranks, result.get("videos") or [], compared)
    if result.get("baseline"):
        said += answer.since(result["baseline"], answer.ranked_by(compared))
    if result.get("failed"):
        said.append(f"{labels.plural(len(result['failed']), 'input')} could not be measured.")
    return said


def _worst_first(cards: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Cards with their numbers: those with faults first, then by stability."""

    def place(entry: tuple[int, Mapping[str, Any]]) -> tuple[bool, float]:
        stability = (entry[1]["video"].get("metrics") or {}).get("local_stability")
        return not entry[1]["fired"], float("inf") if stability is None else stability

    return sorted(enumerate(cards, start=1), key=place)


def _best_first(
    pairs: Sequence[Mapping[str, Any]], ranks: Sequence[answer.Standing]
) -> list[Mapping[str, Any]]:
    """The best system's pairs before those of the next one."""
    order = {rank.name: place for place, rank in enumerate(ranks)}
    return sorted(pairs, key=lambda pair: sorted(order[pair[side]] for side in ("first", "second")))


def _never_fired(videos: Sequence[Video]) -> list[str]:
    fired = labels.faults_of(videos, fired=True)
    return [name for name in labels.faults_of(videos) if name not in fired]


def _common_borders(videos: Sequence[Video]) -> tuple[float, ...]:
    """Where new scenes begin, if they do at the same seconds in all videos."""
    borders = {borders_of(video.get("scenes") or []) for video in videos}
    return borders.pop() if len(borders) == 1 else ()


def _means_note(compared: Mapping[str, Any]) -> str:
    return (
        f"Mean over videos, with its {100 * compared['level']:g} % interval ({compared['method']}; "
        f"{compared['resamples']:,} resamples, seed {compared['seed']}).{_few_note(compared)} "
        "Onsets are medians over the videos that fired."
    )


def _few_note(compared: Mapping[str, Any]) -> str:
    metrics = [entry for system in compared["systems"].values() for entry in system["metrics"].values()]
    few = any(1 < entry["clusters"] < FEW for entry in metrics)
    return f" Below {FEW} prompts such intervals are narrower than they should be." if few else ""


def _drift_note(
    panels: Sequence[Drift], systems: Mapping[str, Sequence[Video]], good: Mapping[str, Any] | None
) -> str:
    references = [panel.reference for panel in panels if panel.reference is not None]
    if not references:
        return ""
    lengths = [float(video.get("seconds") or 0) for videos in systems.values() for video in videos]
    span = f"{references[0]:.3g} s"
    said = f"Grey: where 90 % of the values of the first {span} lie"
    said += " (all systems together)." if len(systems) > 1 else "."
    if good:
        said += f" Of brightness, colour, detail and noise: of the values of {good['path']}."
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
