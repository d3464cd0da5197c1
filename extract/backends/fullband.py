"""Audio backend `fullband`: what of the sound lies above 8 kHz, at the file's own rate.

Raters hear speech that was cut to 16 kHz; every other backend is deaf to it, since
they get the sound at that rate. Each row describes the second around it, in bands of
250 Hz to 24 kHz: how high the sound reaches, how sharply it ends, and the levels of
five bands.

Files from one tool share their rate: where generated clips were written at 16 kHz and
real ones at 48 kHz, the first three features tell who made a clip, not how it sounds.
Check that a data set's rates are mixed before trusting them; `extract.degrade` writes
16 kHz.

Licence: the project's own; no weights. Speed: about 3 ms a second of clip on one core.
Blind to everything but the spectrum's upper end: a bad voice over the full band, or
noise that fills the band above a cut.
"""

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float

from extract import backends
from extract.backends import logmel
from tqa_jax import schema

MODALITY = "audio"
VERSION = "1"
NEEDS = ("native_sound",)
DESCRIPTION = (
    "the file's sampling rate, the bandwidth that its sound really has, how sharply it "
    "ends, and levels of bands from 4 to 24 kHz"
)

_BAND_HZ = 250
_NUM_BANDS = 96  # to 24 kHz
_FRAMES = 2  # spectra a row
_SECONDS = 1.0  # around a row
_LOUD_PERCENT = 90  # of a second's spectra: sees consonants, ignores a single click
_FLOOR = -115.0  # dB of a full-scale sine in 31 Hz; 16 bits have noise at -124
_BELOW_PEAK = 75.0  # dB under the loudest band, where filters and codecs leave crumbs
_SILENT = -80.0  # dB of the loudest band; below it bandwidth means nothing
_PAUSE = 40.0  # dB below the loudest second, too
_FIRST = 8  # bands: a voice alone falls steeply below 2 kHz
_CLIFF = 20.0  # dB; speech alone falls more gently within 500 Hz
_LEVELS = ((4, 8), (8, 12), (12, 16), (16, 20), (20, 24))  # kHz

FEATURES = ("rate_khz", "bandwidth_khz", "cliff_db") + tuple(
    f"level_{low:02d}_{high:02d}_khz_db" for low, high in _LEVELS
)
"""Names of the features, in the order of the last axis."""


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    return backends.Measurer(
        lambda clip: features(
            clip.native.samples, clip.native.present, clip.native.rate, clip.rows
        )
    )


def features(
    samples: Float[np.ndarray, " N"],
    present: Bool[np.ndarray, " N"],
    rate: int,
    num_rows: int,
) -> tuple[Float[np.ndarray, "T 8"], Bool[np.ndarray, " T"]]:
    """Measures the second around each row.

    Args:
        samples: mono, full scale 1; sample 0 is the instant of row 0.
        present: where the file has sound.
        rate: samples a second.
        num_rows: rows to give.

    Returns:
        `FEATURES`, and a mask that is False where less than half of the row's 32 ms
        has sound. Levels are relative to the whole second, at least -100 dB; what
        lies above half the rate is at the floor. Where a second is silent, bandwidth
        and cliff are those of the nearest that is not, 0 if all are.
    """
    power, heard = _spectra(samples, present, rate, num_rows)
    size = round(_SECONDS * schema.FPS * _FRAMES)
    loud = scipy.ndimage.percentile_filter(power, _LOUD_PERCENT, size=(size, 1))
    mean = scipy.ndimage.uniform_filter1d(power, size, axis=0)[::_FRAMES]
    level = 10 * np.log10(np.maximum(loud[::_FRAMES], 1e-20))
    loudest = level.max(axis=-1)
    speaks = loudest > max(_SILENT, loudest.max() - _PAUSE)
    bandwidth, cliff = _reach(level)[:, _nearest(speaks)] * speaks.any()
    bandwidth = np.minimum(bandwidth, rate / 2000)
    total = np.maximum(mean.sum(axis=-1), 1e-16)
    per_khz = 1000 // _BAND_HZ
    levels = [
        logmel.decibel(mean[:, low * per_khz : high * per_khz].sum(axis=-1) / total)
        for low, high in _LEVELS
    ]
    rates = np.full(num_rows, rate / 1000)
    values = np.stack([rates, bandwidth, cliff, *levels], axis=-1)
    return values.astype(np.float32), heard[::_FRAMES]


def _spectra(
    samples: np.ndarray, present: np.ndarray, rate: int, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean power of each band in 32 ms, twice a row, and where sound is.

    Where the file lacks some of the 32 ms, power is the nearest whole spectrum's: a
    beginning is no click.
    """
    size = round(0.032 * rate)
    starts = np.arange(_FRAMES * num_rows) * rate / (_FRAMES * schema.FPS)
    starts = np.round(starts).astype(int)
    padded = np.pad(samples, (size // 2, size))
    bins = logmel.spectrum(
        np.lib.stride_tricks.sliding_window_view(padded, size)[starts]
    )
    sums = np.pad(np.cumsum(np.pad(present, (size // 2, size))), (1, 0))
    share = (sums[starts + size] - sums[starts]) / size
    hertz = np.fft.rfftfreq(size, 1 / rate)
    count = np.searchsorted(hertz, min(rate / 2, _NUM_BANDS * _BAND_HZ))
    edges = np.searchsorted(hertz[:count], np.arange(_NUM_BANDS + 1) * _BAND_HZ)
    sums = np.pad(
        np.cumsum(bins[:, :count], axis=-1, dtype=np.float64), ((0, 0), (1, 0))
    )
    power = np.diff(sums[:, edges], axis=-1) / np.maximum(np.diff(edges), 1)
    return np.maximum(power, 0)[_nearest(share == 1)], share >= 0.5


def _nearest(known: Bool[np.ndarray, " T"]) -> np.ndarray:
    """Returns the nearest place that is known; each place itself if none is."""
    if not known.any():
        return np.arange(len(known))
    return scipy.ndimage.distance_transform_edt(
        ~known, return_distances=False, return_indices=True
    )[0]


def _reach(level: Float[np.ndarray, "T F"]) -> Float[np.ndarray, "2 T"]:
    """Returns where the sound ends, kHz, and its sharpest fall in level, dB.

    It ends at the highest edge nearly as sharp as the sharpest: two bands that stand
    at least `_CLIFF` above all that lies more than 500 Hz higher. Without such an edge
    it ends where the level meets the floor.
    """
    floor = np.maximum(_FLOOR, level.max(axis=-1, keepdims=True) - _BELOW_PEAK)
    level = np.maximum(level, floor)
    above = np.maximum.accumulate(level[:, ::-1], axis=-1)[:, ::-1]
    below = np.minimum(level[:, :-1], level[:, 1:])
    edges = np.arange(_FIRST, _NUM_BANDS - 1)  # each the number of bands below it
    fall = below[:, edges - 2] - above[:, np.minimum(edges + 2, _NUM_BANDS - 1)]
    steepest = fall.max(axis=-1, keepdims=True)
    sharp = fall >= np.maximum(_CLIFF, 0.7 * steepest)
    edge = np.where(sharp, edges, 0).max(axis=-1)
    audible = np.where(level > floor + 6, np.arange(1, _NUM_BANDS + 1), 0).max(axis=-1)
    ends = np.where(edge > 0, edge, audible) * _BAND_HZ / 1000
    return np.stack([ends, np.maximum(steepest[:, 0], 0)])
