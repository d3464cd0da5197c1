"""Damps the expression of a filmed face: bends each picture towards the mean face.

Only what moves within the face is damped. The head keeps its position, size and pose,
the lips their opening and all of their fast movement, so that the clip stays in sync.
Blinks stay as well: a frame with closed eyes has no picture of open ones.

How it works. The mesh points of all frames are laid onto each other (similarity in
three dimensions, by points of nose, eye corners and forehead that expression hardly
moves), which leaves the movement of the face without the head's. Brows, forehead,
cheeks and nose lose `strength` of their distance from the mean over the clip. The
corners of the mouth lose as much of their movement below about 1 Hz, which is smile and
frown rather than speech. A smooth field between these shifts bends the picture; it is 0
around lids and jaw, at the edge of the face and outside.
"""

import cv2
import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, UInt8

from extract import landmarks

MIN_SHARE = 0.8  # of the frames that must show a face


def _points(numbers: str) -> tuple[int, ...]:
    return tuple(map(int, numbers.split()))


# Mesh points of the face landmarker.
_STABLE = _points(
    """168 6 197 195 5 4 33 133 362 263 10 338 297 284 389 454 234 162 54 67 109"""
)
LIPS = _points(
    """61 146 91 181 84 17 314 405 321 375 291 409 270 269 267 0 37 39 40 185"""
)
_EYES = _points(
    """33 7 163 144 145 153 154 155 133 173 157 158 159 160 161 246 263 249 390 373 374
    380 381 382 362 398 384 385 386 387 388 466"""
)
_OVAL = _points(
    """10 338 297 332 284 251 389 356 454 323 361 288 397 365 379 378 400 377 152 148
    176 149 150 136 172 58 132 93 234 127 162 21 54 103 67 109"""
)
_CORNERS = (61, 291)
_NODES = tuple(sorted({*range(0, 468, 3), *LIPS}))  # enough for a smooth field
_HEIGHT = (10, 152)  # forehead and chin: lengths below are shares of their distance
_EDGE = 0.08  # over which damping rises from 0 at the edge of the face
_NEARLIPS = 0.10  # likewise around the lips, whose own movement is speech
_NEAR_EYES = 0.05  # likewise around the lids
_CORNER = 0.06  # how far a corner of the mouth takes its surroundings along
_REACH = 0.05  # standard deviation of the field's Gaussian kernel
_RIDGE = 0.1  # added to the kernel's diagonal: smooths over the tracker's noise
_SLOW = 4.0  # rows, 0.16 s: standard deviation of the filter that leaves the smile
_CALM = 0.8  # rows, likewise against the tracker's noise, which would shake the face
_GRID = 1 / 40  # face heights between the nodes of the field


def shifts(
    points: Float[np.ndarray, "T 478 3"],
    seen: Bool[np.ndarray, " T"],
    aspect: float,
    strength: float,
) -> Float[np.ndarray, "T 478 2"]:
    """Computes how far each mesh point is to move in each picture.

    Args:
        points: landmarks in picture widths and heights; any value where unseen.
        seen: frames with a face.
        aspect: picture width over height.
        strength: share of the movement to take away, 0 to 1.

    Returns:
        Shifts in picture heights, 0 in frames without a face.
    """
    shape, turns = shapes(points, seen, aspect)
    mean = shape.mean(axis=0)
    moved = shape - mean
    own, corner = _weights(mean)
    slow = scipy.ndimage.gaussian_filter1d(moved[:, _CORNERS], _SLOW, axis=0)
    calm = scipy.ndimage.gaussian_filter1d(moved, _CALM, axis=0)
    taken = own[:, None] * calm + np.einsum("pc,tcd->tpd", corner, slow)
    return in_picture(-strength * taken, turns, seen)


def in_picture(
    moves: Float[np.ndarray, "S 478 3"],
    turns: Float[np.ndarray, "S 3 3"],
    seen: Bool[np.ndarray, " T"],
) -> Float[np.ndarray, "T 478 2"]:
    """Turns movements of the shape into shifts in picture heights; see `shapes`."""
    result = np.zeros((len(seen), moves.shape[1], 2))
    result[seen] = np.einsum("tpd,tde->tpe", moves, turns)[..., :2]
    return result


def shapes(
    points: Float[np.ndarray, "T 478 3"], seen: Bool[np.ndarray, " T"], aspect: float
) -> tuple[Float[np.ndarray, "S 478 3"], Float[np.ndarray, "S 3 3"]]:
    """Takes position, size and pose of the head out of the mesh of each seen frame.

    Args:
        points: landmarks in picture widths and heights.
        seen: frames with a face, S of them.
        aspect: picture width over height.

    Returns:
        Shapes in face heights, about the mean head; and what turns a movement of the
        shape (a row vector) into one in the picture, in picture heights.
    """
    square = points[seen].astype(np.float64) * np.array([aspect, 1.0, aspect])
    stable = square[:, _STABLE]
    centres = stable.mean(axis=1, keepdims=True)
    stable = stable - centres
    model = stable[0]
    for _ in range(3):  # the mean head, then everything laid onto it
        scales, turns = _onto(stable, model)
        laid = scales[:, None, None] * np.einsum("tpd,tde->tpe", stable, turns)
        model = laid.mean(axis=0)
    shape = scales[:, None, None] * np.einsum("tpd,tde->tpe", square - centres, turns)
    top, chin = shape.mean(axis=0)[list(_HEIGHT)]
    height = np.linalg.norm(top - chin)
    back = turns.transpose(0, 2, 1) * (height / scales)[:, None, None]
    return shape / height, back


def bend(
    pixels: UInt8[np.ndarray, "H W 3"],
    points: Float[np.ndarray, "478 3"],
    shift: Float[np.ndarray, "478 2"],
) -> UInt8[np.ndarray, "H W 3"]:
    """Bends a picture so that what is at a mesh point comes to lie a shift away.

    Args:
        pixels: the picture.
        points: landmarks in picture widths and heights.
        shift: of `shifts`, in picture heights.
    """
    if not np.any(shift):
        return pixels
    tall, wide = pixels.shape[:2]
    places = points[:, :2] * np.array([wide, tall]) - 0.5
    height = np.linalg.norm(places[_HEIGHT[0]] - places[_HEIGHT[1]])
    shift = shift[list(_NODES)] * tall
    places = places[list(_NODES)] + shift
    low = np.floor(places.min(axis=0)).astype(int)
    high = np.ceil(places.max(axis=0)).astype(int)
    low, high = np.maximum(low, 0), np.minimum(high, (wide - 1, tall - 1))
    if np.any(high - low < 8):
        return pixels
    columns, rows = high - low + 1
    nodes = np.maximum(2, np.ceil((high - low) / (_GRID * height)).astype(int) + 1)
    x, y = (np.linspace(low[i], high[i], nodes[i]) for i in (0, 1))
    reach = 2 * (_REACH * height) ** 2
    apart = np.sum((places[:, None] - places) ** 2, axis=-1)
    kernel = np.exp(-apart / reach) + _RIDGE * np.eye(len(places))
    force = np.linalg.solve(kernel, shift)
    # The kernel is a product of one in x and one in y.
    near_x = np.exp(-((x[:, None] - places[:, 0]) ** 2) / reach)
    near_y = np.exp(-((y[:, None] - places[:, 1]) ** 2) / reach)
    field = np.stack([(near_y * force[:, i]) @ near_x.T for i in (0, 1)], axis=-1)
    # Nodes lie on the first and the last pixel, which cv2.resize would not do.
    at_x = np.linspace(0, nodes[0] - 1, columns, dtype=np.float32)
    at_y = np.linspace(0, nodes[1] - 1, rows, dtype=np.float32)
    dense = cv2.remap(
        field.astype(np.float32), *np.meshgrid(at_x, at_y), cv2.INTER_LINEAR
    )
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)
    source = (grid + low - dense).astype(np.float32)
    result = pixels.copy()
    result[low[1] : high[1] + 1, low[0] : high[0] + 1] = cv2.remap(
        pixels, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return result


def expression(activations: Float[np.ndarray, "S 52"]) -> float:
    """Returns the sum of the standard deviations of brows, smile and frown."""
    kinds = ("brow", "mouthSmile", "mouthFrown")
    columns = [name.startswith(kinds) for name in landmarks.BLENDSHAPES]
    return float(activations[:, columns].std(axis=0).sum())


def _onto(
    bodies: Float[np.ndarray, "T P 3"], model: Float[np.ndarray, "P 3"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, "T 3 3"]]:
    """Fits each centred body to a model by size and turn (Umeyama 1991, eq. 40-42)."""
    left, sizes, right = np.linalg.svd(np.einsum("tpd,pe->tde", bodies, model))
    sign = np.ones_like(sizes)
    sign[:, -1] = np.sign(np.linalg.det(left @ right))
    turns = (left * sign[:, None]) @ right
    return np.sum(sizes * sign, axis=-1) / np.sum(bodies**2, axis=(1, 2)), turns


def near_mouth(
    mean: Float[np.ndarray, "478 3"], reach: float
) -> Float[np.ndarray, " 478"]:
    """Returns how far each point follows the lips: 1 on them, 0 at the face's edge.

    Args:
        mean: the mean shape, see `shapes`.
        reach: standard deviation of the fall around the lips, in face heights.
    """
    flat = mean[:, :2]
    edge = ramp(_nearest(flat, _OVAL) / _EDGE)
    return edge * np.exp(-0.5 * (_nearest(flat, LIPS) / reach) ** 2)


def _nearest(flat: np.ndarray, those: tuple[int, ...]) -> np.ndarray:
    """Returns each point's distance to the nearest of those."""
    return np.linalg.norm(flat[:, None] - flat[list(those)], axis=-1).min(axis=-1)


def _weights(
    mean: Float[np.ndarray, "478 3"],
) -> tuple[Float[np.ndarray, " 478"], Float[np.ndarray, "478 2"]]:
    """Returns how far a point follows its own damping, and that of each corner."""
    flat = mean[:, :2]
    edge = ramp(_nearest(flat, _OVAL) / _EDGE)
    mouth = flat[list(_CORNERS), 1].mean()
    above = ramp((mouth - flat[:, 1]) / _NEARLIPS)
    own = edge * above * ramp(_nearest(flat, LIPS) / _NEARLIPS)
    own *= ramp(_nearest(flat, _EYES) / _NEAR_EYES)
    to_corners = np.linalg.norm(flat[:, None] - flat[list(_CORNERS)], axis=-1)
    return own, edge[:, None] * np.exp(-0.5 * (to_corners / _CORNER) ** 2)


def ramp(values: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
    """Rises smoothly from 0 at 0 to 1 at 1."""
    values = np.clip(values, 0, 1)
    return values * values * (3 - 2 * values)
