"""Options that several commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

what = partial(Option, rich_help_panel="What to make")
model = partial(Option, rich_help_panel="Model")
run = partial(Option, rich_help_panel="How to run it")

RunFolder = Annotated[
    Path, Option(help="Run folder: gets checkpoints, metrics.jsonl, previews and the recipe.")
]
Steps = Annotated[int | None, Option(help="Stop after this many steps, instead of the recipe's number.")]
Seed = Annotated[int | None, Option(help="Seed of all random numbers, instead of the recipe's.")]
Resume = Annotated[bool, run("--resume", help="Continue the run in --out from its newest checkpoint.")]
DryRun = Annotated[
    bool, run("--dry-run", help="Print what a run would need (memory, disk) and stop; nothing is written.")
]
Size = Annotated[
    str | None,
    what(help="Size of the picture in pixels, WIDTHxHEIGHT. Default: the size of the training videos."),
]
Model = Annotated[str, model(help="The embedded model's name, a folder, or a name on the Hugging Face hub.")]
Student = Annotated[
    str | None,
    model(help="Other weights for the network that makes the video: a folder or a name on the hub."),
]
Loras = Annotated[
    list[str] | None,
    model(
        "--lora",
        help="LoRA to fold into that network, made for Wan 2.1 or for this model; may be given again. "
        "The weight, 1 if not given, says how strongly.",
        metavar="FILE[:WEIGHT]",
    ),
]
Decoder = Annotated[
    str,
    model(
        help="What makes pictures of latents. wan: the model's own VAE. A .safetensors file: a narrower "
        "one such as LightVAE, or a TAEHV, much faster and less exact. What latents a TAEHV takes is "
        "told after its name, FILE:normalised or FILE:raw. Default: raw if it is called lighttae.",
        metavar="wan|FILE",
    ),
]
Context = Annotated[
    int | None,
    model(
        help="How much of the video the model sees while it makes the next piece, in latent frames; a "
        "latent frame stands for 4 video frames. Default: as trained."
    ),
]
Sink = Annotated[
    int | None,
    model(
        help="How many of the context's latent frames are kept for the very beginning of the video, so "
        "that it is never forgotten. Default: as trained."
    ),
]
Device = Annotated[
    str | None,
    run(help="Where to compute: cpu, cuda, or cuda:1 for the second GPU. Default: a GPU if there is one."),
]
Dtype = Annotated[
    str | None,
    run(
        help="Precision: float32, or with half the memory bfloat16 or float16. Default: bfloat16 on a "
        "GPU, float32 on the CPU."
    ),
]
Offload = Annotated[
    str,
    run(
        help="What to do with the text encoder, the largest part of a big model. text: free its memory "
        "once the prompts are read; sequential: also bring it to the GPU in parts; none: keep it."
    ),
]
Tile = Annotated[
    int | None,
    run(
        help="Decode the picture in square tiles with sides of this many latent cells, to save memory; a "
        "cell stands for 8x8 pixels. Default: the whole picture at once."
    ),
]
Verbose = Annotated[bool, run("--verbose", "-v", help="Also say how it is run.")]
