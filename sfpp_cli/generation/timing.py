"""Where the seconds and the memory of a video go. Loads no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Pace:
    """Video frames per second of one stage, but for the first chunk, which compiles and tunes itself."""

    seconds: float = 0.0
    frames: int = 0
    warmup: tuple[float, int] | None = None

    def add(self, seconds: float, frames: int) -> None:
        """One more chunk."""
        if self.warmup is None:
            self.warmup = (seconds, frames)
        else:
            self.seconds += seconds
            self.frames += frames

    @property
    def fps(self) -> float:
        """The first chunk's own pace if there was no other; 0 if there was none at all."""
        if self.frames or self.warmup is None:
            return rate(self.frames, self.seconds)
        seconds, frames = self.warmup
        return rate(frames, seconds)


@dataclass
class Timing:
    """Of one video; `total` and `first_frame` are seconds from its beginning, warm-up included."""

    loop: Pace = field(default_factory=Pace)
    vae: Pace = field(default_factory=Pace)
    total: float = 0.0
    first_frame: float = 0.0
    megabytes: deque[float] = field(default_factory=lambda: deque(maxlen=32))
    """In use after each of the last chunks."""

    def arrived(self, seconds: float, megabytes: float) -> None:
        """A chunk's frames are in the file, so long after the beginning, with so much memory in use."""
        self.total = seconds
        self.first_frame = self.first_frame or seconds
        self.megabytes.append(megabytes)

    def figures(self, frames: int) -> dict[str, float]:
        """The four figures that people compare, of a video of so many frames: three rates and a wait."""
        return {
            "loop_fps": self.loop.fps,
            "vae_fps": self.vae.fps,
            "end_to_end_fps": rate(frames, self.total),
            "time_to_first_frame_s": round(self.first_frame, 3),
        }


def rate(frames: int, seconds: float) -> float:
    """Frames a second, to two decimals; 0 if no time has passed."""
    return round(frames / seconds, 2) if seconds > 0 else 0.0
