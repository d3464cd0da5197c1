"""Turns a decoded frame into the picture that a player shows.

The one thing to know: pixels come out upright, square and in RGB, because features of a
face must not depend on how its file stores it.
"""

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Int, UInt8

MAX_SIDE = 1920
"""Larger pictures are scaled down to this long side, in pixels."""

_DISPLAY_MATRIX = av.sidedata.sidedata.Type.DISPLAYMATRIX


def rgb(
    frame: av.VideoFrame, converter: VideoReformatter, pixel_aspect: float = 1.0
) -> tuple[UInt8[np.ndarray, "H W 3"], list[str]]:
    """Converts a frame to RGB, with its aspect ratio and display matrix applied.

    Args:
        frame: a decoded frame in any pixel format.
        converter: of this clip; it keeps its tables from frame to frame, without
            which converting a small frame takes six times as long.
        pixel_aspect: width over height of a stored pixel.

    Returns:
        The picture and notes for people, empty for an ordinary frame.
    """
    notes = []
    stored = (frame.width, frame.height)
    wide = frame.width * pixel_aspect
    scale = min(1.0, MAX_SIDE / max(wide, frame.height))
    size = (max(1, round(wide * scale)), max(1, round(frame.height * scale)))
    if size != stored:
        notes.append(f"stored as {stored[0]}x{stored[1]}, shown as {size[0]}x{size[1]}")
    shown = converter.reformat(frame, *size, format="rgb24")
    pixels = shown.to_ndarray()
    if _DISPLAY_MATRIX in frame.side_data:
        matrix = np.frombuffer(bytes(frame.side_data[_DISPLAY_MATRIX]), np.int32)
        turned = upright(pixels, matrix.reshape(3, 3)[:2, :2])
        if turned is not pixels:
            notes.append("rotated or mirrored as the file asks")
        pixels = turned
    return np.ascontiguousarray(pixels), notes


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
