"""Clips that are easy to know again, and their way to disk and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfpp_cli.video import Frames
from sfpp_cli.video.reader import read_frames
from sfpp_cli.video.writer import VideoWriter

NASTY = {
    "prompt": 'a "cat\'s" ; tail = 50% # \\ [stream]\nsecond line\r\n\ttab, 一只猫 😀 é',
    "seed": "7",
    "MixedCase": "",
    "settings": '{"sigmas": [1.0, 0.94], "note": "a=b;c"}',
    "controls": "\x00\x1b\ud800",
    "long": "x" * 3000,
}
VIDEO_FILES = (".mp4", ".webm", ".gif")


def smooth(count: int = 12, height: int = 48, width: int = 64) -> Frames:
    """Slow ramps in all three channels, [count, height, width, 3]."""
    t, y, x = np.ogrid[:count, :height, :width]
    channels = (40 + 2 * x + 0 * y + 0 * t, 200 - 3 * y + 0 * x + 0 * t, 60 + 5 * t + 0 * y + 0 * x)
    return np.stack(channels, axis=-1).astype(np.uint8)


def save(path: Path, frames: Frames, fps: float = 16, metadata: dict[str, str] | None = None) -> Path:
    """Write `frames` in uneven pieces and answer with what came into being."""
    with VideoWriter(path, (frames.shape[2], frames.shape[1]), fps, metadata) as writer:
        writer.write(frames[:1])
        writer.write(frames[1:])
    return writer.path


def load(path: Path) -> Frames:
    return np.stack(list(read_frames(path)))


def mean_error(a: Frames, b: Frames) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def shim(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a shell script stand in for ffmpeg."""
    file = directory / "ffmpeg.sh"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(file))
