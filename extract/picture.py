"""Turns a decoded frame into the picture that a player shows.

Pixels come out upright, square and in RGB, because features of a face must not depend
on how its file stores it.
"""

from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Int, UInt8

from extract.packets import ClipError

MAX_SIDE = 1920
"""Larger pictures are scaled down to this long side, in pixels."""

MIN_SIDE = 16
"""Smallest width and height, in pixels, in which a face can be found."""

_DISPLAY_MATRIX = av.sidedata.sidedata.Type.DISPLAYMATRIX


def converter(
    pixel_aspect: float, notes: list[str]
) -> Callable[[av.VideoFrame], UInt8[np.ndarray, "H W 3"]]:
    """Returns a function from a decoded frame to its RGB picture.

    Args:
        pixel_aspect: width over height of a stored pixel.
        notes: gets once what was done to frames that are not shown as stored.
    """
    # It keeps its tables: without them a small frame takes six times as long.
    reformatter = VideoReformatter()

    def note(text: str) -> None:
        if text not in notes:
            notes.append(text)

    def convert(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        stored = (frame.width, frame.height)
        wide = frame.width * pixel_aspect
        scale = min(1.0, MAX_SIDE / max(wide, frame.height))
        size = (max(1, round(wide * scale)), max(1, round(frame.height * scale)))
        pixels = reformatter.reformat(frame, *size, format="rgb24").to_ndarray()
        if min(size) < MIN_SIDE:
            raise ClipError(f"a picture of {stored[0]}x{stored[1]} pixels is too small")
        if size != stored:
            note(f"stored as {stored[0]}x{stored[1]}, shown as {size[0]}x{size[1]}")
        if _DISPLAY_MATRIX in frame.side_data:
            matrix = np.frombuffer(bytes(frame.side_data[_DISPLAY_MATRIX]), np.int32)
            turned = upright(pixels, matrix.reshape(3, 3)[:2, :2])
            if turned is not pixels:
                note("rotated or mirrored as the file asks")
            pixels = turned
        return np.ascontiguousarray(pixels)

    return convert


def upright(
    pixels: UInt8[np.ndarray, "H W 3"], matrix: Int[np.ndarray, "2 2"]
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Applies the nearest of the eight right-angled turns and mirrorings.

    Args:
        pixels: the stored picture.
        matrix: `[[a, b], [c, d]]` of the container's display matrix: a stored point
            (x, y), y down, is shown at (a x + c y, b x + d y).

    Returns:
        The shown picture; `pixels` itself when nothing is to be done.
    """
    (a, b), (c, d) = matrix.astype(float)
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, right, down = pixels.transpose(1, 0, 2), c, b
    else:
        right, down = a, d
    if right < 0:
        pixels = pixels[:, ::-1]
    if down < 0:
        pixels = pixels[::-1]
    return pixels
