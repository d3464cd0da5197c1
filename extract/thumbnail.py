"""Small pictures of a clip for pages, as data addresses that need no other file."""

import base64
import itertools
import pathlib

import cv2
import numpy as np
from jaxtyping import UInt8

from extract import decode


def at(path: pathlib.Path, row: int, *, size: int) -> str:
    """Shrinks the picture of a row, or of the last one of a shorter clip.

    Args:
        path: the clip.
        row: 25 a second, from 0.
        size: longer side in pixels.

    Raises:
        decode.ClipError: the clip cannot be decoded.
    """
    rows = decode.frames(path, decode.Media())
    *_, picture = itertools.islice(rows, row + 1)
    rows.close()
    return _address(_shrunk(picture, size))


def strip(
    path: pathlib.Path, count: int, *, size: int, max_seconds: float
) -> list[str]:
    """Shrinks pictures at even distances over a clip.

    Args:
        path: the clip.
        count: how many; a clip of fewer rows repeats some.
        size: longer side in pixels.
        max_seconds: longer clips are refused.

    Raises:
        decode.ClipError: the clip cannot be decoded.
    """
    kept: list[np.ndarray] = []
    step = 1  # Doubles whenever too many are kept: the length is not known before.
    rows = decode.frames(path, decode.Media(), max_seconds=max_seconds)
    for number, picture in enumerate(rows):
        if number % step:
            continue
        kept.append(_shrunk(picture, size))
        if len(kept) == 8 * count:
            kept, step = kept[::2], 2 * step
    return [
        _address(kept[(2 * n + 1) * len(kept) // (2 * count)]) for n in range(count)
    ]


def _shrunk(picture: UInt8[np.ndarray, "H W 3"], size: int) -> np.ndarray:
    height, width = picture.shape[:2]
    shrink = size / max(height, width)
    shape = max(1, round(width * shrink)), max(1, round(height * shrink))
    return cv2.resize(picture, shape, interpolation=cv2.INTER_AREA)


def _address(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, 80]
    _, data = cv2.imencode(".jpg", picture[..., ::-1], options)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
