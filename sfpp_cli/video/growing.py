"""A video that can be taken away while it is still being written: MP4 in fragments, of a second each."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import numpy as np

from sfpp_cli.video import Frames
from sfpp_cli.video.ffmpeg import pipe, run_ffmpeg
from sfpp_cli.video.writer import YUV420


class GrowingVideo:
    """Frames on their way into `path`, which is a video at any moment, up to its last whole fragment.

    `size` is (W, H) in pixels, both even; `fps` in frames a second. As a context manager it finishes the
    file. OSError where it cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self._size = size
        self._stack = ExitStack()
        self._process = self._stack.enter_context(
            run_ffmpeg(
                *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}"),
                *("-framerate", str(fps), "-i", "pipe:0"),
                # No look ahead: a picture is in the file soon after it was written.
                *("-vf", YUV420, "-c:v", "libx264", "-crf", "18", "-tune", "zerolatency"),
                *("-g", str(max(1, round(fps))), "-movflags", "+frag_keyframe+empty_moov+default_base_moof"),
                *("-threads", "1", "-flush_packets", "1", "-f", "mp4", f"file:{path}"),
                stdin=subprocess.PIPE,
            )
        )

    def write(self, frames: Frames) -> None:
        """Append [T, H, W, 3]."""
        try:
            pipe(self._process.stdin).write(np.ascontiguousarray(frames).data)
            pipe(self._process.stdin).flush()
        except BrokenPipeError:
            self._stack.close()  # says what ffmpeg died of
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self._stack.close()
            return
        self._process.kill()
        with suppress(OSError):
            self._stack.close()


def whole_part(path: Path) -> int:
    """Bytes of a growing video that are whole: its header and all finished fragments (ISO/IEC 14496-12)."""
    end = 0
    whole = 0
    total = path.stat().st_size
    with path.open("rb") as file:
        while end + 8 <= total:
            file.seek(end)
            head = file.read(8)
            size = int.from_bytes(head[:4])
            if size < 8:  # not yet known
                break
            end += size
            # A fragment is a box that describes it and one that holds its pictures.
            if end <= total and head[4:] != b"moof":
                whole = end
    return whole
