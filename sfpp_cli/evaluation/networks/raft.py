"""VBench's dynamic degree on RAFT's flow, by torchvision's port of it, which the user installs beside the
torch there is.

VBench takes raft-things: the authors' weights after FlyingChairs and FlyingThings3D. torchvision publishes
those very weights, converted, as `Raft_Large_Weights.C_T_V1`. vbench/dynamic_degree.py: 20 iterations
between frames of native size, both sides padded to a multiple of 8 by repeating the border, half of it on
either side; the fastest 5 % are taken on the padded flow.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sfpp_cli.errors import UserError, reason
from sfpp_cli.evaluation.metrics.motion import fastest, is_dynamic, stride
from sfpp_cli.evaluation.source import decoding
from sfpp_cli.video import Frames

PUBLISHED = "torchvision"
"""Asks for the weights that torchvision publishes."""
ITERATIONS = 20
SHORTEST_SIDE = 128
"""What torchvision's RAFT needs after padding: four levels of correlation at an eighth of the size."""


@dataclass(frozen=True)
class Raft:
    """Flow from one frame to the next, and what it depends on. `network` is torchvision's RAFT: two
    pictures [1, 3, H, W] in -1..1 and `num_flow_updates` -> that many flows [1, 2, H, W] in pixels, the
    last of which counts.
    """

    network: Callable[..., Sequence[Tensor]]
    device: torch.device
    parameters: Mapping[str, Any]

    @torch.no_grad()
    def __call__(self, before: Frames, after: Frames) -> NDArray[np.float32]:
        """Frames [H, W, 3] -> flow [h, w, 2] in pixels, (x, y), on the padded picture."""
        flows = self.network(self._picture(before), self._picture(after), num_flow_updates=ITERATIONS)
        return flows[-1][0].permute(1, 2, 0).float().cpu().numpy()

    def _picture(self, frame: Frames) -> Tensor:
        picture = torch.from_numpy(frame).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        return pad(picture, padding(frame.shape[1], frame.shape[0]), mode="replicate")


def padding(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) to multiples of 8, the odd pixel at the right and the bottom."""
    x = -width % 8
    y = -height % 8
    return x // 2, x - x // 2, y // 2, y - y // 2


def load_raft(weights: str, device: torch.device) -> Raft:
    """torchvision's `raft_large` with the weights of a file, or with those that torchvision publishes
    (`PUBLISHED`, 21 MB, fetched once into torch's hub cache). UserError where torchvision or the weights
    are absent or do not fit.
    """
    try:
        from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
    except ModuleNotFoundError as error:
        raise UserError(
            f"--raft runs torchvision's RAFT, and {error.name} is not installed: pip install torchvision, "
            f"the one that was built for torch {torch.__version__}"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:  # one built for another torch lacks its operators
        raise UserError(
            f"--raft runs torchvision's RAFT, and torchvision cannot be imported ({reason(error)}): "
            f"pip install the one that was built for torch {torch.__version__}"
        ) from error
    network = raft_large()
    entry = Raft_Large_Weights.C_T_V1
    try:
        network.load_state_dict(_published(entry) if weights == PUBLISHED else _of_file(Path(weights)))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{weights} holds other weights than those of torchvision's raft_large: give a file of its C_T_V1"
        ) from error
    parameters = {
        "weights": str(entry) if weights == PUBLISHED else weights,
        "iterations": ITERATIONS,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
    }
    return Raft(network.to(device).eval(), device, parameters)


def _published(entry: Any) -> dict[str, Tensor]:
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's RAFT weights cannot be fetched ({reason(error)}): "
            f"download {entry.url} and give --raft that file"
        ) from error


def _of_file(path: Path) -> dict[str, Tensor]:
    try:
        return dict(torch.load(path.expanduser(), map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as weights; give --raft a .pth of torchvision's raft_large, "
            f"or '{PUBLISHED}'"
        ) from error


def dynamic_clips(
    path: Path,
    clips: Sequence[tuple[int, int]],
    fps: float,
    size: tuple[int, int],
    flow: Callable[[Frames, Frames], NDArray[np.float32]],
    advance: Callable[[int], None] = lambda frames: None,
) -> list[bool]:
    """Whether each clip [start, end) of a video of `size` (W, H) moves by VBench's rule (`is_dynamic`), on
    this flow.

    The video is read once; two frames and those between them are held. A pair that two clips share is
    looked at once. `advance` is told the frames read. UserError for a side that RAFT cannot take, and where
    the video ends before its clips do.
    """
    left, right, above, below = padding(*size)
    if min(size[0] + left + right, size[1] + above + below) < SHORTEST_SIDE:
        raise UserError(
            f"{path} is too small for RAFT's dynamic degree: {size[0]}x{size[1]}, "
            f"and no side may be below {SHORTEST_SIDE}"
        )
    step = stride(fps)
    seconds = [range(start + step, end, step) for start, end in clips]
    wanted = {index for clip in seconds for index in clip}
    top: dict[int, float] = {}
    recent: deque[Frames] = deque(maxlen=step + 1)
    with decoding(path) as frames:
        for index, frame in enumerate(frames):
            recent.append(frame)
            if index in wanted:
                top[index] = fastest(flow(recent[0], frame))
            advance(index + 1)
    if wanted - top.keys():
        raise UserError(f"{path} ends before its clips do; it may have changed since it was measured")
    kept = [len(range(start, end, step)) for start, end in clips]
    tops = [np.array([top[index] for index in clip]) for clip in seconds]
    return [is_dynamic(clip, count, size) for clip, count in zip(tops, kept, strict=True)]
