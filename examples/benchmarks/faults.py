"""Faults that are injected into frames, each at three strengths, and camera work that is none."""

from __future__ import annotations

from collections.abc import Callable

import contents
import cv2
import numpy as np

from sfpp_cli.video import Frames

Fault = Callable[[Frames, int, int, float], Frames]
"""(frames, first faulty frame, strength 0..2, seed) -> frames."""


def rising(count: int, onset: int, length: int = 48) -> np.ndarray:
    """0 before the onset, 1 from three seconds after it."""
    return np.clip((np.arange(count) - onset) / length, 0, 1)


def per_frame(change):
    """A fault that grows over three seconds to its full amount, applied to pictures in 0..1."""

    def fault(frames, onset, strength, seed):
        amounts = rising(len(frames), onset)
        out = frames.copy()
        for index in np.flatnonzero(amounts > 0):
            picture = frames[index].astype(np.float32) / 255
            out[index] = np.clip(
                np.rint(change(picture, float(amounts[index]), strength, index + seed) * 255), 0, 255
            )
        return out

    return fault


def over_expose(picture, amount, strength, seed):
    gain, lift = ((1.25, 0.12), (1.5, 0.25), (2.0, 0.35))[strength]
    return picture * (1 + (gain - 1) * amount) + lift * amount


def darken(picture, amount, strength, seed):
    return picture * (1 + ((0.55, 0.35, 0.15)[strength] - 1) * amount)


def saturate(picture, amount, strength, seed):
    return _about_grey(picture, 1 + ((1.4, 1.8, 2.5)[strength] - 1) * amount)


def desaturate(picture, amount, strength, seed):
    return _about_grey(picture, 1 + ((0.6, 0.4, 0.0)[strength] - 1) * amount)


def _about_grey(picture, factor):
    grey = picture @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    return grey[..., None] + (picture - grey[..., None]) * factor


def cast(picture, amount, strength, seed):
    full = np.array(((1.12, 0.98, 0.88), (1.22, 0.96, 0.75), (1.4, 0.9, 0.5))[strength])
    full = full if seed // 10000 % 2 == 0 else full[::-1]
    return picture * (1 + (full - 1) * amount)


def blur(picture, amount, strength, seed):
    sigma = picture.shape[0] * (1 / 120, 1 / 72, 1 / 40)[strength] * amount
    return cv2.GaussianBlur(picture, (0, 0), max(sigma, 0.05))


def noise(picture, amount, strength, seed):
    deviation = (12, 22, 45)[strength] / 255 * amount
    return picture + np.random.default_rng(seed).standard_normal(picture.shape) * deviation


def freeze(frames, onset, strength, seed):
    """Time slows down to a tenth, a thirtieth, or stops."""
    pace = (0.08, 0.03, 0.0)[strength]
    times = np.arange(len(frames), dtype=np.float64)
    times[onset:] = onset + (times[onset:] - onset) * pace
    low = np.floor(times).astype(int)
    high = np.minimum(low + 1, len(frames) - 1)
    part = (times - low)[:, None, None, None]
    return np.rint(frames[low] * (1 - part) + frames[high] * part).astype(np.uint8)


def loop(frames, onset, strength, seed):
    """The second and a half, two and a half or the three seconds before the onset come again and again."""
    period = (24, 32, 40)[strength]
    index = np.arange(len(frames))
    index[onset:] = onset - period + (index[onset:] - onset) % period
    return frames[np.maximum(index, 0)]


def flicker(frames, onset, strength, seed):
    low, high = ((0.96, 1.04), (0.93, 1.07), (0.85, 1.2))[strength]
    index = np.arange(len(frames))
    gains = np.where((index - onset) // 12 % 2 == 0, high, low)
    gains = np.where(index < onset, 1.0, gains)
    return np.clip(np.rint(frames * gains[:, None, None, None]), 0, 255).astype(np.uint8)


def cut(frames, onset, strength, seed):
    """To another moment of the same scene, mirrored; to another content; to one yet further away."""
    if strength == 0:
        other = frames[(np.arange(len(frames)) + len(frames) // 2) % len(frames), :, ::-1]
    else:
        other = _other(seed + strength, frames)
    out = frames.copy()
    out[onset:] = other[: len(frames) - onset]
    return out


def _other(seed, frames):
    """Another content, of the same size and length."""
    names = sorted(contents.halves())
    height, width = frames.shape[1:3]
    found = contents.load(names[seed % len(names)])
    if np.array_equal(found[0], frames[0]):
        found = contents.load(names[(seed + 1) % len(names)])
    index = np.minimum(np.arange(len(frames)), len(found) - 1)
    return np.stack([cv2.resize(found[i], (width, height), interpolation=cv2.INTER_AREA) for i in index])


def subject(frames, onset, strength, seed):
    """A figure or a ball that is there from the start vanishes over a second, up to a rest."""
    left = (0.4, 0.15, 0.0)[strength]
    opacity = 1 - (1 - left) * rising(len(frames), onset, 16)
    return _with_subject(frames, opacity, seed)


def _with_subject(frames, opacity, seed):
    count, height, width, _ = frames.shape
    colors = ((230, 40, 50), (40, 90, 235), (245, 190, 20), (20, 160, 70))
    color = np.array(colors[seed % 4], np.float32)
    out = frames.copy()
    y, x = np.mgrid[:height, :width]
    radius = height * (0.14, 0.2)[seed % 2]
    for index in range(count):
        cx = width * (0.5 + 0.25 * np.sin(index / 31 + seed))
        cy = height * (0.5 + 0.18 * np.sin(index / 23 + 2 * seed))
        if seed % 3 == 0:
            away = np.hypot(x - cx, y - cy)
            shade = 1 - 0.25 * (x - cx + y - cy) / radius
        else:
            away = np.hypot((x - cx) * 1.8, (y - cy) * 0.8)
            shade = 1 + 0.2 * np.sign(np.sin((y - cy) / 3))
        cover = np.clip(radius - away + 0.5, 0, 1)[..., None] * opacity[index]
        out[index] = np.clip(out[index] * (1 - cover) + color * shade[..., None] * cover, 0, 255)
    return out


# --- no faults ------------------------------------------------------------------------------------------


def unharmed(frames, onset, strength, seed):
    return frames


def with_subject(frames, onset, strength, seed):
    return _with_subject(frames, np.ones(len(frames)), seed)


def zoom(frames, onset, strength, seed):
    """In to 1.6, or out from it."""
    count, height, width, _ = frames.shape
    part = np.clip((np.arange(count) - onset) / (count - onset), 0, 1)
    scales = 1 + 0.6 * (part if seed % 2 else 1 - part)
    out = []
    for frame, scale in zip(frames, scales, strict=True):
        move = np.array([[scale, 0, width / 2 * (1 - scale)], [0, scale, height / 2 * (1 - scale)]])
        out.append(cv2.warpAffine(frame, move, (width, height), flags=cv2.INTER_CUBIC))
    return np.stack(out)


def whip(frames, onset, strength, seed):
    """The camera is torn aside by two widths within five frames, and stays there."""
    count, _, width, _ = frames.shape
    shifts = np.rint(np.clip((np.arange(count) - onset) / 5, 0, 1) * 1.6 * width).astype(int)
    out = frames.copy()
    for index in np.flatnonzero(shifts > 0):
        wide = np.concatenate([frames[index], frames[index][:, ::-1], frames[index]], 1)
        window = wide[:, shifts[index] : shifts[index] + width]
        if 0 < index - onset < 5:
            window = cv2.blur(window, (max(1, width // 8), 1))
        out[index] = window
    return out


def flash(frames, onset, strength, seed):
    out = frames.copy()
    for index in range(onset, min(onset + 2, len(frames))):
        out[index] = np.clip(frames[index] * 1.5 + 80.0, 0, 255)
    return out


def near(frames, onset, strength, seed):
    """Something dark passes close to the camera within half a second."""
    count, height, width, _ = frames.shape
    out = frames.copy()
    y, x = np.mgrid[:height, :width]
    for index in range(onset, min(onset + 9, count)):
        cx = width * (-0.5 + 2.0 * (index - onset) / 8)
        cover = np.clip((height * 0.75 - np.hypot(x - cx, (y - height * 0.55) * 0.9)) / 6, 0, 1)[..., None]
        out[index] = frames[index] * (1 - cover) + np.array([50.0, 38, 30]) * cover
    return out


FAULTS: dict[str, tuple[Fault, str]] = {
    "over-exposure": (per_frame(over_expose), "over_exposure"),
    "darkening": (per_frame(darken), "darkening"),
    "over-saturation": (per_frame(saturate), "over_saturation"),
    "desaturation": (per_frame(desaturate), "desaturation"),
    "colour cast": (per_frame(cast), "colour_cast"),
    "blur": (per_frame(blur), "blur"),
    "noise": (per_frame(noise), "noise"),
    "freeze": (freeze, "stagnation"),
    "loop": (loop, "repetition"),
    "flicker": (flicker, "flicker"),
    "cut": (cut, "scene_change"),
    "subject lost": (subject, "subject_lost"),
}
CAMERA: dict[str, Fault] = {
    "unharmed": unharmed,
    "subject": with_subject,
    "zoom": zoom,
    "whip pan": whip,
    "flash": flash,
    "near object": near,
}
