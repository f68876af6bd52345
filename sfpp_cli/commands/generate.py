"""`sfpp generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sfpp_cli.commands.console import Terminal, result

_WHAT, _MODEL, _RUN, _OUT = "What to make", "Model", "How to run it", "Output"
DEFAULT_MODEL = "toyworld"


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What the video shows; the model's example if left out.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A .txt (a prompt a line) or .jsonl file.", rich_help_panel=_WHAT)
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Length (default 10).", rich_help_panel=_WHAT)] = None,
    frames: Annotated[
        int | None, typer.Option(help="Length in video frames instead.", rich_help_panel=_WHAT)
    ] = None,
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same video.", min=0, rich_help_panel=_WHAT)
    ] = 0,
    seeds: Annotated[
        str | None, typer.Option(help="A video for each, as in 0,3,8-11.", rich_help_panel=_WHAT)
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT (default: as trained).", rich_help_panel=_WHAT)
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second (default: as trained).", rich_help_panel=_WHAT)
    ] = None,
    model: Annotated[
        str, typer.Option(help="Embedded name, folder or hub id.", rich_help_panel=_MODEL)
    ] = DEFAULT_MODEL,
    student: Annotated[
        str | None, typer.Option(help="Causal weights to use instead.", rich_help_panel=_MODEL)
    ] = None,
    context: Annotated[int | None, typer.Option(help="Cached latent frames.", rich_help_panel=_MODEL)] = None,
    sink: Annotated[
        int | None, typer.Option(help="First latent frames never forgotten.", rich_help_panel=_MODEL)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 (default: the best).", rich_help_panel=_RUN)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16.", rich_help_panel=_RUN)
    ] = None,
    offload: Annotated[
        str, typer.Option(help="none | text (freed after use) | sequential.", rich_help_panel=_RUN)
    ] = "text",
    tile: Annotated[
        int | None, typer.Option(help="Decode in tiles of this many latent cells.", rich_help_panel=_RUN)
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the blocks.", rich_help_panel=_RUN)
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=".mp4 .webm .gif .png", rich_help_panel=_OUT)
    ] = None,
    out_dir: Annotated[Path | None, typer.Option(help="Folder for a batch.", rich_help_panel=_OUT)] = None,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="A contact sheet beside it.", rich_help_panel=_OUT)
    ] = False,
    save_latents: Annotated[
        bool, typer.Option("--save-latents", help="Keep the latents too.", rich_help_panel=_OUT)
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="The result as one JSON object.", rich_help_panel=_OUT)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing videos.", rich_help_panel=_OUT)
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue what was interrupted.", rich_help_panel=_OUT)
    ] = False,
) -> None:
    """Turn a prompt into a video of any length, streamed chunk by chunk."""
    from sfpp_cli.core.parallel import Ranks
    from sfpp_cli.devices import pick_device, pick_dtype
    from sfpp_cli.generation.batch import make_all
    from sfpp_cli.generation.generator import Options
    from sfpp_cli.generation.requests import Wish
    from sfpp_cli.models.bundle import Bundle

    ranks = Ranks.from_environment()
    where = pick_device(device, ranks.local)
    precision = pick_dtype(dtype, where)
    bundle = Bundle(model, student)
    wish = Wish(prompt, prompts, seconds, frames, seed, seeds, size, fps, out, out_dir)
    options = Options.of(
        bundle.settings,
        precision,
        context,
        sink,
        offload=offload,
        tile=tile,
        compile=compile,
        save_latents=save_latents,
        sheet=sheet,
    )
    made = make_all(
        wish,
        bundle,
        where,
        options,
        ranks,
        Terminal(quiet=not ranks.first),
        overwrite=overwrite,
        resume=resume,
    )
    result(json.dumps({"videos": made}) if json_ else "\n".join(video["path"] for video in made))
