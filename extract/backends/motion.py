"""Keypoints backend `motion`: how the face moves, freed of the head's pose and form.

Speed and shaking of mouth, brows, lids and of what should not move at all, how far the
face's proportions wander, and how the head turns. Nothing in it tells who is seen, so
it carries over to other people better than the mesh itself; appearance, teeth and
texture are not looked at. No weights; 0.1 ms a row.

A row's quantity is the logarithm of a root mean square within half a second around it,
in face sizes (the spread of the skull's points) a row. A frozen face is at the floor of
all of them.
"""

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float

from extract import backends
from extract.backends import head
from tqa_jax import schema

MODALITY = "keypoints"
VERSION = "1"
DESCRIPTION = (
    "log speed, shaking and range of mouth, brows, lids and skull in the head's own "
    "frame, drift of the face's proportions, and speed of the head"
)
NEEDS = ("face",)

_PARTS = {
    "lips": (61, 291, 0, 17, 13, 14, 37, 267, 84, 314, 78, 308, 82, 312, 87, 317),
    "jaw": (152, 148, 377, 176, 400, 199, 200),
    "brows": (70, 63, 105, 66, 107, 336, 296, 334, 293, 300),
    "lids": (159, 145, 386, 374, 160, 158, 385, 387),
    "skull": head.SKULL,
}
_MEASURES = ("speed", "shaking", "range")
FEATURES = (
    *(f"{part}_{measure}" for part in _PARTS for measure in _MEASURES),
    *("opening_speed", "opening_range", "drift", "drift_of_a_second"),
    *("head_turning", "head_moving"),
)
"""Names of the features, in the order of the last axis."""

_NEAR = 13  # rows of the root mean square, half a second
_LONG = 51  # rows of a range, 2 s
_FLOOR = 1e-5


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    return backends.Measurer(lambda clip: features(clip.points, clip.aspect))


def features(
    points: Float[np.ndarray, "T 478 3"], aspect: float
) -> tuple[Float[np.ndarray, "T D"], Bool[np.ndarray, " T"]]:
    """Measures how a face moves.

    Args:
        points: landmarks in picture widths and heights, NaN without a face.
        aspect: picture width over height.

    Returns:
        `FEATURES`, and the mask, False without a face. Across rows without a face,
        points move on straight lines.
    """
    mask = np.isfinite(points[:, 0, 0])
    known = np.flatnonzero(mask)
    square = points[known] * np.array([aspect, 1.0, aspect])
    placed, turns, sizes = head.placed(square)
    centre = square[:, head.SKULL].mean(axis=1) / sizes[:, None]
    rows = np.arange(len(points))

    def filled(values: np.ndarray) -> np.ndarray:
        flat = values.reshape(len(known), -1)
        columns = [np.interp(rows, known, column) for column in flat.T]
        return np.stack(columns, axis=-1).reshape(len(rows), *values.shape[1:])

    columns = []
    for part in _PARTS.values():
        place = filled(placed[:, part])
        speed, shaking = _changes(place)
        columns += [_near(speed), _near(shaking), _range(place)]
    inner = filled(np.linalg.norm(placed[:, 13] - placed[:, 14], axis=-1))[
        :, None, None
    ]
    columns += [_near(_changes(inner)[0]), _range(inner)]
    form = filled(placed[:, head.SKULL])
    slow = scipy.ndimage.gaussian_filter1d(form, 3.0, axis=0, mode="nearest")
    before = slow[np.maximum(rows - round(schema.FPS), 0)]
    columns += [_size(slow - np.median(form, axis=0)), _size(slow - before)]
    columns += [_near(_changes(filled(turns))[0])]
    columns += [_near(_changes(filled(centre)[:, None])[0])]
    result = np.log10(np.stack(columns, axis=-1) + _FLOOR).astype(np.float32)
    result[~mask] = np.nan
    return result, mask


def _size(values: Float[np.ndarray, "T P D"]) -> Float[np.ndarray, " T"]:
    """Root mean square over points of their length."""
    return np.sqrt(np.square(values).sum(axis=-1).mean(axis=-1))


def _changes(place: Float[np.ndarray, "T P D"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns each row's speed, and how far it leaves the course of its neighbours."""
    padded = np.pad(place, ((1, 1), (0, 0), (0, 0)), mode="edge")
    speed = (padded[2:] - padded[:-2]) / 2
    return _size(speed), _size(place - (padded[2:] + padded[:-2]) / 2)


def _near(values: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Root mean square within `_NEAR` rows."""
    square = scipy.ndimage.uniform_filter1d(values**2, _NEAR, mode="nearest")
    return np.sqrt(np.maximum(square, 0))


def _range(place: Float[np.ndarray, "T P D"]) -> Float[np.ndarray, " T"]:
    """Standard deviation within `_LONG` rows, over all points."""
    mean = scipy.ndimage.uniform_filter1d(place, _LONG, axis=0, mode="nearest")
    square = scipy.ndimage.uniform_filter1d(place**2, _LONG, axis=0, mode="nearest")
    spread = np.maximum(square - mean**2, 0)
    return np.sqrt(spread.sum(axis=-1).mean(axis=-1))


def group(name: str) -> str:
    """Returns the group that a feature belongs to where groups are compared."""
    part = name.partition("_")[0]
    return {"opening": "lips", "drift": "skull"}.get(part, part)
