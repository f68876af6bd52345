"""What `sfpp evaluate` puts together: local metrics, models and judge where asked for, baseline, report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfpp_cli.errors import UserError, suggest
from sfpp_cli.evaluation.baseline import against, read_baseline
from sfpp_cli.evaluation.judge.case import PROTOCOL
from sfpp_cli.evaluation.judge.judge import estimate, judge, visual_stability
from sfpp_cli.evaluation.judge.service import Clock, JudgeSettings, Service
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.verdicts import NAMES
from sfpp_cli.evaluation.networks.find import find_models
from sfpp_cli.evaluation.parallel import evaluate
from sfpp_cli.evaluation.reference import LOOKS, add_reference
from sfpp_cli.evaluation.scenes import clip_prompts, scene_means
from sfpp_cli.evaluation.source import sidecar
from sfpp_cli.evaluation.table import csv_text
from sfpp_cli.evaluation.targets import VIDEOS, Target, find_targets
from sfpp_cli.evaluation.vbench import lay_out, plan
from sfpp_cli.files import atomic_write, writing
from sfpp_cli.progress import Progress

if TYPE_CHECKING:  # these import torch, which an evaluation without models does without
    from sfpp_cli.evaluation.networks.clip_dino import LoadedModels
    from sfpp_cli.evaluation.networks.raft import Raft

NEEDED = {
    "clip_text_alignment": "clip",
    "background_consistency": "clip",
    "subject_consistency": "dino",
    "dynamic_degree_raft": "raft",
    "visual_stability": "judge",
    **{f"{name}_off_reference": "reference" for name in LOOKS},
}
"""Metrics that frames alone do not give -> the option that gives them."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is asked for besides the local metrics."""

    metrics: tuple[str, ...] = ()
    """Names of the metrics to keep; all if empty."""
    scenes: tuple[float, ...] = ()
    """Seconds at which another scene is meant to begin, in videos whose JSON names no scenes."""
    fail_on: tuple[str, ...] = ()
    """Names of verdicts that `failures` looks for."""
    baseline: Path | None = None
    """An earlier results.json, or its folder, to compare with."""
    reference: Path | None = None
    """A video, or a folder of them, that is known to be good."""
    clip: str | None = None
    """Folder or hub id of a CLIP model; by default the one that VBench uses, if it is in the hub's cache."""
    dino: str | None = None
    """The same for a DINOv2 model."""
    raft: str | None = None
    """File of RAFT's weights, or "torchvision" for those that torchvision publishes."""
    device: str | None = None
    """Where these models run; by default on a GPU if there is one."""
    judge: JudgeSettings | None = None
    prices: tuple[float, float] | None = None
    """What the judge costs for a million tokens (in, out)."""
    yes: bool = False
    """Whether the judge may be asked, which may cost money."""
    vbench: Path | None = None
    """Folder to lay the videos out in for VBench."""
    out: Path | None = None
    """Folder of the report."""
    csv: Path | None = None
    """File for a table with a line a video."""
    workers: int | None = None
    cache: bool = True

    @property
    def judge_folder(self) -> Path:
        """Where the judge's answers are kept, so that none is paid for twice."""
        return (self.out or Path("evaluation")) / "judge"


def run(
    targets: Sequence[Target],
    failed: Sequence[dict[str, str]],
    parameters: Parameters,
    options: EvaluateOptions,
    progress: Progress,
    command: str,
) -> dict[str, Any]:
    """Measure everything; results.schema.json describes the result. `failed` are entries of the result for
    what could not even be looked at, `command` is recorded in it. UserError, before anything is measured, for
    what is asked for and cannot be had."""
    if not targets and not failed:
        raise UserError("no videos: name files or folders, or give --manifest")
    _refuse(targets, options)
    baseline = None if options.baseline is None else read_baseline(options.baseline)
    models, raft, skipped = _load_models(options)
    _make_folders(options)
    for line in skipped:
        progress.say(line)
    good = []
    if options.reference is not None:
        good = _measure_reference(options.reference, parameters, options, progress)
    result = _measure(targets, parameters, options, progress)
    result["failed"] = [*failed, *result["failed"]]
    result |= {"skipped": skipped, "command": command, "vbench": []}
    if good:
        result["reference"] = add_reference(result["videos"], good, str(options.reference))
    if models is not None:
        with _clocked("CLIP and DINOv2", progress):
            _add_models(result, models, progress)
    if raft is not None:
        with _clocked("RAFT", progress):
            _add_raft(result, raft, progress)
    if options.judge is not None:
        with _clocked("judge", progress):
            _add_judge(result, options.judge, options, progress)
    if options.vbench is not None and result["videos"]:
        _lay_out(result, options.vbench)
    if options.metrics:
        _keep_metrics(result, options.metrics)
    if baseline is not None:
        result["baseline"] = against(result, baseline)
    if options.csv is not None:
        atomic_write(options.csv, csv_text(result["videos"]))
    if options.out is not None:
        from sfpp_cli.evaluation.report import write_report  # imports matplotlib

        with _clocked("report", progress):
            result["report"] = str(write_report(result, options.out))
    return result


@contextmanager
def _clocked(what: str, progress: Progress) -> Iterator[None]:
    began = time.perf_counter()
    yield
    progress.detail(f"{what}: {time.perf_counter() - began:.1f} s")


def failures(result: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A line for each verdict of these that fired: in which videos, and since when."""
    lines = []
    for name in names:
        fired = [video for video in result["videos"] if video["verdicts"][name]["fired"]]
        onsets = [f"{video['path']} from {video['verdicts'][name]['onset_seconds']:.1f} s" for video in fired]
        if fired:
            counted = f"{len(fired)} of {len(result['videos'])}"
            lines.append(f"{name} in {counted}: {', '.join(onsets)}")
    return lines


def _refuse(targets: Sequence[Target], options: EvaluateOptions) -> None:
    """UserError for what is asked for and cannot be had, as far as names and files tell."""
    _refuse_unknown_verdicts(options.fail_on)
    _refuse_metrics(options)
    _refuse_bad_table(options.csv)
    there = [target.path for target in targets if os.path.exists(target.path)]
    if options.vbench is not None and there:
        plan(there, options.vbench)
    if options.judge is not None:
        _refuse_judge(targets, options.judge, options)


def _make_folders(options: EvaluateOptions) -> None:
    """Now, and not when hours of measuring are over and one turns out not to be writable."""
    table = None if options.csv is None else options.csv.parent
    for folder in filter(None, (options.out, options.vbench, table)):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)


def _refuse_unknown_verdicts(names: Sequence[str]) -> None:
    for name in names:
        if name not in NAMES:
            remedy = suggest(name, NAMES) or f"; there are {', '.join(NAMES)}"
            raise UserError(f"--fail-on: there is no verdict '{name}'{remedy}")


def _refuse_metrics(options: EvaluateOptions) -> None:
    """UserError for a metric that there is not, or not with these options."""
    schema = json.loads(Path(__file__).with_name("results.schema.json").read_text(encoding="utf-8"))
    metrics = schema["properties"]["videos"]["items"]["properties"]["metrics"]
    known = {*metrics["properties"], *NEEDED}
    models, _ = find_models(options.clip, options.dino)
    for name in options.metrics:
        if name not in known:
            remedy = suggest(name, known) or f"; there are {', '.join(sorted(known))}"
            raise UserError(f"--metrics: there is no metric '{name}'{remedy}")
        needed = NEEDED.get(name)
        if needed and needed not in models and getattr(options, needed) is None:
            raise UserError(f"--metrics: {name} is not measured without --{needed}; give that, too")


def _refuse_bad_table(csv: Path | None) -> None:
    if csv is not None and csv.is_dir():
        raise UserError(f"--csv {csv} is a folder; give the name of a file in it")
    if csv is not None and csv.suffix.lower() in VIDEOS:
        raise UserError(f"--csv {csv} would overwrite a video; give the table's name, as in --csv table.csv")


def _cache_folder() -> Path | None:
    """Where results are kept for the next time; None for an account without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sfpp", "evaluation")
    return None


def _refuse_judge(targets: Sequence[Target], settings: JudgeSettings, options: EvaluateOptions) -> None:
    """UserError with what judging would send, unless that is allowed and there is a key to send it with; or
    that there is nothing it could send."""
    prompts = [target.prompt or sidecar(target.path).get("prompt") for target in targets]
    paths = [str(target.path) for target in targets]
    videos = [{"path": path, "prompt": prompt} for path, prompt in zip(paths, prompts, strict=True)]
    unknown = sum(not prompt for prompt in prompts)
    if prompts and unknown == len(prompts) and not options.yes:
        which = paths[0] if unknown == 1 else "any video"
        raise UserError(
            f"no prompt is known of {which}, and the judge needs it: give --prompts or --manifest"
        )
    expected = estimate(videos, settings, options.judge_folder, options.prices)
    if not expected.requests:
        return
    if not options.yes:
        left_out = f", without the {unknown} whose prompt is unknown" if unknown else ""
        raise UserError(f"judging would send {expected}{left_out}: add --yes to send that")
    Service(settings, Clock())  # which looks at the key and sends nothing


def _load_models(options: EvaluateOptions) -> tuple[LoadedModels | None, Raft | None, list[str]]:
    """CLIP and DINOv2 where they are here, RAFT where it is asked for, and a line for each that is skipped.
    Before anything is measured, since what is asked for may turn out not to work. torch is imported only for
    a model that runs, or to see whether the device that is asked for exists."""
    folders, skipped = find_models(options.clip, options.dino)
    if not folders and options.raft is None and options.device is None:
        return None, None, skipped
    from sfpp_cli.devices import pick_device

    device = pick_device(options.device)
    models = raft = None
    if options.raft is not None:
        from sfpp_cli.evaluation.networks.raft import load_raft

        raft = load_raft(options.raft, device)
    if folders:
        from sfpp_cli.evaluation.networks.clip_dino import load_models

        models, unusable = load_models(folders, device)
        skipped += unusable
    return models, raft, skipped


def _measure(
    targets: Sequence[Target], parameters: Parameters, options: EvaluateOptions, progress: Progress
) -> dict[str, Any]:
    """The local metrics of every target."""
    result = evaluate(
        [target.path for target in targets],
        parameters=parameters,
        prompts=[target.prompt for target in targets],
        scenes=options.scenes,
        workers=options.workers,
        cache=_cache_folder() if options.cache else None,
        progress=progress,
    )
    _add_what_is_known(result, targets)
    return result


def _measure_reference(
    path: Path, parameters: Parameters, options: EvaluateOptions, progress: Progress
) -> list[dict[str, Any]]:
    """The videos of --reference. UserError unless there are some, and all of them can be measured."""
    targets, failed = find_targets([path], None, None, compare=False)
    result = _measure(targets, parameters, replace(options, scenes=()), progress)
    for failure in [*failed, *result["failed"]]:
        raise UserError(f"--reference: {failure['error']}")
    good: list[dict[str, Any]] = result["videos"]
    return good


def _add_what_is_known(result: dict[str, Any], targets: Sequence[Target]) -> None:
    """System, prompt and seed: what the targets do not say stays as the file beside the video has it."""
    known = {str(target.path): target for target in targets}
    for video in result["videos"]:
        target = known[video["path"]]
        video["system"] = target.system or video["system"]
        video["prompt"] = target.prompt or video["prompt"]
        if target.seed is not None:
            video["seed"] = target.seed


def _add_models(result: dict[str, Any], models: LoadedModels, progress: Progress) -> None:
    from sfpp_cli.evaluation.networks.clip_dino import model_metrics

    if models.clip is None and models.dino is None:
        return
    with progress.stage("models", len(result["videos"])) as advance:
        for done, video in enumerate(result["videos"], start=1):
            path = video["path"]
            prompts = clip_prompts(video)
            if models.text is not None and not any(prompts):
                remedy = "no prompt is known, give --prompts or --manifest"
                _skip(result, f"text alignment of {path} skipped: {remedy}", progress)
            try:
                parts = model_metrics(Path(path), prompts, _clip_ranges(video), models, fps=video["fps"])
            except UserError as error:
                result["failed"].append({"path": path, "error": str(error)})
                continue
            if alignment := parts.get("clip_text_alignment"):
                alignment["scenes"] = scene_means(video, alignment["clips"])
            video["models"] = parts
            video["metrics"] |= {name: part["mean"] for name, part in parts.items() if "mean" in part}
            advance(done, {})


def _add_raft(result: dict[str, Any], raft: Raft, progress: Progress) -> None:
    """Dynamic degree as VBench-Long has it, of the video and of each clip."""
    from sfpp_cli.evaluation.networks.raft import dynamic_clips

    done = 0
    with progress.stage("RAFT", sum(video["frames"] for video in result["videos"])) as advance:
        for video in result["videos"]:
            path = Path(video["path"])
            size = (video["width"], video["height"])
            of_all = partial(lambda before, frames: advance(before + frames, {}), done)
            done += video["frames"]
            try:
                moves = dynamic_clips(path, _clip_ranges(video), video["fps"], size, raft, of_all)
            except UserError as error:
                result["failed"].append({"path": video["path"], "error": str(error)})
                continue
            mean = sum(moves) / len(moves)
            degree = {"mean": mean, "clips": list(map(int, moves)), "parameters": dict(raft.parameters)}
            video.setdefault("models", {})["dynamic_degree_raft"] = degree
            video["metrics"]["dynamic_degree_raft"] = mean


def _clip_ranges(video: Mapping[str, Any]) -> list[tuple[int, int]]:
    return [(clip["start_frame"], clip["end_frame"]) for clip in video["clips"]]


def _add_judge(
    result: dict[str, Any], settings: JudgeSettings, options: EvaluateOptions, progress: Progress
) -> None:
    """Visual Stability: a rating for every video; the score of a system is the mean of its videos'."""
    try:
        with progress.stage("judging", len(result["videos"])) as advance:
            judgements = judge(result["videos"], settings, options.judge_folder, advance, yes=options.yes)
    except UserError as error:
        result["failed"].append({"path": settings.url, "error": str(error)})
        return
    result["judge"] = {
        "back_end": settings.back_end,
        "model": settings.judge_model,
        "protocol": PROTOCOL,
        "frames": settings.frames,
    }
    for video, judgement in zip(result["videos"], judgements, strict=True):
        path = video["path"]
        video["judgement"] = {key: getattr(judgement, key) for key in ("rating", "reasoning", "missing")}
        video["metrics"]["visual_stability"] = visual_stability([judgement])["score"]
        if not video["prompt"]:
            result["failed"].append({"path": path, "error": f"{path} was not judged: {judgement.missing}"})
        elif judgement.missing:
            _skip(result, f"visual stability of {path} missing: {judgement.missing}", progress)


def _skip(result: dict[str, Any], line: str, progress: Progress) -> None:
    """Record that a metric is left out, and say so."""
    result["skipped"].append(line)
    progress.say(line)


def _lay_out(result: dict[str, Any], out: Path) -> None:
    paths = [Path(video["path"]) for video in result["videos"]]
    prompts = [video["prompt"] for video in result["videos"]]
    try:
        result["vbench"] = lay_out(paths, out, prompts)
    except UserError as error:
        result["failed"].append({"path": str(out), "error": str(error)})


def _keep_metrics(result: dict[str, Any], names: Sequence[str]) -> None:
    """Drop all metrics but these; null where one could not be measured."""
    for video in result["videos"]:
        video["metrics"] = {name: video["metrics"].get(name) for name in names}
