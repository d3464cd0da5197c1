"""Keypoints backend `facelandmarker`: the 468 points of MediaPipe's face mesh.

The one thing to know: a row is x0, y0, z0, x1, ... as MediaPipe gives them: x and z in
picture widths, y in picture heights, from the top left corner of the upright picture.
Head position, size and pose are in them.
"""

import numpy as np
from jaxtyping import Float

from extract import backends, landmarks

MODALITY = "keypoints"
VERSION = "1"
NEEDS = ("face",)
DEFAULT = True
FEATURES = tuple(
    f"point{index:03d}_{axis}" for index in range(landmarks.NUM_MESH) for axis in "xyz"
)
"""Names of the features, in the order of the last axis."""
DESCRIPTION = (
    "468 face mesh points; x and z in picture widths, y in picture heights, "
    "head pose included"
)


def features(points: Float[np.ndarray, "T 478 3"]) -> Float[np.ndarray, "T 1404"]:
    """Flattens the mesh points of each row; the irises' ten points are left out."""
    return points[:, : landmarks.NUM_MESH].reshape(len(points), -1).astype(np.float32)


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    return backends.Measurer(lambda clip: (features(clip.points), clip.seen))


# Points of MediaPipe's face mesh, as its `FaceLandmarksConnections` has them.
_LIPS = (
    *(0, 13, 14, 17, 37, 39, 40, 61, 78, 80, 81, 82, 84, 87, 88, 91, 95, 146, 178, 181),
    *(185, 191, 267, 269, 270, 291, 308, 310, 311, 312, 314, 317, 318, 321, 324, 375),
    *(402, 405, 409, 415),
)
_EYES = (
    *(7, 33, 133, 144, 145, 153, 154, 155, 157, 158, 159, 160, 161, 163, 173, 246),
    *(249, 263, 362, 373, 374, 380, 381, 382, 384, 385, 386, 387, 388, 390, 398, 466),
)
_BROWS = (
    *(46, 52, 53, 55, 63, 65, 66, 70, 105, 107),
    *(276, 282, 283, 285, 293, 295, 296, 300, 334, 336),
)
_CONTOUR = (
    *(10, 21, 54, 58, 67, 93, 103, 109, 127, 132, 136, 148, 149, 150, 152, 162, 172),
    *(176, 234, 251, 284, 288, 297, 323, 332, 338, 356, 361, 365, 377, 378, 379, 389),
    *(397, 400, 454),
)
_POINTS = {
    **dict.fromkeys(_LIPS, "mouth"),
    **dict.fromkeys(_EYES, "eyes"),
    **dict.fromkeys(_BROWS, "brows"),
    **dict.fromkeys(_CONTOUR, "contour"),
}


def group(name: str) -> str:
    """Returns the group that a feature belongs to where groups are compared."""
    return _POINTS.get(int(name[5:8]), "nose, cheeks, forehead")
