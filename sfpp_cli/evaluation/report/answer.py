"""The answer that the page begins with: which system is best, by how much, which fail, since when and how.

Systems are ranked by their mean stability: the judge's where all have it, else the local one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from sfpp_cli.evaluation.compare import Difference, Summary, Video, finite
from sfpp_cli.evaluation.report import labels

JUDGED_BY = ("visual_stability", "local_stability")
"""What systems are ranked by, the first that all of them have."""
KINDS = 3
"""So many kinds of faults, or systems, are named in a sentence."""
DECIMALS = 2
"""More of them say nothing on a scale of 100."""


@dataclass(frozen=True)
class Standing:
    """A system among the others: the mean it is ranked by, and the best system's lead over it (None for the
    best itself); how many of its videos show a fault, the median second of their first ones, in how many
    videos each fault fired, and the `example`, the failing video in the middle when sorted by time."""

    name: str
    videos: int
    mean: Summary | None
    lead: Difference | None = None
    failing: int = 0
    judged: int = 0
    onset: float | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    example: Video | None = None


def ranked_by(compared: Mapping[str, Any]) -> str:
    """The metric that systems are ranked by, or nothing where they share none."""
    systems = compared["systems"].values()
    return next((name for name in JUDGED_BY if all(name in system["metrics"] for system in systems)), "")


def standings(systems: Mapping[str, Sequence[Video]], compared: Mapping[str, Any]) -> list[Standing]:
    """Every system, the best first; without a common metric, those with fewer failing videos first."""
    metric = ranked_by(compared)
    found = [
        _standing(name, videos, compared["systems"][name]["metrics"].get(metric))
        for name, videos in systems.items()
    ]

    def place(standing: Standing) -> tuple[float, float]:
        share = standing.failing / standing.judged if standing.judged else 0.0
        return (-standing.mean["mean"] if standing.mean else 0.0, share)

    found.sort(key=place)
    return [
        replace(standing, lead=_lead(found[0].name, standing.name, metric, compared)) for standing in found
    ]


def _standing(name: str, videos: Sequence[Video], mean: Summary | None) -> Standing:
    judged = [video for video in videos if video.get("verdicts")]
    firsts = [(video, *labels.first_fault(video)) for video in judged]
    failing = [(video, onset) for video, fault, onset in firsts if fault is not None]
    dated = sorted(
        ((video, onset) for video, onset in failing if onset is not None), key=lambda entry: entry[1]
    )
    kinds = {fault: _fired(judged, fault) for fault in labels.faults_of(judged, fired=True)}
    examples = dated or failing
    return Standing(
        name=name,
        videos=len(videos),
        mean=mean,
        failing=len(failing),
        judged=len(judged),
        onset=median(onset for _, onset in dated) if dated else None,
        kinds=dict(sorted(kinds.items(), key=lambda entry: -entry[1])),
        example=examples[(len(examples) - 1) // 2][0] if examples else None,
    )


def _fired(videos: Sequence[Video], fault: str) -> int:
    return sum(bool(video["verdicts"].get(fault, {}).get("fired")) for video in videos)


def _lead(best: str, other: str, metric: str, compared: Mapping[str, Any]) -> Difference | None:
    """By how much `best` is ahead of `other`."""
    for pair in compared["pairs"]:
        change: Difference | None = pair["metrics"].get(metric)
        if change and (pair["second"], pair["first"]) == (best, other):
            return change
        if change and (pair["first"], pair["second"]) == (best, other):
            low, high = (None if end is None else -end for end in (change["high"], change["low"]))
            return Difference(**{**change, "mean": -change["mean"], "low": low, "high": high})
    return None


def is_clear(lead: Difference | None) -> bool:
    """Whether zero lies outside the interval of a lead."""
    return bool(lead and lead["low"] is not None and lead["low"] > 0)


def title(ranks: Sequence[Standing], videos: Sequence[Video]) -> str:
    """The answer in a few words."""
    if not ranks:
        return "No video measured"
    if len(ranks) > 1 and ranks[0].mean:
        rivals = [rank.name for rank in ranks[1:] if not is_clear(rank.lead)]
        best = f"Best: {labels.listed([ranks[0].name, *rivals])}"
        if rivals:
            best += ", too close to call"
        if len(rivals) == len(ranks) - 1:
            best = f"No clear best of {labels.plural(len(ranks), 'system')}"
        return best
    failing = sum(rank.failing for rank in ranks)
    if not any(rank.judged for rank in ranks):
        return labels.plural(len(videos), "video")
    if len(videos) == 1:
        name, onset = labels.first_fault(videos[0])
        if name is None:
            return "No fault found"
        return labels.fault(name).title + ("" if onset is None else f" from {onset:.1f} s")
    counted = labels.plural(len(videos), "video")
    return f"{failing} of {counted} show a fault" if failing else f"No fault found in {counted}"


def subtitle(ranks: Sequence[Standing]) -> str:
    """Of several systems those that fail in half of their videos or more, worst first, and since when."""
    said = []
    for rank in reversed(ranks if len(ranks) > 1 else []):
        if rank.failing and 2 * rank.failing >= rank.judged:
            said.append(
                rank.name + ("" if rank.onset is None else f" from {rank.onset:.1f}\N{NO-BREAK SPACE}s")
            )
    if len(said) > KINDS:
        said[KINDS:] = [f"{len(said) - KINDS} others"]
    return f"Fails: {', '.join(said)}" if said else ""


def lead(ranks: Sequence[Standing], videos: Sequence[Video], compared: Mapping[str, Any]) -> list[str]:
    """The answer in sentences: the best by how much; else who fails, since when and how, which the list of
    systems below says of each."""
    metric = ranked_by(compared)
    said = []
    if len(ranks) > 1 and metric:
        said.append(_ahead(ranks, metric))
    if len(videos) == 1:
        said += _sentences(videos[0])
    elif len(ranks) == 1 and metric and not ranks[0].failing:
        assert ranks[0].mean is not None  # all have the metric that they are ranked by
        said.append(f"{labels.label(metric).title} {_with_interval(ranks[0].mean, '95 % interval ')} of 100.")
    elif not said and any(rank.judged for rank in ranks):
        said.append(" ".join(_failing(rank, len(ranks) > 1) for rank in ranks if rank.judged))
    return said


def _ahead(ranks: Sequence[Standing], metric: str) -> str:
    best = ranks[0]
    assert best.mean is not None  # all have the metric that they are ranked by
    name = labels.label(metric).title
    said = f"{name} of {best.name}: {_with_interval(best.mean, '95 % interval ')} of 100"
    leads = [f"{_with_interval(rank.lead)} above {rank.name}" for rank in ranks[1:] if rank.lead is not None]
    unclear = [rank.name for rank in ranks[1:] if rank.lead and not is_clear(rank.lead)]
    if len(leads) > KINDS:
        leads[KINDS:] = [f"{len(leads) - KINDS} others are below"]
    if leads:
        said += f"; {labels.listed(leads)}"
    said += "."
    if unclear:
        why = (
            "could be chance"
            if all(rank.lead and rank.lead["low"] is not None for rank in ranks[1:])
            else ("is not known to be more than chance")
        )
        said += f" The lead over {labels.listed(unclear)} {why}."
    return said


def since(baseline: Mapping[str, Any], metric: str) -> list[str]:
    """What has changed since an earlier evaluation, in a sentence."""
    changes = {name: system["metrics"].get(metric) for name, system in baseline["systems"].items()}
    said = [f"{name} {_with_interval(change, signs=True)}" for name, change in changes.items() if change]
    if not said:
        return []
    return [f"{labels.label(metric).title} since {baseline['path']}: {labels.listed(said)}."]


def _with_interval(entry: Mapping[str, Any], what: str = "", *, signs: bool = False) -> str:
    ends = [end for end in (entry["mean"], entry["low"], entry["high"]) if end is not None]
    decimals = min(labels.places(ends), DECIMALS)
    mean = (labels.signed if signs else labels.number)(entry["mean"], decimals)
    return mean if entry["low"] is None else f"{mean} ({what}{labels.interval(entry, decimals, signs=signs)})"


def _failing(rank: Standing, named: bool) -> str:
    """`ode: a fault in 4 of 9 videos, from second 22 on (median): darkening in 3, flicker in 2.`"""
    name = f"{rank.name}: " if named else ""
    if not rank.failing:
        return f"{name}{'no' if named else 'No'} fault in {labels.plural(rank.judged, 'video')}."
    since = "" if rank.onset is None else f", first at {rank.onset:.1f} s (median)"
    kinds = [f"{labels.fault(kind).title.lower()} in {count}" for kind, count in rank.kinds.items()]
    said = f"{'a' if named else 'A'} fault in {rank.failing} of {labels.plural(rank.judged, 'video')}{since}"
    if len(kinds) > KINDS:
        kinds[KINDS:] = [f"{len(kinds) - KINDS} others"]
    return f"{name}{said}: {labels.listed(kinds)}."


def _sentences(video: Video) -> list[str]:
    """What each fired verdict of a single video says, in its own words where it has some."""
    said = []
    for name in labels.faults_of([video], fired=True):
        verdict = video["verdicts"][name]
        own = verdict.get("sentence")
        said.append(own if isinstance(own, str) and own else _plain(name, verdict))
    stability = finite((video.get("metrics") or {}).get("local_stability"))
    if stability is not None:
        said.append(f"Local stability {labels.number(stability)} of 100.")
    return [" ".join(said)] if said else []


def _plain(name: str, verdict: Mapping[str, Any]) -> str:
    state = labels.verdict_state(verdict)
    return f"{labels.fault(name).title}{'' if state == 'fired' else f' {state}'}."
