"""`sfpp live`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.commands import options as flags
from sfpp_cli.commands.console import Terminal

_page = partial(typer.Option, rich_help_panel="The page")


def live(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt that the page offers at first. Left out: the model's own example."),
    ] = None,
    seed: Annotated[int, flags.what(help="The seed that the page offers at first.", min=0)] = 0,
    size: flags.Size = None,
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
    model: flags.Model = DEFAULT_MODEL,
    student: flags.Student = None,
    lora: flags.Loras = None,
    decoder: flags.Decoder = "wan",
    context: flags.Context = None,
    sink: flags.Sink = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    offload: flags.Offload = "none",
    tile: flags.Tile = None,
    compile: Annotated[
        bool, flags.run("--compile", help="As in generate: slow to begin, then faster.")
    ] = False,
    verbose: flags.Verbose = False,
) -> None:
    """Watch a video in your browser while it is made, and change its prompt as it goes."""
    from sfpp_cli.generation.generator import Generator
    from sfpp_cli.generation.model_options import ModelOptions
    from sfpp_cli.generation.requests import GenerateOptions, plan
    from sfpp_cli.live.serve import PageServer, listen
    from sfpp_cli.live.show import Show
    from sfpp_cli.models.bundle import Bundle

    options = ModelOptions.parse(
        device=device,
        dtype=dtype,
        loras=lora or [],
        decoder=decoder,
        context=context,
        sink=sink,
        offload=offload,
        tile=tile,
        compile=compile,
    )
    bundle = Bundle(model, student)
    (offered,) = plan(GenerateOptions(prompt=prompt, seconds=60 * minutes, seed=seed, size=size), bundle)
    progress = Terminal(verbose=verbose)
    with listen(host, port, token) as address:  # before the model is loaded, which may take minutes
        progress.say("loading the model")
        generator = Generator.load(bundle, options, [offered.prompt], progress)
        progress.say(f"open {address.url} in a browser; Ctrl-C ends it")
        PageServer(Show(generator, offered), address).serve_until_told()
