"""Sync backend `correlation`: how far the sound is from the mouth, without weights.

The one thing to know: `offset_frames` is positive when the audio is late. The search
correlates mouth and loudness in a sliding window of about 2 s, for lags of up to 15
rows (0.6 s) either way; few seconds of speech are little evidence, so `confidence`
says how far the best lag stands out, and one window is often wrong by itself.

Four pairs of signals are correlated and their correlations averaged: opening of the
lips with loudness, its rate of change with loudness's, and the size of that rate with
loudness and with the size of loudness's rate.
"""

import numpy as np
import scipy.ndimage
import scipy.signal
from jaxtyping import Bool, Float, Int

from extract import backends, sound
from tqa_jax import schema

MODALITY = "sync"
VERSION = "1"
NEEDS = ("face",)
DEFAULT = True
FEATURES = ("peak", "confidence", "offset_frames", "validity")
"""Names of the features, in the order of the last axis."""
DESCRIPTION = (
    "best correlation of mouth and loudness (-1 to 1), how far it stands out, its lag "
    "in frames (positive: audio late) and 1 where there was anything to compare"
)
MAX_LAG = 15
WINDOW = 51  # rows

_BAND_HZ = (300.0, 2500.0)  # voiced speech without rumble, hum and hiss
_SPAN = 960  # samples, 60 ms: what one row's loudness is measured over
_MIN_ROWS = 20
_MIN_SHARE = 0.5  # of the window's rows that a lag must leave
_MIN_OPENING = 0.003  # spread of the opening, in face heights: tracker noise is less
_MIN_LOUDNESS = 2.0  # spread of loudness within the window, dB
_SPEECH = -55.0  # dB that the loudest rows of the window must reach
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
        `FEATURES` and the mask. The mask is False in rows without a face, and where
        half of the window or more lacks face or sound. Where there is a face but
        nothing to compare (no speech, a still mouth, a clip below 0.8 s) the row is
        present and all of its four values are 0.
    """
    num_rows = len(points)
    inner, outer = openings(points, aspect)
    level = loudness(samples, present, num_rows)
    window = min(WINDOW, num_rows)
    starts = np.clip(np.arange(num_rows) - window // 2, 0, num_rows - window)
    usable = np.isfinite(inner) & np.isfinite(level)
    mask = np.isfinite(inner) & (window_sums(usable, starts, window) > 0.5 * window)
    result = np.zeros((num_rows, len(FEATURES)), np.float32)
    if window >= _MIN_ROWS:
        scores = correlations(inner, outer, level, starts, window)
        valid = mask & np.isfinite(scores).any(axis=-1)
        valid &= _spread(inner, starts, window) >= _MIN_OPENING
        valid &= _spread(level, starts, window) >= _MIN_LOUDNESS
        loudest = scipy.ndimage.maximum_filter1d(
            np.nan_to_num(level, nan=-np.inf), window, mode="nearest"
        )
        valid &= loudest >= _SPEECH
        found = scores[valid]
        best = np.nanargmax(found, axis=-1) if len(found) else np.zeros(0, int)
        peak = found[np.arange(len(found)), best]
        result[valid, 0] = peak
        result[valid, 1] = peak - np.nanmedian(found, axis=-1) if len(found) else 0
        result[valid, 2] = best - MAX_LAG
        result[valid, 3] = 1.0
    result[~mask] = np.nan
    return result, mask


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
        For lags -15 to 15 of the audio: -1 to 1, shrunk where the lag leaves few
        pairs; NaN where it leaves less than half of the window.
    """
    rate, change = np.gradient(outer), np.gradient(level)
    pairs = (
        (inner, level),
        (rate, change),
        (np.abs(rate), level),
        (np.abs(rate), np.abs(change)),
    )
    return np.mean([_lagged(*pair, starts, window) for pair in pairs], axis=0)


def window_sums(
    values: Float[np.ndarray, " T"], starts: Int[np.ndarray, " W"], window: int
) -> Float[np.ndarray, " W"]:
    """Sums `window` rows from each of `starts` on."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return total[starts + window] - total[starts]


def _lagged(
    mouth: np.ndarray, level: np.ndarray, starts: np.ndarray, window: int
) -> np.ndarray:
    """Correlates mouth[t] with level[t + lag] over each window, for all lags."""
    num_rows = len(mouth)
    # Centred over the clip: sums of squares then lose no digits to the mean.
    mouth = mouth - np.nanmean(mouth) if np.isfinite(mouth).any() else mouth
    level = level - np.nanmean(level) if np.isfinite(level).any() else level
    result = np.full((num_rows, 2 * MAX_LAG + 1), np.nan)
    for column, lag in enumerate(range(-MAX_LAG, MAX_LAG + 1)):
        if abs(lag) >= num_rows:
            continue
        shifted = np.full(num_rows, np.nan)
        inside = slice(max(0, -lag), num_rows - max(0, lag))
        shifted[inside] = level[max(0, lag) : num_rows - max(0, -lag)]
        both = np.isfinite(mouth) & np.isfinite(shifted)
        a, b = np.where(both, mouth, 0.0), np.where(both, shifted, 0.0)
        count, sum_a, sum_b, square_a, square_b, product = (
            window_sums(values, starts, window)
            for values in (both, a, b, a * a, b * b, a * b)
        )
        count = np.maximum(count, 1)
        spread_a = np.maximum(square_a - sum_a**2 / count, 0)
        spread_b = np.maximum(square_b - sum_b**2 / count, 0)
        shared = product - sum_a * sum_b / count
        correlation = shared / np.sqrt(np.maximum(spread_a * spread_b, 1e-20))
        enough = count >= max(_MIN_SHARE * window, _MIN_ROWS / 2)
        shrunk = correlation * np.sqrt(count / window)
        result[enough, column] = shrunk[enough]
    return result


def _spread(values: np.ndarray, starts: np.ndarray, window: int) -> np.ndarray:
    """Returns the standard deviation of the known values in each window."""
    known = np.isfinite(values)
    centred = np.where(known, values - (np.nanmean(values) if known.any() else 0), 0)
    count = np.maximum(window_sums(known, starts, window), 1)
    mean = window_sums(centred, starts, window) / count
    square = window_sums(centred**2, starts, window) / count
    return np.sqrt(np.maximum(square - mean**2, 0))
