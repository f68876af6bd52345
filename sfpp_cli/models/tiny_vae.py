"""TAEHV's decoder: small and fast, causal in time. LightTAE is the same network with other weights.

Modules stand where github.com/madebyollin/taehv has them, so that its names fit. All of it works on single
pictures but for blocks that also see what they were given a picture earlier: all that a stream has to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = (1, 8, 14, 20, 22)
"""Where the decoder has a plain convolution, and so another width."""
GROWTHS = {7: 1, 13: 2, 19: 2}
"""Where a stage ends, which doubles height and width, and how many pictures it makes of one."""


class TinyDecoder(nn.Module):
    """Wan's latents -> pictures, by way of `TinyStream`: 8 times higher and wider, 4 of each latent frame."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (256, 128, 64, 64),
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        """`widths` are those of the stages and of the end.

        `statistics`, the latents' mean and deviation by channel, are of weights that take raw latents, as
        Wan's VAE does: those that come in are normalised.
        """
        super().__init__()
        mean, deviation = statistics or ([0.0] * channels, [1.0] * channels)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)
        layers: list[nn.Module] = [Squash(), _conv(channels, widths[0]), nn.ReLU()]
        for number, times in enumerate(GROWTHS.values()):
            width = widths[number]
            layers += [Memory(width), Memory(width), Memory(width), nn.Identity(), Grow(width, times)]
            layers.append(_conv(width, widths[number + 1], bias=False))
        self.decoder = nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3))

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mean.dtype


class TinyStream:
    """Normalised latents [B, F, C, h, w] -> video frames [B, T, 3, H, W] in [-1, 1], piece by piece.

    T = 4 F, less 3 for the first latent frame of the video, which is one picture.
    """

    def __init__(self, network: TinyDecoder) -> None:
        self.network = network
        self.memory: dict[int, Tensor] = {}
        """What each block with a memory was last given, [B, 1, C, h, w]; with `trim` all of the state."""
        self.trim = 3
        """Pictures still to be left out: a video's first latent frame stands for one, not for four."""

    def __call__(self, latents: Tensor) -> Tensor:
        batch = len(latents)
        x = (latents * self.network.deviation + self.network.mean).flatten(0, 1)
        for place, layer in enumerate(self.network.decoder):
            if isinstance(layer, Memory):
                given = x.unflatten(0, (batch, -1))
                first = self.memory.get(place, torch.zeros_like(given[:, :1]))
                self.memory[place] = given[:, -1:].clone()
                x = layer(x, torch.cat([first, given[:, :-1]], dim=1).flatten(0, 1))
            else:
                x = layer(x)
        pictures: Tensor = x.unflatten(0, (batch, -1))[:, self.trim :]
        self.trim = 0
        return 2 * pictures.clamp(0, 1) - 1


class Squash(nn.Module):
    """Keeps latents within 3 of 0, smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class Memory(nn.Module):
    """A residual block that sees its input and the one before it, each [N, C, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = (_conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.conv = nn.Sequential(*parts)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        seen: Tensor = F.relu(self.conv(torch.cat([x, before], dim=1)) + x)
        return seen


class Grow(nn.Module):
    """[N, C, h, w] -> [N times, C, 2h, 2w].

    The reference enlarges first; a convolution of single pixels gives the same before it, for a quarter of
    the cost.
    """

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grown = self.conv(x).unflatten(1, (self.times, -1)).flatten(0, 1)
        return F.interpolate(grown, scale_factor=2.0)


def widths_of(weights: Mapping[str, Tensor]) -> list[int]:
    """A file's widths, from its shapes."""
    return [len(weights[f"decoder.{place}.weight"]) for place in CONVOLUTIONS[:-1]]


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
