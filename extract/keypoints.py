"""Keypoints backend `facelandmarker`: the 468 points of MediaPipe's face mesh.

The one thing to know: a row is x0, y0, z0, x1, ... as MediaPipe gives them: x and z in
picture widths, y in picture heights, from the top left corner of the upright picture.
Head position, size and pose are in them.
"""

import numpy as np
from jaxtyping import Float

from extract import landmarks

NAME = "facelandmarker"
VERSION = "1"
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
