"""Slow changes of the look: exposure, colour, detail, noise.

Each is judged against the video's own beginning, and apart from what a scene may do by itself: where the view
is another than in the beginning, a change counts only as far as it was seen to happen on content that stayed
in the picture (see `look.py`). What a cut changes counts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sfpp_cli.evaluation.metrics.evidence import Evidence, Finding, Mask, drift
from sfpp_cli.evaluation.metrics.motion import Curve
from sfpp_cli.evaluation.metrics.parameters import Parameters
from sfpp_cli.evaluation.metrics.stability import drift_to_white_and_black, smooth

_SUPPORT = 2.0
"""Half of a change has to be seen on content that stayed: along the flow some of it is missed."""


def drifts(evidence: Evidence) -> dict[str, Finding]:
    """The findings by verdict. Colours are not judged where exposure is gone, which bends them."""
    white = _exposure(evidence, white=True)
    black = _exposure(evidence, white=False)
    exposed = np.maximum(white.severity, black.severity) < evidence.parameters.exposed
    return {
        "over_exposure": white,
        "darkening": black,
        "over_saturation": _saturation(evidence, exposed, 1),
        "desaturation": _saturation(evidence, exposed, -1),
        "colour_cast": _cast(evidence, exposed),
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


def _saturation(evidence: Evidence, exposed: Mask, sign: int) -> Finding:
    """Chroma in octaves above (`sign` 1) or below (-1) the beginning's.

    The least of three changes: of chroma itself; of chroma for its lightness, since light and dark pictures
    are paler by nature; and of how far colours are apart, which a cast leaves as it was."""
    parameters = evidence.parameters
    chroma = evidence.curves["chroma"]
    octaves = np.log2(chroma + parameters.chroma_floor)
    lightness = np.log2(evidence.curves["lightness"] + parameters.chroma_floor)
    spread = np.log2(evidence.colour_spread + parameters.chroma_floor)
    changes = [sign * evidence.departure(values) for values in (octaves, octaves - lightness, spread)]
    change = np.where(exposed, np.maximum(np.min(changes, axis=0), 0), 0.0)
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


def _cast(evidence: Evidence, exposed: Mask) -> Finding:
    """How far neutral grey has gone, in CIELAB units: the shift of the mean colour that a change of
    saturation does not explain."""
    parameters = evidence.parameters
    spread = evidence.departure(np.log2(evidence.colour_spread + parameters.chroma_floor))
    shift = np.zeros((2, evidence.frames))
    mean = np.zeros(2)
    for axis, name in enumerate(("colour_a", "colour_b")):
        values = evidence.curves[name]
        level = smooth(values - evidence.scene_steps(values), evidence.second)
        mean[axis] = level[evidence.reference].mean()
        shift[axis] = level - 2**spread * mean[axis]
    # a picture of one hue that shifts along it may as well have become more or less saturated
    length = float(np.linalg.norm(mean))
    one_hue = length / max(float(evidence.curves["chroma"][evidence.reference].mean()), length, 1e-9)
    shift -= one_hue * np.outer(mean, mean @ shift) / max(length**2, 1e-9)
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
    """Fine detail against coarse, in octaves below the beginning's, where the picture is sharpest."""
    parameters = evidence.parameters
    detail = evidence.curves["detail"]
    known = detail[np.isfinite(detail)]
    # a frame without texture says nothing
    detail = np.nan_to_num(detail, nan=float(np.median(known)) if known.size else 1.0)
    lost = -evidence.departure(np.log2(np.maximum(detail, 1e-3)))
    largest = float(lost.max())
    return drift(
        evidence,
        np.maximum(lost, 0) / parameters.blur_octaves,
        f"Fine detail fell to {2**-largest:.0%} of the beginning's, even where the picture is sharpest",
        parameters.drift_seconds,
        measure=largest,
        threshold=parameters.blur_octaves,
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
