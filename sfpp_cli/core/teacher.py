"""The bidirectional teacher: Wan's own transformer, for latents [B, F, C, H, W]."""

from __future__ import annotations

from functools import wraps
from typing import Any

from diffusers import WanTransformer3DModel
from torch import Tensor

from sfpp_cli.core.adapter import without_adapters
from sfpp_cli.core.norm import norm_in_own_precision


class Teacher(WanTransformer3DModel):  # type: ignore[misc]
    """Wan2.1 as released; sees all frames of a clip at once."""

    @wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **config: Any) -> None:
        super().__init__(*args, **config)
        norm_in_own_precision(self.blocks)

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Flow of noisy `latents` [B, F, C, H, W], shaped alike, at `timestep` [B] under `text` [B, L, D]."""
        flow: Tensor = super().forward(latents.transpose(1, 2), timestep, text, return_dict=False)[0]
        return flow.transpose(1, 2)

    def guided(
        self, latents: Tensor, timestep: Tensor, text: Tensor, negative: Tensor, scale: float
    ) -> Tensor:
        """Flow with classifier-free guidance (arXiv 2207.12598): negative + scale (text - negative).

        `negative` [B, L, D] are the embeddings that guidance leads away from. At scale 1 they do not matter
        and one pass is enough; otherwise it takes two. Adapters, which make a critic of it, have no say.
        """
        with without_adapters(self):
            flow: Tensor = self(latents, timestep, text)
            if scale == 1.0:
                return flow
            unguided: Tensor = self(latents, timestep, negative)
            return unguided + scale * (flow - unguided)

    def compile_blocks(self) -> None:
        """Compile every transformer block with `torch.compile`."""
        for block in self.blocks:
            block.compile()
