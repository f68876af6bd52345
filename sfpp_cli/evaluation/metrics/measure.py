"""A video's local metrics, in one streaming pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np

from sfpp_cli import __version__
from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.json_text import plain
from sfpp_cli.evaluation.metrics import repetition, results
from sfpp_cli.evaluation.metrics.drifts import look_curves
from sfpp_cli.evaluation.metrics.evidence import Evidence, Seen
from sfpp_cli.evaluation.metrics.exposure import exposure, luma_of
from sfpp_cli.evaluation.metrics.look import LookMeter
from sfpp_cli.evaluation.metrics.motion import FlowMeter, windowed_variance
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.stability import reference_frames
from sfpp_cli.evaluation.metrics.verdicts import find, local_stability, verdicts
from sfpp_cli.evaluation.source import decoding, inspect
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import VideoInfo

DIGITS = 6
"""Significant digits of the numbers in a result."""


def versions() -> dict[str, str]:
    """What the numbers depend on besides the parameters."""
    return {
        "sfpp": __version__,
        "metrics": "5",
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
    }


def measure(
    path: str | Path,
    parameters: Parameters | None = None,
    scenes: Sequence[float] = (),
    seconds: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that is known of one video: `videos[i]` of results.schema.json, without prompt, seed, system
    and scenes.

    `path` is a video file or a folder of PNG frames; `scenes` are the seconds at which a new scene is
    announced, where a cut is no fault. The file is decoded once, at measuring size. Whatever its length, what
    is held in memory is a few pictures, the small ones of a clip for optical flow, and of every frame a
    miniature and some dozen numbers. OpenCV runs on one thread, since DIS flow differs slightly with more.
    Into `seconds` goes how long each part took. UserError where the video cannot be measured.
    """
    path = Path(path)
    parameters = parameters or Parameters()
    info = inspect(path)
    size = measuring_size((info.width, info.height), parameters.measuring_side)
    scan = _Scan(info, size, parameters, repetition.norepeat_window(info.frames, info.fps, parameters))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with decoding(path, scan.scaled) as frames:
            for frame in frames:
                scan.update(frame, path)
        if not len(scan):
            raise UserError(f"{path} holds no frames; is it a video?")
        measured: dict[str, Any] = plain(_assemble(path, scan, scenes), DIGITS)
        if seconds is not None:
            seconds |= scan.lap("verdicts")
        return measured
    finally:
        cv2.setNumThreads(threads)
        if scan.norepeat:
            scan.norepeat.close()


def judge(frames: Frames, fps: float, parameters: Parameters | None = None) -> dict[str, dict[str, Any]]:
    """The verdicts on a video in memory, uint8 [T, H, W, 3]."""
    count, height, width, _ = frames.shape
    scan = _Scan(VideoInfo(width, height, fps, count), (width, height), parameters or Parameters(), None)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for frame in frames:
            scan.update(frame, Path("preview"))
    finally:
        cv2.setNumThreads(threads)
    return verdicts(find(Evidence.of(scan.seen(), scan.parameters)), fps)


def measuring_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(W, H) of the pictures that are looked at: the video's, shrunk to at most this short side."""
    shrink = min(1.0, short_side / min(size))
    return round(size[0] * shrink), round(size[1] * shrink)


class _Scan:
    """What has been seen of the stream so far."""

    def __init__(
        self,
        info: VideoInfo,
        measuring: tuple[int, int],
        parameters: Parameters,
        window: tuple[int, int] | None,
    ) -> None:
        self.size = (info.width, info.height)
        self.measuring = measuring
        self.fps = info.fps
        self.parameters = parameters
        self.flow = FlowMeter(self.size, info.fps, parameters.flow_short_side, parameters.clip_seconds)
        self.look = LookMeter(self.size)
        self.norepeat = repetition.NoRepeatMeter(*window) if window else None
        self.miniatures: list[Frames] = []
        self._exposure: list[dict[str, float]] = []
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def __len__(self) -> int:
        return len(self.miniatures)

    @property
    def scaled(self) -> tuple[int, int] | None:
        """The size to decode to; None for the video's own, where one that changes midway shows."""
        return None if self.measuring == self.size else self.measuring

    def lap(self, name: str) -> dict[str, float]:
        """The time since the last lap belongs to `name`; how long every part has taken so far."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now
        return self._seconds

    def update(self, frame: Frames, path: Path) -> None:
        """The next frame [H, W, 3]."""
        if frame.shape != (self.measuring[1], self.measuring[0], 3):
            raise UserError(f"{path} changes its size at frame {len(self)}; cut it there")
        self.lap("decoding")
        luma = luma_of(frame)
        limits = (self.parameters.clipped_luma, self.parameters.crushed_luma)
        self._exposure.append(exposure(frame, luma, *limits))
        self.miniatures.append(repetition.miniature(frame))
        self.lap("exposure")
        self.flow.update(luma)
        self.lap("flow")
        self.look.update(frame, luma, self.flow.last)
        self.lap("look")
        if self.norepeat:
            self.norepeat.update(frame)
            self.lap("norepeat")

    def seen(self) -> Seen:
        """All that verdicts need."""
        curves = {name: np.array([row[name] for row in self._exposure]) for name in self._exposure[0]}
        curves |= self.look.curves()
        curves |= {"flow_mean": np.array(self.flow.mean), "flow_top5": np.array(self.flow.top)}
        curves["flow_variance"] = windowed_variance(curves["flow_mean"], self.parameters.flow_window)
        return Seen(curves, np.stack(self.miniatures), np.array(self.flow.shift), self.size, self.fps)


def see(path: Path, parameters: Parameters) -> Seen:
    """What is seen of a video, without a judgement."""
    info = inspect(path)
    size = measuring_size((info.width, info.height), parameters.measuring_side)
    scan = _Scan(info, size, parameters, None)
    with decoding(path, scan.scaled) as frames:
        for frame in frames:
            scan.update(frame, path)
    return scan.seen()


def _norepeat(scan: _Scan) -> dict[str, Any]:
    """NoRepeat as RIFLEx defines it, with the P and n it was taken at; all null if the video is too short.
    Distances are those of the video's own size, if its pictures differ as the measured ones do."""
    names = ("", "_distance", "_rms", "_offset", "_position", "_halfwidth", "_threshold")
    meter = scan.norepeat
    if meter is None or meter.offset is None:
        return {f"norepeat{name}": None for name in names}
    rms = repetition.rms(meter.mean(), scan.measuring)
    distance = repetition.from_rms(rms, scan.size)
    threshold = repetition.norepeat_threshold(scan.size)
    score = 100.0 if distance > threshold else 0.0
    values = (score, distance, rms, meter.offset, meter.position, meter.halfwidth, threshold)
    return {f"norepeat{name}": value for name, value in zip(names, values, strict=True)}


def _assemble(path: Path, scan: _Scan, scenes: Sequence[float]) -> dict[str, Any]:
    """The result from what has been scanned."""
    parameters = scan.parameters
    fps = scan.fps
    evidence = Evidence.of(scan.seen(), parameters, scenes)
    scan.lap("repetition")
    found = find(evidence)
    similarity = evidence.similarity
    curves = {
        **evidence.curves,
        "picture_change": evidence.changes.picture,
        **look_curves(found, parameters),
        "local_stability": local_stability(found),
    }
    dynamic = scan.flow.dynamic_clips()
    reference = reference_frames(len(scan), fps, parameters.reference_seconds)
    return {
        "path": str(path),
        "fps": fps,
        "frames": len(scan),
        "width": scan.size[0],
        "height": scan.size[1],
        "seconds": len(scan) / fps,
        "reference_seconds": reference / fps,
        "measured_size": list(scan.measuring),
        "flow_size": list(scan.flow.working_size),
        "metrics": {
            "local_stability": results.mean(curves["local_stability"][reference:]),
            **{name: results.mean(curves[name]) for name in results.MEANS},
            **results.changes_since_reference(curves, fps, parameters),
            **results.spike_metrics(curves, scan.size, fps, parameters),
            "dynamic_degree_dis": sum(dynamic) / len(dynamic),
            "dynamic_degree_dis_whole": int(scan.flow.dynamic()),
            **_norepeat(scan),
            **_similarity_metrics(similarity, fps),
            **results.border_metrics(curves, parameters),
        },
        "curves": {
            name: results.shorten(curves[name], fps, parameters.curve_points) for name in results.CURVES
        },
        "similarity_by_distance": repetition.similarity_by_distance(evidence.seen.miniatures, fps),
        "clips": results.clips(curves, fps, dynamic, parameters),
        "verdicts": verdicts(found, fps),
    }


def _similarity_metrics(similarity: repetition.Similarity | None, fps: float) -> dict[str, float | None]:
    names = ("self_similarity_seconds", "self_similarity_rms", "self_similarity_share")
    if similarity is None:
        return dict.fromkeys(names)
    return dict(zip(names, (similarity.offset / fps, similarity.rms, similarity.share), strict=True))
