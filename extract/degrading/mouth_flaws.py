"""Flaws of the mouth and of the face's form, as generators of talking faces make them.

Each bends or blurs pictures around mesh points. They are measured on the mesh of the
finished copy, which shows whether there is an effect at all, not how much was set.
"""

import math

import cv2
import numpy as np
import scipy.ndimage

from extract.backends import correlation
from extract.degrading import Flaw, Pictures, Scene, damping

MAX_MOUTH_BLUR = 0.035  # standard deviation of the blur in face heights
MAX_SHAKE = 0.020  # standard deviation of the mouth's shaking in face heights
MAX_DRIFT = 0.035  # of a point at the face's edge, likewise

_REACH = 0.10  # face heights around the lips that follow them
_PATCH = 0.16  # likewise, that are blurred
_SLOW = 12.0  # rows: standard deviation of the filter that leaves a drift
_LEAST = 0.1  # effect of strength 1 on what is measured

FLAWS: dict[str, Flaw] = {}


def _bent(pictures: Pictures, scene: Scene, moves, turns) -> Pictures:
    faces = scene.faces
    shifts = damping.in_picture(moves, turns, faces.seen)
    for pixels, points, shift in zip(pictures, faces.points, shifts, strict=True):
        yield damping.bend(pixels, points, shift)


def _shape(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns shapes and turns of the face, and the mean shape."""
    faces = scene.faces
    shape, turns = damping.shapes(faces.points, faces.seen, faces.aspect)
    return shape, turns, shape.mean(axis=0)


def _mumble(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    shape, turns, mean = _shape(scene)
    near = damping.near_mouth(mean, _REACH)
    return _bent(pictures, scene, -strength * near[:, None] * (shape - mean), turns)


def _measure_mumble(before, after, strength, scene):
    was, now = (
        np.nanstd(correlation.openings(f.points, f.aspect)[0]) for f in (before, after)
    )
    left = float(now / was) if was > 0 else math.nan
    return 1 - strength, left, bool(left < 1 - _LEAST * strength)


FLAWS["mumble"] = Flaw(
    "face",
    "movement of lips and what is around them x (1 - strength)",
    "movement left, of the mesh; measured: of the lips' opening",
    {"lip_sync": 0.75, "expression": 0.40, "cross_modal": 0.40, "overall": 0.40},
    _mumble,
    _measure_mumble,
)


def _mouth_jitter(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    shape, turns, mean = _shape(scene)
    rng = np.random.default_rng([scene.seed, 16])
    shake = rng.standard_normal((len(shape), 1, 3)) * [1, 1, 0]
    near = damping.near_mouth(mean, _REACH)
    return _bent(pictures, scene, MAX_SHAKE * strength * near[:, None] * shake, turns)


def _shaking(faces) -> float:
    """Returns how much the lips' centre leaves the course of its neighbours."""
    shape, _ = damping.shapes(faces.points, faces.seen, faces.aspect)
    lips = shape[:, (0, 13, 14, 17, 61, 291), :2].mean(axis=1)
    return float(np.std(lips[1:-1] - (lips[2:] + lips[:-2]) / 2, axis=0).mean())


def _measure_mouth_jitter(before, after, strength, scene):
    more = _shaking(after) - _shaking(before)
    return MAX_SHAKE * strength, more, bool(more > _LEAST * MAX_SHAKE * strength)


FLAWS["mouth_jitter"] = Flaw(
    "face",
    f"mouth shaken by {MAX_SHAKE} face heights x strength from picture to picture",
    "standard deviation, face heights; measured: more than in the original",
    {"lip_sync": 0.35, "expression": 0.35, "overall": 0.45},
    _mouth_jitter,
    _measure_mouth_jitter,
)


def _mouth_blur(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    lips = np.asarray(damping.LIPS)
    for pixels, points in zip(pictures, scene.faces.points, strict=True):
        if np.isnan(points[0, 0]):
            yield pixels
            continue
        tall, wide = pixels.shape[:2]
        places = points[:, :2] * [wide, tall]
        height = float(np.linalg.norm(places[10] - places[152]))
        centre = places[lips].mean(axis=0)
        sigma = max(MAX_MOUTH_BLUR * strength * height, 0.3)
        reach = 1.8 * _PATCH * height
        x, y = (
            np.arange(max(0, int(at - reach)), max(1, min(most, int(at + reach) + 1)))
            for at, most in zip(centre, (wide, tall), strict=True)
        )
        if not len(x) or not len(y):
            yield pixels
            continue
        away = (x - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2
        share = np.exp(-0.5 * (away / (_PATCH * height) ** 2) ** 2)[..., None]
        patch = np.s_[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        blurred = cv2.GaussianBlur(pixels[patch], (0, 0), sigma)
        pixels = pixels.copy()
        mixed = (1 - share) * pixels[patch] + share * blurred
        pixels[patch] = np.round(mixed).astype(np.uint8)
        yield pixels


def _measure_mouth_blur(before, after, strength, scene):
    return MAX_MOUTH_BLUR * strength, math.nan, None


FLAWS["mouth_blur"] = Flaw(
    "face",
    f"mouth and chin blurred by {MAX_MOUTH_BLUR} face heights x strength",
    "standard deviation, face heights; not measured",
    {"lip_sync": 0.20, "expression": 0.25, "overall": 0.50},
    _mouth_blur,
    _measure_mouth_blur,
)


def _identity(pictures: Pictures, strength: float, scene: Scene) -> Pictures:
    """Lets the face's form wander: a random quadratic field that changes slowly."""
    shape, turns, mean = _shape(scene)
    rng = np.random.default_rng([scene.seed, 17])
    x, y = 2 * (mean[:, 0]), 2 * (mean[:, 1])
    basis = np.stack([x, y, x * y, x**2, y**2])  # (5, 478)
    course = rng.standard_normal((len(shape) + 8 * round(_SLOW), 5, 2))
    course = scipy.ndimage.gaussian_filter1d(course, _SLOW, axis=0)
    course = course[4 * round(_SLOW) :][: len(shape)]
    course /= course.std() + 1e-9
    moves = np.zeros_like(shape)
    moves[..., :2] = np.einsum("tkd,kp->tpd", course, basis) / np.sqrt(5)
    return _bent(pictures, scene, MAX_DRIFT * strength * moves, turns)


def _measure_identity(before, after, strength, scene):
    both = before.seen & after.seen
    was, now = (damping.shapes(f.points, both, f.aspect)[0] for f in (before, after))
    apart = scipy.ndimage.gaussian_filter1d((now - was)[..., :2], _SLOW / 2, axis=0)
    planted, measured = MAX_DRIFT * strength, float(apart.std(axis=0).mean())
    return planted, measured, bool(measured > _LEAST * planted)


FLAWS["identity"] = Flaw(
    "face",
    f"the face's form wanders by {MAX_DRIFT} face heights x strength at its edge",
    "standard deviation, face heights; measured: mean over the mesh",
    {"expression": 0.30, "cross_modal": 0.20, "overall": 0.55},
    _identity,
    _measure_identity,
)
