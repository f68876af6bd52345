"""What `sfpp evaluate` puts together: which videos there are, the local metrics, models and judge where asked for, the report."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.errors import UserError
from sfpp_cli.evaluation import Parameters, evaluate
from sfpp_cli.evaluation.judge import PROTOCOL, estimate, judge, visual_stability
from sfpp_cli.evaluation.judge_service import JudgeSettings
from sfpp_cli.evaluation.report import write_report
from sfpp_cli.evaluation.vbench import lay_out
from sfpp_cli.watch import Watch

VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
"""What a folder is searched for."""
COLUMNS = ("local_stability", "luma", "flow_mean", "dynamic_degree_dis")
"""What the table shows if nothing else is asked for."""


@dataclass(frozen=True)
class Target:
    """A video to measure, and what is known of it."""

    path: Path
    system: str | None = None
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Wishes:
    """What is asked for besides the local metrics."""

    metrics: tuple[str, ...] = ()
    """Names to keep; all if empty."""
    clip: str | None = None
    dino: str | None = None
    judge: JudgeSettings | None = None
    yes: bool = False
    """Judging may cost money."""
    vbench: Path | None = None
    out: Path | None = None
    workers: int | None = None
    cache: bool = True


def find_targets(
    places: Sequence[Path], manifest: Path | None, prompts: Path | None, *, compare: bool
) -> tuple[list[Target], list[dict[str, str]]]:
    """The videos that files, folders and a manifest name, and a line for every place that has none.

    With `compare` each place is a system of its own, named after itself.
    """
    targets = _manifest(manifest) if manifest else []
    failed = []
    names = _system_names(places) if compare else [None] * len(places)
    for place, name in zip(places, names, strict=True):
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in VIDEOS) if place.is_dir() else [place]
        if not files:
            failed.append({"path": str(place), "error": f"{place} holds no videos: it takes {', '.join(VIDEOS)}"})
        targets += [Target(file, name) for file in files]
    if prompts is not None:
        lines = read_prompts(prompts)
        if len(lines) != len(targets):
            raise UserError(f"{prompts} has {len(lines)} prompts for {len(targets)} videos: give one for each, in their order")
        targets = [
            replace(target, prompt=line.prompt, seed=line.seed if target.seed is None else target.seed)
            for target, line in zip(targets, lines, strict=True)
        ]
    return targets, failed


def run(
    targets: Sequence[Target], failed: Sequence[dict[str, str]], parameters: Parameters, wishes: Wishes, watch: Watch, command: str
) -> dict[str, Any]:
    """Measure everything; the result has the schema that `evaluation/SCHEMA.md` describes."""
    if not targets and not failed:
        raise UserError("no videos: name files or folders, or give --manifest")
    if wishes.judge is not None and not wishes.yes:
        asked = [{"path": str(target.path), "prompt": target.prompt} for target in targets]
        raise UserError(f"judging would send {estimate(asked, wishes.judge, _kept(wishes))}: add --yes to send that")
    layout = lay_out([t.path for t in targets], wishes.vbench, [t.prompt for t in targets]) if wishes.vbench else []
    result = evaluate(
        [target.path for target in targets],
        parameters=parameters,
        prompts=[target.prompt for target in targets],
        workers=wishes.workers,
        cache=_cache_folder() if wishes.cache else None,
        watch=watch,
    )
    result = {**result, "failed": [*failed, *result["failed"]], "skipped": [], "command": command, "vbench": layout}
    known = {str(target.path): target for target in targets}
    for video in result["videos"]:
        target = known[video["path"]]
        video["system"] = target.system or video["system"]
        video["prompt"] = target.prompt or video["prompt"]
        video["seed"] = video["seed"] if target.seed is None else target.seed
    _add_models(result, wishes, watch)
    if wishes.judge is not None:
        _add_judge(result, wishes, watch)
    _keep(result, wishes.metrics)
    if wishes.out is not None:
        result["report"] = str(write_report(result, wishes.out))
    return result


def as_text(result: Mapping[str, Any], columns: Sequence[str]) -> str:
    """A table for people: a line a video, with the verdicts that fired and since when."""
    names = columns or COLUMNS
    widths = [max(len(name), 6) for name in names]
    lines = ["  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)) + "  verdicts"]
    for video in result["videos"]:
        numbers = (video["metrics"].get(name) for name in names)
        shown = ("-" if number is None else f"{number:.2f}" for number in numbers)
        cells = "  ".join(f"{text:>{width}}" for text, width in zip(shown, widths, strict=True))
        lines.append(f"{cells}  {_fired(video['verdicts'])}  {video['path']}")
    return "\n".join([*lines, *result["vbench"]])


def _fired(verdicts: Mapping[str, Any]) -> str:
    since = {name: verdict["onset_seconds"] for name, verdict in verdicts.items() if verdict["fired"]}
    told = (name if onset is None else f"{name} from {onset:.1f} s" for name, onset in since.items())
    return ", ".join(told) or "none"


def _system_names(places: Sequence[Path]) -> list[str | None]:
    """Folder names, or whole paths where two are alike."""
    short = [place.stem if place.is_file() else place.resolve().name for place in places]
    return [name if short.count(name) == 1 else str(place) for name, place in zip(short, places, strict=True)]


def _manifest(path: Path) -> list[Target]:
    """What `sfpp generate --json` prints, or a list of such videos; relative paths are the manifest's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        videos = content["videos"] if isinstance(content, dict) else content
        return [
            Target(path.parent / video["path"], video.get("system"), video.get("prompt"), video.get("seed")) for video in videos
        ]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the JSON that `sfpp generate --json` prints") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no manifest ({error!r}): it takes the JSON that `sfpp generate --json` prints") from error


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfpp" / "evaluation"


def _add_models(result: dict[str, Any], wishes: Wishes, watch: Watch) -> None:
    """CLIP and DINOv2 where they are here; a line for each that is not."""
    from sfpp_cli.evaluation.models import load_models, model_metrics

    loaded, skipped = load_models(wishes.clip, wishes.dino)
    result["skipped"] += skipped
    for line in skipped:
        watch.say(line)
    if loaded.clip is None and loaded.dino is None:
        return
    with watch.stage("models", len(result["videos"])) as advance:
        for done, video in enumerate(result["videos"], start=1):
            clips = [(clip["start_frame"], clip["end_frame"]) for clip in video["clips"]]
            found = model_metrics(Path(video["path"]), video["prompt"], clips, loaded)
            video["models"] = found
            video["metrics"] |= {name: part["mean"] for name, part in found.items() if "mean" in part}
            advance(done, {})


def _add_judge(result: dict[str, Any], wishes: Wishes, watch: Watch) -> None:
    """Visual Stability: a rating for every video, and the score of each system is their mean."""
    assert wishes.judge is not None
    try:
        with watch.stage("judging", len(result["videos"])) as advance:
            judgements = judge(result["videos"], wishes.judge, _kept(wishes), advance, yes=wishes.yes)
    except UserError as error:
        result["failed"].append({"path": wishes.judge.url, "error": str(error)})
        return
    result["judge"] = {"back_end": wishes.judge.back_end, "model": wishes.judge.judge_model, "protocol": PROTOCOL}
    for video, judgement in zip(result["videos"], judgements, strict=True):
        video["judgement"] = {"rating": judgement.rating, "reasoning": judgement.reasoning, "missing": judgement.missing}
        score = visual_stability([judgement])["score"]
        video["metrics"]["visual_stability"] = score
        if judgement.missing:
            result["skipped"].append(f"visual stability of {video['path']} missing: {judgement.missing}")


def _kept(wishes: Wishes) -> Path:
    """Where the judge's answers are kept, so that none is paid for twice."""
    return (wishes.out or Path("evaluation")) / "judge"


def _keep(result: dict[str, Any], names: Sequence[str]) -> None:
    """Only the metrics asked for. UserError for a name that there is not."""
    known = {name for video in result["videos"] for name in video["metrics"]}
    for name in names:
        if known and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(known))}"
            raise UserError(f"no metric '{name}': {hint}")
    if names:
        for video in result["videos"]:
            video["metrics"] = {name: video["metrics"].get(name) for name in names}
