"""A show of a model of toy size, as fixtures: `pytest_plugins = ["live_show"]` brings them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.model_options import ModelOptions
from sfpp_cli.generation.requests import Request
from sfpp_cli.live.show import Show
from sfpp_cli.models.bundle import Bundle
from sfpp_cli.progress import Silent

pytest_plugins = ["tiny_bundle"]

PROMPT = "a red circle"


@pytest.fixture(scope="session")
def generator(tiny_bundle: Path) -> Generator:
    options = ModelOptions(device=torch.device("cpu"), dtype=torch.float32, offload="none")
    return Generator.load(Bundle(str(tiny_bundle)), options, [PROMPT], Silent())


@pytest.fixture
def offered(generator: Generator, tiny_bundle: Path) -> Request:
    settings = Bundle(str(tiny_bundle)).settings
    size = {"width": settings.width, "height": settings.height}
    return Request(prompt=PROMPT, seed=0, frames=8000, fps=settings.fps, out=Path("live.mp4"), **size)


@pytest.fixture
def show(generator: Generator, offered: Request) -> Iterator[Show]:
    show = Show(generator, offered)
    yield show
    show.close()
