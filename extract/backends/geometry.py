"""Action units backend `geometry`: an older system's 17 distances, for its data.

They are distances between mesh points, named after units that they hardly measure,
of the older PyTorch system. They are in MediaPipe's own
coordinates (x and z in picture widths, y in picture heights), so they grow with the
face and depend on the picture's shape. Six are functions of others: AU07 = 1 / AU05,
AU14 = 1 / AU12, AU15 = 0.8 AU14, AU23 = 1 / AU25, AU26 = 1.2 AU25, AU28 = 1 / AU20.
The older system divided each row by its own largest value, which takes out all
absolute size. `from_geometry` does not, and `undo_scaling` takes the division out of
old rows exactly, because a distance and its own inverse are both in the row: features
from old data and features measured now are the same quantity. The mesh is another
one: theirs was MediaPipe's Face Mesh without refined eyes and lips.
"""

import numpy as np
from jaxtyping import Bool, Float

from extract import backends
from extract.backends import openface

MODALITY = "action_units"
VERSION = "1"
DESCRIPTION = (
    "17 distances between face mesh points and their inverses, as an older system "
    "named them after action units; not divided by the largest of the row"
)
NEEDS = ("face",)
UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28)
FEATURES = tuple(f"AU{unit:02d}_distance" for unit in UNITS)
"""Names of the features, in the order of the last axis."""

group = openface.group

_EPSILON = 1e-6  # the older system adds it to a distance before inverting it


def from_geometry(points: Float[np.ndarray, "*T N 3"]) -> Float[np.ndarray, "*T 17"]:
    """Measures the older system's 17 distances, in the order of `UNITS`.

    Args:
        points: mesh points in MediaPipe's coordinates (see `landmarks.Face`), 468 or
            478 of them; NaN where missing.

    Returns:
        Distances and inverse distances, NaN where a row is missing.
    """
    points = np.asarray(points, np.float64)

    def apart(*pairs: tuple[int, int]) -> np.ndarray:
        first, second = np.array(pairs).T
        difference = points[..., first, :] - points[..., second, :]
        return np.linalg.norm(difference, axis=-1).mean(axis=-1)

    units = {
        1: apart((65, 8), (295, 8)),
        2: apart((105, 8), (334, 8)),
        4: apart((66, 296)),
        5: apart((159, 145), (386, 374)),
        6: apart((133, 61), (362, 291)),
        9: apart((5, 6)),
        10: apart((13, 8)),
        12: apart((61, 152), (291, 377)),
        17: apart((17, 8)),
        20: apart((61, 291)),
        25: apart((13, 17)),
    }
    for unit, of in ((7, 5), (14, 12), (23, 25), (28, 20)):
        units[unit] = 1 / (units[of] + _EPSILON)
    units[15] = 0.8 * units[14]
    units[26] = 1.2 * units[25]
    stacked = np.stack([units[unit] for unit in UNITS], axis=-1)
    return stacked.astype(np.float32)


def undo_scaling(
    rows: Float[np.ndarray, "*T 17"],
) -> tuple[Float[np.ndarray, "*T 17"], Bool[np.ndarray, "*T"]]:
    """Takes the division by a row's own maximum out of the older system's units.

    With mouth width d, a row holds a = d / m and b = 1 / ((d + e) m) for its maximum
    m, so that a b m^2 + e b m = 1 gives m.

    Args:
        rows: as the older system stored them.

    Returns:
        Rows as `from_geometry` gives them, to float32 rounding, and True for the rows
        that were scaled so: no value below 0, the largest 1, and AU15 = 0.8 AU14. The
        other rows are NaN.
    """
    rows = np.asarray(rows, np.float64)
    width, inverse, dimpler, corner = (
        rows[..., UNITS.index(unit)] for unit in (20, 28, 14, 15)
    )
    scaled = (rows >= 0).all(axis=-1) & (np.abs(rows.max(axis=-1) - 1) < 1e-5)
    scaled &= np.isclose(corner, 0.8 * dimpler, rtol=1e-4, atol=0)
    scaled &= (width > 0) & (inverse > 0)
    product = np.where(scaled, width * inverse, 1.0)
    small = _EPSILON * np.where(scaled, inverse, 0.0)
    largest = (np.sqrt(small**2 + 4 * product) - small) / (2 * product)
    found = np.where(scaled[..., None], rows * largest[..., None], np.nan)
    return found.astype(np.float32), scaled


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    return backends.Measurer(lambda clip: (from_geometry(clip.points), clip.seen))
