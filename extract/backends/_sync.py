"""What sync backends share: the sound at every lag, windows of rows, the best lag.

`offset_frames` is positive when the audio is late.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

MAX_LAG = 15
"""Rows that the sound may be early or late, 0.6 s."""
MIN_ROWS = 20
"""Rows of a window below which nothing is compared."""

_MIN_SHARE = 0.5  # of the window's rows that a lag must leave
_MIN_OPENING = 0.003  # spread of the opening, in face heights: tracker noise is less
_MIN_LOUDNESS = 2.0  # spread of loudness within the window, dB
_SPEECH = -55.0  # dB that the loudest row must reach


def windows(
    num_rows: int, most: int, centres: Int[np.ndarray, " W"]
) -> tuple[Int[np.ndarray, " W"], int]:
    """Returns the first row of the window around each of `centres`, and its rows.

    A window has `most` rows, or all; at the ends it is moved inwards.
    """
    window = min(most, num_rows)
    return np.clip(centres - window // 2, 0, num_rows - window), window


def sums(
    values: Float[np.ndarray, "T ..."], starts: Int[np.ndarray, " W"], window: int
) -> Float[np.ndarray, "W ..."]:
    """Sums `window` rows from each of `starts` on."""
    total = np.cumsum(values, axis=0, dtype=np.float64)
    total = np.concatenate([np.zeros((1, *values.shape[1:])), total])
    return total[starts + window] - total[starts]


def enough(counts: np.ndarray, window: int) -> np.ndarray:
    """Whether a lag leaves enough of a window's rows to be compared."""
    return counts >= max(_MIN_SHARE * window, MIN_ROWS / 2)


def lagged(sound: Float[np.ndarray, "T C"]) -> Iterator[Float[np.ndarray, "T C"]]:
    """Yields the sound at each lag, -15 to 15: in row t its row t + lag, or NaN."""
    edge = ((MAX_LAG, MAX_LAG), (0, 0))
    padded = np.pad(sound, edge, constant_values=np.nan)
    for first in range(2 * MAX_LAG + 1):
        yield padded[first : first + len(sound)]


def correlate(
    mouth: Float[np.ndarray, "T C"],
    sound: Float[np.ndarray, "T C"],
    starts: Int[np.ndarray, " W"],
    window: int,
    *,
    centred: bool = False,
) -> Float[np.ndarray, "W 31"]:
    """Correlates mouth and sound in each window, for lags -15 to 15 of the sound.

    Args:
        mouth: NaN where unknown.
        sound: likewise.
        starts: first row of each window.
        window: rows in a window.
        centred: takes each window's mean out, where there is one channel.

    Returns:
        -1 to 1, shrunk where the lag leaves few pairs; NaN where it leaves less than
        half of the window.
    """
    result = np.full((len(starts), 2 * MAX_LAG + 1), np.nan)
    for column, moved in enumerate(lagged(sound)):
        both = np.isfinite(mouth[:, :1]) & np.isfinite(moved[:, :1])
        a, b = np.where(both, mouth, 0.0), np.where(both, moved, 0.0)
        count, product, square_a, square_b, sum_a, sum_b = (
            sums(values.sum(axis=-1), starts, window)
            for values in (both, a * b, a * a, b * b, a, b)
        )
        if centred:
            pairs = np.maximum(count, 1)
            square_a = np.maximum(square_a - sum_a**2 / pairs, 0)
            square_b = np.maximum(square_b - sum_b**2 / pairs, 0)
            product = product - sum_a * sum_b / pairs
        fit = product / np.sqrt(np.maximum(square_a * square_b, 1e-20))
        known = enough(count, window)
        result[known, column] = (fit * np.sqrt(count / window))[known]
    return result


def best_lags(
    scores: Callable[[], Float[np.ndarray, "T 31"]],
    starts: Int[np.ndarray, " T"],
    window: int,
    *,
    face: Bool[np.ndarray, " T"],
    heard: Bool[np.ndarray, " T"],
    opening: Float[np.ndarray, " T"],
    level: Float[np.ndarray, " T"],
    loudest: Float[np.ndarray, " T"],
) -> tuple[Float[np.ndarray, "T 4"], Bool[np.ndarray, " T"]]:
    """Takes the lag that fits best around each row.

    Args:
        scores: computes how well each lag fits in the window of each row.
        starts: first row of each row's window.
        window: rows in a window.
        face: rows with a face.
        heard: rows with sound.
        opening: of the lips, in face heights; NaN without a face.
        level: of the sound, dB; NaN without.
        loudest: level near each row, dB.

    Returns:
        The best score, how far it stands out, its lag in frames and 1 where there was
        anything to compare; and the mask. The mask is False in rows without a face,
        and where half of the window or more lacks face or sound. Where there is a face
        but nothing to compare (no speech, a still mouth, a clip below 0.8 s) the row is
        present and all of its four values are 0.
    """
    mask = face & (sums(face & heard, starts, window) > 0.5 * window)
    result = np.zeros((len(mask), 4), np.float32)
    if window >= MIN_ROWS:
        fits = scores()
        valid = mask & np.isfinite(fits).any(axis=-1) & (loudest >= _SPEECH)
        valid &= _spread(opening, starts, window) >= _MIN_OPENING
        valid &= _spread(level, starts, window) >= _MIN_LOUDNESS
        if valid.any():
            fits = fits[valid]
            peak, lag = np.nanmax(fits, axis=-1), np.nanargmax(fits, axis=-1) - MAX_LAG
            stands_out = peak - np.nanmedian(fits, axis=-1)
            result[valid] = np.stack([peak, stands_out, lag, np.ones_like(peak)], -1)
    result[~mask] = np.nan
    return result, mask


def _spread(values: np.ndarray, starts: np.ndarray, window: int) -> np.ndarray:
    """Returns the standard deviation of the known values in each window."""
    values = values[starts[:, None] + np.arange(window)]
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=-1), 1)
    values = np.where(known, values, 0.0)
    mean = values.sum(axis=-1) / count
    square = np.where(known, values - mean[:, None], 0.0) ** 2
    return np.sqrt(square.sum(axis=-1) / count)
