"""A video's local metrics in one streaming pass, and a second one over two positions at once for NoRepeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np

from sfpp_cli import __version__
from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.json_text import plain
from sfpp_cli.evaluation.metrics import repetition, results
from sfpp_cli.evaluation.metrics.borders import find_changes
from sfpp_cli.evaluation.metrics.exposure import exposure, luma_of
from sfpp_cli.evaluation.metrics.motion import Curve, FlowMeter, windowed_variance
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.stability import local_stability, reference_frames
from sfpp_cli.evaluation.metrics.verdicts import Evidence, verdicts
from sfpp_cli.evaluation.source import decoding, inspect
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import VideoInfo

DIGITS = 6
"""Significant digits of the numbers in a result."""


def versions() -> dict[str, str]:
    """What the numbers depend on besides the parameters."""
    return {
        "sfpp": __version__,
        "metrics": "2",
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
    }


def measure(
    path: str | Path, parameters: Parameters | None = None, scenes: Sequence[float] = ()
) -> dict[str, Any]:
    """Everything that is known of one video: `videos[i]` of results.schema.json, without prompt, seed, system
    and scenes.

    `path` is a video file or a folder of PNG frames; `scenes` are the seconds at which a new scene is
    announced. Whatever the length, what is held in memory is one
    picture, the small pictures of a clip for optical flow, and of every frame a miniature and a dozen
    numbers. OpenCV runs on one thread, since DIS flow differs slightly with more. UserError where the video
    cannot be measured.
    """
    path = Path(path)
    parameters = parameters or Parameters()
    info = inspect(path)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        scan = _Scan(info, parameters, scenes)
        with decoding(path) as frames:
            for frame in frames:
                scan.update(frame, path)
        if not len(scan):
            raise UserError(f"{path} holds no frames; is it a video?")
        measured: dict[str, Any] = plain(_assemble(path, scan), DIGITS)
        return measured
    finally:
        cv2.setNumThreads(threads)


def judge(frames: Frames, fps: float, parameters: Parameters | None = None) -> dict[str, dict[str, Any]]:
    """The verdicts on a video in memory, uint8 [T, H, W, 3]."""
    count, height, width, _ = frames.shape
    scan = _Scan(VideoInfo(width, height, fps, count), parameters or Parameters())
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for frame in frames:
            scan.update(frame, Path("preview"))
    finally:
        cv2.setNumThreads(threads)
    return verdicts(scan.evidence())


class _Scan:
    """The first pass: what has been seen of the stream so far."""

    def __init__(self, info: VideoInfo, parameters: Parameters, scenes: Sequence[float] = ()) -> None:
        self.scenes = scenes
        self.size = (info.width, info.height)
        self.fps = info.fps
        self.parameters = parameters
        self.flow = FlowMeter(self.size, info.fps, parameters.flow_short_side, parameters.clip_seconds)
        self.to_first: list[float] = []
        self._exposure: list[dict[str, float]] = []
        self.miniatures: list[Frames] = []
        self._first: Frames | None = None

    def __len__(self) -> int:
        return len(self.miniatures)

    def update(self, frame: Frames, path: Path) -> None:
        """The next frame [H, W, 3]."""
        if frame.shape != (self.size[1], self.size[0], 3):
            raise UserError(f"{path} changes its size at frame {len(self)}; cut it there")
        self._first = frame if self._first is None else self._first
        luma = luma_of(frame)
        limits = (self.parameters.clipped_luma, self.parameters.crushed_luma)
        self._exposure.append(exposure(frame, luma, *limits))
        self.flow.update(luma)
        self.to_first.append(repetition.distance(self._first, frame))
        self.miniatures.append(repetition.miniature(frame))

    def curves(self) -> dict[str, Curve]:
        """Curves [T] of exposure and motion."""
        curves = {name: np.array([row[name] for row in self._exposure]) for name in self._exposure[0]}
        curves |= {"flow_mean": np.array(self.flow.mean), "flow_top5": np.array(self.flow.top)}
        curves["flow_variance"] = windowed_variance(curves["flow_mean"], self.parameters.flow_window)
        curves["local_stability"] = local_stability(curves, self.fps, self.parameters)
        return curves

    def evidence(self) -> Evidence:
        """What verdicts are reached from."""
        curves = self.curves()
        miniatures = np.stack(self.miniatures)
        shift = np.array(self.flow.shift)
        changes = find_changes(miniatures, curves["luma"], shift, self.size, self.fps, self.parameters)
        similarity = repetition.self_similarity(miniatures, self.fps, self.parameters)
        return Evidence(curves, changes, similarity, self.size, self.fps, self.parameters, self.scenes)


def _norepeat(path: Path, scan: _Scan) -> dict[str, Any]:
    """NoRepeat as RIFLEx defines it, with the P and n it was taken at; all null if the video is too short."""
    names = ("", "_distance", "_rms", "_offset", "_position", "_halfwidth", "_threshold")
    window = repetition.norepeat_window(len(scan), scan.fps, scan.parameters)
    if window is None:
        return {f"norepeat{name}": None for name in names}
    offset = repetition.best_offset(scan.to_first, *window)
    mean = repetition.mean_distance(_pairs(path, offset))
    threshold = repetition.norepeat_threshold(scan.size)
    rms = repetition.rms(mean, scan.size)
    values = (100.0 if mean > threshold else 0.0, mean, rms, offset, *window, threshold)
    return {f"norepeat{name}": value for name, value in zip(names, values, strict=True)}


def _pairs(path: Path, offset: int) -> Iterator[tuple[Frames, Frames]]:
    """(x_i, x_{i + offset}), the file read at two positions at once."""
    with decoding(path) as early, decoding(path) as late:
        # the early frames come second, so that none is decoded in vain when the late ones end
        for frame, before in zip(islice(late, offset, None), early, strict=False):
            yield before, frame


def _assemble(path: Path, scan: _Scan) -> dict[str, Any]:
    """The result from what has been scanned, and from the second pass for NoRepeat."""
    parameters = scan.parameters
    fps = scan.fps
    evidence = scan.evidence()
    similarity = evidence.similarity
    curves = {**evidence.curves, "picture_change": evidence.changes.picture}
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
        "flow_size": list(scan.flow.working_size),
        "metrics": {
            "local_stability": results.mean(curves["local_stability"][reference:]),
            **{name: results.mean(curves[name]) for name in results.MEANS},
            **results.changes_since_reference(curves, fps, parameters),
            **results.spike_metrics(curves, scan.size, fps, parameters),
            "dynamic_degree_dis": sum(dynamic) / len(dynamic),
            "dynamic_degree_dis_whole": int(scan.flow.dynamic()),
            **_norepeat(path, scan),
            **_similarity_metrics(similarity, fps),
            **results.border_metrics(curves, parameters),
        },
        "curves": {
            name: results.shorten(values, fps, parameters.curve_points) for name, values in curves.items()
        },
        "clips": results.clips(curves, fps, dynamic, parameters),
        "verdicts": verdicts(evidence),
    }


def _similarity_metrics(similarity: repetition.Similarity | None, fps: float) -> dict[str, float | None]:
    names = ("self_similarity_seconds", "self_similarity_rms", "self_similarity_share")
    if similarity is None:
        return dict.fromkeys(names)
    return dict(zip(names, (similarity.offset / fps, similarity.rms, similarity.share), strict=True))
