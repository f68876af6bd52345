"""What Self-Forcing and Self-Forcing++ leave open: the table `[dmd]` of a recipe. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from sfpp_cli.core.constants import CLEAN, TRAIN_STEPS
from sfpp_cli.core.geometry import window_chunks
from sfpp_cli.schema import STRICT, AtOnce, Count, Guidance, Rate


@dataclass(frozen=True, config=STRICT)
class DMDConfig:
    """What the method leaves open. Frames are latent frames; the defaults are the paper's."""

    method: Literal["self-forcing", "self-forcing++"]
    """A rollout of K frames, all of it the window; or windows of K frames out of rollouts of N."""
    frames: Annotated[int | None, Field(ge=1, lt=2**31, validate_default=True)] = None
    """N, the longest rollout."""
    horizon: Count | None = None
    """K, what the teacher can judge; the model's if not given."""
    window: Literal["uniform", "beta(1,2)"] = "uniform"
    """Where windows start; Beta(1, 2) prefers early ones."""
    noise_init: Literal["simulated", "renoised", "random"] = "simulated"
    """What the step that learns denoises.

    The rollout's own input of that step; the finished window, re-noised; or what noise of its own has become
    by then. Self-Forcing has no choice: its window is its rollout.
    """
    gradient_step: Literal["last", "uniform"] = "last"
    """The denoising step that learns; if uniform, one is drawn an update, for all chunks."""
    first_frame: Literal["none", "reencode"] = "none"
    """Whether a window's first frame becomes an image latent, as a teacher's first frame is.

    As in Self-Forcing's code, the whole first chunk is then without loss.
    """
    context_noise: Annotated[float, Field(ge=CLEAN, lt=TRAIN_STEPS)] | None = None
    """Noise in the cached past, see `Sampler`; the student's own if not given."""
    context_noise_on: Literal["latents", "keys"] | None = None
    """What that noise is added to, see `Sampler`; the student's own if not given."""
    shared_rollout: bool = True
    """Whether the critic learns from the student's windows.

    It then sees the window of the student's last update in all its own updates of the step; otherwise each
    of them has a rollout and prompts of its own, as in Self-Forcing. Sharing leaves out most rollouts. Its
    price: the critic sees fewer samples, and made by the student before its update.
    """
    guidance: Guidance = 4.0
    """Of the teacher, in the usual convention; 4 is the reference's cond + 3 (cond - uncond)."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    timesteps: tuple[int, int] = (0, TRAIN_STEPS)
    """Whole timesteps, from the first to below the second, of which scores are drawn; shifted afterwards."""
    clamp: tuple[int, int] = (20, 980)
    """Least and greatest timestep of scores after the shift; those beyond are moved here."""
    critic_updates: AtOnce = 5
    """Updates of the critic to one of the student."""
    critic_lr: Rate = 4e-7
    """Learning rate of the critic."""

    @field_validator("frames")
    @classmethod
    def _frames_are_the_methods(cls, frames: int | None, info: ValidationInfo) -> int | None:
        """Rules between fields stand at the later one, so that they are told along with all other faults."""
        method = info.data.get("method")
        if method == "self-forcing++" and frames is None:
            raise ValueError("must be given for self-forcing++: how many latent frames rollouts may go")
        if method == "self-forcing" and frames is not None:
            raise ValueError("must be left out for self-forcing, whose rollout is its window")
        return frames

    @field_validator("noise_init", mode="before")
    @classmethod
    def _backward_is_renoised(cls, noise_init: object) -> object:
        if noise_init == "backward":
            raise ValueError(
                "must be 'renoised', as 'backward' is called now, or 'simulated', the new default"
            )
        return noise_init

    @field_validator("noise_init")
    @classmethod
    def _self_forcing_renoises_nothing(cls, noise_init: str, info: ValidationInfo) -> str:
        if info.data.get("method") == "self-forcing" and noise_init == "renoised":
            raise ValueError("must not be 'renoised' for self-forcing, whose window is its rollout")
        return noise_init

    @field_validator("timesteps", "clamp")
    @classmethod
    def _timesteps_ascend(cls, timesteps: tuple[int, int]) -> tuple[int, int]:
        low, high = timesteps
        if not 0 <= low < high <= TRAIN_STEPS:
            raise ValueError(f"must ascend within 0..{TRAIN_STEPS}, not {list(timesteps)}")
        return timesteps

    def chunks(self, horizon: int, chunk: int) -> tuple[int, int]:
        """Chunks of a window, and chunks at which one may start, for a teacher of `horizon` latent frames.

        Raises ValueError if windows or rollouts are not made of whole chunks.
        """
        horizon = self.horizon or horizon
        return window_chunks(self.frames or horizon, horizon, chunk)
