"""The one video that is being made: started, steered and stopped by whoever watches.

It is made by a thread, which keeps a little ahead of the clock by which it is watched: far enough that
pictures do not run out, near enough that a new prompt is soon seen. Viewers read the newest pieces out of a
short list, each at its own pace; one that is slow misses some, and holds up nobody.
"""

from __future__ import annotations

import io
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from sfpp_cli.core.rollout import Change, How
from sfpp_cli.errors import UserError, reason
from sfpp_cli.generation.generator import Generator
from sfpp_cli.generation.requests import Request
from sfpp_cli.video import Frames
from sfpp_cli.video.growing import GrowingVideo

KEPT = 8
"""Pieces that are kept for viewers."""
AHEAD = 2
"""Chunks that may be ready before they are due: what a viewer holds back, so that playing never stutters."""
QUALITY = 90
"""Of the pictures on their way to a viewer, JPEG; what is downloaded does not come from them."""
PATIENCE = 0.05
"""Seconds between two looks at the clock."""


@dataclass(frozen=True)
class Piece:
    """Pictures that were made together."""

    number: int
    """Counts all pieces since the program began."""
    show: int
    """Which video they belong to."""
    first: int
    """The video frame that it begins with."""
    pictures: tuple[bytes, ...]
    """JPEG."""


@dataclass(frozen=True)
class Scene:
    """A prompt and when it was first followed, in seconds of the video."""

    at: float
    prompt: str
    how: How


class Show:
    """Makes one video at a time."""

    def __init__(self, generator: Generator, offered: Request) -> None:
        """`offered` gives size, rate and greatest length of what is shown, and a first prompt and seed."""
        self.generator = generator
        self.offered = offered
        self.pieces: deque[Piece] = deque(maxlen=KEPT)
        self._count = 0
        self._number = 0
        self._lock = threading.Lock()
        self._making: _Making | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="sfpp-live-")
        self.closed = False
        self.viewers = 0

    def start(self, prompt: str, seed: int) -> None:
        """Begin another video. UserError while one is being made."""
        prompt = _said(prompt)
        with self._lock:
            if self.closed:
                raise UserError("the program is ending")
            if self._making is not None and self._making.alive:
                raise UserError("a video is being made: stop it first")
            self._number += 1
            out = Path(self._folder.name) / f"sfpp-live-{self._number}-{seed}.mp4"
            request = replace(self.offered, prompt=prompt, seed=seed, out=out)
            if self._making is not None:
                self._making.request.out.unlink(missing_ok=True)
            self._making = _Making(self, request, self._number)

    def change(self, prompt: str, how: How) -> None:
        """Follow another prompt from the next chunk on. UserError if nothing is being made."""
        self._now().change(_said(prompt), how)

    def pause(self, paused: bool) -> None:
        """Hold the video, or go on. UserError if nothing is being made."""
        self._now().paused = paused

    def stop(self) -> None:
        """End the video; what was made of it can be downloaded until the next one begins."""
        self._now().stop()

    def close(self) -> None:
        """End everything."""
        self.closed = True
        if self._making is not None:
            self._making.stop()
            self._making.join(seconds=5)
        self._folder.cleanup()

    def after(self, number: int) -> list[Piece]:
        """The pieces after number `number` that are still kept, oldest first."""
        return [piece for piece in tuple(self.pieces) if piece.number > number]

    def add(self, show: int, first: int, frames: Frames) -> None:
        """Frames [T, H, W, 3] for the viewers."""
        self._count += 1
        self.pieces.append(Piece(self._count, show, first, tuple(_jpeg(frame) for frame in frames)))

    def file(self) -> Path:
        """What has been made of the video, or all of the last one. UserError if there is nothing."""
        if self._making is None or not self._making.frames:
            raise UserError("nothing has been made yet")
        return self._making.request.out

    def status(self) -> dict[str, Any]:
        """What the page shows."""
        return {"state": "idle", "show": 0} if self._making is None else self._making.status()

    def _now(self) -> _Making:
        if self._making is None or not self._making.alive:
            raise UserError("no video is being made: start one first")
        return self._making


class _Stopped(Exception):
    """Ends the student's stage."""


class _Making:
    """A video while it is made."""

    def __init__(self, show: Show, request: Request, number: int) -> None:
        self.request = request
        self.frames = 0
        self.paused = False
        self._show = show
        self._number = number
        self._scenes = [Scene(0.0, request.prompt, "cut")]
        self._cuts: tuple[int, ...] = ()
        self._next: tuple[str, Change] | None = None
        self._stopped = threading.Event()
        self._failure = ""
        self._watched = _Clock()
        self._paces: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._released = time.monotonic()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def change(self, prompt: str, how: How) -> None:
        """From the chunk on that is begun next. The prompt is embedded here: the student does not wait."""
        generator = self._show.generator
        self._next = (prompt, Change(generator.text([prompt]).to(generator.device), how))

    def stop(self) -> None:
        """It ends with the chunk that is on its way."""
        self._stopped.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def status(self) -> dict[str, Any]:
        paces = tuple(self._paces)
        seconds = sum(took for _, took in paces)
        return {
            "state": self._state(),
            "show": self._number,
            "failure": self._failure,
            "seed": self.request.seed,
            "seconds": round(self.frames / self.request.fps, 2),
            "fps": round(sum(frames for frames, _ in paces) / seconds, 1) if seconds else None,
            "chunk_seconds": round(seconds / len(paces), 3) if paces else None,
            "scenes": [asdict(scene) for scene in self._scenes],
        }

    def _state(self) -> str:
        if not self.alive:
            return "failed" if self._failure else "ended"
        if self._stopped.is_set():
            return "stopping"
        return "paused" if self.paused else "making"

    def _work(self) -> None:
        request = self.request
        size = (request.width, request.height)
        try:
            with GrowingVideo(request.out, size, request.fps) as video, suppress(_Stopped):
                for frames in self._show.generator.frames(request, changes=self._before_chunk):
                    if self._stopped.is_set():
                        break
                    video.write(frames)
                    self._show.add(self._number, self.frames, frames)
                    self.frames += len(frames)
        except Exception as error:
            self._failure = reason(error)

    def _before_chunk(self, index: int) -> Change | None:
        """The rollout asks before each chunk: wait until it is wanted, then tell of another prompt if any."""
        timeline = self._show.generator.timeline(self._cuts)
        frames = timeline.chunk_frames(index)
        first = timeline.frames_before(index)
        if index:
            self._paces.append((frames, time.monotonic() - self._released))
        while self._too_early(first, AHEAD * frames):
            time.sleep(PATIENCE)
        self._released = time.monotonic()
        if self._stopped.is_set():
            raise _Stopped
        if self._next is None:
            return None
        prompt, change = self._next
        self._next = None
        if change.how == "cut":
            self._cuts += (index,)
        self._scenes.append(Scene(round(first / self.request.fps, 2), prompt, change.how))
        return change

    def _too_early(self, first: int, ahead: int) -> bool:
        if self._stopped.is_set():
            return False
        watched = self._watched.tick(self.frames / self.request.fps, self.paused)
        return self.paused or first > watched * self.request.fps + ahead


class _Clock:
    """How far the video has been watched by someone who saw each picture as early as possible."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._looked = time.monotonic()

    def tick(self, made: float, paused: bool) -> float:
        """Seconds of the video, of which `made` are there; time does not pass while it is paused."""
        now = time.monotonic()
        if not paused:
            self._seconds = min(self._seconds + now - self._looked, made)
        self._looked = now
        return self._seconds


def _said(prompt: str) -> str:
    prompt = " ".join(prompt.split())
    if not prompt:
        raise UserError("the prompt is empty: say what the video should show")
    return prompt


def _jpeg(frame: Frames) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
