"""The table `[reward]` of a recipe. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from sfpp_cli.core.constants import TRAIN_STEPS
from sfpp_cli.schema import STRICT, Guidance, Weight

Positive = Annotated[float, Field(ge=1e-12, le=1e6)]


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    """What videos are rewarded for: weights of rewards, and what motion is right.

    `sfpp train RECIPE --flow-band N` measures `target`, `width` and `spikes` on N clips of the teacher.
    """

    target: Positive
    """Motion that is best: the fastest 5 % of a picture, in diagonals a frame."""
    width: Positive
    """Octaves above and below it at which the reward has fallen to 0.61; at twice as many to 0.14."""
    spikes: Positive
    """Variance of the mean flow in 8 frames, in diagonals squared, that costs 63 % of the reward."""
    flow: Weight = 1.0
    """Weight of the reward for motion."""
    exposure: Weight = 0.5
    """Weight of the reward for keeping the brightness of the video's beginning."""
    own: dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(default_factory=dict)
    """Weights of rewards of one's own: "module:function", from frames uint8 [T, H, W, 3] to a number."""
    estimator: Literal["dis", "raft"] = "dis"
    """What measures flow: OpenCV's DIS on the CPU, or torchvision's RAFT on the device."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that measure with DIS; 0 measures in the training process."""
    guidance: Guidance = 4.0
    """Of the teacher whose clips `--flow-band` measures."""
    sampling_steps: Annotated[int, Field(ge=1, le=TRAIN_STEPS)] = 48
    """Steps of these clips."""

    @field_validator("own")
    @classmethod
    def _own_are_functions(cls, own: dict[str, float]) -> dict[str, float]:
        for name in own:
            module, colon, function = name.partition(":")
            if not (module and colon and function):
                raise ValueError(f"must name functions as 'module:function', not {name!r}")
        return own
