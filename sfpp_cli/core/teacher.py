"""The bidirectional teacher: Wan's own transformer behind the house's layout."""

from __future__ import annotations

from diffusers import WanTransformer3DModel
from torch import Tensor


class Teacher(WanTransformer3DModel):  # type: ignore[misc]
    """Wan2.1 as released; sees all frames of a clip at once."""

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Flow of noisy `latents` [B, F, C, H, W] at `timestep` [B] under `text` [B, L, D]; shaped like `latents`."""
        flow: Tensor = super().forward(latents.transpose(1, 2), timestep, text, return_dict=False)[0]
        return flow.transpose(1, 2)

    def compile_blocks(self) -> None:
        """Compile every transformer block with `torch.compile`."""
        for block in self.blocks:
            block.compile()
