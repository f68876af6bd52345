"""Muon for matrices and convolutions, AdamW for the rest (Jordan et al. 2024; RMS as in arXiv 2502.16982)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 4


class Muon:
    """One optimiser of two: its step takes the learning rates of both."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        matrices: Iterable[nn.Parameter],
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        """`matrices` are those of `parameters` that Muon moves, flattened to two dimensions."""
        self.matrices = list(matrices)
        mine = {id(parameter) for parameter in self.matrices}
        self.others = [parameter for parameter in parameters if id(parameter) not in mine]
        self.weight_decay = weight_decay
        self.momentum = [torch.zeros_like(_matrix(parameter)) for parameter in self.matrices]
        self.adam = torch.optim.AdamW(self.others, lr=0.0, betas=betas, weight_decay=0.0)
        self.last_tap = False
        """Move only the last temporal tap of convolutions over three frames, as single pictures do."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.matrices, *self.others]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, matrix_lr: float, other_lr: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = other_lr
        self.adam.step()
        alive = [i for i, parameter in enumerate(self.matrices) if parameter.grad is not None]
        if not alive:
            return
        momentum = [self.momentum[i] for i in alive]
        gradients = [_matrix(self.matrices[i].grad) for i in alive]
        torch._foreach_mul_(momentum, MOMENTUM)
        torch._foreach_add_(momentum, gradients)
        updates = list(torch._foreach_add(gradients, momentum, alpha=MOMENTUM))
        parameters = [self.matrices[i].detach() for i in alive]
        torch._foreach_mul_(parameters, 1 - matrix_lr * self.weight_decay)
        for i, parameter in enumerate(parameters):
            if self.last_tap and parameter.ndim == 5 and parameter.shape[2] == 3:
                parameters[i] = parameter[:, :, -1]
                updates[i] = updates[i].view(*parameter.shape[:3], -1)[:, :, -1].reshape(len(parameter), -1)
        moves = orthogonal(updates)
        shaped = [move.reshape(parameter.shape) for move, parameter in zip(moves, parameters, strict=True)]
        torch._foreach_add_(parameters, shaped, alpha=-matrix_lr)

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, theirs in zip(self.momentum, state["momentum"], strict=True):
            mine.copy_(theirs)
        self.adam.load_state_dict(state["adam"])


def orthogonal(updates: list[Tensor]) -> list[Tensor]:
    """The nearest orthogonal matrices, roughly, at the root mean square of AdamW's updates.

    Zeros around a matrix change nothing, so those of about one height go through as one batch: one by one, a
    GPU would wait for their launches.
    """
    lying = [update.mT if update.shape[0] > update.shape[1] else update for update in updates]
    heights = defaultdict(list)
    for place, matrix in enumerate(lying):
        heights[1 << (matrix.shape[0] - 1).bit_length()].append(place)
    answers = list(updates)
    for height, places in heights.items():
        width = max(lying[place].shape[1] for place in places)
        batch = updates[0].new_zeros(len(places), height, width)
        cells = [
            batch[row, : lying[place].shape[0], : lying[place].shape[1]] for row, place in enumerate(places)
        ]
        torch._foreach_copy_(cells, [lying[place] for place in places])
        done = _newton_schulz(batch)
        for row, place in enumerate(places):
            rows, columns = lying[place].shape
            move = done[row, :rows, :columns]
            answers[place] = move if lying[place] is updates[place] else move.mT
    return list(torch._foreach_mul(answers, [0.2 * max(update.shape) ** 0.5 for update in updates]))


def _newton_schulz(x: Tensor) -> Tensor:
    """On matrices [N, rows, columns] that are not higher than wide."""
    a, b, c = NEWTON_SCHULZ
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


def _matrix(tensor: Tensor) -> Tensor:
    """[rows, all else], contiguous whatever the layout of a convolution's weight."""
    return tensor.detach().reshape(tensor.shape[0], -1).contiguous()
