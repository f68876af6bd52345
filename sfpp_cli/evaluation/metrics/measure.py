"""A video's local metrics in one streaming pass, and a second one over two positions at once for NoRepeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np

from sfpp_cli import __version__
from sfpp_cli.errors import UserError
from sfpp_cli.evaluation.metrics import results
from sfpp_cli.evaluation.metrics.borders import find_changes
from sfpp_cli.evaluation.metrics.exposure import exposure, luma_of
from sfpp_cli.evaluation.metrics.motion import Curve, FlowMeter, windowed_variance
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.repetition import (
    Similarity,
    best_offset,
    distance,
    mean_distance,
    miniature,
    norepeat_threshold,
    norepeat_window,
    rms,
    self_similarity,
)
from sfpp_cli.evaluation.metrics.stability import local_stability, reference_frames
from sfpp_cli.evaluation.metrics.verdicts import Evidence, verdicts
from sfpp_cli.evaluation.source import decoding, inspect
from sfpp_cli.video import Frames
from sfpp_cli.video.reader import VideoInfo

Report = Callable[[float], None]
"""Told how much of the work is done, 0..1."""
_FIRST_PASS = 0.85
"""Its share of the time."""


def versions() -> dict[str, str]:
    """What the numbers depend on besides the parameters."""
    return {
        "sfpp": __version__,
        "metrics": "2",
        "opencv": cv2.__version__,
        "numpy": version("numpy"),
        "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
    }


def measure(
    path: str | Path, parameters: Parameters | None = None, advance: Report | None = None
) -> dict[str, Any]:
    """Everything that is known of one video (`videos[i]` of SCHEMA.md, without prompt, seed and system).

    `path` is a video file or a directory of PNG frames. `advance` is told the share of the work done. One
    picture, the flow's working pictures of a clip, a miniature and a dozen numbers a frame are held, whatever
    the length. OpenCV runs on one thread, since DIS answers slightly differently on more. UserError, one
    line, if the video cannot be measured.
    """
    path, parameters = Path(path), parameters or Parameters()
    info, report = inspect(path), advance or (lambda share: None)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        scan = _Scan(info, parameters)
        with decoding(path) as frames:
            for frame in frames:
                scan.update(frame, path)
                report(min(1.0, len(scan) / info.frames) * _FIRST_PASS)
        if not len(scan):
            raise UserError(f"{path} holds no frames; is it a video?")
        norepeat = _norepeat(path, scan, lambda share: report(_FIRST_PASS + share * (1 - _FIRST_PASS)))
        return results.plain(_assemble(path, scan, norepeat))  # type: ignore[no-any-return]
    finally:
        cv2.setNumThreads(threads)


class _Scan:
    """The first pass: what has been seen of the stream so far."""

    def __init__(self, info: VideoInfo, parameters: Parameters) -> None:
        self.size, self.fps, self.parameters = (info.width, info.height), info.fps, parameters
        self.flow = FlowMeter(self.size, info.fps, parameters.flow_short_side, parameters.clip_seconds)
        self.to_first: list[float] = []
        self._exposure: list[dict[str, float]] = []
        self._miniatures: list[Frames] = []
        self._first: Frames | None = None

    def __len__(self) -> int:
        return len(self._miniatures)

    def update(self, frame: Frames, path: Path) -> None:
        """The next frame [H, W, 3]."""
        if frame.shape != (self.size[1], self.size[0], 3):
            raise UserError(f"{path} changes its size at frame {len(self)}; cut it there")
        self._first = frame if self._first is None else self._first
        luma = luma_of(frame)
        self._exposure.append(
            exposure(frame, luma, self.parameters.clipped_luma, self.parameters.crushed_luma)
        )
        self.flow.update(luma)
        self.to_first.append(distance(self._first, frame))
        self._miniatures.append(miniature(frame))

    @property
    def miniatures(self) -> Frames:
        return np.stack(self._miniatures)

    def curves(self) -> dict[str, Curve]:
        """Curves [T] of exposure and motion."""
        curves = {name: np.array([row[name] for row in self._exposure]) for name in self._exposure[0]}
        curves |= {"flow_mean": np.array(self.flow.mean), "flow_top5": np.array(self.flow.top)}
        curves["flow_variance"] = windowed_variance(curves["flow_mean"], self.parameters.flow_window)
        curves["local_stability"] = local_stability(curves, self.fps, self.parameters)
        return curves


def _norepeat(path: Path, scan: _Scan, report: Report) -> dict[str, Any]:
    """NoRepeat (metrics.md, section 1) with the P and n it was taken at; all null where the video is too short for them."""
    window = norepeat_window(len(scan), scan.fps, scan.parameters)
    names = (
        "norepeat",
        "norepeat_distance",
        "norepeat_rms",
        "norepeat_offset",
        "norepeat_position",
        "norepeat_halfwidth",
    )
    if window is None:
        return dict.fromkeys((*names, "norepeat_threshold"))
    offset = best_offset(scan.to_first, *window)
    found = mean_distance(_pairs(path, offset, len(scan) - offset, report))
    threshold = norepeat_threshold(scan.size)
    values = (100.0 if found > threshold else 0.0, found, rms(found, scan.size), offset, *window)
    return {**dict(zip(names, values, strict=True)), "norepeat_threshold": threshold}


def _pairs(path: Path, offset: int, count: int, report: Report) -> Iterator[tuple[Frames, Frames]]:
    """(x_i, x_{i + offset}), the file read at two positions at once."""
    with decoding(path) as early, decoding(path) as late:
        for index, pair in enumerate(zip(islice(late, offset, None), early, strict=False), start=1):
            yield pair[1], pair[0]
            report(index / count)


def _assemble(path: Path, scan: _Scan, norepeat: dict[str, Any]) -> dict[str, Any]:
    """The result from what both passes saw."""
    parameters, fps, curves = scan.parameters, scan.fps, scan.curves()
    miniatures = scan.miniatures
    changes = find_changes(miniatures, curves["luma"], np.array(scan.flow.shift), scan.size, fps, parameters)
    curves["picture_change"] = changes.picture
    similarity = self_similarity(miniatures, fps, parameters)
    dynamic, whole = scan.flow.dynamic_clips(), scan.flow.dynamic()
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
            **results.means(curves),
            **results.changes_since_reference(curves, fps, parameters),
            **results.spike_metrics(curves, scan.size, fps, parameters),
            "dynamic_degree_dis": sum(dynamic) / len(dynamic),
            "dynamic_degree_dis_whole": int(whole),
            **norepeat,
            **_similarity_metrics(similarity, fps),
            **results.border_metrics(curves, parameters),
        },
        "curves": {
            name: results.shorten(values, fps, parameters.curve_points) for name, values in curves.items()
        },
        "clips": results.clips(curves, fps, dynamic, parameters),
        "verdicts": verdicts(Evidence(curves, changes, similarity, scan.size, fps, parameters)),
    }


def _similarity_metrics(similarity: Similarity | None, fps: float) -> dict[str, float | None]:
    if similarity is None:
        return dict.fromkeys(("self_similarity_seconds", "self_similarity_rms", "self_similarity_share"))
    return {
        "self_similarity_seconds": similarity.offset / fps,
        "self_similarity_rms": similarity.rms,
        "self_similarity_share": similarity.share,
    }
