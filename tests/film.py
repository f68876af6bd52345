"""A short video, as a fixture: `pytest_plugins = ["film"]` brings it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfpp_cli.video.writer import VideoWriter


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of noise, 32 x 32 pixels at 8 frames/s."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path, (32, 32), 8) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8))
    return path
