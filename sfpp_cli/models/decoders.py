"""Other decoders than the model's own, each a file of weights: `--decoder FILE`.

Two kinds are known: Wan's VAE with other weights, narrower ones included (LightVAE), and TAEHV (LightTAE).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sfpp_cli.core.geometry import Compression
from sfpp_cli.errors import UserError, reason
from sfpp_cli.files import file_digest
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.models.convert import build, vae_keys
from sfpp_cli.models.layout import read_config
from sfpp_cli.models.original import PICKLES, load_original
from sfpp_cli.models.tiny_vae import CONVOLUTIONS, GROWTHS, TinyDecoder, widths_of
from sfpp_cli.models.vae import Decoder, channels_last

WAN = "wan"
"""The name of the model's own."""
LATENTS = ("normalised", "raw")
_WAN_NAMES = {"decoder.conv1.weight", "decoder.conv_in.weight"}
_TINY_NAMES = {f"decoder.{place}.weight" for place in CONVOLUTIONS}


@dataclass(frozen=True)
class DecoderFile:
    """A decoder as `--decoder FILE[:LATENTS]` names it."""

    path: Path
    latents: str | None = None
    """What a TAEHV was trained on, where it is told: "normalised" or "raw"; the weights do not show it."""

    @classmethod
    def parse(cls, text: str) -> DecoderFile | None:
        """`wan` is the model's own: None. UserError if there is no such file, or none that can be read."""
        if text == WAN:
            return None
        name, _, latents = text.rpartition(":")
        told = latents in LATENTS and not os.path.exists(text)
        file = cls(Path(name), latents) if told else cls(Path(text))
        if file.path.suffix in PICKLES:
            raise UserError(
                f"--decoder {file.path} is a pickle, which may hold code: take the .safetensors file that is "
                "published beside it"
            )
        if not os.path.isfile(file.path):  # never raises, whatever the name's length
            raise UserError(f"--decoder {text} is not there: it takes wan, or a .safetensors file")
        if told and not file._is_tiny():
            raise UserError(f"--decoder {text}: only a TAEHV is told what latents it takes, and this is none")
        return file

    def described(self) -> dict[str, str]:
        """What of it decides a video's content."""
        return {"sha256": file_digest(self.path), "latents": "raw" if self._takes_raw() else "normalised"}

    def load(self, bundle: Bundle, device: torch.device, dtype: torch.dtype) -> Decoder:
        """The decoder, for a model's latents. UserError unless the file holds all of one that fits them."""
        original = load_original(self.path)
        weights = original.weights | original.lora
        config = read_config(bundle.folder / "vae")
        try:
            if self._is_tiny():
                return self._tiny(weights, config, bundle.compression).to(device, dtype)
            own = {name: value for name, value in config.items() if not name.startswith("_")}
            named = vae_keys(weights, own)
            narrow = {"base_dim": len(named["encoder.conv_in.weight"]), "decoder_base_dim": None}
            return channels_last(build(AutoencoderKLWan, own | narrow, named).to(device, dtype))
        except KeyError as error:
            raise UserError(f"--decoder {self.path} lacks {error.args[0]}: fetch it again") from None
        except UserError as error:
            raise UserError(f"--decoder {self.path}: {error}") from error

    def _tiny(
        self, weights: Mapping[str, Tensor], config: Mapping[str, Any], compression: Compression
    ) -> TinyDecoder:
        if compression != Compression(temporal=4, spatial=8):
            raise UserError("a TAEHV of Wan 2.1 makes 4 pictures of 8x8 pixels each, and this model others")
        # The encoder, which it brings along, is not needed.
        decoder = {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.")}
        widths = widths_of(decoder)
        for (place, times), width in zip(GROWTHS.items(), widths, strict=False):
            name = f"decoder.{place}.conv.weight"
            decoder[name] = decoder[name][-width * times :]  # some files make more pictures: the last count
        statistics = (config["latents_mean"], config["latents_std"]) if self._takes_raw() else None
        arguments = {"channels": config["z_dim"], "widths": widths, "statistics": statistics}
        network = build(TinyDecoder, arguments, decoder)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def _takes_raw(self) -> bool:
        """Wan's VAE does, and of the TAEHVs LightTAE, known by the name that it is published under."""
        if self.latents is not None:
            return self.latents == "raw"
        return not self._is_tiny() or "lighttae" in self.path.name.lower()

    def _is_tiny(self) -> bool:
        """Whether it is a TAEHV; UserError if it is no decoder at all."""
        try:
            with safe_open(self.path, framework="pt") as file:
                names = set(file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"--decoder {self.path} cannot be read ({reason(error)}): fetch it again"
            ) from error
        if not names & _WAN_NAMES and not names & _TINY_NAMES:
            raise UserError(f"--decoder {self.path} holds neither a VAE of Wan 2.1 nor a TAEHV")
        return not names & _WAN_NAMES


def load_decoder(
    decoder: DecoderFile | None, bundle: Bundle, device: torch.device, dtype: torch.dtype
) -> Decoder:
    """The one that was asked for, or the model's own."""
    return bundle.load_vae(device, dtype) if decoder is None else decoder.load(bundle, device, dtype)
