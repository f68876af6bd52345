"""Slow changes of the look: exposure, colour, detail, noise.

Each is judged against the video's own beginning, and apart from what a scene may do by itself: where the view
is another than in the beginning, a change counts only as far as it was seen to happen on content that stayed
in the picture (see `look.py`). What a cut changes counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfpp_cli.evaluation.metrics.evidence import Evidence, Finding, Mask, drift
from sfpp_cli.evaluation.metrics.motion import Curve
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.stability import drift_to_white_and_black, smooth

Cells = NDArray[np.floating[Any]]
_SUPPORT = 2.0
"""Half of a change has to be seen on content that stayed: along the flow some of it is missed."""


def drifts(evidence: Evidence) -> dict[str, Finding]:
    """The findings by verdict. Colours are not judged where exposure is gone, which bends them."""
    white = _exposure(evidence, white=True)
    black = _exposure(evidence, white=False)
    exposed = np.maximum(white.severity, black.severity) < evidence.parameters.exposed
    cast = _cast(evidence, exposed)
    return {
        "over_exposure": white,
        "darkening": black,
        "over_saturation": _saturation(evidence, exposed, cast, 1),
        "desaturation": _saturation(evidence, exposed, cast, -1),
        "colour_cast": cast,
        "blur": _blur(evidence),
        "noise": _noise(evidence),
    }


def look_curves(found: Mapping[str, Finding], parameters: Parameters) -> dict[str, Curve]:
    """`saturation_change` in octaves and `cast` in CIELAB units [T], as far as they are drift."""
    rise = found["over_saturation"].severity * parameters.saturation_rise
    fall = found["desaturation"].severity * parameters.saturation_fall
    cast = found["colour_cast"].severity * parameters.cast_units
    return {"saturation_change": rise - fall, "cast": cast}


def _supported(evidence: Evidence, change: Curve, matched: Curve, error: float) -> Curve:
    """How much [T] of a change is drift, 0..1: as much as content that stayed in the picture shows of it.

    Where the view is as in the beginning, what is added up along the flow may be wrong by `error` a second:
    in the long run the picture's means are believed alone.
    """
    seconds = np.arange(evidence.frames) / evidence.fps
    shown = matched * np.sign(change) + error * seconds * evidence.same_view
    return np.clip(_SUPPORT * shown / np.maximum(np.abs(change), 1e-9), 0, 1)


def _exposure(evidence: Evidence, *, white: bool) -> Finding:
    """Mean luma has gone far to white (or black), or much of the picture has lost its detail there."""
    parameters = evidence.parameters
    curves = evidence.curves
    steps = evidence.scene_steps(curves["luma"])
    base = float(np.mean((curves["luma"] - steps)[evidence.reference]))
    ways = drift_to_white_and_black(smooth(curves["luma"], evidence.second), base + steps)
    support = _supported(
        evidence, evidence.departure(curves["lightness"]), evidence.gathered("light_step"), 0.25
    )
    gone = ways[0 if white else 1] * support
    lost = curves["clipped" if white else "crushed"]
    risen = evidence.departure(lost) * support
    severity = np.maximum(gone / parameters.exposure_way, risen / parameters.exposure_clipped)
    where = "white" if white else "black"
    way = float(gone.max())
    return drift(
        evidence,
        severity,
        f"Brightness went {way:.0%} of the way from its beginning to {where}",
        parameters.exposure_sustain_seconds,
        measure=way,
        threshold=parameters.exposure_way,
        reference_luma=base,
        largest_way=way,
        way_threshold=parameters.exposure_way,
        largest_rise=float(risen.max()),
        rise_threshold=parameters.exposure_clipped,
    )


def _saturation(evidence: Evidence, exposed: Mask, cast: Finding, sign: int) -> Finding:
    """Chroma in octaves above (`sign` 1) or below (-1) the beginning's.

    The least of four changes: of middling and of strong colours, since what leaves the picture takes but
    some of them along; of chroma for its lightness, since light and dark pictures are paler by nature; and of
    what a cast leaves as it was.
    """
    parameters = evidence.parameters
    chroma = evidence.curves["chroma"]
    lightness = np.log2(evidence.curves["lightness"] + parameters.chroma_floor)
    own, *changes = (
        sign * evidence.departure(np.log2(c + parameters.chroma_floor))
        for c in _colours(evidence, (picture[:, 1:] for picture in evidence.cells))
    )
    changes.append(sign * evidence.departure(np.log2(chroma + parameters.chroma_floor) - lightness))
    changes.append(_apart_from_cast(evidence, cast, own, sign))
    change = np.min([own, *changes], axis=0)
    change = np.where(exposed, np.maximum(change, 0), 0.0)
    change *= _supported(evidence, change, sign * evidence.gathered("gain_step") / np.log(2), 0.02)
    threshold = parameters.saturation_rise if sign > 0 else parameters.saturation_fall
    largest = float(change.max())
    word = "stronger" if sign > 0 else "paler"
    return drift(
        evidence,
        change / threshold,
        f"Colours became {word} than in the beginning, up to {2**largest:.1f} times",
        parameters.drift_seconds,
        measure=largest,
        threshold=threshold,
        reference_chroma=float(chroma[evidence.reference].mean()),
    )


def _apart_from_cast(evidence: Evidence, cast: Finding, own: Curve, sign: int) -> Curve:
    """The change [T] of saturation by what a cast leaves as it was: by how far colours are apart and, in the
    same view, by chroma once the shift of grey is taken out. One of the two is enough unless there is a cast.

    Where colours hardly differ, how far they are apart says nothing: there what is no cast is saturation.
    """
    floor = evidence.parameters.chroma_floor
    spread = sign * evidence.departure(np.log2(evidence.colour_spread + floor))
    unknown = (1 - _told(evidence)) * (cast.severity < 1)
    spread += unknown * (own - spread)
    shifts, light = evidence.grey_shift
    pairs = zip(evidence.cells, shifts, strict=True)
    without_cast = _colours(evidence, (picture[:, 1:] - np.outer(light, shift) for picture, shift in pairs))
    told = sign * evidence.departure(np.log2(without_cast[0] + floor))
    both = np.where(cast.severity < 1, np.maximum(told, spread), np.minimum(told, spread))
    return np.where(evidence.same_view, both, spread)


def _colours(evidence: Evidence, cells: Iterable[Cells]) -> list[Curve]:
    """Chroma [T] of the middling of each picture's cells [N, 2] and of one that is stronger: at the least two
    of three quantiles that have a colour in the beginning. A grey picture has none, and zeros are returned.
    """
    quantiles = [np.quantile(np.hypot(*picture.T), (0.5, 0.75, 0.9)) for picture in cells]
    curves = list(np.array(quantiles, np.float64).T)
    coloured = [c for c in curves if c[evidence.reference].mean() > 2 * evidence.parameters.chroma_floor]
    return coloured[:2] or [np.zeros(evidence.frames)]


def _told(evidence: Evidence) -> float:
    """0..1: how far the beginning's colours differ enough that their spread tells saturation from a cast."""
    square = float(evidence.colour_spread[evidence.reference].mean()) ** 2
    return square / (square + evidence.parameters.chroma_floor**2)


def _cast(evidence: Evidence, exposed: Mask) -> Finding:
    """How far neutral grey has gone, in CIELAB units: in the same view by its cells, in another the shift of
    the mean colour that a change of saturation does not explain.

    Saturation moves the mean colour along its own hue: anything between nothing and what colours have moved
    apart; where they hardly differ, it may as well be gone or have doubled.
    """
    parameters = evidence.parameters
    told = _told(evidence)
    gain = 2 ** evidence.departure(np.log2(evidence.colour_spread + parameters.chroma_floor))
    least = told * np.minimum(gain, 1)
    most = told * np.maximum(gain, 1) + (1 - told) * 2
    levels = []
    for name in ("colour_a", "colour_b"):
        values = evidence.curves[name]
        levels.append(smooth(values - evidence.scene_steps(values), evidence.second))
    level = np.array(levels)
    mean = level[:, evidence.reference].mean(1)
    along_hue = np.clip(mean @ level / max(float(mean @ mean), 1e-9), least, most)
    grey = [evidence.departure(values) for values in evidence.grey_shift[0].T]
    shift = np.where(evidence.same_view, grey, level - np.outer(mean, along_hue))
    size = np.hypot(*shift)
    along = shift[0] * evidence.gathered("cast_a_step") + shift[1] * evidence.gathered("cast_b_step")
    cast = size * _supported(evidence, size, along / np.maximum(size, 1e-9), 0.25)
    cast = np.where(exposed, cast, 0.0)
    worst = int(np.argmax(cast))
    return drift(
        evidence,
        cast / parameters.cast_units,
        f"The picture turned {_hue(shift[0][worst], shift[1][worst])}, by {cast[worst]:.0f} CIELAB units",
        parameters.drift_seconds,
        measure=float(cast[worst]),
        threshold=parameters.cast_units,
        shift_a=float(shift[0][worst]),
        shift_b=float(shift[1][worst]),
    )


def _hue(a: float, b: float) -> str:
    """A word for a direction in CIELAB."""
    names = ("pink", "orange", "yellow", "yellow-green", "green", "blue-green", "blue", "purple")
    return names[round(np.degrees(np.arctan2(b, a)) / 45) % 8]


def _blur(evidence: Evidence) -> Finding:
    """Fine detail against coarse, in octaves below the beginning's, where the picture is sharpest. Or, since
    textures that never were sharp lose both: in the same view, sharpness for its contrast, if some detail
    went along."""
    parameters = evidence.parameters
    detail = evidence.curves["detail"]
    known = detail[np.isfinite(detail)]
    # a frame without texture says nothing
    detail = np.nan_to_num(detail, nan=float(np.median(known)) if known.size else 1.0)
    lost = -evidence.departure(np.log2(np.maximum(detail, 1e-3)))
    edges = np.sqrt(evidence.curves["sharpness"]) / (255 * evidence.curves["contrast"] + 1)
    softer = -evidence.departure(np.log2(edges + 1e-3)) * evidence.same_view
    of_detail = np.maximum(lost, 0) / parameters.blur_octaves
    of_edges = np.minimum(np.maximum(softer, 0) / parameters.blur_edges, 4 * of_detail)
    largest = float(lost.max())
    softest = float(softer.max())
    sentence = f"Fine detail fell to {2**-largest:.0%} of the beginning's, even where the picture is sharpest"
    if of_edges.max() > of_detail.max():
        sentence = f"Edges and textures fell to {2**-softest:.0%} of the beginning's sharpness"
    return drift(
        evidence,
        np.maximum(of_detail, of_edges),
        sentence,
        parameters.drift_seconds,
        measure=largest,
        threshold=parameters.blur_octaves,
        largest_edge_loss=softest,
        edge_threshold=parameters.blur_edges,
    )


def _noise(evidence: Evidence) -> Finding:
    """Noise above the beginning's, in levels of 255."""
    parameters = evidence.parameters
    noise = evidence.curves["noise"]
    risen = evidence.departure(noise)
    base = float(noise[evidence.reference].mean())
    needed = np.maximum(parameters.noise_levels, parameters.noise_ratio * base)
    largest = float(risen.max())
    return drift(
        evidence,
        np.maximum(risen, 0) / needed,
        f"Noise grew by {largest:.1f} of 255 levels, in the calmest parts of the picture",
        parameters.drift_seconds,
        measure=largest,
        threshold=float(needed),
        reference_noise=base,
    )
