"""Makes an identity talk: mouth, lids, brows and head, frame by frame.

The face moves by displacement of the portrait and the mouth really opens. Between the
lips lie the portrait's own teeth, which stay with the skull, and a dark cavity with a
tongue; with closed lips both are covered.
"""

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from extract.degrading import damping
from extract.rendering import portrait
from extract.rendering.portrait import ZOOM

_JAW = 15.0  # portrait pixels that the lower lip drops at opening 1
_HALF = 20.0  # half width of the portrait's mouth
# Inner lips of the portrait as (t, y - line), t from corner (-1) to corner (1).
_T = np.array([-1.0, -0.87, -0.72, -0.53, -0.3, -0.02, 0.28, 0.52, 0.71, 0.87, 1.0])
_UPPER = np.array([0.0, 0.3, 0.7, 1.6, 2.1, 2.7, 2.1, 1.5, 1.0, 0.6, 0.0])
_LOWER = np.array([0.0, 3.3, 5.4, 7.3, 8.7, 9.3, 8.7, 7.2, 5.5, 3.4, 0.0])
# Lids as x, y of the upper, y of the lower, lashes within the upper.
_LIDS = (
    """194.0,100.8,101.2 197.0,99.8,102.6 200.0,98.9,103.8 203.0,98.7,104.4
206.0,99.2,104.5 209.5,101.0,104.2 212.2,103.0,104.0 214.0,104.0,104.0""",
    """236.0,104.8,104.9 238.0,104.0,105.1 240.8,102.2,105.4 244.5,100.7,106.0
248.3,100.6,106.2 251.6,101.3,105.8 253.7,102.4,105.0 256.0,103.4,103.8""",
)
_BLINK = np.array([0.45, 1.0, 1.0, 0.75, 0.4, 0.12])  # lid closure over frames


@dataclasses.dataclass(frozen=True)
class Motion:
    """What a face does at each frame.

    `opening` and `blink` are 0..1, `smile` -0.3..1 (1 is the portrait's own), `spread`
    and `brow` -1..1; `head` holds shift x and y (pixels), roll (radians),
    growth, yaw and pitch (pixels at the nose).
    """

    opening: Float[np.ndarray, " T"]
    spread: Float[np.ndarray, " T"]
    smile: Float[np.ndarray, " T"]
    brow: Float[np.ndarray, " T"]
    blink: Float[np.ndarray, " T"]
    head: Float[np.ndarray, "T 6"]


def _drift(
    rng: np.random.Generator, num_frames: int, count: int, seconds: float
) -> np.ndarray:
    """Returns `count` smooth random tracks of unit spread."""
    noise = rng.standard_normal((num_frames + 100, count))
    noise = ndimage.gaussian_filter1d(noise, seconds * 25, axis=0)
    return (noise / noise.std(axis=0))[50:-50]


def draw_motion(
    opening: Float[np.ndarray, " T"],
    spread: Float[np.ndarray, " T"],
    *,
    arousal: float,
    damping: float = 0.0,
    seed: int = 0,
) -> Motion:
    """Draws what goes with the speech: smiles, brows, blinks, movements of the head.

    Args:
        opening: of the mouth at 25 Hz, kept as it is.
        spread: of the mouth, kept as it is.
        arousal: 0 (calm face) to 1 (excited: smiles, raises brows, moves).
        damping: 0 (alive) to 1: no smile, brow, blink or movement is left.
        seed: of the random part.
    """
    rng = np.random.default_rng([seed, 4])
    count = len(opening)
    smooth = _drift(rng, count, 8, 0.5)
    stress = ndimage.gaussian_filter1d(np.asarray(opening, np.float64), 5)
    stress = stress - stress.mean()
    smile = -0.15 + 0.95 * arousal + 0.15 * smooth[:, 6]
    brow = -0.15 + 0.6 * arousal + 0.3 * smooth[:, 7] + (0.4 + arousal) * stress
    blink = np.zeros(count + len(_BLINK))
    at = rng.uniform(0.2, 0.9) * 25
    while at < count:
        start = int(at)
        part = slice(start, start + len(_BLINK))
        blink[part] = np.maximum(blink[part], _BLINK)
        at += rng.uniform(0.8, 2.2) * 25
    size = np.array([2.5, 1.5, 0.015, 0.008, 3.5, 2.5]) * (0.45 + 1.1 * arousal)
    head = smooth[:, :6] * size
    head[:, 1] += 6 * arousal * stress  # nods with the stress
    head[:, 5] += 5 * arousal * stress
    alive = 1 - damping
    return Motion(
        opening=np.asarray(opening),
        spread=np.asarray(spread),
        smile=np.clip(smile, -0.3, 1) * alive,
        brow=np.clip(brow, -1, 1) * alive,
        blink=blink[:count] * alive,
        head=head * alive,
    )


@functools.cache
def _region(left: int, top: int, right: int, bottom: int) -> tuple:
    """Returns the canvas slices and portrait coordinates of a rectangle."""
    rows = slice((top - portrait.TOP) * ZOOM, (bottom - portrait.TOP) * ZOOM)
    columns = slice((left - portrait.LEFT) * ZOOM, (right - portrait.LEFT) * ZOOM)
    x, y = portrait.grid()
    return (rows, columns), x[0, columns], y[rows, :1]


def _sample(canvas: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Reads the canvas at portrait coordinates."""
    return cv2.remap(
        canvas,
        (x - portrait.LEFT).astype(np.float32) * ZOOM,
        (y - portrait.TOP).astype(np.float32) * ZOOM,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
    )


def _move_mouth(
    canvas: np.ndarray, still: np.ndarray, opening: float, spread: float, smile: float
) -> None:
    """Draws lips, jaw and the inside of the mouth onto `canvas`.

    All of it works backward: at each output point, where in the portrait is it from?
    """
    place, x, y = _region(172, 120, 278, 214)
    cx = portrait.MOUTH[0]
    half = _HALF * (
        0.84 + 0.16 * smile + (0.09 if spread > 0 else 0.24) * spread - 0.05 * opening
    )
    drop = 3.8 * (1 - smile) + 0.5 * opening  # of the corners
    t = (x - cx) / half
    inside = np.clip(1 - t**2, 0, 1)
    beyond = np.maximum(np.abs(t) - 1, 0)
    line = _line(x)
    rim = line + drop * np.exp(-((beyond / 0.5) ** 2))
    upper = rim + (1.0 + 1.6 * smile - 1.6 * opening) * inside
    lower = upper + _JAW * opening * inside**0.6
    upper_shift = (upper - line - np.interp(t, _T, _UPPER)).astype(np.float32)
    lower_shift = (lower - line - np.interp(t, _T, _LOWER)).astype(np.float32)

    # Above the lips the shift fades toward the nose, below it turns into the jaw's,
    # which carries the chin and fades out over the neck.
    above = upper - y
    below = y - lower
    jaw = 0.85 * _JAW * opening - 1.5
    jaw = jaw * np.exp(-(((x - cx) / 36) ** 2))
    turn = damping.ramp(below / 15)
    neck = damping.ramp((y - 180 - jaw) / 30)
    fade = np.clip(1 - above / 17, 0, 1) ** 2
    shift = np.where(
        below > 0,
        lower_shift * (1 - turn) + jaw * turn * (1 - neck),
        upper_shift * fade,
    )
    pull = np.clip(t, -1, 1) * (_HALF - half) * np.exp(-((beyond * half / 13) ** 2))
    near = np.exp(-((np.maximum(above, 0) + np.maximum(below - 8, 0)) ** 2) / 15**2)
    canvas[place] = _sample(still, x + pull * near, y - shift)

    columns = np.flatnonzero(inside)
    columns = slice(columns[0], columns[-1] + 1)
    rows = np.flatnonzero((y > upper[columns].min()) & (y < lower[columns].max()))
    if len(rows):
        rows = slice(rows[0], rows[-1] + 1)
        part = canvas[place][rows, columns]
        enamel = still[place][rows, columns, :3]
        lips = upper[columns], lower[columns], inside[columns]
        part[..., :3] = _inside(part[..., :3], enamel, x[columns], y[rows], *lips)


def _line(x: np.ndarray) -> np.ndarray:
    """Returns y of the straight line through the corners of the portrait's mouth."""
    return 140.45 + 0.038 * (x - portrait.MOUTH[0])


def _inside(skin, still, x, y, upper, lower, inside) -> np.ndarray:
    """Paints cavity and tongue, then teeth where the portrait shows them."""
    gap = lower - upper
    depth = np.clip((y - upper) / np.maximum(gap, 1), 0, 1)
    cavity = np.stack([58 - 30 * depth, 20 - 8 * depth, 22 - 8 * depth], -1)
    tongue = np.clip((depth - 0.55) / 0.3, 0, 1) * np.clip(gap / 7 - 0.4, 0, 0.8)
    tongue = (tongue * inside)[..., None]
    inner = cavity + tongue * (np.array([150, 70, 74], np.float32) - cavity)
    at = np.clip((x - portrait.MOUTH[0]) / _HALF, -1, 1)
    top = _line(x) + np.interp(at, _T, _UPPER)
    bottom = _line(x) + np.interp(at, _T, _LOWER)
    teeth = np.clip(y - top, 0, 1) * np.clip(bottom - 1.8 - y, 0, 1) * (at**2 < 0.9)
    shade = 0.72 + 0.28 * np.clip((y - upper) / 2.5, 0, 1)
    inner = inner + teeth[..., None] * (still * shade[..., None] - inner)
    mask = np.clip((y - upper) * 1.5, 0, 1) * np.clip((lower - y) * 1.5, 0, 1)
    mask = (mask * np.clip(inside * 6, 0, 1))[..., None]
    return np.clip(skin + mask * (inner - skin) + 0.5, 0, 255).astype(np.uint8)


def _move_eyes(
    canvas: np.ndarray, still: np.ndarray, blink: float, brow: float
) -> None:
    """Draws lids and brows onto `canvas`."""
    place, x, y = _region(176, 74, 274, 112)
    sides = (
        np.exp(-0.5 * (((x - 201) / 13) ** 2)),
        np.exp(-0.5 * (((x - 250) / 13) ** 2)),
    )
    height = np.where(y < 90, np.exp(-0.5 * ((y - 90) / 5) ** 2), 1)
    height = height * np.clip((98 - y) / 8, 0, 1)
    shift = -3.4 * brow * np.maximum(*sides) * height
    for lids in map(portrait.points, _LIDS):
        top = np.interp(x, lids[:, 0], lids[:, 1])
        bottom = np.interp(x, lids[:, 0], lids[:, 2])
        reach = blink * (bottom - top + 1.0) * (x > lids[0, 0]) * (x < lids[-1, 0])
        above = top + reach - y
        fold = np.clip(1 - above / (7 + reach), 0, 1)
        shift = shift + np.where(above > 0, reach * fold, 0)
    canvas[place] = _sample(still, np.broadcast_to(x, shift.shape), y - shift)


def _cover(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a hand-like solid as colour and opacity, centred on a large plate."""
    rng = np.random.default_rng([seed, 5])
    mask = np.zeros((size, size), np.float32)
    cv2.ellipse(mask, (size // 2, size // 2), (58, 66), 0, 0, 360, 1.0, -1)
    for finger in range(4):
        x = size // 2 - 45 + 30 * finger
        tip = size // 2 - 118 + 10 * abs(finger - 1)
        cv2.line(mask, (x, size // 2 - 20), (x, tip), 1.0, 27)
    cv2.line(
        mask,
        (size // 2 + 40, size // 2 + 20),
        (size // 2 + 96, size // 2 - 22),
        1.0,
        28,
    )
    cv2.line(mask, (size // 2, size // 2), (size // 2, size - 1), 1.0, 84)
    edge = cv2.distanceTransform((mask > 0).astype(np.uint8), cv2.DIST_L2, 5)
    shade = np.clip(0.62 + edge / 30, 0, 1)[..., None]
    tone = np.array([205.0, 160, 135]) * rng.uniform(0.5, 1.05)
    mask = cv2.GaussianBlur(mask, (0, 0), 1.0)[..., None]
    return mask, (tone * shade).astype(np.float32)


def render(
    identity: portrait.Identity,
    motion: Motion,
    *,
    covered: tuple[int, int] | None = None,
    seed: int = 0,
) -> UInt8[np.ndarray, "T 256 256 3"]:
    """Renders the frames of a clip.

    Args:
        identity: who talks.
        motion: what the face does.
        covered: first and last frame (exclusive) in which a hand hides the face.
        seed: of the camera's noise.
    """
    rng = np.random.default_rng([seed, 6])
    size = portrait.SIZE
    grain = rng.standard_normal((2 * size, 2 * size, 1)).astype(np.float32) * 2.0
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    pivot_x, pivot_y = size / 2, size * 0.7
    hand = _cover(2 * size, seed) if covered else None
    frames = np.empty((len(motion.opening), size, size, 3), np.uint8)
    canvas = identity.canvas.copy()
    for index in range(len(frames)):
        _move_mouth(
            canvas,
            identity.canvas,
            float(motion.opening[index]),
            float(motion.spread[index]),
            float(motion.smile[index]),
        )
        _move_eyes(canvas, identity.canvas, motion.blink[index], motion.brow[index])
        if identity.glasses is not None:
            place = _region(176, 74, 274, 122)[0]
            over = identity.glasses[place]
            canvas[place] = canvas[place] * (1 - over[..., 3:]) + 255 * over
        dx, dy, roll, growth, yaw, pitch = motion.head[index].astype(np.float32)
        to_x, to_y = x - pivot_x, y - pivot_y
        back_x = x - identity.head * (dx - roll * to_y + growth * to_x)
        back_y = y - identity.head * (dy + roll * to_x + growth * to_y)
        back_x -= yaw * identity.depth
        back_y -= pitch * identity.depth
        mesh = cv2.remap(
            identity.mesh,
            back_x,
            back_y,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        rgba = _sample(canvas, mesh[..., 0], mesh[..., 1]).astype(np.float32)
        frame = rgba[..., :3] * identity.light
        frame += identity.plate * (1 - rgba[..., 3:] / 255)
        if hand is not None and covered[0] <= index < covered[1]:
            # Comes up within 3 frames and leaves as fast.
            away = min(index - covered[0], covered[1] - 1 - index, 3)
            low = size + round(size * 0.5 * (3 - away) / 3 * -1)
            mask, colour = (part[low - 128 :][:size, 128 : 128 + size] for part in hand)
            frame += mask * (colour - frame)
        row, column = rng.integers(0, size, 2)
        frame += grain[row : row + size, column : column + size]
        frames[index] = np.clip(frame + 0.5, 0, 255)
    return frames
