"""Sync backend `correlation`: how far the sound is from the mouth, without weights.

`offset_frames` is positive when the audio is late. The search correlates mouth and
loudness in a sliding window of about 2 s, for lags of up to 15 rows (0.6 s) either way;
few seconds of speech are little evidence, so `confidence` says how far the best lag
stands out, and one window is often wrong by itself.

Four pairs of signals are correlated and their correlations averaged: opening of the
lips with loudness, its rate of change with loudness's, and the size of that rate with
loudness and with the size of loudness's rate.
"""

import numpy as np
import scipy.ndimage
import scipy.signal
from jaxtyping import Bool, Float, Int

from extract import backends, sound
from extract.backends import _sync
from tqa_jax import schema

MODALITY = "sync"
VERSION = "1"
NEEDS = ("face",)
FEATURES = ("peak", "confidence", "offset_frames", "validity")
"""Names of the features, in the order of the last axis."""
DESCRIPTION = (
    "best correlation of mouth and loudness (-1 to 1), how far it stands out, its lag "
    "in frames (positive: audio late) and 1 where there was anything to compare"
)
WINDOW = 51  # rows

_BAND_HZ = (300.0, 2500.0)  # voiced speech without rumble, hum and hiss
_SPAN = 960  # samples, 60 ms: what one row's loudness is measured over
_FLOOR = 1e-7  # power; -70 dB
# Mesh points: lips (upper, lower), inner then outer; forehead and chin.
_INNER = ((13, 14), (82, 87), (312, 317))
_OUTER = ((0, 17),)
_HEIGHT = (10, 152)


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    return backends.Measurer(
        lambda clip: features(clip.points, clip.aspect, clip.samples, clip.present)
    )


def features(
    points: Float[np.ndarray, "T 478 3"],
    aspect: float,
    samples: Float[np.ndarray, " N"],
    present: Bool[np.ndarray, " N"],
) -> tuple[Float[np.ndarray, "T 4"], Bool[np.ndarray, " T"]]:
    """Searches the lag between mouth and sound around each row.

    Args:
        points: landmarks in picture widths and heights, NaN without a face.
        aspect: picture width over height.
        samples: mono, 16 kHz; sample 0 is the instant of row 0.
        present: where the file has sound.

    Returns:
        `FEATURES` and the mask, see `_sync.best_lags`.
    """
    num_rows = len(points)
    inner, outer = openings(points, aspect)
    level = loudness(samples, present, num_rows)
    starts, window = _sync.windows(num_rows, WINDOW, np.arange(num_rows))
    return _sync.best_lags(
        lambda: correlations(inner, outer, level, starts, window),
        starts,
        window,
        face=np.isfinite(inner),
        heard=np.isfinite(level),
        opening=inner,
        level=level,
        loudest=scipy.ndimage.maximum_filter1d(
            np.nan_to_num(level, nan=-np.inf), window, mode="nearest"
        ),
    )


def openings(
    points: Float[np.ndarray, "T 478 3"], aspect: float
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Returns how far the inner and the outer lips are apart, in face heights."""
    square = points * np.array([aspect, 1.0, aspect])

    def distance(pair: tuple[int, int]) -> np.ndarray:
        return np.linalg.norm(square[:, pair[0]] - square[:, pair[1]], axis=-1)

    height = distance(_HEIGHT)
    inner = np.mean([distance(pair) for pair in _INNER], axis=0) / height
    return inner, np.mean([distance(pair) for pair in _OUTER], axis=0) / height


def loudness(
    samples: Float[np.ndarray, " N"], present: Bool[np.ndarray, " N"], num_rows: int
) -> Float[np.ndarray, " T"]:
    """Returns the level in the speech band at each row, dB; NaN without sound."""
    hop = round(sound.SAMPLE_RATE / schema.FPS)
    band = scipy.signal.butter(4, _BAND_HZ, "band", fs=sound.SAMPLE_RATE, output="sos")
    power = scipy.signal.sosfiltfilt(band, samples, padlen=0) ** 2
    centres = np.arange(num_rows) * hop
    low = np.maximum(centres - _SPAN // 2, 0)
    high = np.minimum(centres + _SPAN // 2, len(samples))

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        return (total[high] - total[low]) / (high - low)

    level = 10 * np.log10(np.maximum(mean(power), _FLOOR))
    level[mean(present) <= 0.5] = np.nan
    return level


def correlations(
    inner: Float[np.ndarray, " T"],
    outer: Float[np.ndarray, " T"],
    level: Float[np.ndarray, " T"],
    starts: Int[np.ndarray, " T"],
    window: int,
) -> Float[np.ndarray, "T 31"]:
    """Averages the correlations of four pairs of signals in each row's window.

    Args:
        inner: opening of the inner lips; NaN where unknown.
        outer: opening of the outer lips.
        level: loudness, dB.
        starts: first row of each row's window.
        window: rows in a window.

    Returns:
        See `_sync.correlate`.
    """
    rate, change = np.gradient(outer), np.gradient(level)
    pairs = (
        (inner, level),
        (rate, change),
        (np.abs(rate), level),
        (np.abs(rate), np.abs(change)),
    )
    return np.mean(
        [
            # Centred over the clip: sums of squares then lose no digits to the mean.
            _sync.correlate(*map(_centred, pair), starts, window, centred=True)
            for pair in pairs
        ],
        axis=0,
    )


def _centred(values: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 1"]:
    mean = np.nanmean(values) if np.isfinite(values).any() else 0.0
    return (values - mean)[:, None]
