"""`sfpp weights`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from sfpp_cli.commands.console import Terminal, plain, result

app = typer.Typer(
    help="Models: list, look at, fetch, convert, export and publish them.", no_args_is_help=True
)

Json = Annotated[bool, Option("--json", help="Print the result as JSON.")]

Student = Annotated[
    str | None,
    Option(help="Other weights, as a folder or a name on the hub, for the network that makes the video."),
]


@app.command("list")
def list_(json_: Json = False) -> None:
    """List the models that come with sfpp and those that were fetched from the Hugging Face hub."""
    from sfpp_cli.models.summary import listing, readable

    models = listing()
    if json_:
        result(json.dumps([vars(model) for model in models]))
    else:
        rows = [(each.name, each.kind, readable(each.size), each.source, each.folder) for each in models]
        _table(("model", "kind", "size", "source", "folder"), rows)


@app.command()
def show(
    model: Annotated[str, Argument(help="The embedded model's name, a folder, or a fetched name.")],
    student: Student = None,
    json_: Json = False,
) -> None:
    """Show a model's sizes, the numbers it was trained with, and the memory that its past takes.

    A latent frame stands for 4 video frames. The model makes a chunk of them at a time. It sees at most as
    many as the context holds; those of the sink are the video's first, which it never forgets. Each chunk
    begins as noise, which the steps remove; a larger shift spends more of them on strong noise. The KV cache
    is the memory that holds the context.
    """
    from sfpp_cli.models.summary import summarise

    summary = summarise(model, student)
    result(json.dumps(summary.as_json()) if json_ else summary.as_text())


@app.command()
def pull(
    model: Annotated[
        str, Argument(help="Its name on the Hugging Face hub, owner/name; in diffusers' layout.")
    ],
    student: Annotated[
        bool, Option("--student", help="Fetch only the network that makes the video, for --student.")
    ] = False,
) -> None:
    """Fetch a model from the Hugging Face hub, or go on with an interrupted download; prints its folder."""
    from sfpp_cli.models.layout import pull as fetch

    result(str(fetch(model, student=student)))


@app.command()
def convert(
    source: Annotated[
        Path, Argument(help="Weights: .pt, .pth, .bin, .safetensors, an index of shards, or a folder.")
    ],
    target: Annotated[Path, Argument(help="Folder to write.")],
    like: Annotated[
        str | None,
        Option(
            help="Release whose settings to write: self-forcing, causvid, causvid-4step, causal-forcing, "
            "causal-forcing-frame, causal-forcing-frame-2step, causal-forcing-frame-1step, longlive, krea, "
            "rolling-forcing, reward-forcing."
        ),
    ] = None,
    lora: Annotated[
        list[str] | None, Option(help="LoRA to merge; may be repeated.", metavar="FILE[:WEIGHT]")
    ] = None,
    base: Annotated[str | None, Option(help="Model whose VAE and text encoder to copy.")] = None,
    which: Annotated[str | None, Option(help="Part of a checkpoint: generator, generator_ema ...")] = None,
    num_heads: Annotated[int | None, Option(help="Attention heads, where widths do not tell.", min=1)] = None,
    chunk: Annotated[int | None, Option(help="How many latent frames are made at a time.")] = None,
    context: Annotated[int | None, Option(help="How many latent frames it sees at most.")] = None,
    sink: Annotated[int | None, Option(help="How many first latent frames it never forgets.")] = None,
    shift: Annotated[
        float | None, Option(help="How far its steps lean towards strong noise; 1: not.")
    ] = None,
    steps: Annotated[str | None, Option(help="Timesteps before the shift: 1000,750,500,250.")] = None,
    first_steps: Annotated[
        str | None, Option(help="Timesteps of a video's first chunk, if they are others.")
    ] = None,
    unwarped: Annotated[
        bool, Option("--unwarped", help="Steps given are what the network gets (no warp_denoising_step).")
    ] = False,
    horizon: Annotated[int | None, Option(help="Longest rollout in training, latent frames.")] = None,
    dtype: Annotated[str | None, Option(help="float32, bfloat16, float16 (default: as it is).")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier conversion.")] = False,
) -> None:
    """Turn a published student into a folder that every command takes, also as --student.

    Weights do not tell how a student was trained: name its release with --like, or give its settings.
    Code in a file is never executed, and what would be read by half is refused.
    """
    from sfpp_cli.models.lora import Lora
    from sfpp_cli.models.packing import convert as write
    from sfpp_cli.models.packing import parse_steps

    numbers = {"chunk": chunk, "context": context, "sink": sink, "shift": shift, "horizon": horizon}
    given = {
        **numbers,
        "steps": None if steps is None else parse_steps(steps, "--steps"),
        "first_steps": None if first_steps is None else parse_steps(first_steps, "--first-steps"),
    }
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


@app.command()
def export(
    student: Annotated[str, Argument(help="The embedded model's name, a folder, or a name on the hub.")],
    file: Annotated[Path, Argument(help="File to write, .safetensors.")],
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a student as one file under Wan's own names, as ComfyUI and the reference take it.

    Tensors stay as they are. `sfpp weights convert` makes the student of it again, settings included.
    """
    from sfpp_cli.models.export import export as write

    write(student, file, overwrite=overwrite)
    result(str(file))


@app.command()
def push(
    folder: Annotated[Path, Argument(help="A converted model, or the student of a run.")],
    repo: Annotated[str, Argument(help="Repository on the Hugging Face hub, owner/name; made if need be.")],
    private: Annotated[bool, Option("--private", help="Make the repository private if it is new.")] = False,
) -> None:
    """Publish a student, or a model with one, on the Hugging Face hub, with a model card; prints its address.

    The folder's own README.md is the card, or else one is written from its settings. `hf auth login` first.
    """
    from sfpp_cli.models.publish import push as send

    result(send(folder, repo, private=private))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """For people a table; into a pipe one line a row, separated by tabs."""
    if not sys.stdout.isatty():
        result("\n".join("\t".join(row) for row in [columns, *rows]))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    Console().print(table)
