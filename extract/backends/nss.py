"""Visual backend `nss`: natural-scene statistics of the face, the eyes and the mouth.

The one thing to know: undistorted pictures, normalised by their local mean and
contrast, have a near-Gaussian histogram; blur, noise, compression and synthesis bend
it. Temporal features compare the same place in this row and the row before, so a
frozen picture gives exactly 0.

References:
    Mittal, Moorthy, Bovik 2012, "No-reference image quality assessment in the spatial
    domain" (BRISQUE): MSCN, GGD and AGGD moment fits. Ours are of three crops, the
    face at two scales.
    Hasler, Suesstrunk 2003, "Measuring colourfulness in natural images", eq. 1-2.
    Immerkaer 1996, "Fast noise variance estimation".
"""

import dataclasses
import math

import cv2
import numpy as np
import scipy.special
from jaxtyping import Float, UInt8

from extract import backends

MODALITY = "visual"
VERSION = "1"
NEEDS = ("face",)
DEFAULT = True

_EPSILON = 1e-6
# Crops: mesh points whose bounding box is taken, its margin, and the fixed size.
_EYES = (33, 133, 159, 145, 263, 362, 386, 374, 70, 105, 107, 300, 334, 336)
_MOUTH = (61, 291, 0, 17, 13, 14, 37, 267, 84, 314, 57, 287)
_CROPS = {
    "face": (tuple(range(468)), 0.05, (128, 128)),
    "eyes": (_EYES, 0.15, (128, 64)),
    "mouth": (_MOUTH, 0.35, (96, 64)),
}
_SCALES = {"face": 2, "eyes": 1, "mouth": 1}
_SHIFTS = {"horizontal": (0, 1), "vertical": (1, 0), "main": (1, 1), "minor": (1, -1)}

_MSCN = ("mscn_shape", "mscn_spread") + tuple(
    f"{name}_{what}" for name in _SHIFTS for what in ("shape", "mean", "left", "right")
)
_SPATIAL = (
    "mean",
    "contrast",
    "log_sharpness",
    "log_gradient",
    "log_noise",
    "colourfulness",
    "saturated",
    "entropy",
)
_TEMPORAL = (
    "log_change",
    "still_share",
    "brightness_change",
    "log_change_peak",
    "sharpness_change",
)
_GLOBAL = (
    "log_face_pixels",
    "blockiness_horizontal",
    "blockiness_vertical",
    "picture_log_change",
    "picture_still_share",
)


def _feature_names() -> tuple[str, ...]:
    names = []
    for crop in _CROPS:
        for scale in range(_SCALES[crop]):
            names += [f"{crop}_scale{scale + 1}_{name}" for name in _MSCN]
        names += [f"{crop}_{name}" for name in _SPATIAL + _TEMPORAL]
    return tuple(names) + _GLOBAL


FEATURES = _feature_names()
"""Names of the features, in the order of the last axis."""
DESCRIPTION = (
    "natural-scene statistics, sharpness, noise, colour and change from row to row of "
    "face, eyes and mouth"
)
_TEMPORAL_COLUMNS = np.array(
    [name.endswith(_TEMPORAL) or name.startswith("picture_") for name in FEATURES]
)


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    state, rows = State(), []

    def frame(pixels: np.ndarray, points: np.ndarray | None) -> None:
        rows.append(row(pixels, points, state))

    return backends.Measurer(lambda clip: (finish(rows), clip.seen), frame)


@dataclasses.dataclass
class State:
    """What the next row needs of the last: its grey picture and crop sharpness."""

    grey: UInt8[np.ndarray, "H W"] | None = None
    sharpness: dict[str, float] = dataclasses.field(default_factory=dict)


def row(
    pixels: UInt8[np.ndarray, "H W 3"],
    points: Float[np.ndarray, "478 3"] | None,
    state: State,
) -> Float[np.ndarray, " D"] | None:
    """Measures one row.

    Args:
        pixels: RGB picture.
        points: landmarks in picture widths and heights; None without a face.
        state: of this clip; updated.

    Returns:
        The features, NaN for those that need the row before when there is none; None
        without a face.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    last, state.grey = state.grey, grey
    if last is not None and last.shape != grey.shape:
        last = None
    if points is None:
        state.sharpness = {}
        return None
    values: list[float] = []
    sharpness = {}
    for crop, (indices, margin, size) in _CROPS.items():
        place = _box(points[list(indices)], grey.shape, margin)
        colour = _resize(pixels[place], size)
        patch = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY).astype(np.float32)
        scaled = patch
        for scale in range(_SCALES[crop]):
            if scale:
                scaled = cv2.resize(
                    scaled, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA
                )
            values += scene_statistics(scaled)
        spatial = _spatial(colour, patch)
        sharpness[crop] = spatial[_SPATIAL.index("log_sharpness")]
        before = state.sharpness.get(crop, math.nan)
        values += spatial
        values += _change(
            grey[place], None if last is None else last[place], sharpness[crop] - before
        )
        if crop == "face":
            blocks = blockiness(grey, place)
            height, width = grey[place].shape
    values += [math.log(width * height), *blocks]
    if last is None:
        values += [math.nan, math.nan]
    else:
        difference = cv2.absdiff(_thin(grey), _thin(last))
        values += [math.log(difference.mean() + 0.01), float((difference == 0).mean())]
    state.sharpness = sharpness
    return np.array(values, np.float32)


def finish(
    rows: list[Float[np.ndarray, " D"] | None],
) -> Float[np.ndarray, "T D"]:
    """Joins rows to the modality's array.

    A row without a row before it takes its temporal features from the next row that
    has them, or the last that has; in a clip of one picture they are those of a still.

    Args:
        rows: what `row` returned.

    Returns:
        Features; NaN in rows without a face.
    """
    features = np.full((len(rows), len(FEATURES)), np.nan, np.float32)
    for index, values in enumerate(rows):
        if values is not None:
            features[index] = values
    seen = ~np.isnan(features[:, 0])
    for column in np.flatnonzero(_TEMPORAL_COLUMNS):
        values = features[seen, column]
        known = np.flatnonzero(~np.isnan(values))
        if len(known) == 0:
            values[:] = 1.0 if "still" in FEATURES[column] else 0.0
        else:
            after = np.searchsorted(known, np.arange(len(values)))
            values = values[known[np.minimum(after, len(known) - 1)]]
        features[seen, column] = values
    return features


def scene_statistics(patch: Float[np.ndarray, "H W"]) -> list[float]:
    """Fits the distributions of the normalised picture and of neighbours' products.

    Args:
        patch: grey values, 0-255.

    Returns:
        Shape and spread of the generalised Gaussian; then shape, mean, left and right
        spread of the asymmetric one for four directions.
    """
    mscn = normalised(patch)
    square = float(np.mean(mscn * mscn))
    values = [
        _shape(float(np.mean(np.abs(mscn))) ** 2 / (square + _EPSILON)),
        math.sqrt(square),
    ]
    for down, right in _SHIFTS.values():
        values += _asymmetric(mscn * np.roll(mscn, (down, right), axis=(0, 1)))
    return values


def normalised(patch: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Subtracts the local mean and divides by the local deviation plus 1 (MSCN)."""
    mean = cv2.GaussianBlur(patch, (7, 7), 7 / 6)
    square = cv2.GaussianBlur(patch * patch, (7, 7), 7 / 6)
    return (patch - mean) / (np.sqrt(np.maximum(square - mean * mean, 0)) + 1)


def blockiness(
    grey: UInt8[np.ndarray, "H W"], place: tuple[slice, slice]
) -> tuple[float, float]:
    """Compares steps across the 8-pixel coding grid with steps elsewhere.

    Args:
        grey: the whole picture, whose top left corner is a grid point.
        place: the part to measure.

    Returns:
        Log ratio of the mean absolute step, over columns and over rows; 0 without
        visible blocks.
    """
    patch = grey[place].astype(np.int16)
    ratios = []
    for axis in (1, 0):
        steps = np.abs(np.diff(patch, axis=axis)).mean(axis=1 - axis)
        position = np.arange(len(steps)) + place[axis].start + 1
        on, off = steps[position % 8 == 0], steps[position % 8 != 0]
        if len(on) == 0 or len(off) == 0:
            ratios.append(0.0)
        else:
            ratios.append(math.log((on.mean() + 0.1) / (off.mean() + 0.1)))
    return ratios[0], ratios[1]


def _spatial(colour: np.ndarray, patch: np.ndarray) -> list[float]:
    """Measures `_SPATIAL` of a crop of fixed size."""
    laplacian = cv2.Laplacian(patch, cv2.CV_32F)
    across = cv2.Sobel(patch, cv2.CV_32F, 1, 0)
    down = cv2.Sobel(patch, cv2.CV_32F, 0, 1)
    noise = cv2.filter2D(patch, cv2.CV_32F, _NOISE_KERNEL)
    red, green, blue = cv2.split(colour.astype(np.float32))
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    spread = math.hypot(red_green.std(), yellow_blue.std())
    mean = math.hypot(red_green.mean(), yellow_blue.mean())
    counts = np.bincount(patch.astype(np.uint8).ravel() >> 2, minlength=64)
    share = counts[counts > 0] / counts.sum()
    return [
        float(patch.mean()),
        float(patch.std()),
        math.log(float(laplacian.var()) + 1),
        math.log(float((across * across + down * down).mean()) + 1),
        math.log(float(np.abs(noise).mean()) * math.sqrt(math.pi / 2) / 6 + 0.01),
        spread + 0.3 * mean,
        float(((patch < 4) | (patch > 251)).mean()),
        float(-(share * np.log2(share)).sum()),
    ]


_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def _change(now: np.ndarray, before: np.ndarray | None, sharper: float) -> list[float]:
    """Measures `_TEMPORAL`: the same place in two rows, at the picture's own size."""
    if before is None:
        return [math.nan] * len(_TEMPORAL)
    difference = cv2.absdiff(now, before)
    # The 99th percentile, from the histogram: sorting would cost more than the rest.
    counts = np.bincount(difference.ravel(), minlength=256).cumsum()
    peak = int(np.searchsorted(counts, 0.99 * counts[-1]))
    return [
        math.log(float(difference.mean()) + 0.01),
        float(counts[0] / counts[-1]),
        float(now.mean()) - float(before.mean()),
        math.log(peak + 1),
        sharper,
    ]


def _box(
    points: Float[np.ndarray, "P 3"], shape: tuple[int, int], margin: float
) -> tuple[slice, slice]:
    """Returns the bounding box of points inside the picture, at least 8 x 8 pixels."""
    places = []
    for axis, length in ((1, shape[0]), (0, shape[1])):
        low, high = points[:, axis].min() * length, points[:, axis].max() * length
        pad = margin * (high - low)
        start = int(np.clip(round(float(low - pad)), 0, length - 8))
        stop = int(np.clip(round(float(high + pad)), start + 8, length))
        places.append(slice(start, stop))
    return places[0], places[1]


def _resize(patch: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes to (width, height), averaging when it shrinks."""
    shrinks = patch.shape[0] >= size[1] and patch.shape[1] >= size[0]
    return cv2.resize(
        patch, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def _thin(grey: np.ndarray) -> np.ndarray:
    """Takes every n-th pixel so that about 320 columns remain."""
    step = max(1, grey.shape[1] // 320)
    return np.ascontiguousarray(grey[::step, ::step])


_SHAPES = np.linspace(0.2, 10.0, 1961)
_RATIOS = np.exp(
    2 * scipy.special.gammaln(2 / _SHAPES)
    - scipy.special.gammaln(1 / _SHAPES)
    - scipy.special.gammaln(3 / _SHAPES)
)


def _shape(ratio: float) -> float:
    """Inverts E|x|^2 / E x^2 of a generalised Gaussian, for shapes 0.2 to 10."""
    return float(np.interp(ratio, _RATIOS, _SHAPES))


def _asymmetric(values: np.ndarray) -> list[float]:
    """Fits an asymmetric generalised Gaussian by moments (Mittal et al. 2012, sec. II).

    Returns:
        Shape, mean, and the left and the right spread.
    """
    values = np.ravel(values)
    negative = np.minimum(values, 0)
    left_count = int(np.count_nonzero(negative))
    left_sum = float(negative @ negative)
    total = float(values @ values)
    left = math.sqrt(left_sum / max(left_count, 1))
    right = math.sqrt(max(total - left_sum, 0) / max(values.size - left_count, 1))
    gamma = (left + _EPSILON) / (right + _EPSILON)
    size = float(values.mean()) - 2 * float(negative.mean())  # mean absolute value
    ratio = size**2 / (total / values.size + _EPSILON**2)
    ratio *= (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
    shape = _shape(ratio)
    one, two, three = (math.lgamma(count / shape) for count in (1, 2, 3))
    mean = (right - left) * math.exp(0.5 * (one - three) + two - one)
    return [shape, mean, left, right]


def group(name: str) -> str:
    """Returns the group that a feature belongs to where groups are compared."""
    crop = name.split("_")[0]
    if crop not in _CROPS:
        return "whole picture"
    change = name.endswith(("_change", "_change_peak", "_still_share"))
    return f"{crop}: {'change' if change else 'appearance'}"
