"""Cuts the face out of a picture for image networks: aligned, 224x224.

The one thing to know: a crop is the picture under the similarity transform (turn,
scale, shift; no shear) that brings eyes, nose and mouth nearest to fixed places, so
that a network sees the same part of every face. Outside the picture it is black.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

SIDE = 224
"""Width and height of a crop, pixels."""
VERSION = "1"

# Mesh points: outer and inner corner of either eye, tip of the nose, corners of the
# mouth; the first two pairs are averaged.
_EYES = ((33, 133), (362, 263))
_OTHERS = (1, 61, 291)
# Where they come to lie, in crops of side 1: the five points to which face recognition
# aligns (ArcFace, Deng et al. 2019, on 112x112), drawn together a little so that
# forehead and chin are inside.
_ARCFACE = (
    np.array(
        [
            (38.2946, 51.6963),
            (73.5318, 51.5014),
            (56.0252, 71.7366),
            (41.5493, 92.3655),
            (70.7299, 92.2041),
        ]
    )
    / 112
)
_TEMPLATE = 0.5 + 0.95 * (_ARCFACE - [0.5, 0.56])


def aligned(
    pixels: UInt8[np.ndarray, "H W 3"], points: Float[np.ndarray, "478 3"]
) -> UInt8[np.ndarray, "224 224 3"]:
    """Returns the aligned crop of a face.

    Args:
        pixels: RGB.
        points: landmarks in picture widths and heights.
    """
    height, width = pixels.shape[:2]
    eyes = [points[list(pair), :2].mean(axis=0) for pair in _EYES]
    found = np.array([*eyes, *points[list(_OTHERS), :2]], float) * (width, height)
    turn = _similarity(found, _TEMPLATE * SIDE)
    scale = float(np.linalg.norm(turn[:, 0]))
    # Bilinear sampling skips pixels when it shrinks by more than two.
    shrink = min(1.0, 2 * scale)
    if shrink < 1.0:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        # Pixel centres lie at halves: (x + 1/2) * factor - 1/2.
        factor = np.array([size[0] / width, size[1] / height])
        turn = turn.copy()
        turn[:, 2] += turn[:, :2] @ (0.5 / factor - 0.5)
        turn[:, :2] /= factor
    return cv2.warpAffine(pixels, turn, (SIDE, SIDE), flags=cv2.INTER_LINEAR)


def _similarity(
    source: Float[np.ndarray, "N 2"], target: Float[np.ndarray, "N 2"]
) -> Float[np.ndarray, "2 3"]:
    """Returns the least-squares turn, scale and shift from source to target.

    In complex numbers it is the regression line of one on the other: w = a z + b.
    """
    z, w = source @ [1, 1j], target @ [1, 1j]
    spread = z - z.mean()
    a = np.vdot(spread, w - w.mean()) / max(np.vdot(spread, spread).real, 1e-12)
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
