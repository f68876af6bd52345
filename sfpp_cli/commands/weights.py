"""`sfpp weights`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfpp_cli.commands.console import Terminal, result

app = typer.Typer(help="Models: list them, look at one, fetch, convert.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="The result as JSON.")]
Student = Annotated[str | None, typer.Option(help="Causal weights to look at instead of its own.")]


@app.command("list")
def list_(json_: Json = False) -> None:
    """List the embedded models and those in the hub's cache."""
    from sfpp_cli.models.summary import listing, readable

    models = listing()
    if json_:
        result(json.dumps([vars(model) for model in models]))
    else:
        rows = [
            (model.name, model.kind, readable(model.size), model.source, model.folder) for model in models
        ]
        _table(("model", "kind", "size", "source", "folder"), rows)


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="Embedded name, folder or fetched hub id.")],
    student: Student = None,
    json_: Json = False,
) -> None:
    """Show a model's sizes, how it was trained, and what its cache takes."""
    from sfpp_cli.models.summary import summarise

    summary = summarise(model, student)
    result(json.dumps(summary.as_json()) if json_ else summary.as_text())


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="Hub id (owner/name) of a model in diffusers' layout.")],
    student: Annotated[bool, typer.Option("--student", help="Fetch the causal weights only.")] = False,
) -> None:
    """Fetch a model from the hub, or go on with an interrupted download; prints its folder."""
    from sfpp_cli.models.layout import pull as fetch

    result(str(fetch(model, student=student)))


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="Weights: .pt, .pth, .bin, .safetensors, an index of shards, or a folder.")
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    like: Annotated[
        str | None,
        typer.Option(
            help="Release whose settings to write: self-forcing, causvid, causvid-4step, causal-forcing, "
            "causal-forcing-frame, longlive, krea, rolling-forcing, reward-forcing."
        ),
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:WEIGHT]", help="LoRA to merge; may be repeated.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Model whose VAE and text encoder to copy.")] = None,
    which: Annotated[
        str | None, typer.Option(help="Part of a checkpoint: generator, generator_ema ...")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(help="Attention heads, where widths do not tell.", min=1)
    ] = None,
    chunk: Annotated[int | None, typer.Option(help="Latent frames denoised together.")] = None,
    context: Annotated[int | None, typer.Option(help="Cached latent frames.")] = None,
    sink: Annotated[int | None, typer.Option(help="First latent frames never forgotten.")] = None,
    shift: Annotated[float | None, typer.Option(help="Timestep shift in training.")] = None,
    steps: Annotated[str | None, typer.Option(help="Timesteps before the shift: 1000,750,500,250.")] = None,
    unwarped: Annotated[
        bool, typer.Option("--unwarped", help="--steps are what the network gets (no warp_denoising_step).")
    ] = False,
    horizon: Annotated[int | None, typer.Option(help="Longest rollout in training, latent frames.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 (default: as it is).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier conversion.")] = False,
) -> None:
    """Turn a published student into a folder that every command takes, also as --student.

    Weights do not tell how a student was trained: name its release with --like, or give its settings.
    Code in a file is never executed, and what would be read by half is refused.
    """
    from sfpp_cli.models.lora import Lora
    from sfpp_cli.models.packing import convert as write
    from sfpp_cli.models.packing import parse_steps

    given: dict[str, Any] = {
        "chunk": chunk,
        "context": context,
        "sink": sink,
        "shift": shift,
        "horizon": horizon,
    }
    given["steps"] = None if steps is None else parse_steps(steps)
    notes = write(
        source,
        target,
        {name: value for name, value in given.items() if value is not None},
        like=like,
        unwarp=unwarped,
        loras=[Lora.parse(text) for text in lora or []],
        base=base,
        which=which,
        num_heads=num_heads,
        dtype=dtype,
        overwrite=overwrite,
    )
    for note in notes:
        Terminal().warn(note)
    result(str(target))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """For people a table; into a pipe one line a row, separated by tabs."""
    if not sys.stdout.isatty():
        result("\n".join("\t".join(row) for row in [columns, *rows]))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
