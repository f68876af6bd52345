"""`sfpp live`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.commands.console import Terminal

_page = partial(typer.Option, rich_help_panel="The page")
_model = partial(typer.Option, rich_help_panel="Model")
_run = partial(typer.Option, rich_help_panel="How to run it")


def live(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt that the page offers at first. Left out: the model's own example."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed that the page offers at first.", min=0)] = 0,
    size: Annotated[
        str | None,
        typer.Option(
            help="Size of the picture in pixels, WIDTHxHEIGHT. Default: that of the training videos."
        ),
    ] = None,
    port: Annotated[int, _page(help="Port of the page; 0 takes a free one.", min=0, max=65535)] = 8765,
    host: Annotated[
        str,
        _page(help="Address to listen on. Any but this machine's own needs a token in the page's address."),
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        _page(help="The token, 16 characters or more; one is made where it is needed and not given."),
    ] = None,
    minutes: Annotated[float, _page(help="Longest video, in minutes.", min=0.1, max=24 * 60)] = 60,
    model: Annotated[
        str, _model(help="The embedded model's name, a folder, or a name on the Hugging Face hub.")
    ] = DEFAULT_MODEL,
    student: Annotated[
        str | None,
        _model(help="Other weights for the network that makes the video: a folder or a name on the hub."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        _model(help="LoRA to fold into that network; may be given again.", metavar="FILE[:WEIGHT]"),
    ] = None,
    decoder: Annotated[
        str, _model(help="What makes the pictures: wan, or a file as `sfpp generate` takes it.")
    ] = "wan",
    context: Annotated[
        int | None, _model(help="Latent frames that the model sees at once. Default: as trained.")
    ] = None,
    sink: Annotated[
        int | None, _model(help="How many of them stay those of the video's beginning. Default: as trained.")
    ] = None,
    device: Annotated[
        str | None, _run(help="Where to run: cuda, cuda:1, cpu. A GPU by default, if there is one.")
    ] = None,
    dtype: Annotated[
        str | None, _run(help="float32, bfloat16 or float16. Default: bfloat16 on a GPU, float32 on a CPU.")
    ] = None,
    offload: Annotated[
        str,
        _run(
            help="What to do with the text encoder between prompts: none keeps it in memory, so that a new "
            "prompt is followed at once; text frees it; sequential never has more than one layer on the GPU."
        ),
    ] = "none",
    tile: Annotated[
        int | None, _run(help="Decode in tiles of so many latent cells: less memory, slower.", min=2)
    ] = None,
    compile: Annotated[
        bool, _run("--compile", help="Compile the student: slow to begin, then faster.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more, on stderr.")] = False,
) -> None:
    """Watch a video in your browser while it is made, and change its prompt as it goes."""
    from sfpp_cli.devices import pick_device, pick_dtype
    from sfpp_cli.generation.generator import Generator, ModelOptions
    from sfpp_cli.generation.requests import GenerateOptions, plan
    from sfpp_cli.live.serve import PageServer, listen
    from sfpp_cli.live.show import Show
    from sfpp_cli.models.bundle import Bundle
    from sfpp_cli.models.decoders import DecoderFile
    from sfpp_cli.models.lora import Lora

    where = pick_device(device)
    options = ModelOptions(
        device=where,
        dtype=pick_dtype(dtype, where),
        context=context,
        sink=sink,
        offload=offload,
        tile=tile,
        compile=compile,
        loras=[Lora.parse(text) for text in lora or []],
        decoder=DecoderFile.parse(decoder),
    )
    bundle = Bundle(model, student)
    (offered,) = plan(GenerateOptions(prompt=prompt, seconds=60 * minutes, seed=seed, size=size), bundle)
    progress = Terminal(verbose=verbose)
    with listen(host, port, token) as address:  # before the model is loaded, which may take minutes
        progress.say("loading the model")
        generator = Generator.load(bundle, options, [offered.prompt], progress)
        progress.say(f"open {address.url} in a browser; Ctrl-C ends it")
        PageServer(Show(generator, offered), address).serve_until_told()
