"""`sfpp evaluate`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sfpp_cli.commands.console import Terminal, error, result

_WHAT, _MEASURE, _JUDGE, _OUT = "What to measure", "Metrics", "Judge", "Output"


def evaluate(
    videos: Annotated[list[Path] | None, typer.Argument(help="Video files, or folders of them.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="What `generate --json` printed.", rich_help_panel=_WHAT)
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A prompt a video, in order.", rich_help_panel=_WHAT)
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Every argument is a system.", rich_help_panel=_WHAT)
    ] = False,
    metrics: Annotated[
        str | None, typer.Option(help="Only these, as in luma,flow_mean.", rich_help_panel=_MEASURE)
    ] = None,
    reference_seconds: Annotated[
        float, typer.Option(help="What later seconds are held to.", rich_help_panel=_MEASURE)
    ] = 5.0,
    clip_seconds: Annotated[int, typer.Option(help="Length of a clip.", min=1, rich_help_panel=_MEASURE)] = 2,
    clip: Annotated[
        str | None, typer.Option(help="A CLIP model, for text alignment.", rich_help_panel=_MEASURE)
    ] = None,
    dino: Annotated[
        str | None, typer.Option(help="A DINOv2 model, for the subject.", rich_help_panel=_MEASURE)
    ] = None,
    raft: Annotated[
        str | None, typer.Option(help="RAFT's weights, or torchvision.", rich_help_panel=_MEASURE)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Of these models (default: the best).", rich_help_panel=_MEASURE)
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="gemini or openai (key: environment).", rich_help_panel=_JUDGE)
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Which of its models.", rich_help_panel=_JUDGE)
    ] = None,
    judge_url: Annotated[str | None, typer.Option(help="Another endpoint.", rich_help_panel=_JUDGE)] = None,
    judge_frames: Annotated[
        int, typer.Option(help="Shown, unless the video is.", min=1, rich_help_panel=_JUDGE)
    ] = 32,
    judge_rate: Annotated[
        float, typer.Option(help="Requests a minute, at most.", rich_help_panel=_JUDGE)
    ] = 30.0,
    judge_prices: Annotated[
        tuple[float, float] | None, typer.Option(help="Of a million tokens in, out.", rich_help_panel=_JUDGE)
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Send it; it may cost money.", rich_help_panel=_JUDGE)
    ] = False,
    vbench: Annotated[
        Path | None, typer.Option(help="Lay out for VBench here.", rich_help_panel=_OUT)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, results.json.", rich_help_panel=_OUT)
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="The result as one JSON object.", rich_help_panel=_OUT)
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes (default: cores).", min=1, rich_help_panel=_OUT)
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure anew.", rich_help_panel=_OUT)] = False,
) -> None:
    """Tell a stable minute from a decayed one: exposure, motion, repetition, and a verdict for every way to fail."""
    from sfpp_cli.evaluation import Parameters, run
    from sfpp_cli.evaluation.judge.service import JudgeSettings

    targets, failed = run.find_targets(videos or [], manifest, prompts, compare=compare)
    asked = (
        JudgeSettings(judge, judge_model, judge_url, judge_frames, requests_per_minute=judge_rate)
        if judge
        else None
    )
    wishes = run.Wishes(
        metrics=tuple(metrics.split(",")) if metrics else (),
        clip=clip,
        dino=dino,
        raft=raft,
        device=device,
        judge=asked,
        prices=judge_prices,
        yes=yes,
        vbench=vbench,
        out=out,
        workers=workers,
        cache=not no_cache,
    )
    parameters = Parameters(reference_seconds=reference_seconds, clip_seconds=clip_seconds)
    found = run.run(targets, failed, parameters, wishes, Terminal(), shlex.join(["sfpp", *sys.argv[1:]]))
    result(json.dumps(found) if json_ else found.get("report") or run.as_text(found, wishes.metrics))
    for failure in found["failed"]:
        error(failure["error"])
    raise typer.Exit(2 if found["failed"] else 0)
