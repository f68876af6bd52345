"""sfpp: minute-long video from a causal few-step student (Self-Forcing++, arXiv 2510.02283).

    import sfpp_cli as sfpp

    model = sfpp.load()
    for frames in model.stream("a red circle bouncing over a blue background", seconds=10, seed=0):
        ...  # numpy uint8 [T, height, width, 3]

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfpp_cli.errors import UserError
from sfpp_cli.importing import collecting_later

if TYPE_CHECKING:
    from sfpp_cli.generation.model import Model

__all__ = ["UserError", "__version__", "load"]
__version__ = "0.1.0"

DEFAULT_MODEL = "toyworld"

# OpenMP's threads spin while they wait, which starves whoever shares the cores: a busy neighbour makes every
# small operation many times slower. It reads this when torch is loaded, hence here. A user's choice stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load(
    model: str = DEFAULT_MODEL,
    *,
    student: str | None = None,
    device: str | None = None,
    decoder_device: str | None = None,
    dtype: str | None = None,
    loras: Sequence[str] = (),
    decoder: str = "wan",
    context: int | None = None,
    sink: int | None = None,
    offload: str = "text",
    tile: int | None = None,
    compile: bool = False,
    attention: str | None = None,
    quantize: str | None = None,
) -> Model:
    """A model ready to make videos: the embedded one, a folder, or a name on the hub.

    The arguments are the flags of `sfpp generate`. `student`: causal weights to use instead of the model's
    own. `device`: cpu, cuda or cuda:N; the GPU if there is one. `decoder_device`: where latents become
    pictures, if elsewhere. `dtype`: float32, bfloat16 or float16. `loras`: LoRAs to fold into the student,
    each "FILE" or "FILE:WEIGHT". `decoder`: what makes the pictures, "wan" or a file. `context`, `sink`: how
    many latent frames the student sees, and how many of the first it never forgets; as trained if not given.
    `offload`: what becomes of the text encoder between prompts ("text" frees it, "none" keeps it,
    "sequential" never has more than a layer of it on the device). `tile`: decode in tiles of so many latent
    cells, which saves memory.
    `compile`: torch.compile the student, and on a GPU of 40 GB or more the decoder. `attention`: PyTorch's
    kernel for the student (cudnn, flash, efficient or math); the fastest there is if not given. `quantize`:
    "fp8" multiplies in eight bits.
    """
    with collecting_later():
        from sfpp_cli.generation.model import Model

    return Model(
        model,
        student,
        device=device,
        decoder_device=decoder_device,
        dtype=dtype,
        loras=loras,
        decoder=decoder,
        context=context,
        sink=sink,
        offload=offload,
        tile=tile,
        compile=compile,
        attention=attention,
        quantize=quantize,
    )
