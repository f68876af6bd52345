"""`sfpp generate`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.commands import options as flags
from sfpp_cli.commands.console import Terminal, result, waiting

_output = partial(typer.Option, rich_help_panel="Output")


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What the video should show. Left out: the model's own example.")
    ] = None,
    prompts: Annotated[
        Path | None,
        flags.what(
            help="Make many videos: a .txt file with a prompt on each line ('# ' begins a comment), or a "
            ".jsonl file whose lines may also set seed, seconds, out, scenes, start and drop_start."
        ),
    ] = None,
    seconds: Annotated[float | None, flags.what(help="Length of the video; 10 if not given.")] = None,
    frames: Annotated[int | None, flags.what(help="Length in frames, instead of --seconds.")] = None,
    seed: Annotated[
        int,
        flags.what(
            help="Any whole number. Another seed gives another video, the same seed the same one.", min=0
        ),
    ] = 0,
    seeds: Annotated[
        str | None, flags.what(help="Several seeds, such as 0,3,8-11: a video for each.")
    ] = None,
    then: Annotated[
        list[str] | None,
        flags.what(
            help='Another prompt from a second on, such as "20: the sun sets"; may be given again. '
            "--seconds is the length of all scenes."
        ),
    ] = None,
    how: Annotated[
        str | None,
        flags.what(
            help="What --then does to what the model sees of the video so far. recache: see it under the new "
            "prompt; switch: leave it; cut: begin anew. Default: recache."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        flags.what(
            help="A picture or a video of any size to go on from; --seconds is what is added. A video of "
            "sfpp's with its latents (--save-latents) goes on without a seam."
        ),
    ] = None,
    drop_start: Annotated[
        bool, flags.what("--drop-start", help="Begin the video after what --start gives.")
    ] = False,
    size: flags.Size = None,
    fps: Annotated[
        float | None,
        flags.what(
            help="Frames a second at which the video plays. Default: the rate of the training videos; at "
            "another rate things move faster or slower."
        ),
    ] = None,
    model: flags.Model = DEFAULT_MODEL,
    student: flags.Student = None,
    lora: flags.Loras = None,
    decoder: flags.Decoder = "wan",
    context: flags.Context = None,
    sink: flags.Sink = None,
    device: flags.Device = None,
    decoder_device: Annotated[
        str | None,
        flags.run(help="Where to turn latents into pictures, such as cuda:1. Default: on --device, too."),
    ] = None,
    dtype: flags.Dtype = None,
    offload: flags.Offload = "text",
    tile: flags.Tile = None,
    compile: Annotated[
        bool | None,
        flags.run(
            "--compile/--no-compile",
            help="Compile the student, and on a GPU of 40 GB or more the decoder, with torch.compile: it "
            "starts later and runs faster. Default: on a GPU from 20 seconds of video on.",
        ),
    ] = None,
    attention: Annotated[
        str | None,
        flags.run(
            help="PyTorch's attention kernel: cudnn, flash, efficient or math; flash or math on the CPU. "
            "Default: the fastest that there is."
        ),
    ] = None,
    split: Annotated[
        str | None,
        flags.run(
            help="heads: all processes that torchrun starts make every video together, each on a GPU of its "
            "own with some of the heads of attention. Default: each makes other videos."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        flags.run(help="fp8: multiply in eight bits, on GPUs that can (Ada, Hopper). Needs torchao."),
    ] = None,
    out: Annotated[
        Path | None,
        _output(
            "--out",
            "-o",
            help="File to write: .mp4, .webm, .gif, or .png for a folder of pictures. Default: called after "
            "the prompt.",
        ),
    ] = None,
    out_dir: Annotated[Path | None, _output(help="Folder for the videos of a batch.")] = None,
    sheet: Annotated[
        bool, _output("--sheet", help="Also write 24 frames of the video as one picture.")
    ] = False,
    save_latents: Annotated[
        bool,
        _output(
            "--save-latents",
            help="Also write the latent frames that the picture is decoded from, as .safetensors.",
        ),
    ] = False,
    json_: Annotated[
        bool, _output("--json", help="Print one JSON object that describes the videos.")
    ] = False,
    overwrite: Annotated[bool, _output("--overwrite", help="Replace videos that exist.")] = False,
    resume: Annotated[
        bool,
        _output("--resume", help="Continue videos that were interrupted, and skip those that are finished."),
    ] = False,
    verbose: flags.Verbose = False,
) -> None:
    """Make a video of any length from a prompt.

    The video is made in chunks of a few frames. Each chunk continues those before it, of which the model sees
    the most recent (--context), and is written to the file at once.
    """
    with waiting("loading PyTorch ..."):
        from sfpp_cli.core.parallel import Ranks
        from sfpp_cli.generation.batch import make_all
        from sfpp_cli.generation.model_options import ModelOptions
        from sfpp_cli.generation.requests import GenerateOptions
        from sfpp_cli.generation.together import check_split
        from sfpp_cli.models.bundle import Bundle

    ranks = Ranks.from_environment()
    model_options = ModelOptions.parse(
        device=device,
        dtype=dtype,
        decoder_device=decoder_device,
        loras=lora or [],
        decoder=decoder,
        local=ranks.local,
        context=context,
        sink=sink,
        offload=offload,
        tile=tile,
        compile=compile,
        attention=attention,
        quantize=quantize,
        split=check_split(split, ranks),
    )
    options = GenerateOptions(
        prompt=prompt,
        prompts=prompts,
        seconds=seconds,
        frames=frames,
        seed=seed,
        seeds=seeds,
        then=then or (),
        how=how,
        start=start,
        drop_start=drop_start,
        size=size,
        fps=fps,
        out=out,
        out_dir=out_dir,
        sheet=sheet,
        save_latents=save_latents,
        overwrite=overwrite,
        resume=resume,
    )
    progress = Terminal(quiet=not ranks.first, verbose=verbose)
    videos = make_all(options, Bundle(model, student), model_options, ranks, progress)
    result(json.dumps({"videos": videos}) if json_ else "\n".join(video["path"] for video in videos))
