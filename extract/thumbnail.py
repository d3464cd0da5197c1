"""Small pictures of a clip for pages, as data addresses that need no other file."""

import base64
import itertools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from extract import decode


def at(path: pathlib.Path, row: int, *, size: int) -> str:
    """Shrinks the picture of a row, or of the last one of a shorter clip.

    Args:
        path: the clip; `decode.ClipError` if it cannot be decoded.
        row: 25 a second, from 0.
        size: longer side in pixels.
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
        path: the clip; `decode.ClipError` if it cannot be decoded.
        count: how many; a clip of fewer rows repeats some.
        size: longer side in pixels.
        max_seconds: longer clips are refused.
    """
    rows = decode.frames(path, decode.Media(), max_seconds=max_seconds)
    chosen = spread(rows, 8 * count, lambda picture: _shrunk(picture, size))
    return [
        _address(chosen[(2 * n + 1) * len(chosen) // (2 * count)]) for n in range(count)
    ]


def spread(items: Iterable, most: int, keep: Callable[[Any], Any]) -> list:
    """Keeps `keep(item)` of items at even distances, whose number is not known.

    Always fewer than `most` are kept, and of enough items at least half as many.
    """
    kept, step = [], 1
    for number, item in enumerate(items):
        if number % step == 0:
            kept.append(keep(item))
        if len(kept) == most:
            kept, step = kept[::2], 2 * step
    return kept


def _shrunk(picture: UInt8[np.ndarray, "H W 3"], size: int) -> np.ndarray:
    height, width = picture.shape[:2]
    shrink = size / max(height, width)
    shape = max(1, round(width * shrink)), max(1, round(height * shrink))
    return cv2.resize(picture, shape, interpolation=cv2.INTER_AREA)


def _address(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, 80]
    _, data = cv2.imencode(".jpg", picture[..., ::-1], options)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
