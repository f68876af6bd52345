"""diffusers and transformers print bars, reports and advice of their own; here the command line speaks."""

from __future__ import annotations

import warnings

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Leave them their errors; what they would warn of (weights that do not fit) is checked and said here.

    Downloads keep bars.
    """
    hub_bars = not are_progress_bars_disabled()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    with warnings.catch_warnings(action="ignore"):
        transformers_logging.disable_progress_bar()  # switches the hub's bars off with its own
    if hub_bars:
        enable_progress_bars()
