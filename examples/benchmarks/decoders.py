"""Sizes and speed of the decoders that `--decoder` knows, side by side, with random weights at Wan's shapes.

    python examples/benchmarks/decoders.py --size 832x480 --device cuda --dtype bfloat16

Quality cannot be measured with random weights; speed does not depend on them. A chunk is three latent frames,
12 pictures. Its first, which makes fewer, is not counted. On a CPU take a small picture.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from sfpp_cli.devices import peak_megabytes
from sfpp_cli.models.quiet import quiet_libraries
from sfpp_cli.models.tiny_vae import TinyDecoder
from sfpp_cli.models.vae import Decoder, channels_last, decoder_stream

CHUNK = 3
CHANNELS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="208x120", help="of the picture, WIDTHxHEIGHT; multiples of 8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--chunks", type=int, default=5, help="how many are timed; the median is told")
    options = parser.parse_args()
    quiet_libraries()
    width, height = map(int, options.size.split("x"))
    device = torch.device(options.device)
    makers: dict[str, Callable[[], Decoder]] = {
        "wan": lambda: channels_last(AutoencoderKLWan().eval()),
        "lightvae": lambda: channels_last(AutoencoderKLWan(base_dim=24).eval()),
        "taehv, lighttae": lambda: TinyDecoder(CHANNELS).eval(),
    }
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, {options.dtype}, {options.size}"
    )
    print(f"{'decoder':16}{'M parameters':>13}{'kept, MB':>10}{'s a chunk':>11}{'fps':>8}{'times':>7}")
    slowest = 0.0
    for name, make in makers.items():
        torch.manual_seed(0)
        decoder = make().to(device, getattr(torch, options.dtype))
        latents = torch.randn(1, CHUNK, CHANNELS, height // 8, width // 8, device=device, dtype=decoder.dtype)
        seconds, kept = timed(decoder, latents, options.chunks)
        slowest = slowest or seconds
        print(
            f"{name:16}{parameters(decoder) / 1e6:13.2f}{kept / 1e6:10.1f}{seconds:11.3f}"
            f"{4 * CHUNK / seconds:8.2f}{slowest / seconds:7.1f}"
        )
        if device.type == "cuda":
            print(f"{'':16}peak {peak_megabytes(device):.0f} MB of GPU memory, with those above")


def parameters(decoder: Decoder) -> int:
    """Of what decodes."""
    parts = [decoder.decoder]
    if isinstance(decoder, AutoencoderKLWan):
        parts.append(decoder.post_quant_conv)
    return sum(weight.numel() for part in parts for weight in part.parameters())


@torch.no_grad()
def timed(decoder: Decoder, latents: Tensor, chunks: int) -> tuple[float, int]:
    """Median seconds of a chunk, and bytes that the stream keeps from one to the next."""
    stream = decoder_stream(decoder)
    seconds = []
    for _ in range(chunks + 1):
        began = time.perf_counter()
        stream(latents).float().mean().item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    state = stream.cache if isinstance(decoder, AutoencoderKLWan) else stream.memory.values()
    kept = sum(part.numel() * part.itemsize for part in state if isinstance(part, Tensor))
    return statistics.median(seconds[1:]), kept


if __name__ == "__main__":
    main()
