"""`sfpp.json`: the numbers of a student that diffusers' folders have no place for. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from sfpp_cli.core.constants import CLEAN, TRAIN_STEPS
from sfpp_cli.errors import UserError, reason
from sfpp_cli.files import atomic_write
from sfpp_cli.schema import STRICT, Faults, line_of, load_json, validate

if TYPE_CHECKING:
    from sfpp_cli.core.rollout import Sampler

SETTINGS = "sfpp.json"

MAX_CONTEXT = 10**6
"""Latent frames: three days of video."""
Frames = Annotated[int, Field(ge=1, le=MAX_CONTEXT)]
Side = Annotated[int, Field(ge=1, le=2**14)]


@dataclass(frozen=True, config=STRICT)
class Settings:
    """How a student was trained, hence how it wants to be run. The defaults are Wan 1.3B's."""

    chunk: Annotated[int, Field(ge=1, le=1000)] = 3
    """Latent frames that are denoised together."""
    context: Frames = 21
    """Latent frames that the student sees at once: sink, past and the chunk in the making."""
    sink: Annotated[int, Field(ge=0, validate_default=True)] = 0
    """First latent frames of a video, which stay in the context for ever."""
    shift: Annotated[float, Field(gt=0, le=1000)] = 5.0
    """How far timesteps are moved towards noise; 1 leaves them as they are."""
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    """Nominal timesteps of a chunk's denoising passes, before the shift."""
    first_steps: tuple[int, ...] | None = None
    """Those of a video's first chunk, where it takes others."""
    context_noise: Annotated[float, Field(ge=CLEAN, lt=TRAIN_STEPS)] = CLEAN
    """Timestep of the noise in the cached past, in training as at inference; 0 is none."""
    context_noise_on: Literal["latents", "keys"] = "latents"
    """What that noise is added to: a clean chunk, or queries and keys of its context pass."""
    horizon: Frames = 21
    """Longest rollout seen in training, in latent frames."""
    fps: Annotated[int, Field(ge=1, le=240)] = 16
    width: Side = 832
    height: Side = 480
    text_length: Annotated[int, Field(ge=1, le=2**16)] = 512
    """Tokens of a prompt; what is longer is cut."""
    prompt: str = ""
    """What `sfpp generate` shows when it is given no prompt."""
    sink_positions: Literal["absolute", "relative"] = "absolute"
    """Whether the sink keeps its place in time, or is always just before the rest of the context."""

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Raises UserError with all that is wrong, a line a fault."""
        try:
            load_json(path)
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({reason(error)}): restore it, or write it anew with "
                "`sfpp weights convert`"
            ) from error
        try:
            return validate(_SCHEMA, text)
        except Faults as faults:
            raise faults.of(path, lambda keys: line_of(text, keys)) from None

    def changed(self, values: Mapping[str, Any]) -> Settings:
        """These settings with other values, as JSON has them. Raises Faults with all that is wrong."""
        return validate(_SCHEMA, {**asdict(self), **values})

    def sampler(self, *, context: int | None = None, sink: int | None = None) -> Sampler:
        """How the student samples; another `context` or `sink` than it was trained with may be tried.

        A sink of a student that has none moves along with the context, so that it is never farther away than
        anything the student saw in training.
        """
        from sfpp_cli.core.flow import FlowSchedule
        from sfpp_cli.core.rollout import Sampler

        return Sampler(
            schedule=FlowSchedule(self.shift),
            steps=self.steps,
            chunk=self.chunk,
            context=self.context if context is None else context,
            sink=self.sink if sink is None else sink,
            sink_positions="relative" if sink and not self.sink else self.sink_positions,
            first_steps=self.first_steps,
            context_noise=self.context_noise,
            context_noise_on=self.context_noise_on,
        )

    def write(self, path: Path) -> None:
        atomic_write(path, json.dumps(asdict(self), indent=2) + "\n")

    @field_validator("sink")
    @classmethod
    def _check_context(cls, sink: int, info: ValidationInfo) -> int:
        """Not in a check of the whole, which would be silent while any other field is at fault."""
        chunk = info.data.get("chunk")
        context = info.data.get("context")
        if chunk is not None and context is not None and context < sink + chunk:
            raise ValueError(f"'context' ({context}) must hold the sink ({sink}) and a chunk ({chunk})")
        return sink

    @field_validator("steps", "first_steps")
    @classmethod
    def _check_steps(cls, steps: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if steps is None:
            return None
        inside = all(0 < step <= TRAIN_STEPS for step in steps)
        if not steps or not inside or any(later >= step for step, later in pairwise(steps)):
            raise ValueError(f"must descend from at most {TRAIN_STEPS} to at least 1, not {list(steps)}")
        return steps


_SCHEMA = TypeAdapter(Settings)
