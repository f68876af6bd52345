"""`sfpp evaluate`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfpp_cli.commands.console import Terminal, error, plain, result

_what = partial(typer.Option, rich_help_panel="What to measure")
_metric = partial(typer.Option, rich_help_panel="Metrics")
_judge = partial(typer.Option, rich_help_panel="Judge")
_output = partial(typer.Option, rich_help_panel="Output")

COLUMNS = ("local_stability", "luma", "flow_mean", "dynamic_degree_dis")
"""Metrics in the table if no others are asked for."""
WHERE_MEASURED = (
    "clip_text_alignment",
    "subject_consistency",
    "background_consistency",
    "dynamic_degree_raft",
    "visual_stability",
    "luma_off_reference",
    "chroma_off_reference",
)
"""And these, where they were measured."""
VERDICT_FIRED = 3
"""Exit code where a verdict of --fail-on fired and everything could be measured."""
_NEVER_FOLDED = 10_000
"""Characters in a line of the table where no terminal limits it."""


def evaluate(
    videos: Annotated[list[Path] | None, typer.Argument(help="Video files, or folders of them.")] = None,
    manifest: Annotated[
        Path | None,
        _what(help="JSON file that names videos with their prompts, as `sfpp generate --json` prints it."),
    ] = None,
    prompts: Annotated[
        Path | None, _what(help="File with one prompt per video, in the same order (.txt or .jsonl).")
    ] = None,
    scenes: Annotated[
        str | None,
        _what(
            help="Seconds at which new scenes begin, as in 20,40: changes there are no faults "
            "(default: the scenes in the JSON beside a video)."
        ),
    ] = None,
    compare: Annotated[
        bool, _what("--compare", help="Treat each argument as a system, and compare them.")
    ] = False,
    metrics: Annotated[
        str | None, _metric(help="Metrics to keep, as in luma,flow_mean (default: all).")
    ] = None,
    reference_seconds: Annotated[
        float, _metric(help="Seconds at the start that the rest of the video is compared with.")
    ] = 5.0,
    reference: Annotated[
        Path | None,
        _metric(
            help="A video that is known to be good, or a folder of them: how far the look of others ends "
            "from it is measured, too, by prompt where prompts match."
        ),
    ] = None,
    clip_seconds: Annotated[
        int, _metric(help="Length of the clips that are also measured one by one, in seconds.", min=1)
    ] = 2,
    clip: Annotated[
        str | None,
        _metric(help="CLIP model (folder or hub id), for text alignment and background consistency."),
    ] = None,
    dino: Annotated[
        str | None, _metric(help="DINOv2 model (folder or hub id), for subject consistency.")
    ] = None,
    raft: Annotated[
        str | None,
        _metric(
            help="Weights of the RAFT network, for dynamic degree: a file, or torchvision to fetch them."
        ),
    ] = None,
    device: Annotated[
        str | None,
        _metric(help="Where these models run: cpu, cuda or cuda:N (default: a GPU if there is one)."),
    ] = None,
    judge: Annotated[
        str | None,
        _judge(
            help="Let a video language model rate the exposure: gemini or openai. "
            "The key is read from GEMINI_API_KEY or OPENAI_API_KEY."
        ),
    ] = None,
    judge_model: Annotated[str | None, _judge(help="Name of the model (default: gemini-2.5-pro).")] = None,
    judge_url: Annotated[
        str | None, _judge(help="Address of another service with the same protocol.")
    ] = None,
    judge_frames: Annotated[
        int, _judge(help="Frames sent to the judge where the video itself is not sent.", min=1)
    ] = 32,
    judge_rate: Annotated[float, _judge(help="Most requests to send in a minute.")] = 30.0,
    judge_prices: Annotated[
        tuple[float, float] | None,
        _judge(help="Prices of a million tokens in and out, to estimate the cost."),
    ] = None,
    yes: Annotated[
        bool,
        _judge(
            "--yes",
            help="Send the videos to the judge, which may cost money; otherwise only an estimate is shown.",
        ),
    ] = False,
    vbench: Annotated[
        Path | None,
        _output(help="Folder to lay the videos out in for VBench, with the commands to run there."),
    ] = None,
    out: Annotated[Path | None, _output(help="Folder for report.html, results.json and drift.png.")] = None,
    csv: Annotated[Path | None, _output(help="File for a table (CSV) with a line a video.")] = None,
    baseline: Annotated[
        Path | None,
        _output(help="An earlier results.json, or its folder: say what has changed since, with intervals."),
    ] = None,
    fail_on: Annotated[
        str | None,
        _output(help="Verdicts that end the command with exit code 3, as in over_exposure,darkening."),
    ] = None,
    json_: Annotated[bool, _output("--json", help="Print the result as one JSON object.")] = False,
    workers: Annotated[
        int | None, _output(help="Videos measured at the same time (default: one per core).", min=1)
    ] = None,
    no_cache: Annotated[bool, _output("--no-cache", help="Measure again what was measured before.")] = False,
    verbose: Annotated[bool, _output("--verbose", "-v", help="Also say what took how long.")] = False,
) -> None:
    """Tell a stable minute from a decayed one: exposure, motion, repetition, a verdict on each fault."""
    from sfpp_cli.evaluation import Parameters
    from sfpp_cli.evaluation.judge.service import JudgeSettings
    from sfpp_cli.evaluation.run import EvaluateOptions, failures, run
    from sfpp_cli.evaluation.scenes import parse_scenes
    from sfpp_cli.evaluation.targets import find_targets

    targets, failed = find_targets(videos or [], manifest, prompts, compare=compare)
    settings = None
    if judge:
        settings = JudgeSettings(judge, judge_model, judge_url, judge_frames, requests_per_minute=judge_rate)
    options = EvaluateOptions(
        metrics=_names(metrics),
        scenes=parse_scenes(scenes) if scenes else (),
        fail_on=_names(fail_on),
        baseline=baseline,
        reference=reference,
        clip=clip,
        dino=dino,
        raft=raft,
        device=device,
        judge=settings,
        prices=judge_prices,
        yes=yes,
        vbench=vbench,
        out=out,
        csv=csv,
        workers=workers,
        cache=not no_cache,
    )
    parameters = Parameters(reference_seconds=reference_seconds, clip_seconds=clip_seconds)
    command = shlex.join(["sfpp", *sys.argv[1:]])
    measured = run(targets, failed, parameters, options, Terminal(verbose=verbose), command)
    if json_:
        result(json.dumps(measured))
    elif measured["videos"]:
        result(measured.get("report") or as_text(measured, options.metrics))
    fired = failures(measured, options.fail_on)
    for line in (*(failure["error"] for failure in measured["failed"]), *fired):
        error(line)
    raise typer.Exit(2 if measured["failed"] else VERDICT_FIRED if fired else 0)


def _names(text: str | None) -> tuple[str, ...]:
    """`a, b` as names."""
    return () if text is None else tuple(name.strip() for name in text.split(","))


def as_text(measured: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """A table with a row for each video, then changes since the baseline and commands for VBench, if any.

    In a terminal long cells are folded to its width; in a pipe a video is always one line.
    """
    from sfpp_cli.evaluation.baseline import baseline_lines

    there = {name for video in measured["videos"] for name in video["metrics"]}
    names = metrics or (*COLUMNS, *(name for name in WHERE_MEASURED if name in there))
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(escape(name), justify="right", no_wrap=True)
    table.add_column("verdicts", overflow="fold")
    table.add_column("video", overflow="fold")
    for video in measured["videos"]:
        numbers = (video["metrics"].get(name) for name in names)
        cells = ("-" if number is None else f"{number:.2f}" for number in numbers)
        table.add_row(*cells, _fired(video["verdicts"]), plain(video["path"]))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_NEVER_FOLDED)
    with console.capture() as drawn:
        console.print(table)
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    if "baseline" in measured:
        lines += baseline_lines(measured["baseline"], names)
    return "\n".join([*lines, *measured["vbench"]])


def _fired(verdicts: Mapping[str, Any]) -> str:
    """The verdicts that fired, and since when."""
    onsets = {name: verdict["onset_seconds"] for name, verdict in verdicts.items() if verdict["fired"]}
    said = (name if onset is None else f"{name} from {onset:.1f} s" for name, onset in onsets.items())
    return ", ".join(said) or "none"
