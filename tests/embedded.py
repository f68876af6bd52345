"""What tests need to know of the embedded model, whichever it is."""

from __future__ import annotations

import re

from sfpp_cli import DEFAULT_MODEL
from sfpp_cli.models.layout import Layout


def latent_shape() -> tuple[int, int, int]:
    """Channels, height and width of its latent frames."""
    layout = Layout(DEFAULT_MODEL)
    return (layout.transformer_config()["in_channels"], *layout.latent_size)


def picture_size() -> tuple[int, int]:
    """Width and height of its pictures."""
    settings = Layout(DEFAULT_MODEL).settings
    return settings.width, settings.height


def is_example(stem: str) -> bool:
    """Whether a file's name is made of its example prompt, or of the beginning, and seed 0."""
    name, _, seed = stem.rpartition("-")
    prompt = re.sub(r"\W+", "-", Layout(DEFAULT_MODEL).settings.prompt)
    return prompt.startswith(name) and len(name) > 30 and seed == "0"
