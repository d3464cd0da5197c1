"""Flaws of the sound: how each is planted, and how it is measured afterwards.

Each has a physical measure that is known beforehand and must come out of the finished
copy again.
"""

import io

import av
import numpy as np
from scipy import signal

from extract import sound
from extract.backends import logmel
from extract.degrading import FRAME, RATE, Audio, Flaw, Scene

MAX_OFFSET = 12  # frames of audio-video offset
SNR_DB = (40.0, 0.0)  # of noise just above strength 0, and at 1
CUTOFF_HZ = (7000.0, 700.0)  # of the band limit, likewise; falls by equal ratios
MAX_CLIPPED = 0.4  # share of samples at the limit
BIT_RATE = (24_000, 6_000)  # of Opus just above strength 0, and at 1
BANDS = (80, 24)  # of the mel spectrogram that speech is made from again, likewise
_FADE = 320  # samples, 20 ms: joins in swapped and in shifted audio
_VOCODED, _VOCODER_HOP, _VOCODER_ROUNDS = 512, 128, 12
_REFERENCE = 1e-3  # of full scale; swapped sound differs by more almost everywhere

FLAWS: dict[str, Flaw] = {}


def limited(samples: np.ndarray) -> Audio:
    """Scales sound so that no sample leaves -1..1, which would clip."""
    return (samples / max(1.0, float(np.max(np.abs(samples))))).astype(np.float32)


def offset_frames(strength: float, seed: int) -> int:
    """Returns the offset of a strength in frames: positive makes the audio late."""
    sign = 1 if np.random.default_rng([seed, 11]).uniform() < 0.5 else -1
    return sign * round(MAX_OFFSET * strength)


def _offset(audio: Audio, strength: float, scene: Scene) -> Audio:
    """Shifts the audio by `offset_frames`; the length stays.

    What leaves at one end comes in at the other, so that there is speech throughout;
    where the ends meet, the sound fades out and in, without a click.
    """
    shift = offset_frames(strength, scene.seed) * FRAME
    moved = np.roll(audio, shift)
    away = np.abs(np.arange(len(audio)) + 0.5 - shift % len(audio))
    near = away < _FADE
    moved[near] *= (away[near] / _FADE).astype(audio.dtype)
    return moved


def _measure_offset(before, after, strength, scene):
    lags = signal.correlation_lags(len(after), len(before))
    best = lags[np.argmax(signal.correlate(after, before))]
    planted = offset_frames(strength, scene.seed)
    return planted, best / FRAME, bool(abs(best - planted * FRAME) <= RATE // 1000)


FLAWS["offset"] = Flaw(
    "sound",
    f"audio early or late by {MAX_OFFSET} frames x strength",
    "frames the sound is late",
    {"lip_sync": 0.95, "cross_modal": 0.40, "overall": 0.45},
    _offset,
    _measure_offset,
)


def _swap(audio: Audio, strength: float, scene: Scene) -> Audio:
    """Replaces one stretch of the clip, its share equal to `strength`."""
    length = round(strength * len(audio))
    rng = np.random.default_rng([scene.seed, 13])
    start = int(rng.integers(len(audio) - length + 1))
    at = np.arange(len(audio))
    inside = np.minimum(at - start, start + length - 1 - at) + 1
    share = np.clip(inside / _FADE, 0, 1)
    return ((1 - share) * audio + share * scene.other).astype(np.float32)


def _measure_swap(before, after, strength, scene):
    foreign = np.flatnonzero(np.abs(after - before) > _REFERENCE)
    measured = (np.ptp(foreign) + 1) / len(before) if len(foreign) else 0.0
    # Where both are silent, they do not differ.
    return strength, measured, bool(abs(measured - strength) < 0.05)


FLAWS["swap"] = Flaw(
    "sound",
    "share of the clip whose sound is replaced by another clip's, as loud",
    "share of foreign sound",
    {"lip_sync": 0.80, "cross_modal": 0.85, "overall": 0.45},
    _swap,
    _measure_swap,
)


def _snr(strength: float) -> float:
    return SNR_DB[0] + (SNR_DB[1] - SNR_DB[0]) * strength


def _noise(audio: Audio, strength: float, scene: Scene) -> Audio:
    """Adds pink-ish noise; the ratio is of mean powers over the whole clip."""
    power = float(np.mean(np.square(audio, dtype=np.float64)))
    white = np.random.default_rng([scene.seed, 12]).standard_normal(len(audio))
    hiss = signal.lfilter([1.0], [1.0, -0.7], white)
    hiss *= np.sqrt(power * 10 ** (-_snr(strength) / 10) / np.mean(hiss**2))
    return limited(audio + hiss)


def _measure_noise(before, after, strength, scene):
    # What is not proportional to the signal is noise, however the sum was scaled.
    share = np.dot(after, before) / np.dot(before, before)
    rest = np.sum((after - share * before) ** 2, dtype=np.float64)
    measured = 10 * np.log10(np.sum((share * before) ** 2, dtype=np.float64) / rest)
    planted = _snr(strength)
    return planted, measured, bool(abs(measured - planted) < 1)


FLAWS["noise"] = Flaw(
    "sound",
    "signal-to-noise ratio from {} dB down to {} dB".format(*SNR_DB),
    "dB signal to noise",
    {"audio_quality": 0.85, "overall": 0.45},
    _noise,
    _measure_noise,
)


def _cutoff_hz(strength: float) -> float:
    return CUTOFF_HZ[0] * (CUTOFF_HZ[1] / CUTOFF_HZ[0]) ** strength


def _band_limit(audio: Audio, strength: float, scene: Scene) -> Audio:
    """Removes what is above the cut-off (Butterworth, order 8, no delay)."""
    sections = signal.butter(8, _cutoff_hz(strength), fs=RATE, output="sos")
    return signal.sosfiltfilt(sections, audio).astype(np.float32)


def _measure_band_limit(before, after, strength, scene):
    options = {"fs": RATE, "nperseg": 1024}
    at, both = signal.csd(before, after, **options)
    alone = signal.welch(before, **options)[1]
    gain = np.abs(both) / np.maximum(alone, 1e-30)
    # Forwards and backwards, the filter takes half of the amplitude at its cut-off.
    below = np.flatnonzero((gain < 0.5) & (at > 300))
    measured = float(at[below[0]]) if len(below) else np.nan
    planted = _cutoff_hz(strength)
    return planted, measured, bool(abs(measured / planted - 1) < 0.1)


FLAWS["band_limit"] = Flaw(
    "sound",
    "low-pass from {} Hz down to {} Hz".format(*CUTOFF_HZ),
    "Hz cut-off",
    {"audio_quality": 0.75, "overall": 0.35},
    _band_limit,
    _measure_band_limit,
)


def _clipping(audio: Audio, strength: float, scene: Scene) -> Audio:
    """Cuts peaks so that a share `MAX_CLIPPED * strength` of samples is at the limit.

    Samples of digital silence (exactly 0) do not count. The loudness (root mean square)
    stays, unless samples would leave -1..1.
    """
    limit = np.quantile(np.abs(audio[audio != 0]), 1 - MAX_CLIPPED * strength)
    cut = np.clip(audio, -limit, limit)
    gain = np.sqrt(np.mean(np.square(audio)) / np.mean(np.square(cut)))
    return (cut * min(gain, 1 / limit)).astype(np.float32)


def _measure_clipping(before, after, strength, scene):
    at_limit = np.abs(after) >= np.max(np.abs(after)) * (1 - 1e-3)
    measured = at_limit.sum() / np.count_nonzero(before)
    planted = MAX_CLIPPED * strength
    return planted, measured, bool(abs(measured - planted) < 0.01)


FLAWS["clipping"] = Flaw(
    "sound",
    f"{MAX_CLIPPED} x strength of the samples cut",
    "share of samples at the limit",
    {"audio_quality": 0.70, "overall": 0.35},
    _clipping,
    _measure_clipping,
)


def _bit_rate(strength: float) -> int:
    return round(BIT_RATE[0] * (BIT_RATE[1] / BIT_RATE[0]) ** strength)


def coded(audio: Audio, codec: str, container: str, bit_rate: int) -> Audio:
    """Encodes and decodes sound again, and lays it where it was."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as written:
        stream = written.add_stream(codec, rate=RATE, layout="mono")
        stream.bit_rate = bit_rate
        piece = av.AudioFrame.from_ndarray(
            np.round(audio * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        piece.sample_rate = RATE
        written.mux(stream.encode(piece))
        written.mux(stream.encode(None))
    file.seek(0)
    collected = sound.Collector(2 * len(audio) / RATE)
    with av.open(file) as read:
        for piece in read.decode(audio=0):
            collected.add(piece)
        collected.flush()
    decoded = np.concatenate([samples for _, samples in collected.pieces])
    lags = signal.correlation_lags(len(decoded), len(audio))
    late = lags[np.argmax(signal.correlate(decoded, audio))]
    start = max(late, 0)
    decoded = np.pad(decoded, (max(-late, 0), len(audio)))[start:]
    return limited(decoded[: len(audio)])


def _codec(audio: Audio, strength: float, scene: Scene) -> Audio:
    return coded(audio, "libopus", "ogg", _bit_rate(strength))


def spectral_distance(before: Audio, after: Audio) -> float:
    """Root mean square of the difference of log spectra where there is speech, dB."""
    spectra = [
        np.abs(signal.stft(samples, RATE, nperseg=512)[2])
        for samples in (before, after)
    ]
    loud = spectra[0] > 0.01 * spectra[0].max()
    ratio = np.log10(np.maximum(spectra[1], 1e-6) / np.maximum(spectra[0], 1e-6))
    return float(20 * np.sqrt(np.mean(ratio[loud] ** 2)))


def _measure_codec(before, after, strength, scene):
    return _bit_rate(strength), spectral_distance(before, after), None


FLAWS["codec"] = Flaw(
    "sound",
    "Opus at {} down to {} bit/s".format(*BIT_RATE),
    "bit/s; measured: dB distance of log spectra",
    {"audio_quality": 0.60, "overall": 0.25},
    _codec,
    _measure_codec,
)


def _bands(strength: float) -> int:
    return round(BANDS[0] * (BANDS[1] / BANDS[0]) ** strength)


def _vocoder(audio: Audio, strength: float, scene: Scene) -> Audio:
    """Makes the sound again from a mel spectrogram (Griffin and Lim 1984).

    As neural vocoders do when they fail: phases do not fit, fine structure is lost.
    """
    filters = logmel.mel_filters(_bands(strength), _VOCODED)
    filters = filters / np.maximum(filters.sum(axis=1, keepdims=True), 1e-12)
    options = {"fs": RATE, "nperseg": _VOCODED, "noverlap": _VOCODED - _VOCODER_HOP}
    size = np.abs(signal.stft(audio, **options)[2])
    back = filters / np.maximum(filters.sum(axis=0), 1e-6)
    size = back.T @ (filters @ size)
    rng = np.random.default_rng([scene.seed, 18])
    phase = np.exp(2j * np.pi * rng.uniform(size=size.shape))
    for _ in range(_VOCODER_ROUNDS):
        made = signal.istft(size * phase, **options)[1]
        phase = np.exp(1j * np.angle(signal.stft(made, **options)[2]))
        phase = phase[:, : size.shape[1]]
    made = signal.istft(size * phase, **options)[1]
    made = np.pad(made, (0, len(audio)))[: len(audio)]
    power, wanted = np.mean(made**2), np.mean(np.square(audio, dtype=np.float64))
    return limited(made * np.sqrt(wanted / max(power, 1e-12)))


def _measure_vocoder(before, after, strength, scene):
    return _bands(strength), spectral_distance(before, after), None


FLAWS["vocoder"] = Flaw(
    "sound",
    "speech made again from {} down to {} mel bands".format(*BANDS),
    "mel bands; measured: dB distance of log spectra",
    {"audio_quality": 0.65, "overall": 0.30},
    _vocoder,
    _measure_vocoder,
)
