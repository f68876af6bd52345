"""Rectified flow: the noise schedule and the conversions between x0, flow and x_t.

x_t = (1 - sigma) x0 + sigma eps and flow = eps - x0, hence x0 = x_t - sigma flow (method: arXiv 2510.02283,
section 3; schedule: the Self-Forcing reference, whose table the released checkpoints were trained with).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfpp_cli.core.constants import CLEAN, TRAIN_STEPS


class FlowSchedule:
    """sigma' = shift sigma / (1 + (shift - 1) sigma) on a grid of 1000 steps, from sigma 1 to above 0.

    Tables are float32 and descending: `sigmas` [1000] and `timesteps` [1000] = 1000 sigmas. Timestep
    arguments are tensors of any shape that is a prefix of the latents' ([B], [B, F], or a scalar, which may
    stay on the CPU). They select the nearest table entry, never t / 1000, since that is what students were
    trained with.
    """

    def __init__(self, shift: float) -> None:
        if shift <= 0:
            raise ValueError(f"the flow shift must be positive, not {shift}")
        self.shift = shift
        uniform = torch.linspace(1.0, 0.0, TRAIN_STEPS + 1)[:-1]
        self.sigmas = shift * uniform / (1 + (shift - 1) * uniform)
        self.timesteps = self.sigmas * TRAIN_STEPS

    def warp(self, steps: Sequence[int] | Tensor) -> Tensor:
        """Nominal student steps to timesteps; 0 stays 0.

        At shift 5, (1000, 750, 500, 250) become (1000, 937.5, 833.333, 625).
        Steps are integers; floating-point values are timesteps already and come back as they are.
        """
        nominal = torch.as_tensor(steps)
        if nominal.numel() == 0 or nominal.min() < 0 or nominal.max() > TRAIN_STEPS:
            raise ValueError(f"student steps must lie in 0..{TRAIN_STEPS}, not {nominal.tolist()}")
        if nominal.is_floating_point():
            return nominal.float()
        return torch.cat([self.timesteps, torch.tensor([CLEAN])])[TRAIN_STEPS - nominal.long()]

    def shift_timesteps(self, uniform: Tensor) -> Tensor:
        """Warp timesteps drawn uniformly over 0..1000 by the flow shift."""
        sigma = uniform / TRAIN_STEPS
        return TRAIN_STEPS * self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def sigma(self, timestep: Tensor) -> Tensor:
        """sigma of the nearest table entry (the first on ties), float32, shaped like `timestep`."""
        table = self.timesteps.to(timestep.device)
        index = (table - timestep.float().unsqueeze(-1)).abs().argmin(-1)
        return self.sigmas.to(timestep.device)[index]

    def add_noise(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_t = (1 - sigma) x0 + sigma noise, in x0's dtype."""
        sigma = _expand(self.sigma(timestep), x0).to(x0.dtype)
        return (1 - sigma) * x0 + sigma * noise

    def x0_from_flow(self, flow: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
        """x0 = x_t - sigma flow, in float64 inside, returned in x_t's dtype."""
        sigma = _expand(self.sigma(timestep), x_t).double()
        return (x_t.double() - sigma * flow.double()).to(x_t.dtype)

    def flow_from_x0(self, x0: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
        """flow = (x_t - x0) / sigma, in float64 inside, returned in x_t's dtype."""
        sigma = _expand(self.sigma(timestep), x_t).double()
        return ((x_t.double() - x0.double()) / sigma).to(x_t.dtype)


def _expand(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim)) if sigma.ndim else sigma
