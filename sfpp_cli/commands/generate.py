"""`sfpp generate`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.commands.console import Terminal, result, waiting

_what = partial(typer.Option, rich_help_panel="What to make")
_model = partial(typer.Option, rich_help_panel="Model")
_run = partial(typer.Option, rich_help_panel="How to run it")
_output = partial(typer.Option, rich_help_panel="Output")


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What the video should show. Left out: the model's own example.")
    ] = None,
    prompts: Annotated[
        Path | None,
        _what(
            help="Make many videos: a .txt file with a prompt on each line ('# ' begins a comment), or a "
            ".jsonl file whose lines may also set seed, seconds, out, scenes, start and drop_start."
        ),
    ] = None,
    seconds: Annotated[float | None, _what(help="Length of the video; 10 if not given.")] = None,
    frames: Annotated[int | None, _what(help="Length in frames, instead of --seconds.")] = None,
    seed: Annotated[
        int,
        _what(help="Any whole number. Another seed gives another video, the same seed the same one.", min=0),
    ] = 0,
    seeds: Annotated[str | None, _what(help="Several seeds, such as 0,3,8-11: a video for each.")] = None,
    then: Annotated[
        list[str] | None,
        _what(
            help='Another prompt from a second on, such as "20: the sun sets"; may be given again. '
            "--seconds is the length of all scenes."
        ),
    ] = None,
    how: Annotated[
        str | None,
        _what(
            help="What --then does to what the model sees of the video so far. recache: see it under the new "
            "prompt; switch: leave it; cut: begin anew. Default: recache."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        _what(
            help="A picture or a video of any size to go on from; --seconds is what is added. A video of "
            "sfpp's with its latents (--save-latents) goes on without a seam."
        ),
    ] = None,
    drop_start: Annotated[
        bool, _what("--drop-start", help="Begin the video after what --start gives.")
    ] = False,
    size: Annotated[
        str | None,
        _what(help="Size of the picture in pixels, WIDTHxHEIGHT. Default: the size of the training videos."),
    ] = None,
    fps: Annotated[
        float | None,
        _what(
            help="Frames a second at which the video plays. Default: the rate of the training videos; at "
            "another rate things move faster or slower."
        ),
    ] = None,
    model: Annotated[
        str, _model(help="The embedded model's name, a folder, or a name on the Hugging Face hub.")
    ] = DEFAULT_MODEL,
    student: Annotated[
        str | None,
        _model(help="Other weights for the network that makes the video: a folder or a name on the hub."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        _model(
            help="LoRA to fold into that network, made for Wan 2.1 or for this model; may be given again. "
            "The weight, 1 if not given, says how strongly.",
            metavar="FILE[:WEIGHT]",
        ),
    ] = None,
    decoder: Annotated[
        str,
        _model(
            help="What makes pictures of latents. wan: the model's own VAE. A .safetensors file: a narrower "
            "one such as LightVAE, or a TAEHV, much faster and less exact. What latents a TAEHV takes is "
            "told after its name, FILE:normalised or FILE:raw. Default: raw if it is called lighttae.",
            metavar="wan|FILE",
        ),
    ] = "wan",
    context: Annotated[
        int | None,
        _model(
            help="How much of the video the model sees while it makes the next piece, in latent frames; a "
            "latent frame stands for 4 video frames. Default: as trained."
        ),
    ] = None,
    sink: Annotated[
        int | None,
        _model(
            help="How many of the context's latent frames are kept for the very beginning of the video, so "
            "that it is never forgotten. Default: as trained."
        ),
    ] = None,
    device: Annotated[
        str | None,
        _run(
            help="Where to compute: cpu, cuda, or cuda:1 for the second GPU. Default: a GPU if there is one."
        ),
    ] = None,
    decoder_device: Annotated[
        str | None,
        _run(help="Where to turn latents into pictures, such as cuda:1. Default: on --device, too."),
    ] = None,
    dtype: Annotated[
        str | None,
        _run(
            help="Precision: float32, or with half the memory bfloat16 or float16. Default: bfloat16 on a "
            "GPU, float32 on the CPU."
        ),
    ] = None,
    offload: Annotated[
        str,
        _run(
            help="What to do with the text encoder, the largest part of a big model. text: free its memory "
            "once the prompts are read; sequential: also bring it to the GPU in parts; none: keep it."
        ),
    ] = "text",
    tile: Annotated[
        int | None,
        _run(
            help="Decode the picture in square tiles with sides of this many latent cells, to save memory; a "
            "cell stands for 8x8 pixels. Default: the whole picture at once."
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        _run(
            "--compile/--no-compile",
            help="Compile the network with torch.compile: it starts later and runs faster. Default: on a GPU "
            "from 20 seconds of video on.",
        ),
    ] = None,
    attention: Annotated[
        str | None,
        _run(
            help="PyTorch's attention kernel: cudnn, flash, efficient or math; flash or math on the CPU. "
            "Default: the fastest that there is."
        ),
    ] = None,
    split: Annotated[
        str | None,
        _run(
            help="heads: all processes that torchrun starts make every video together, each on a GPU of its "
            "own with some of the heads of attention. Default: each makes other videos."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        _run(help="fp8: multiply in eight bits, on GPUs that can (Ada, Hopper). Needs torchao."),
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
    verbose: Annotated[bool, _run("--verbose", "-v", help="Also say how it is run.")] = False,
) -> None:
    """Make a video of any length from a prompt.

    The video is made in chunks of a few frames. Each chunk continues those before it, of which the model sees
    the most recent (--context), and is written to the file at once.
    """
    with waiting("loading PyTorch ..."):
        from sfpp_cli.core.parallel import Ranks
        from sfpp_cli.devices import pick_device, pick_dtype
        from sfpp_cli.generation.batch import make_all
        from sfpp_cli.generation.generator import ModelOptions
        from sfpp_cli.generation.requests import GenerateOptions
        from sfpp_cli.generation.together import check_split
        from sfpp_cli.models.bundle import Bundle
        from sfpp_cli.models.decoders import DecoderFile
        from sfpp_cli.models.lora import Lora

    ranks = Ranks.from_environment()
    where = pick_device(device, ranks.local)
    model_options = ModelOptions(
        device=where,
        dtype=pick_dtype(dtype, where),
        decoder_device=pick_device(decoder_device or str(where), ranks.local, flag="--decoder-device"),
        context=context,
        sink=sink,
        offload=offload,
        tile=tile,
        compile=compile,
        attention=attention,
        quantize=quantize,
        loras=[Lora.parse(text) for text in lora or []],
        split=check_split(split, ranks),
        decoder=DecoderFile.parse(decoder),
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
