"""Synthetic speech and the articulation that makes it, in NumPy.

A source-filter synthesiser speaks nonsense words: a pitch contour drives a glottal
source, formant resonators shape vowels, noise bursts make consonants. Sound and mouth
come from the same phone targets, so `Speech.opening` is the true mouth of
`Speech.audio`, row for row at 25 Hz.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from extract.degrading import FPS, RATE

_HOP = 128  # samples between spectral frames, 8 ms
_WINDOW = 512
_FFT = 1024


class _Phone(NamedTuple):
    """Targets of one speech sound.

    `formants` in Hz; `opening` 0..1 of the jaw; `spread` -1 (rounded) to 1 (wide);
    `voice` and `noise` are amplitudes; `band` is centre and width of the noise, Hz.
    """

    formants: tuple[float, float, float]
    opening: float
    spread: float
    voice: float
    noise: float = 0.0
    band: tuple[float, float] = (3000.0, 2000.0)


# Formants: Peterson and Barney (1952), men; mouth shapes follow the vowel diagram.
_VOWELS = {
    "a": _Phone((730, 1090, 2440), 1.0, 0.1, 1.0),
    "ae": _Phone((660, 1720, 2410), 0.85, 0.4, 0.95),
    "e": _Phone((530, 1840, 2480), 0.6, 0.6, 0.8),
    "er": _Phone((490, 1350, 1690), 0.45, -0.1, 0.7),
    "i": _Phone((270, 2290, 3010), 0.3, 1.0, 0.6),
    "o": _Phone((570, 840, 2410), 0.65, -0.7, 0.8),
    "u": _Phone((300, 870, 2240), 0.3, -1.0, 0.55),
}
_CONSONANTS = {
    "m": _Phone((250, 1000, 2200), 0.0, 0.0, 0.22),
    "b": _Phone((250, 900, 2200), 0.0, 0.0, 0.08, 0.05, (800.0, 800.0)),
    "p": _Phone((300, 900, 2200), 0.0, 0.0, 0.0, 0.14, (1000.0, 1200.0)),
    "f": _Phone((350, 1100, 2400), 0.08, 0.1, 0.0, 0.10, (5500.0, 4000.0)),
    "s": _Phone((350, 1600, 2600), 0.12, 0.5, 0.0, 0.22, (6000.0, 1800.0)),
    "sh": _Phone((350, 1600, 2500), 0.15, -0.6, 0.0, 0.22, (3200.0, 1500.0)),
    "t": _Phone((350, 1700, 2600), 0.15, 0.2, 0.0, 0.18, (4500.0, 2500.0)),
    "k": _Phone((350, 1500, 2300), 0.2, 0.0, 0.0, 0.16, (2200.0, 1200.0)),
    "l": _Phone((360, 1300, 2700), 0.25, 0.2, 0.35),
    "n": _Phone((280, 1500, 2500), 0.18, 0.1, 0.28),
}
_PAUSE = _Phone((450, 1400, 2450), 0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Voice:
    """How a speaker sounds.

    Attributes:
        pitch: mean fundamental frequency, Hz.
        formant_scale: factor on all formants; above 1 for a short vocal tract.
        rate: syllables a second in calm speech.
        breath: amplitude of breath noise beside the voiced source, 0..1.
        tilt: loss of the source toward high frequencies, dB an octave above 500 Hz.
    """

    pitch: float
    formant_scale: float
    rate: float
    breath: float
    tilt: float


@dataclasses.dataclass(frozen=True)
class Speech:
    """A spoken stretch with the mouth that spoke it.

    Attributes:
        audio: samples at `RATE`, within -1..1.
        opening: jaw opening at 25 Hz, 0 (closed) to 1; row t is the instant t/25 s.
        spread: lip shape at 25 Hz, -1 (rounded) to 1 (spread).
    """

    audio: Float[np.ndarray, " N"]
    opening: Float[np.ndarray, " T"]
    spread: Float[np.ndarray, " T"]


def draw_voice(seed: int) -> Voice:
    """Draws a speaker: low, middle or high register with its vocal tract length."""
    rng = np.random.default_rng([seed, 1])
    register = rng.uniform()
    return Voice(
        pitch=float(95.0 * 2.4**register * rng.uniform(0.93, 1.07)),
        formant_scale=float(0.92 + 0.26 * register + rng.uniform(-0.03, 0.03)),
        rate=float(rng.uniform(3.6, 4.8)),
        breath=float(rng.uniform(0.01, 0.08)),
        tilt=float(rng.uniform(3.0, 8.0)),
    )


def _draw_phones(
    rng: np.random.Generator, seconds: float, rate: float
) -> list[tuple[_Phone, float, float]]:
    """Draws (phone, duration in s, stress) until `seconds` are full."""
    vowels, consonants = list(_VOWELS.values()), list(_CONSONANTS.values())
    phones = [(_PAUSE, rng.uniform(0.08, 0.3), 1.0)]
    filled = phones[0][1]
    while filled < seconds:
        word: list[tuple[_Phone, float, float]] = []
        for _ in range(rng.integers(1, 4)):
            length = rng.uniform(0.75, 1.3) / rate
            stress = rng.uniform(0.6, 1.0)
            onset = consonants[rng.integers(len(consonants))]
            word.append((onset, 0.38 * length, stress))
            word.append((vowels[rng.integers(len(vowels))], 0.62 * length, stress))
        if rng.uniform() < 0.3:
            word.append((consonants[rng.integers(len(consonants))], 0.08, 0.8))
        if rng.uniform() < 0.35:
            word.append((_PAUSE, rng.uniform(0.12, 0.4), 1.0))
        phones += word
        filled += sum(duration for _, duration, _ in word)
    return phones


def _filter(source: Float[np.ndarray, " N"], response: np.ndarray) -> np.ndarray:
    """Applies one spectrum (S, F) per hop to `source` by overlap-add."""
    steps = len(response)
    padded = np.zeros((steps - 1) * _HOP + _WINDOW)
    padded[_WINDOW // 2 : _WINDOW // 2 + len(source)] = source
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    # A Hann window at hop 1/4 sums to 2.
    window = 0.5 * np.hanning(_WINDOW + 1)[:-1]
    shaped = np.fft.irfft(np.fft.rfft(frames * window, _FFT) * response, _FFT)
    out = np.zeros(len(padded) + _FFT)
    for step, frame in enumerate(shaped):
        out[step * _HOP : step * _HOP + _FFT] += frame
    return out[_WINDOW // 2 : _WINDOW // 2 + len(source)]


def synthesize(
    voice: Voice, *, seconds: float, arousal: float = 0.5, seed: int = 0
) -> Speech:
    """Speaks nonsense words; equal arguments give equal bits.

    Args:
        voice: the speaker.
        seconds: a whole number of video frames.
        arousal: 0 (calm: slow, flat, soft) to 1 (excited: fast, melodic, loud).
        seed: which words.
    """
    rng = np.random.default_rng([seed, 2])
    rate = voice.rate * (0.85 + 0.3 * arousal)
    phones = _draw_phones(rng, seconds, rate)
    frames = round(seconds * FPS)
    samples = frames * RATE // FPS
    steps = samples // _HOP + 1 + _WINDOW // _HOP

    # Step s is centred on sample s * _HOP: targets are sampled there, then smoothed
    # over about 60 ms, which is coarticulation.
    ends = np.cumsum([duration for _, duration, _ in phones])
    index = np.searchsorted(ends, np.arange(steps) * _HOP / RATE, side="right")
    index = np.minimum(index, len(phones) - 1)
    stress = np.array([stress for _, _, stress in phones])[index]

    def track(values: list[float], sigma_seconds: float) -> np.ndarray:
        sigma = sigma_seconds * RATE / _HOP
        return ndimage.gaussian_filter1d(
            np.array(values, np.float64)[index], sigma, axis=0, mode="nearest"
        )

    opening = track([p.opening * s for p, _, s in phones], 0.024)
    spread = track([p.spread for p, _, _ in phones], 0.035)
    formants = track([p.formants for p, _, _ in phones], 0.02) * voice.formant_scale
    voiced = track([p.voice for p, _, _ in phones], 0.012) * stress
    noisy = track([p.noise for p, _, _ in phones], 0.008)
    centre = track([p.band[0] for p, _, _ in phones], 0.004)
    width = track([p.band[1] for p, _, _ in phones], 0.004)
    voiced = voiced * (0.15 + 0.85 * opening)

    time = np.arange(samples) / RATE
    melody = ndimage.gaussian_filter1d(rng.standard_normal(steps), 0.12 * RATE / _HOP)
    melody = melody / melody.std()
    semitones = (
        (1.0 + 3.0 * arousal) * melody + 3.0 * arousal - 1.5 * np.linspace(0, 1, steps)
    )
    at = np.arange(steps) * _HOP
    pitch = voice.pitch * 2 ** (np.interp(np.arange(samples), at, semitones) / 12)
    pitch = pitch * (1 + 0.008 * np.sin(2 * np.pi * 5.2 * time))
    phase = np.cumsum(pitch) / RATE
    cycle = phase % 1.0
    # Derivative of a Rosenberg-like pulse: slow opening, abrupt closure.
    pulse = np.where(cycle < 0.6, np.sin(np.pi * cycle / 0.6), 0.0)
    pulse = np.diff(pulse**2 * (cycle < 0.58), prepend=0.0)
    pulse = pulse / pulse.std() + voice.breath * rng.standard_normal(samples)

    bins = np.fft.rfftfreq(_FFT, 1 / RATE)
    response = np.ones((steps, len(bins)), np.complex128)
    z = np.exp(-2j * np.pi * bins / RATE)
    for formant, bandwidth in zip(formants.T, (80.0, 100.0, 140.0), strict=True):
        # Two-pole resonators, 1 at 0 Hz.
        radius = np.exp(-np.pi * bandwidth / RATE)
        pole = radius * np.exp(2j * np.pi * formant / RATE)[:, None]
        gain = np.abs(1 - pole) ** 2
        response *= gain / ((1 - pole * z) * (1 - np.conj(pole) * z))
    octaves = np.log2(np.maximum(bins, 500.0) / 500.0)
    tilt = voice.tilt * (1.2 - 0.4 * arousal)
    response *= 10 ** (-tilt * octaves / 20)
    # The level follows `voiced` and not the height of the formant peaks.
    response /= np.sqrt(np.mean(np.abs(response) ** 2, axis=1, keepdims=True))
    shape = np.exp(-0.5 * ((bins - centre[:, None]) / (0.5 * width[:, None])) ** 2)
    shape /= np.sqrt(np.mean(shape**2, axis=1, keepdims=True))

    audio = _filter(pulse, response * voiced[:, None])
    audio += _filter(rng.standard_normal(samples), shape * noisy[:, None])
    level = 0.035 + 0.075 * arousal
    audio *= level / np.sqrt(np.mean(audio**2))
    audio += 10 ** (-62 / 20) * rng.standard_normal(samples)  # the room
    audio = np.tanh(audio)  # a soft limit: peaks stay below 1

    rows = np.arange(frames) * (RATE // FPS)
    size = 1.05 + 0.3 * arousal
    return Speech(
        audio=audio.astype(np.float32),
        opening=np.tanh(size * np.interp(rows, at, opening)).astype(np.float32),
        spread=np.interp(rows, at, spread).astype(np.float32),
    )
