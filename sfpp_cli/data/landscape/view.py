"""Where the pixels of a picture lie, and how a layer is laid over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfpp_cli.data.landscape.noise import fixed

HEIGHT = 64
"""Every picture is this many reference pixels high, whatever its size; all lengths of the world are in
them."""


@dataclass(frozen=True)
class View:
    """The pixels of pictures of one size, and the video frames that are shown."""

    frames: Tensor
    """Numbers of the video frames, int64 [B, T]."""
    height: int
    width: int

    @property
    def device(self) -> torch.device:
        return self.frames.device

    @property
    def pixel(self) -> float:
        """Width of a pixel in reference pixels."""
        return HEIGHT / self.height

    @property
    def breadth(self) -> float:
        """Width of the picture in reference pixels."""
        return self.width * self.pixel

    @property
    def xs(self) -> Tensor:
        """Centres of the columns, reference pixels [W]."""
        return (torch.arange(self.width, device=self.device) + 0.5) * self.pixel

    @property
    def ys(self) -> Tensor:
        """Centres of the rows, reference pixels [H, 1]."""
        return ((torch.arange(self.height, device=self.device) + 0.5) * self.pixel)[:, None]

    def rows(self, top: float, bottom: float) -> slice:
        """The rows of pixels between two heights in reference pixels."""
        return slice(max(0, int(top / self.pixel)), min(self.height, int(bottom / self.pixel) + 1))

    def places(self, speed: Tensor, margin: int = 0) -> Tensor:
        """World places of the columns on a layer of this `speed` [B]: int64 [B, T, W + 2 margin]."""
        columns = (torch.arange(-margin, self.width + margin, device=self.device) + 0.5) * self.pixel
        return self.frames[:, :, None] * fixed(speed)[:, None, None] + fixed(columns)

    def soft(self, distance: Tensor) -> Tensor:
        """Share of a pixel that lies inside an edge `distance` reference pixels away (negative outside)."""
        return (distance / self.pixel + 0.5).clamp(0, 1)


def lay(canvas: Tensor, color: Tensor, cover: Tensor) -> None:
    """Lay `color` [B, T, 3, H, W] over the canvas in place, `cover` [B, T, H, W] of it."""
    canvas.lerp_(color.expand_as(canvas), cover[:, :, None].expand_as(canvas))


def mix(first: Tensor, second: Tensor, share: Tensor | float) -> Tensor:
    """`first` where `share` is 0, `second` where it is 1; broadcast."""
    return first + (second - first) * share
