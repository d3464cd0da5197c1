"""Action units (FACS), 17 a row, from three backends.

The one thing to know: `blendshapes` and `openface` have OpenFace's 17 units on its 0..5
scale, but not the same calibration; `geometry` has other units in another order, and
distances instead of intensities. A data set holds one of them.

`blendshapes` maps the landmarker's 52 activations to the units by the table below.
MediaPipe's blendshapes are named as ARKit's (Apple, `ARFaceAnchor.BlendShapeLocation`,
says for each which movement it is). The table pairs each with the unit whose definition
in FACS (Ekman, Friesen, Hager 2002) is that movement; see also M. Ozel, "ARKit to FACS
Cheat Sheet" (melindaozel.com/arkit-to-facs-cheat-sheet). Left and right are averaged
and the activation in 0..1 is multiplied by 5: that is OpenFace's scale and nobody's
calibration, so compare the backends by correlation (`python -m
extract.compare_units`).
Two units have no shape of their own: AU23 (lip tightener) takes `mouthPress` (AU24,
its neighbour), AU25 (lips part) the largest of lips and jaw apart less closure.
MediaPipe's `cheekSquint` and `noseSneer` hardly ever leave 0, so AU06 and AU09 carry
little.

| unit | blendshapes | unit | blendshapes |
|---|---|---|---|
| AU01 inner brow raiser | browInnerUp | AU14 dimpler | mouthDimple |
| AU02 outer brow raiser | browOuterUp | AU15 lip corner depressor | mouthFrown |
| AU04 brow lowerer | browDown | AU17 chin raiser | mouthShrugLower |
| AU05 upper lid raiser | eyeWide | AU20 lip stretcher | mouthStretch |
| AU06 cheek raiser | cheekSquint | AU23 lip tightener | mouthPress |
| AU07 lid tightener | eyeSquint | AU25 lips part | see above |
| AU09 nose wrinkler | noseSneer | AU26 jaw drop | jawOpen |
| AU10 upper lip raiser | mouthUpperUp | AU45 blink | eyeBlink |
| AU12 lip corner puller | mouthSmile | | |

`geometry` is for data of the older PyTorch system: its 17 distances between mesh
points, named after units that they hardly measure. Distances are in MediaPipe's own
coordinates (x and z in picture widths, y in picture heights), so they grow with the
face and depend on the picture's shape. Six are functions of others: AU07 = 1 / AU05,
AU14 = 1 / AU12, AU15 = 0.8 AU14, AU23 = 1 / AU25, AU26 = 1.2 AU25, AU28 = 1 / AU20.
The older system divided each row by its own largest value, which takes out all
absolute size. `from_geometry` does not, and `undo_scaling` takes the division out of
old rows exactly, because a distance and its own inverse are both in the row: features
from old data and features measured now are the same quantity. The mesh is another
one: theirs was MediaPipe's Face Mesh without refined eyes and lips.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from extract import landmarks, openface

UNITS = openface.UNITS
FEATURES = openface.FEATURES
"""Names of the features of `blendshapes` and `openface`, in order of the last axis."""
GEOMETRY_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28)
NAMES: Mapping[str, tuple[str, ...]] = {
    "blendshapes": FEATURES,
    "openface": FEATURES,
    "geometry": tuple(f"AU{unit:02d}_distance" for unit in GEOMETRY_UNITS),
}
"""Names of the features by backend, in order of the last axis."""
VERSIONS: Mapping[str, str] = {"blendshapes": "1", "openface": "2", "geometry": "1"}
DESCRIPTIONS: Mapping[str, str] = {
    "blendshapes": "17 action units, 0-5, from the face landmarker's blendshapes",
    "openface": "17 action unit intensities, 0-5, written by OpenFace",
    "geometry": (
        "17 distances between face mesh points and their inverses, as an older system "
        "named them after action units; not divided by the largest of the row"
    ),
}

_TABLE: Mapping[int, tuple[str, ...]] = {
    1: ("browInnerUp",),
    2: ("browOuterUpLeft", "browOuterUpRight"),
    4: ("browDownLeft", "browDownRight"),
    5: ("eyeWideLeft", "eyeWideRight"),
    6: ("cheekSquintLeft", "cheekSquintRight"),
    7: ("eyeSquintLeft", "eyeSquintRight"),
    9: ("noseSneerLeft", "noseSneerRight"),
    10: ("mouthUpperUpLeft", "mouthUpperUpRight"),
    12: ("mouthSmileLeft", "mouthSmileRight"),
    14: ("mouthDimpleLeft", "mouthDimpleRight"),
    15: ("mouthFrownLeft", "mouthFrownRight"),
    17: ("mouthShrugLower",),
    20: ("mouthStretchLeft", "mouthStretchRight"),
    23: ("mouthPressLeft", "mouthPressRight"),
    26: ("jawOpen",),
    45: ("eyeBlinkLeft", "eyeBlinkRight"),
}


def from_blendshapes(
    activations: Float[np.ndarray, "*T 52"],
) -> Float[np.ndarray, "*T 17"]:
    """Maps blendshape activations (0..1) to action unit intensities (0..5).

    Args:
        activations: in the order of `landmarks.BLENDSHAPES`; NaN where missing.
    """

    def mean(*names: str) -> np.ndarray:
        columns = [landmarks.BLENDSHAPES.index(name) for name in names]
        return activations[..., columns].mean(axis=-1)

    units = {unit: mean(*names) for unit, names in _TABLE.items()}
    lower = mean("mouthLowerDownLeft", "mouthLowerDownRight")
    apart = np.maximum(units[26] - mean("mouthClose"), 0)
    units[25] = np.maximum(apart, np.maximum(lower, units[10]))
    stacked = np.stack([units[unit] for unit in UNITS], axis=-1)
    return (openface.MAX_INTENSITY * stacked).astype(np.float32)


_EPSILON = 1e-6  # the older system adds it to a distance before inverting it


def from_geometry(points: Float[np.ndarray, "*T N 3"]) -> Float[np.ndarray, "*T 17"]:
    """Measures the older system's 17 distances, in the order of `GEOMETRY_UNITS`.

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
    stacked = np.stack([units[unit] for unit in GEOMETRY_UNITS], axis=-1)
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
        rows[..., GEOMETRY_UNITS.index(unit)] for unit in (20, 28, 14, 15)
    )
    scaled = (rows >= 0).all(axis=-1) & (np.abs(rows.max(axis=-1) - 1) < 1e-5)
    scaled &= np.isclose(corner, 0.8 * dimpler, rtol=1e-4, atol=0)
    scaled &= (width > 0) & (inverse > 0)
    product = np.where(scaled, width * inverse, 1.0)
    small = _EPSILON * np.where(scaled, inverse, 0.0)
    largest = (np.sqrt(small**2 + 4 * product) - small) / (2 * product)
    found = np.where(scaled[..., None], rows * largest[..., None], np.nan)
    return found.astype(np.float32), scaled
