"""What `sfpp evaluate` puts together: which videos there are, the local metrics, models and judge where asked for, the report."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfpp_cli.data.prompts import read_prompts
from sfpp_cli.errors import UserError
from sfpp_cli.evaluation import Parameters, evaluate
from sfpp_cli.evaluation.judge.judge import PROTOCOL, estimate, judge, visual_stability
from sfpp_cli.evaluation.judge.service import JudgeSettings
from sfpp_cli.evaluation.networks.find import find_models
from sfpp_cli.evaluation.source import sidecar
from sfpp_cli.evaluation.vbench import lay_out
from sfpp_cli.progress import Watch

if TYPE_CHECKING:  # these import torch, which an evaluation without models does without
    from sfpp_cli.evaluation.networks.clip_dino import LoadedModels
    from sfpp_cli.evaluation.networks.raft import Raft

VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
"""What a folder is searched for."""
COLUMNS = ("local_stability", "luma", "flow_mean", "dynamic_degree_dis")
"""What the table shows if nothing else is asked for."""
BY_MODELS = (
    "clip_text_alignment",
    "subject_consistency",
    "background_consistency",
    "dynamic_degree_raft",
    "visual_stability",
)
"""And these, where they were measured."""


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
    raft: str | None = None
    device: str | None = None
    """Where these run."""
    judge: JudgeSettings | None = None
    prices: tuple[float, float] | None = None
    """The judge's, for a million tokens in and out."""
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
        files = (
            sorted(file for file in place.iterdir() if file.suffix.lower() in VIDEOS)
            if place.is_dir()
            else [place]
        )
        if not files:
            failed.append(
                {"path": str(place), "error": f"{place} holds no videos: it takes {', '.join(VIDEOS)}"}
            )
        targets += [Target(file, name) for file in files]
    if prompts is not None:
        lines = read_prompts(prompts)
        if len(lines) != len(targets):
            raise UserError(
                f"{prompts} has {len(lines)} prompts for {len(targets)} videos: give one for each, in their order"
            )
        targets = [
            replace(target, prompt=line.prompt, seed=line.seed if target.seed is None else target.seed)
            for target, line in zip(targets, lines, strict=True)
        ]
    return targets, failed


def run(
    targets: Sequence[Target],
    failed: Sequence[dict[str, str]],
    parameters: Parameters,
    wishes: Wishes,
    watch: Watch,
    command: str,
) -> dict[str, Any]:
    """Measure everything; the result has the schema that `evaluation/SCHEMA.md` describes."""
    if not targets and not failed:
        raise UserError("no videos: name files or folders, or give --manifest")
    if wishes.judge is not None and not wishes.yes:
        _ask_first(targets, wishes.judge, wishes)
    models, raft, skipped = _load_models(wishes)
    for line in skipped:
        watch.say(line)
    result = evaluate(
        [target.path for target in targets],
        parameters=parameters,
        prompts=[target.prompt for target in targets],
        workers=wishes.workers,
        cache=_cache_folder() if wishes.cache else None,
        progress=watch,
    )
    result = {
        **result,
        "failed": [*failed, *result["failed"]],
        "skipped": skipped,
        "command": command,
        "vbench": [],
    }
    known = {str(target.path): target for target in targets}
    for video in result["videos"]:
        target = known[video["path"]]
        video["system"] = target.system or video["system"]
        video["prompt"] = target.prompt or video["prompt"]
        video["seed"] = video["seed"] if target.seed is None else target.seed
    if models is not None:
        _add_models(result, models, watch)
    if raft is not None:
        _add_raft(result, raft, watch)
    if wishes.judge is not None:
        _add_judge(result, wishes, watch)
    if wishes.vbench is not None and result["videos"]:
        _lay_out(result, wishes.vbench)
    _keep(result, wishes.metrics)
    if wishes.out is not None:
        from sfpp_cli.evaluation.report import write_report  # imports matplotlib

        result["report"] = str(write_report(result, wishes.out))
    return result


def _ask_first(targets: Sequence[Target], settings: JudgeSettings, wishes: Wishes) -> None:
    """UserError with what judging would send, if anything; or that there is nothing it could send."""
    asked = [
        {"path": str(target.path), "prompt": target.prompt or sidecar(target.path).get("prompt")}
        for target in targets
    ]
    unknown = sum(not video["prompt"] for video in asked)
    if asked and unknown == len(asked):
        raise UserError(
            f"no prompt is known of {targets[0].path if unknown == 1 else 'any video'}, and the judge needs it: "
            "give --prompts or --manifest"
        )
    expected = estimate(asked, settings, _kept(wishes), wishes.prices)
    if expected.requests:
        left_out = f", without the {unknown} whose prompt is unknown" if unknown else ""
        raise UserError(f"judging would send {expected}{left_out}: add --yes to send that")


def as_text(result: Mapping[str, Any], columns: Sequence[str]) -> str:
    """A table for people: a line a video, with the verdicts that fired and since when."""
    measured = {name for video in result["videos"] for name in video["metrics"]}
    names = columns or (*COLUMNS, *(name for name in BY_MODELS if name in measured))
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
            Target(path.parent / video["path"], video.get("system"), video.get("prompt"), video.get("seed"))
            for video in videos
        ]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the JSON that `sfpp generate --json` prints"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is no manifest ({error!r}): it takes the JSON that `sfpp generate --json` prints"
        ) from error


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfpp" / "evaluation"


def _load_models(wishes: Wishes) -> tuple[LoadedModels | None, Raft | None, list[str]]:
    """CLIP and DINOv2 where they are here, RAFT where it is asked for, and a line for each that is skipped.

    Before anything is measured, since what is asked for may turn out not to work. Imports torch only where
    one of them runs.
    """
    found, skipped = find_models(wishes.clip, wishes.dino)
    if not found and wishes.raft is None and wishes.device is None:
        return None, None, skipped
    from sfpp_cli.devices import pick_device

    device = pick_device(wishes.device)
    raft, models = None, None
    if wishes.raft is not None:
        from sfpp_cli.evaluation.networks.raft import load_raft

        raft = load_raft(wishes.raft, device)
    if found:
        from sfpp_cli.evaluation.networks.clip_dino import load_models

        models, unusable = load_models(found, device)
        skipped += unusable
    return models, raft, skipped


def _add_models(result: dict[str, Any], models: LoadedModels, watch: Watch) -> None:
    from sfpp_cli.evaluation.networks.clip_dino import model_metrics

    if models.clip is None and models.dino is None:
        return
    with watch.stage("models", len(result["videos"])) as advance:
        for done, video in enumerate(result["videos"], start=1):
            if models.text is not None and not video["prompt"]:
                _skip(
                    result,
                    f"text alignment of {video['path']} skipped: no prompt is known, give --prompts or --manifest",
                    watch,
                )
            try:
                found = model_metrics(Path(video["path"]), video["prompt"], _clip_ranges(video), models)
            except UserError as error:
                result["failed"].append({"path": video["path"], "error": str(error)})
                continue
            video["models"] = found
            video["metrics"] |= {name: part["mean"] for name, part in found.items() if "mean" in part}
            advance(done, {})


def _add_raft(result: dict[str, Any], raft: Raft, watch: Watch) -> None:
    """Dynamic degree as VBench-Long has it, of the video and of each clip."""
    from sfpp_cli.evaluation.networks.raft import dynamic_clips

    done = 0
    with watch.stage("RAFT", sum(video["frames"] for video in result["videos"])) as advance:
        for video in result["videos"]:
            seen = partial(lambda before, frames: advance(before + frames, {}), done)
            size = video["width"], video["height"]
            done += video["frames"]
            try:
                moves = dynamic_clips(
                    Path(video["path"]), _clip_ranges(video), video["fps"], size, raft, seen
                )
            except UserError as error:
                result["failed"].append({"path": video["path"], "error": str(error)})
                continue
            found = {
                "mean": sum(moves) / len(moves),
                "clips": [int(move) for move in moves],
                "parameters": dict(raft.parameters),
            }
            video["models"] = {**video.get("models", {}), "dynamic_degree_raft": found}
            video["metrics"]["dynamic_degree_raft"] = found["mean"]


def _clip_ranges(video: Mapping[str, Any]) -> list[tuple[int, int]]:
    return [(clip["start_frame"], clip["end_frame"]) for clip in video["clips"]]


def _skip(result: dict[str, Any], line: str, watch: Watch) -> None:
    """Never in silence."""
    result["skipped"].append(line)
    watch.say(line)


def _lay_out(result: dict[str, Any], out: Path) -> None:
    """What was measured, for VBench."""
    videos = result["videos"]
    try:
        result["vbench"] = lay_out(
            [Path(video["path"]) for video in videos], out, [video["prompt"] for video in videos]
        )
    except UserError as error:
        result["failed"].append({"path": str(out), "error": str(error)})


def _add_judge(result: dict[str, Any], wishes: Wishes, watch: Watch) -> None:
    """Visual Stability: a rating for every video, and the score of each system is their mean."""
    assert wishes.judge is not None
    try:
        with watch.stage("judging", len(result["videos"])) as advance:
            judgements = judge(result["videos"], wishes.judge, _kept(wishes), advance, yes=wishes.yes)
    except UserError as error:
        result["failed"].append({"path": wishes.judge.url, "error": str(error)})
        return
    result["judge"] = {
        "back_end": wishes.judge.back_end,
        "model": wishes.judge.judge_model,
        "protocol": PROTOCOL,
        "frames": wishes.judge.frames,
    }
    for video, judgement in zip(result["videos"], judgements, strict=True):
        video["judgement"] = {
            "rating": judgement.rating,
            "reasoning": judgement.reasoning,
            "missing": judgement.missing,
        }
        score = visual_stability([judgement])["score"]
        video["metrics"]["visual_stability"] = score
        if not video["prompt"]:
            result["failed"].append(
                {"path": video["path"], "error": f"{video['path']} was not judged: {judgement.missing}"}
            )
        elif judgement.missing:
            _skip(result, f"visual stability of {video['path']} missing: {judgement.missing}", watch)


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
