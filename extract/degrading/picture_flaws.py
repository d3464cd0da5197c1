"""Flaws of the picture: how each is planted, and how it is measured afterwards.

For `compression` and `damping` what can be measured is another quantity than what was
set: of `damping` it is said whether there is an effect at all, of `compression`
nothing.
"""

import collections
import io
import math
from collections.abc import Iterator
from typing import Any

import av
import cv2
import numpy as np
from jaxtyping import Int
from scipy import optimize

from extract import encode, thumbnail
from extract.degrading import Flaw, Pictures, Scene, damping

MAX_BLUR = 0.010  # standard deviation of the blur in picture heights
QUANTISER = (20.0, 40.0)  # H.264 constant rate factor
MAX_FROZEN = 0.8  # share of the clip's frames that stand still
MAX_JITTER = 5  # frames that a picture comes too early or late

_BLUR_PICTURES = 5  # that the width of the blur is fitted to
_STILL = 0.4  # of the original's change from picture to picture
_LEAST_EFFECT = 0.2  # of damping at strength 1, on what is measured
_MIN_MOVING = 0.2  # share of the original's pictures; else stillness says nothing
_NOISE = 0.1  # grey levels of change that are the codec's
_SMALL = 320  # pixels, long side of pictures that are looked for at other instants

FLAWS: dict[str, Flaw] = {}


def _blur(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    for pixels in pictures:
        yield cv2.GaussianBlur(pixels, (0, 0), MAX_BLUR * strength * len(pixels))


def _measure_blur(before, after, strength, scene):
    pairs = zip(before, after, strict=True)
    chosen = thumbnail.spread(
        pairs, 2 * _BLUR_PICTURES, lambda pair: tuple(map(_grey, pair))
    )
    most = MAX_BLUR * len(chosen[0][0])

    def error(sigma: float) -> float:
        blurred = (cv2.GaussianBlur(a, (0, 0), sigma) - b for a, b in chosen)
        return sum(float(np.mean(rest**2)) for rest in blurred)

    measured = optimize.minimize_scalar(
        error,
        bounds=(0.1, 2 * most + 0.2),
        method="bounded",
        options={"xatol": 0.01},
    ).x
    planted = MAX_BLUR * strength * len(chosen[0][0])
    agrees = abs(measured - planted) < max(0.15 * planted, 0.1)
    return planted, float(measured), bool(agrees)


FLAWS["blur"] = Flaw(
    "picture",
    f"Gaussian of {MAX_BLUR} picture heights x strength",
    "pixels standard deviation",
    {"overall": 0.50},
    _blur,
    _measure_blur,
)


def _crf(strength: float) -> float:
    return QUANTISER[0] + (QUANTISER[1] - QUANTISER[0]) * strength


def _compression(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    """Encodes with H.264 and decodes again; the encoded clip is held in memory."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        crf = f"{_crf(strength):.2f}"
        encode.fill(container, pictures, crf=crf, x264=scene.x264)
    file.seek(0)
    with av.open(file) as container:
        for picture in container.decode(video=0):
            yield picture.to_ndarray(format="rgb24")


def _measure_compression(before, after, strength, scene):
    pairs = zip(before, after, strict=True)
    errors = [np.mean((_grey(a) - _grey(b)) ** 2) for a, b in pairs]
    return _crf(strength), float(10 * np.log10(255**2 / np.mean(errors))), None


FLAWS["compression"] = Flaw(
    "picture",
    "H.264 re-encoded at crf {} up to {}".format(*QUANTISER),
    "crf; measured: dB signal to noise of grey",
    {"overall": 0.45},
    _compression,
    _measure_compression,
)


def freeze_picks(count: int, strength: float, seed: int) -> Int[np.ndarray, " T"]:
    """Returns which of `count` frames a frozen clip shows at each instant.

    Pictures stand still in a few stretches, `MAX_FROZEN * strength` of the clip.
    """
    frozen = round(MAX_FROZEN * strength * (count - 1))
    if frozen == 0:
        return np.arange(count)
    rng = np.random.default_rng([seed, 14])
    parts = min(int(rng.integers(1, 4)), frozen, count - frozen)
    # Stretches of equal length at random places: draw the moving frames between them.
    lengths = np.full(parts, frozen // parts)
    lengths[: frozen % parts] += 1
    moving = np.sort(rng.choice(count - frozen, parts, replace=False))
    starts = moving + np.cumsum(lengths) - lengths + 1
    picks = np.arange(count)
    for start, length in zip(starts, lengths, strict=True):
        picks[start : start + length] = start - 1
    return picks


def _freeze(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    return reordered(pictures, freeze_picks(scene.rows, strength, scene.seed))


def _measure_freeze(before, after, strength, scene):
    changes = []
    last = None
    for both in zip(before, after, strict=True):
        greys = list(map(_grey, both))
        if last is not None:
            changes.append(
                [np.mean(np.abs(a - b)) for a, b in zip(greys, last, strict=True)]
            )
        last = greys
    before, after = np.array(changes).T
    held = np.diff(freeze_picks(len(changes) + 1, strength, scene.seed)) == 0
    # Where the original itself stands still, nothing can be seen of the flaw.
    moves = before > _NOISE
    if moves.mean() < _MIN_MOVING:
        return held.mean(), math.nan, None
    still = after[moves] < _STILL * before[moves]
    agrees = abs(still.mean() - held[moves].mean()) < 0.05
    return held.mean(), float(still.mean()), bool(agrees)


FLAWS["freeze"] = Flaw(
    "picture",
    f"{MAX_FROZEN} x strength of the frames stand still",
    "share of still frames",
    {"lip_sync": 0.40, "expression": 0.75, "overall": 0.50},
    _freeze,
    _measure_freeze,
)


def jitter_picks(count: int, strength: float, seed: int) -> Int[np.ndarray, " T"]:
    """Returns which of `count` frames a jittering clip shows at each instant.

    A share `strength` of the pictures is up to `MAX_JITTER` frames off.
    """
    rng = np.random.default_rng([seed, 15])
    off = rng.integers(1, MAX_JITTER + 1, count) * rng.choice([-1, 1], count)
    off[rng.uniform(size=count) >= strength] = 0
    return np.clip(np.arange(count) + off, 0, count - 1)


def _jitter(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    return reordered(pictures, jitter_picks(scene.rows, strength, scene.seed))


def _measure_jitter(before, after, strength, scene):
    near: collections.deque = collections.deque(maxlen=2 * MAX_JITTER + 1)
    waiting: collections.deque = collections.deque()
    off = []

    def is_off(at: int, picture: np.ndarray) -> bool:
        """Tells whether a picture looks like one of another instant."""
        errors = {
            index: float(np.mean(np.abs(other - picture)))
            for index, other in near
            if abs(index - at) <= MAX_JITTER
        }
        return min(errors.values()) < errors[at]

    for at, pair in enumerate(zip(before, after, strict=True)):
        for pictures, pixels in zip((near, waiting), pair, strict=True):
            pictures.append((at, _small(pixels)))
        if at >= MAX_JITTER:
            off.append(is_off(*waiting.popleft()))
    off += [is_off(*late) for late in waiting]
    picks = jitter_picks(len(off), strength, scene.seed)
    planted, measured = np.mean(picks != np.arange(len(off))), float(np.mean(off))
    return planted, measured, bool(abs(measured - planted) < 0.1)


FLAWS["jitter"] = Flaw(
    "picture",
    f"share of frames shown up to {MAX_JITTER} frames off",
    "share of frames off",
    {"lip_sync": 0.30, "expression": 0.55, "overall": 0.40},
    _jitter,
    _measure_jitter,
)


def _damping(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    faces = scene.faces
    shifts = damping.shifts(faces.points, faces.seen, faces.aspect, strength)
    for pixels, points, shift in zip(pictures, faces.points, shifts, strict=True):
        yield damping.bend(pixels, points, shift)


def _measure_damping(before, after, strength, scene):
    was, now = (damping.expression(f.blendshapes[f.seen]) for f in (before, after))
    if not was > 0:
        return 1 - strength, math.nan, None
    # Another quantity, so only whether there is an effect can be said.
    return 1 - strength, now / was, bool(now / was < 1 - _LEAST_EFFECT * strength)


FLAWS["damping"] = Flaw(
    "face",
    "movement of brows, forehead, cheeks and nose, and slow movement of the "
    "mouth's corners, x (1 - strength)",
    "movement left, of the mesh; measured: of brow and smile blendshapes",
    {"expression": 0.90, "cross_modal": 0.30, "overall": 0.35},
    _damping,
    _measure_damping,
)


def reordered(pictures: Iterator, order: Int[np.ndarray, " T"]) -> Iterator:
    """Yields pictures in another order and keeps those that are still to come."""
    last = {int(pick): at for at, pick in enumerate(order)}
    numbered = enumerate(pictures)
    kept: dict[int, Any] = {}
    for at, pick in enumerate(order):
        while pick not in kept:
            number, pixels = next(numbered)
            if last.get(number, -1) >= at:
                kept[number] = pixels
        yield kept[pick]
        if last[int(pick)] == at:
            del kept[pick]
    for _ in numbered:  # the decoder's last words
        pass


def _grey(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _small(pixels: np.ndarray) -> np.ndarray:
    grey = _grey(pixels)
    scale = min(1.0, _SMALL / max(grey.shape))
    size = [max(1, round(scale * side)) for side in reversed(grey.shape)]
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
