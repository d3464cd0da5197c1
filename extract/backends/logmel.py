"""Audio backend `logmel`: log-mel spectrum, its change, and statistics of the signal.

The one thing to know: row `t` describes the 64 ms around t/25 s (noise floor and
signal-to-noise ratio: the second around it), so rows line up with the pictures.

References:
    Mel scale of Slaney's Auditory Toolbox (1998), area-normalised triangles, as
    `librosa.filters.mel` has by default.
"""

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.signal
from jaxtyping import Bool, Float, Int

from extract import backends, sound
from tqa_jax import schema

MODALITY = "audio"
VERSION = "1"
DEFAULT = True
NUM_MELS = 64

_HOP = round(sound.SAMPLE_RATE / schema.FPS)
_WINDOW = 1024  # samples, 64 ms
_FLOOR = 1e-10  # power; -100 dB
_LOUD = 1e-5  # power of a row, above which spectral shape means something: -50 dB
_BLOCK = 80  # samples, 5 ms: blocks whose loudness shows the noise floor
_FULL_SCALE = 0.985
_PITCH_HZ = (60.0, 400.0)

_STATISTICS = (
    "rms_db",
    "peak_db",
    "crest_db",
    "flatness_db",
    "centroid_khz",
    "bandwidth_khz",
    "rolloff85_khz",
    "rolloff99_khz",
    "high_band_db",
    "zero_crossings",
    "clipped_share",
    "clip_level_share",
    "flux_db",
    "periodicity",
    "noise_floor_db",
    "snr_db",
    "silent_share",
)
FEATURES = (
    tuple(f"mel{band:02d}_db" for band in range(NUM_MELS))
    + tuple(f"mel{band:02d}_delta" for band in range(NUM_MELS))
    + _STATISTICS
)
"""Names of the features, in the order of the last axis."""
DESCRIPTION = (
    "log-mel spectrum of 64 bands to 8 kHz, its slope, loudness, bandwidth, clipping, "
    "periodicity, noise floor and signal-to-noise ratio"
)


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    return backends.Measurer(
        lambda clip: features(clip.samples, clip.present, clip.rows)
    )


def features(
    samples: Float[np.ndarray, " N"], present: Bool[np.ndarray, " N"], num_rows: int
) -> tuple[Float[np.ndarray, "T D"], Bool[np.ndarray, " T"]]:
    """Measures the sound of each row.

    Args:
        samples: mono, 16 kHz, full scale 1; sample 0 is the instant of row 0.
        present: where the file has sound.
        num_rows: rows to give.

    Returns:
        Features, and a mask that is False where less than half of the row's window has
        sound. Silence that is in the file counts as sound.
    """
    windows = _centred(samples, num_rows, _WINDOW)
    mask = _centred(present.astype(np.float32), num_rows, _WINDOW).mean(axis=-1) >= 0.5
    power = spectrum(windows)
    mel = decibel(power @ mel_filters().T)
    # Where the file has no sound there is no step to silence and back.
    heard = _nearest(mask)
    delta = scipy.signal.savgol_filter(
        np.pad(mel[heard], ((2, 2), (0, 0)), mode="edge"), 5, 1, deriv=1, axis=0
    )[2:-2]
    statistics = np.concatenate(
        [
            _levels(windows, samples),
            _shape(power, windows, heard),
            _noise(samples, present, num_rows),
        ],
        axis=-1,
    )
    order = [_COMPUTED.index(name) for name in _STATISTICS]
    values = np.concatenate([mel, delta, statistics[:, order]], axis=-1)
    return values.astype(np.float32), mask


def spectrum(windows: Float[np.ndarray, "T N"]) -> Float[np.ndarray, "T F"]:
    """Returns the power of each Fourier bin, 1 for a full-scale sine in mid-bin."""
    shape = scipy.signal.get_window("hann", windows.shape[-1]).astype(np.float32)
    bins = scipy.fft.rfft(windows * shape, axis=-1)
    return np.abs(bins) ** 2 * (2 / shape.sum()) ** 2


def decibel(power: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns 10 log10 of power, at least -100 dB."""
    return 10 * np.log10(np.maximum(power, _FLOOR))


def mel_filters(
    num_bands: int = NUM_MELS, size: int = _WINDOW
) -> Float[np.ndarray, "M F"]:
    """Returns triangles on Slaney's mel scale from 0 to 8 kHz, of equal area in Hz."""
    top = _mel(np.array(sound.SAMPLE_RATE / 2))
    edges = _hertz(np.linspace(0, top, num_bands + 2))
    bins = np.fft.rfftfreq(size, 1 / sound.SAMPLE_RATE)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


_COMPUTED = (
    ("rms_db", "peak_db", "crest_db", "zero_crossings")
    + ("clipped_share", "clip_level_share")
    + ("flatness_db", "centroid_khz", "bandwidth_khz", "rolloff85_khz")
    + ("rolloff99_khz", "high_band_db", "flux_db", "periodicity")
    + ("noise_floor_db", "snr_db", "silent_share")
)


def _levels(windows: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Measures loudness and clipping in the time domain."""
    rms = decibel((windows**2).mean(axis=-1))
    size = np.abs(windows)
    peak = decibel(size.max(axis=-1) ** 2)
    # Clipping below full scale: many samples at the very loudest level of the clip.
    loudest = max(float(np.abs(samples).max(initial=0.0)), 1e-3)
    crossings = np.mean(windows[:, 1:] * windows[:, :-1] < 0, axis=-1)
    return np.stack(
        [
            rms,
            peak,
            peak - rms,
            crossings,
            (size >= _FULL_SCALE).mean(axis=-1),
            (size >= 0.98 * loudest).mean(axis=-1),
        ],
        axis=-1,
    )


def _shape(power: np.ndarray, windows: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Measures the form of the spectrum; smoothly 0 as a row falls silent."""
    kilohertz = np.fft.rfftfreq(windows.shape[-1], 1 / sound.SAMPLE_RATE) / 1000
    total = power.sum(axis=-1)
    loud = (total / (total + _LOUD))[:, None]
    share = power / np.maximum(total, _FLOOR)[:, None]
    centroid = share @ kilohertz
    bandwidth = np.sqrt(np.maximum(share @ kilohertz**2 - centroid**2, 0))
    cumulative = share.cumsum(axis=-1)
    rolloff = [
        kilohertz[np.minimum((cumulative < part).sum(axis=-1), len(kilohertz) - 1)]
        for part in (0.85, 0.99)
    ]
    flatness = decibel(power).mean(axis=-1) - decibel(power.mean(axis=-1))
    high = decibel(power[:, kilohertz >= 4].sum(axis=-1)) - decibel(total)
    spectrum_db = decibel(power[heard])
    flux = np.abs(np.diff(spectrum_db, axis=0, prepend=spectrum_db[:1])).mean(axis=-1)
    shape = np.stack([flatness, centroid, bandwidth, *rolloff, high], axis=-1) * loud
    return np.concatenate(
        [shape, flux[:, None], _periodicity(windows)[:, None] * loud], axis=-1
    )


def _periodicity(windows: np.ndarray) -> np.ndarray:
    """Returns the largest normalised autocorrelation at a voice's pitch, 0 to 1."""
    centred = windows - windows.mean(axis=-1, keepdims=True)
    size = centred.shape[-1]
    transform = scipy.fft.rfft(centred, 2 * size, axis=-1)
    correlation = scipy.fft.irfft(np.abs(transform) ** 2, axis=-1)[:, :size]
    # A lag leaves fewer products: undo that, so that a pure tone gives 1.
    correlation = correlation * (size / (size - np.arange(size)))
    low, high = (round(sound.SAMPLE_RATE / hertz) for hertz in reversed(_PITCH_HZ))
    peak = correlation[:, low : high + 1].max(axis=-1)
    return np.clip(peak / np.maximum(correlation[:, 0], _FLOOR), 0, 1)


def _noise(samples: np.ndarray, present: np.ndarray, num_rows: int) -> np.ndarray:
    """Measures the quiet and the loud 5 ms blocks of the second around each row."""
    count = len(samples) // _BLOCK
    loudness = decibel((samples[: count * _BLOCK].reshape(count, -1) ** 2).mean(-1))
    loudness = loudness[
        _nearest(present[: count * _BLOCK].reshape(count, -1).all(axis=-1))
    ]
    second = sound.SAMPLE_RATE // _BLOCK
    size = min(second, count)
    rank = {"size": size, "mode": "nearest"}
    floor = scipy.ndimage.percentile_filter(loudness, 10, **rank)
    top = scipy.ndimage.percentile_filter(loudness, 90, **rank)
    silent = scipy.ndimage.uniform_filter1d(
        (loudness < -60).astype(np.float32), size, mode="nearest"
    )
    at = np.minimum(np.arange(num_rows) * _HOP // _BLOCK, count - 1)
    return np.stack([floor, top - floor, silent], axis=-1)[at]


def _nearest(known: Bool[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Returns the nearest place that is known; each place itself when none is."""
    places = np.flatnonzero(known)
    if not len(places):
        return np.arange(len(known))
    middles = (places[1:] + places[:-1]) / 2
    return places[np.searchsorted(middles, np.arange(len(known)))]


def _centred(samples: np.ndarray, num_rows: int, size: int) -> np.ndarray:
    """Cuts one window a row, centred on the row's instant; 0 beyond the ends."""
    needed = (num_rows - 1) * _HOP + size
    padded = np.pad(samples, (size // 2, max(0, needed - len(samples))))
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::_HOP][:num_rows]


def _mel(hertz: np.ndarray) -> np.ndarray:
    linear = hertz * 3 / 200
    log = 15 + 27 * np.log(np.maximum(hertz, 1e-9) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, linear, log)


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def group(name: str) -> str:
    """Returns the group that a feature belongs to where groups are compared."""
    if name.startswith("mel"):
        if name.endswith("_delta"):
            return "change of the mel bands"
        low = int(name[3:5]) < 32
        return "mel bands below 1.7 kHz" if low else "mel bands above 1.7 kHz"
    if name in ("rms_db", "peak_db", "crest_db", "clipped_share", "clip_level_share"):
        return "level and clipping"
    noise = ("noise_floor_db", "snr_db", "silent_share", "periodicity")
    return "noise and pauses" if name in noise else "spectral shape"
