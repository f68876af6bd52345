"""What videos take at least, from shapes alone, before anything is allocated; what cannot fit is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sfpp_cli.devices import total_memory
from sfpp_cli.errors import UserError
from sfpp_cli.files import free_space
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import Request
from sfpp_cli.models.layout import Layout, headers, read_config
from sfpp_cli.models.summary import readable, transformer_shape

_LATENT_BYTES = 4
"""Latents are kept in float32 until a video is finished."""


def check_fits(requests: Sequence[Request], model: Layout, options: ModelOptions) -> None:
    """UserError where a video would need more memory or disk than there is, whatever else is running."""
    room = total_memory(options.device)
    for request in {(request.width, request.height): request for request in requests}.values():
        needed = memory_bytes(request, model, options)
        if room is not None and needed > room:
            raise UserError(
                f"a video of {request.width}x{request.height} needs more than {readable(needed)} of memory, "
                f"and {options.device} has {readable(room)}: try a smaller --size or --context, or --tile"
            )
    for request in requests:
        needed = latent_bytes(request, model, options)
        free = free_space(request.out.parent)
        if needed > free:
            raise UserError(
                f"{request.out} needs {readable(needed)} of disk for its latents until it is finished, and "
                f"its disk has {readable(free)}: make it shorter or smaller, or write elsewhere"
            )


def memory_bytes(request: Request, model: Layout, options: ModelOptions) -> int:
    """What surely rests on the device at once: weights, the cache, one picture's features in the decoder."""
    element = options.dtype.itemsize
    weights = sum(tensor.elements for tensor in headers(model.student).values())
    size = model.compression.latent_size(request.width, request.height)
    cache = transformer_shape(model, size).cache_bytes(options.sampler(model.settings).context, element)
    vae = read_config(model.folder / "vae")
    cells = math.prod(min(side, options.tile or side) for side in size)
    pixels = cells * (model.compression.spatial // (vae.get("patch_size") or 1)) ** 2
    return weights * element + cache + pixels * int(vae.get("base_dim", 96)) * element


def latent_bytes(request: Request, model: Layout, options: ModelOptions) -> int:
    """The file of latents from which an interrupted video goes on."""
    chunk = options.sampler(model.settings).chunk
    frames = math.ceil(model.compression.latent_frames(request.frames) / chunk) * chunk
    size = model.compression.latent_size(request.width, request.height)
    channels = int(model.transformer_config()["in_channels"])
    return frames * channels * math.prod(size) * _LATENT_BYTES
