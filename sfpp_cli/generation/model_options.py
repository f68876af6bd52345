"""How a model is run, for all videos of a batch: device, precision, decoder, kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sfpp_cli.core.parallel import Ranks
from sfpp_cli.core.rollout import Sampler
from sfpp_cli.devices import missing_compiler, pick_device, pick_dtype, require_compiler, total_memory
from sfpp_cli.errors import UserError
from sfpp_cli.generation.kernels import check_attention, check_quantize
from sfpp_cli.generation.requests import MAX_SIDE
from sfpp_cli.models.decoders import DecoderFile
from sfpp_cli.models.lora import Lora
from sfpp_cli.models.settings import MAX_CONTEXT, Settings

OFFLOAD = ("none", "text", "sequential")
COMPILE_FROM = 20.0
"""Seconds of video that are worth compiling for, on a GPU."""
COMPILED_DECODER = 4e10
"""Bytes of a GPU that may compile its decoder, too: at 832x480 it then took 29 GB instead of 10."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How to run a model: the same for all videos of a batch."""

    device: torch.device
    dtype: torch.dtype
    decoder_device: torch.device | None = None
    """Where the VAE is, if not on `device`."""
    context: int | None = None
    """Latent frames that the student sees at once; as trained if not given."""
    sink: int | None = None
    """First latent frames that stay in the context for ever; as trained if not given."""
    offload: str = "text"
    """What to do with the text encoder: "none" keeps it in memory, "text" frees it once the prompts are
    embedded, "sequential" does so too and until then brings one layer at a time to the device."""
    tile: int | None = None
    """Decode in tiles of this many latent cells, for memory's sake; whole frames if not given."""
    compile: bool | None = False
    """Whether to compile the networks; None leaves it to the videos' length."""
    attention: str | None = None
    """Name of the student's attention kernel; the fastest there is if not given."""
    quantize: str | None = None
    """"fp8" multiplies in eight bits in the student's blocks."""
    loras: Sequence[Lora] = ()
    """Folded into the student before anything is made."""
    split: Ranks | None = None
    """Ranks that make every video together, each with some of the student's heads."""
    decoder: DecoderFile | None = None
    """What makes pictures of latents, if not the model's VAE."""

    def __post_init__(self) -> None:
        if self.offload not in OFFLOAD:
            raise UserError(f"--offload {self.offload}: it takes {', '.join(OFFLOAD)}")
        if self.tile is not None and not 2 <= self.tile <= MAX_SIDE:
            raise UserError(f"--tile {self.tile}: it takes from 2 to {MAX_SIDE} latent cells")
        if self.compile:
            require_compiler(self.device)
        check_attention(self.attention, self.device)
        check_quantize(self.quantize, self.device, self.dtype)

    @classmethod
    def parse(
        cls,
        *,
        device: str | None,
        dtype: str | None,
        decoder_device: str | None = None,
        loras: Sequence[str] = (),
        decoder: str = "wan",
        local: int = 0,
        **options: Any,
    ) -> ModelOptions:
        """From options as they are written, in process number `local` of a machine. UserError if wrong."""
        where = pick_device(device, local)
        return cls(
            device=where,
            dtype=pick_dtype(dtype, where),
            decoder_device=pick_device(decoder_device or str(where), local, flag="--decoder-device"),
            loras=[Lora.parse(text) for text in loras],
            decoder=DecoderFile.parse(decoder),
            **options,
        )

    def decided(self, seconds: float) -> ModelOptions:
        """These options for videos of which the longest has so many seconds."""
        if self.compile is not None:
            return self
        worth_it = self.device.type == "cuda" and seconds >= COMPILE_FROM
        return replace(self, compile=worth_it and missing_compiler(self.device) is None)

    @property
    def compiles_decoder(self) -> bool:
        """Whether the decoder is compiled, too. A CPU would take many minutes for it."""
        where = self.decoder_device or self.device
        return bool(self.compile) and where.type == "cuda" and (total_memory(where) or 0) >= COMPILED_DECODER

    def sampler(self, settings: Settings) -> Sampler:
        """How the student samples: as trained, but for what is asked here. UserError if that cannot be."""
        if self.context is not None and self.context > MAX_CONTEXT:
            raise UserError(f"--context {self.context}: it takes at most {MAX_CONTEXT} latent frames")
        sampler = settings.sampler(context=self.context, sink=self.sink)
        if sampler.sink < 0 or sampler.context - sampler.sink < sampler.chunk:
            raise UserError(
                f"a context of {sampler.context} latent frames with {sampler.sink} sink frames cannot hold "
                f"a chunk of {sampler.chunk}: raise --context or lower --sink"
            )
        return sampler
