"""What GRPO leaves open, as recipes have it. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from sfpp_cli.core.geometry import window_chunks
from sfpp_cli.schema import STRICT, Count, Rate, Weight


@dataclass(frozen=True, config=STRICT)
class GRPOConfig:
    """How the student learns from rewards. Frames are latent frames."""

    frames: Count
    """N, the longest rollout."""
    horizon: Count | None = None
    """K, frames of a window that is rewarded as one; the teacher's if not given."""
    group: Annotated[int, Field(ge=2, le=2**20)] = 16
    """G, rollouts of one prompt. A step's batch is one group or several."""
    surrogate: Literal["score", "clipped"] = "score"
    """The policy gradient itself, one update a rollout; or the paper's clipped ratio, for several."""
    updates: Annotated[int, Field(ge=1, le=2**20, validate_default=True)] = 1
    """Updates a rollout."""
    clip: Rate = 1e-5
    """How far a ratio of mean probabilities may go."""
    step_weights: Literal["equal", "natural", "one"] = "equal"
    """Each transition's gradient divided by its natural size; undivided; or one transition drawn a step."""
    credit: Literal["window", "rollout"] = "window"
    """What is rewarded and learns: one window, drawn a step, or all of the rollout."""
    initial_noise: Literal["own", "shared"] = "own"
    """Whether the videos of a group start from noise of their own, or differ by what re-noises them alone."""
    kl: Weight = 0.0
    """Weight of the divergence from the student that training started from."""
    shuffle_advantages: bool = False
    """A control: advantages go to random videos of their group, so that nothing can be learned."""

    @field_validator("updates")
    @classmethod
    def _score_has_one_update(cls, updates: int, info: ValidationInfo) -> int:
        if info.data.get("surrogate") == "score" and updates > 1:
            raise ValueError("must be 1 for the surrogate 'score', which has no ratio; choose 'clipped'")
        return updates

    def chunks(self, horizon: int, chunk: int) -> tuple[int, int]:
        """Chunks of a window, and chunks at which one may start. ValueError if chunks are not whole."""
        return window_chunks(self.frames, self.horizon or horizon, chunk)
