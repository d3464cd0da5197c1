"""Keypoints backend `identity`: how far a face's proportions drift from its own.

Points that no expression moves (corners of the eyes, nose, forehead, temples, cheeks)
are seen in the frame of the head, left and right averaged, freed of what turns with
the head, and averaged over a second. Distances are in percent of the skull's spread.

Licence: the project's own; the mesh is MediaPipe's (Apache-2.0). Speed: 1 ms a second
of clip on one core.
Blind to skin, eyes, hair and age, and nearly so to small changes: MediaPipe draws every
face towards its average, so that a clip that becomes another person's end to end
drifts 1.3 to 2 times as far as one that does not, and a quarter of the way is lost in
the mesh's own noise. A head that turns far (beyond 20 degrees) drifts, too.
"""

import numpy as np
import scipy.ndimage
from jaxtyping import Float

from extract import backends
from extract.backends import head
from tqa_jax import schema

MODALITY = "keypoints"
VERSION = "1"
NEEDS = ("face",)
DESCRIPTION = (
    "distance of the face's rigid proportions to the clip's median and to a second "
    "before, and change of its width over height, in percent"
)
FEATURES = ("drift_from_median_pct", "drift_in_a_second_pct", "width_over_height_pct")
"""Names of the features, in the order of the last axis."""

# Points with their mirror images: eyes, nose, temples, forehead and cheeks.
_PAIRS = (
    *((33, 263), (133, 362), (98, 327), (48, 278), (115, 344)),
    *((127, 356), (162, 389), (21, 251), (54, 284), (103, 332)),
    *((234, 454), (93, 323), (132, 361)),
)
_MIDLINE = (10, 151, 9, 168, 6, 197, 195, 5, 4, 1, 2)
_WIDTH = _PAIRS.index((234, 454))
_TOP, _BOTTOM = _MIDLINE.index(10), _MIDLINE.index(2)
_SECOND = round(schema.FPS)  # rows
_TURN = 0.2  # sine of a turn that is usual
_RIDGE = 0.05  # of what turns explain: a head that is still explains nothing


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    return backends.Measurer(
        lambda clip: (features(clip.points, clip.aspect), clip.seen)
    )


def features(
    points: Float[np.ndarray, "T 478 3"], aspect: float
) -> Float[np.ndarray, "T 3"]:
    """Measures the drift of each row.

    Args:
        points: landmarks in picture widths and heights, NaN without a face.
        aspect: picture width over height.

    Returns:
        `FEATURES`, of the second around each row; NaN without a face. In the first
        second, the change in a second is the change since the first row.
    """
    known = np.flatnonzero(np.isfinite(points[:, 0, 0]))
    result = np.full((len(points), len(FEATURES)), np.nan, np.float32)
    if not len(known):
        return result
    shape = _upright(points[known] * np.array([aspect, 1.0, aspect]))
    rows = np.arange(len(points))
    shape = np.stack([np.interp(rows, known, column) for column in shape.T], axis=-1)
    shape = scipy.ndimage.uniform_filter1d(shape, _SECOND, axis=0, mode="nearest")
    median = np.median(shape, axis=0)
    before = shape[np.maximum(rows - _SECOND, 0)]
    # Columns are the half widths of the pairs, then heights of pairs and midline.
    heights = shape[:, 2 * len(_PAIRS) :]
    ratio = np.log(shape[:, _WIDTH] / (heights[:, _BOTTOM] - heights[:, _TOP]))
    values = [
        np.sqrt(np.square(shape - median).mean(axis=-1)),
        np.sqrt(np.square(shape - before).mean(axis=-1)),
        ratio - np.median(ratio),
    ]
    result[known] = 100 * np.stack(values, axis=-1)[known]
    return result


def _upright(points: Float[np.ndarray, "T 478 3"]) -> Float[np.ndarray, "T D"]:
    """Returns the proportions of each row, less what follows the head's turning.

    Perspective and the mesh's guess of depth bend a turned face: what is linear or
    square in the three turns is taken out by ridge regression over the clip.
    """
    placed = head.placed(points)[0]
    left, right = (placed[:, list(side)] for side in zip(*_PAIRS, strict=True))
    middle, midline = (left + right) / 2, placed[:, list(_MIDLINE)]
    parts = [(right - left)[..., 0] / 2]
    for axis in (1, 2):
        parts += [middle[..., axis], midline[..., axis]]
    shape = np.concatenate(parts, axis=-1)
    median = np.median(shape, axis=0)
    across, down = points[:, 263] - points[:, 33], points[:, 2] - points[:, 10]
    across /= np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-9)
    down /= np.maximum(np.linalg.norm(down, axis=-1, keepdims=True), 1e-9)
    turns = np.stack([across[:, 2], across[:, 1], down[:, 2]], axis=-1)
    turns = (turns - np.median(turns, axis=0)) / _TURN
    turns = np.concatenate([turns, turns**2], axis=-1)
    square = turns.T @ turns + _RIDGE * len(turns) * np.eye(turns.shape[-1])
    return shape - turns @ np.linalg.solve(square, turns.T @ (shape - median))
