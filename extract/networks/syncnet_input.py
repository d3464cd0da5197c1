"""What SyncNet sees and hears: face crops and cepstra, in windows of five rows.

Window `t` is the pictures of rows t to t+4 and the sound of the same 0.2 s, and
everything is as in the public code of SyncNet, whose network knows nothing else: square
crops of 224x224 in which the face lies high, and 20 steps of 13 MFCCs of 16-bit sound.

We differ in two things: the face's box is that of MediaPipe's mesh, and crops are not
compressed to a video before they are measured.
"""

import math
from typing import Any

import cv2
import numpy as np
import scipy.fft
from jaxtyping import Bool, Float, Int, UInt8

from extract import landmarks, sound
from tqa_jax import schema

SIDE = 224
FRAMES = 5  # rows in a window
STEPS = 20  # MFCC steps in a window
COEFFICIENTS = 13

_MIN_SOUND = 0.8  # share of a window's sound that the file must have

_SAMPLES = 400  # in an MFCC step, 25 ms
_HOP = 160  # samples from step to step, 10 ms
_FFT = 512
_FILTERS = 26
_LIFTER = 22
_EMPHASIS = 0.97

_CROP_SCALE = 0.4
_MEDIAN = 13  # rows over which a face's box is smoothed
_PADDING = 110  # grey outside the picture
_MIN_OVERLAP = 0.5  # of a face's boxes in two rows, by union; else it is another shot


class Cropper:
    """Cuts a face out of the pictures of a clip, as they come.

    A crop is a square around the face's box: of the box's larger side, with 0.4 of
    half of it more on the left, on the right and twice that below. The box is
    smoothed by a median over 13 rows, so a crop is finished six rows after its
    picture.

    The network was trained with the boxes of a face detector (S3FD), which reach from
    the forehead to the chin and from cheek to cheek. So does MediaPipe's mesh, and its
    bounding box is taken as it is; how much the two differ has not been measured. At
    the ends of a clip and beside rows without a face the median is over the rows that
    there are. A face that jumps is taken for a new shot, across which nothing is
    smoothed.
    """

    def __init__(self) -> None:
        """Starts a clip."""
        # Of each row: picture (of rows not yet cut), box and number of the shot.
        self._rows: list[tuple[Any, np.ndarray | None, int]] = []
        self._edges: np.ndarray | None = None  # of the last face, pixels
        self._next = self._shot = 0

    def push(
        self,
        pixels: UInt8[np.ndarray, "H W 3"],
        points: Float[np.ndarray, "478 3"] | None,
    ) -> list[UInt8[np.ndarray, "224 224 3"]]:
        """Takes the next row and returns the crops that are now finished.

        Args:
            pixels: RGB; kept until the row's crop is finished, so it must not change.
            points: landmarks in picture widths and heights; None without a face.

        Returns:
            Crops in the order of the rows; there is none of a row without a face.
        """
        box = None
        if points is not None:
            mesh = points[: landmarks.NUM_MESH, :2] * pixels.shape[1::-1]
            edges = np.array([mesh.min(axis=0), mesh.max(axis=0)], float)
            if self._edges is not None and _overlap(edges, self._edges) < _MIN_OVERLAP:
                self._shot += 1
            self._edges = edges
            half = max((edges[1] - edges[0]).max() / 2, 1.0)
            box = np.array([*edges.mean(axis=0), half])  # centre and half side
        self._rows.append((pixels, box, self._shot))
        return self._cut(len(self._rows) - _MEDIAN // 2)

    def finish(self) -> list[UInt8[np.ndarray, "224 224 3"]]:
        """Returns the crops of the last rows."""
        return self._cut(len(self._rows))

    def _cut(self, end: int) -> list[np.ndarray]:
        """Cuts the rows before `end` that have not been cut."""
        done = []
        for row in range(self._next, end):
            pixels, box, shot = self._rows[row]
            self._rows[row] = None, box, shot
            near = self._rows[max(0, row - _MEDIAN // 2) : row + _MEDIAN // 2 + 1]
            boxes = [b for _, b, other in near if b is not None and other == shot]
            if box is not None:
                done.append(_crop(pixels, *np.median(boxes, axis=0)))
        self._next = max(self._next, end)
        return done


def mfcc(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "S 13"]:
    """Computes cepstral coefficients, 100 steps a second.

    They equal `python_speech_features.mfcc` at its defaults, of 16-bit samples. Step
    `s` is of the 25 ms from s/100 s on.

    Args:
        samples: mono, 16 kHz, full scale 1; at least one.
    """
    whole = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.float64)
    whole[1:] -= _EMPHASIS * whole[:-1]
    steps = 1 + max(0, math.ceil((len(whole) - _SAMPLES) / _HOP))
    padded = np.pad(whole, (0, (steps - 1) * _HOP + _SAMPLES - len(whole)))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _SAMPLES)[::_HOP]
    power = np.abs(np.fft.rfft(pieces, _FFT)) ** 2 / _FFT
    cepstra = scipy.fft.dct(_log(power @ _mel_filters().T), axis=1, norm="ortho")
    order = np.arange(COEFFICIENTS)
    cepstra = cepstra[:, order]
    cepstra *= 1 + _LIFTER / 2 * np.sin(np.pi * order / _LIFTER)
    cepstra[:, 0] = _log(power.sum(axis=1))
    return cepstra.astype(np.float32)


def sound_windows(
    samples: Float[np.ndarray, " N"], present: Bool[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "V 20 13"], Bool[np.ndarray, " V"]]:
    """Cuts the sound of a clip into windows.

    Args:
        samples: mono, 16 kHz, 640 a row; sample 0 is the instant of row 0.
        present: where the file has sound.

    Returns:
        Window `t` begins at row t; one fewer than windows of faces, since the last
        one's sound ends after the clip; none of clips below 0.24 s. And which of
        them have sound; the other ones' distances are unknown (NaN).
    """
    row = round(sound.SAMPLE_RATE / schema.FPS)
    count = max(0, len(samples) // row - FRAMES)
    if not count:
        return np.zeros((0, STEPS, COEFFICIENTS), np.float32), np.zeros(0, bool)
    step = row // _HOP
    cut = np.lib.stride_tricks.sliding_window_view(mfcc(samples), STEPS, axis=0)
    windows = np.swapaxes(cut[::step][:count], 1, 2)
    total = np.concatenate([[0], np.cumsum(present)])
    starts = np.arange(count) * row
    share = (total[starts + FRAMES * row] - total[starts]) / (FRAMES * row)
    return np.ascontiguousarray(windows), share >= _MIN_SOUND


def face_windows(seen: Bool[np.ndarray, " T"]) -> Int[np.ndarray, " N"]:
    """Returns the first rows of the windows that have a face in all of their rows."""
    total = np.concatenate([[0], np.cumsum(seen)])
    return np.flatnonzero(total[FRAMES:] - total[:-FRAMES] == FRAMES)


def _crop(pixels: np.ndarray, x: float, y: float, half: float) -> np.ndarray:
    """Cuts a square and scales it, as the public code does."""
    side = half * (1 + _CROP_SCALE)
    top, bottom = math.floor(y - half), math.floor(y + half * (1 + 2 * _CROP_SCALE))
    left, right = math.floor(x - side), math.floor(x + side)
    height, width = pixels.shape[:2]
    inside = pixels[
        np.clip(top, 0, height) : np.clip(bottom, 0, height),
        np.clip(left, 0, width) : np.clip(right, 0, width),
    ]
    square = np.full((bottom - top, right - left, 3), _PADDING, np.uint8)
    if inside.size:
        at = max(0, -top), max(0, -left)
        square[at[0] : at[0] + len(inside), at[1] : at[1] + inside.shape[1]] = inside
    return cv2.resize(square, (SIDE, SIDE))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Returns intersection over union of two boxes, ((left, top), (right, bottom))."""
    shared = np.minimum(a[1], b[1]) - np.maximum(a[0], b[0])
    shared = np.prod(np.maximum(shared, 0.0))
    union = np.prod(a[1] - a[0]) + np.prod(b[1] - b[0]) - shared
    return float(shared / max(union, 1e-12))


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.where(values == 0, np.finfo(float).eps, values))


def _mel_filters() -> Float[np.ndarray, "26 257"]:
    """Returns triangles between whole bins of the spectrum, evenly spaced in mel."""
    highest = 2595 * np.log10(1 + sound.SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, highest, _FILTERS + 2) / 2595) - 1)
    edges = np.floor((_FFT + 1) * hertz / sound.SAMPLE_RATE)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    bins = np.arange(_FFT // 2 + 1)
    rising = (bins - low) / np.maximum(middle - low, 1)
    falling = (high - bins) / np.maximum(high - middle, 1)
    return np.where(bins < middle, rising * (bins >= low), falling * (bins < high))
