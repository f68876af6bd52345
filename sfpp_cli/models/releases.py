"""Settings of published students, which their files do not hold. Importing this loads no torch.

They are from the releases' own configs, named at each. `local_attn_size` -1 there, attention to everything,
is here the 21 latent frames that these students were trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfpp_cli.core.constants import TRAIN_STEPS
from sfpp_cli.errors import UserError, suggest
from sfpp_cli.models.settings import Settings

SAMPLING = ("chunk", "context", "sink", "shift", "steps", "first_steps", "horizon")
"""What no weight file tells of a student, and what must be right for it to be any good."""


@dataclass(frozen=True)
class Release:
    """How one release is run."""

    files: str
    """A pattern for its files' paths, in lower case."""
    differences: dict[str, Any] = field(default_factory=dict)
    """Settings other than Self-Forcing's."""
    warning: str = ""
    """What sfpp does otherwise than the release's own code."""
    without_lora: str = ""
    """What a student is that no LoRA was merged into, where the release has one."""

    @property
    def settings(self) -> dict[str, Any]:
        """All of `SAMPLING`."""
        return {name: getattr(Settings(), name) for name in SAMPLING} | self.differences


RELEASES = {
    # guandeh17/Self-Forcing: configs/self_forcing_dmd.yaml
    "self-forcing": Release(r"self.?forcing"),
    # tianweiy/CausVid: configs/wan_causal_dmd.yaml; 1000, 757, 522 are what the network is given, not warped
    "causvid": Release(r"causvid|autoregressive_checkpoint", {"shift": 8.0, "steps": (1000, 280, 120)}),
    # tianweiy/CausVid: configs/wan_causal_dmd_warp_4step_cfg2.yaml
    "causvid-4step": Release(r"warp_4step", {"shift": 8.0}),
    # thu-ml/Causal-Forcing: configs/causal_forcing_dmd_chunkwise.yaml, _framewise, _framewise_2step, _1step
    "causal-forcing": Release(r"causal.?forcing"),
    "causal-forcing-frame": Release(r"frame.?wise", {"chunk": 1}),
    "causal-forcing-frame-2step": Release(
        r"frame.?wise.?2.?step", {"chunk": 1, "steps": (1000, 500), "first_steps": (1000, 750, 500, 250)}
    ),
    "causal-forcing-frame-1step": Release(
        r"frame.?wise.?1.?step", {"chunk": 1, "steps": (1000,), "first_steps": (1000, 750, 500, 250)}
    ),
    # NVlabs/LongLive: configs/longlive_inference.yaml, configs/longlive_train_long.yaml of v1.0
    "longlive": Release(
        r"longlive",
        {"context": 12, "sink": 3, "horizon": 240},
        without_lora="LongLive is a base and a LoRA: without --lora this is the base alone, trained on 5 s, "
        "unless the LoRA is merged into the file already",
    ),
    # krea-ai/realtime-video: configs/self_forcing_server_14b.yaml
    "krea": Release(
        r"krea",
        {},
        "Krea's server recomputes the cache with a re-encoded first frame once a video outgrows its context; "
        "sfpp lets the oldest frames go",
    ),
    # TencentARC/RollingForcing: configs/rolling_forcing_dmd.yaml
    "rolling-forcing": Release(
        r"rolling.?forcing",
        {"sink": 3, "steps": (1000, 800, 600, 400, 200)},
        "Rolling Forcing denoises five chunks jointly, each at another step; sfpp finishes one by one",
    ),
    # JaydenLyh/Reward-Forcing: configs/reward_forcing.yaml
    "reward-forcing": Release(
        r"reward.?forcing",
        {"context": 9, "sink": 3},
        "Reward Forcing's sink is a moving average of frames past the context; sfpp keeps the first frames",
    ),
}


def release(name: str) -> Release:
    """The release that `--like` names. UserError if it is unknown."""
    if name not in RELEASES:
        raise UserError(f"--like {name}: it takes {', '.join(RELEASES)}{suggest(name, RELEASES)}")
    return RELEASES[name]


def guess_release(files: Sequence[Path]) -> str | None:
    """The release whose name the paths bear in their last three parts; of several, the last in the table."""
    paths = ["/".join(file.absolute().parts[-3:]).lower() for file in files]
    named = [name for name, known in RELEASES.items() if any(re.search(known.files, path) for path in paths)]
    return named[-1] if named else None


def unwarped(steps: Sequence[int], shift: float) -> list[int]:
    """The steps that a shift turns into these timesteps: s = t / (shift - (shift - 1) t), t in 0..1."""
    given = [step / TRAIN_STEPS for step in steps]
    return [round(TRAIN_STEPS * t / (shift - (shift - 1) * t)) for t in given]
