"""Plants known flaws into a clip: pure functions of frames, audio, strength and seed.

The one thing to know: a strength runs from 0 (nothing is changed, the same array comes
back) to 1, and the constants below say what 1 means. Frames are RGB at 25 Hz, audio is
mono at `RATE`; any clip will do.
"""

import io
from fractions import Fraction

import av
import cv2
import numpy as np
from jaxtyping import Float, UInt8
from scipy import signal

from tqa_jax import schema

RATE = 16_000
FPS = 25
MAX_OFFSET = 12  # frames of audio-video offset
SNR_DB = (40.0, 0.0)  # of noise just above strength 0, and at 1
CUTOFF_HZ = (7000.0, 700.0)  # of the band limit, likewise; falls by equal ratios
MAX_CLIPPED = 0.4  # share of samples at the limit
MAX_BLUR = 0.010  # standard deviation of the blur in picture heights
QUANTISER = (20.0, 40.0)  # H.264 constant rate factor
MAX_FROZEN = 0.8  # share of the clip's frames that stand still
MAX_JITTER = 5  # frames that a picture comes too early or late
_FADE = 320  # samples, 20 ms: joins in swapped audio

Frames = UInt8[np.ndarray, "T H W 3"]
Audio = Float[np.ndarray, " N"]


def _check(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise schema.InputError(f"flaw strength is {strength}; expected 0 to 1")


def offset_frames(strength: float, seed: int) -> int:
    """Returns the offset of a strength in frames: positive makes the audio late."""
    _check(strength)
    sign = 1 if np.random.default_rng([seed, 11]).uniform() < 0.5 else -1
    return sign * round(MAX_OFFSET * strength)


def offset(audio: Audio, strength: float, seed: int) -> Audio:
    """Shifts the audio by `offset_frames`; the length stays.

    What leaves at one end comes in at the other, so that there is speech throughout.
    """
    shift = offset_frames(strength, seed) * RATE // FPS
    return np.roll(audio, shift) if shift else audio


def noise(audio: Audio, strength: float, seed: int) -> Audio:
    """Adds pink-ish noise at a signal-to-noise ratio within `SNR_DB`.

    The ratio is of mean powers over the whole clip. Silence stays as it is.
    """
    _check(strength)
    power = float(np.mean(np.square(audio, dtype=np.float64)))
    if strength == 0 or power == 0:
        return audio
    white = np.random.default_rng([seed, 12]).standard_normal(len(audio))
    hiss = signal.lfilter([1.0], [1.0, -0.7], white)
    snr = SNR_DB[0] + (SNR_DB[1] - SNR_DB[0]) * strength
    hiss *= np.sqrt(power * 10 ** (-snr / 10) / np.mean(hiss**2))
    return _limited(audio + hiss)


def cutoff_hz(strength: float) -> float:
    """Returns the cut-off of the band limit at a strength above 0."""
    return CUTOFF_HZ[0] * (CUTOFF_HZ[1] / CUTOFF_HZ[0]) ** strength


def band_limit(audio: Audio, strength: float) -> Audio:
    """Removes what is above `cutoff_hz` (Butterworth, order 8, no delay)."""
    _check(strength)
    if strength == 0:
        return audio
    sections = signal.butter(8, cutoff_hz(strength), fs=RATE, output="sos")
    return signal.sosfiltfilt(sections, audio).astype(np.float32)


def clipping(audio: Audio, strength: float) -> Audio:
    """Cuts peaks so that a share `MAX_CLIPPED * strength` of samples is at the limit.

    The loudness (root mean square) stays, unless samples would leave -1..1.
    """
    _check(strength)
    if strength == 0 or not np.any(audio):
        return audio
    limit = np.quantile(np.abs(audio), 1 - MAX_CLIPPED * strength)
    cut = np.clip(audio, -limit, limit)
    gain = np.sqrt(np.mean(np.square(audio)) / np.mean(np.square(cut)))
    return (cut * min(gain, 1 / limit)).astype(np.float32)


def swap(audio: Audio, other: Audio, strength: float, seed: int) -> Audio:
    """Replaces one stretch of the clip, its share equal to `strength`, by `other`.

    Args:
        audio: the clip's speech.
        other: foreign speech, at least as long.
        strength: share of the clip that is replaced.
        seed: where the stretch lies.

    Raises:
        schema.InputError: when `other` is too short.
    """
    _check(strength)
    if len(other) < len(audio):
        raise schema.InputError(
            f"speech to swap in has {len(other)} samples; expected {len(audio)} or more"
        )
    length = round(strength * len(audio))
    if length == 0:
        return audio
    start = int(np.random.default_rng([seed, 13]).integers(len(audio) - length + 1))
    at = np.arange(len(audio))
    inside = np.minimum(at - start, start + length - 1 - at) + 1
    share = np.clip(inside / _FADE, 0, 1)
    return ((1 - share) * audio + share * other[: len(audio)]).astype(np.float32)


def blur(frames: Frames, strength: float) -> Frames:
    """Blurs with a Gaussian of up to `MAX_BLUR` picture heights."""
    _check(strength)
    if strength == 0:
        return frames
    sigma = MAX_BLUR * strength * frames.shape[1]
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def compression(frames: Frames, strength: float) -> Frames:
    """Encodes with H.264 at a quantiser within `QUANTISER` and decodes again.

    Raises:
        schema.InputError: for pictures of odd width or height, which 4:2:0 lacks.
    """
    _check(strength)
    if strength == 0:
        return frames
    count, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise schema.InputError(
            f"pictures are {width}x{height}; expected even width and height"
        )
    quantiser = QUANTISER[0] + (QUANTISER[1] - QUANTISER[0]) * strength
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        options = {"crf": f"{quantiser:.2f}", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for index, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(decoded) == count, (len(decoded), count)
    return np.stack(decoded)


def freeze(frames: Frames, strength: float, seed: int) -> Frames:
    """Holds pictures still in a few stretches, `MAX_FROZEN * strength` of the clip."""
    _check(strength)
    count = len(frames)
    frozen = round(MAX_FROZEN * strength * (count - 1))
    if frozen == 0:
        return frames
    rng = np.random.default_rng([seed, 14])
    parts = min(int(rng.integers(1, 4)), frozen, count - frozen)
    # Stretches of equal length at random places: draw the moving frames between them.
    lengths = np.full(parts, frozen // parts)
    lengths[: frozen % parts] += 1
    moving = np.sort(rng.choice(count - frozen, parts, replace=False))
    source = []
    for index in range(count - frozen):
        source.append(index)
        for part in np.flatnonzero(moving == index):
            source += [None] * int(lengths[part])
    last, picked = 0, []
    for at, index in enumerate(source):
        last = last if index is None else at
        picked.append(last)
    return frames[picked]


def jitter(frames: Frames, strength: float, seed: int) -> Frames:
    """Shows a share `strength` of the pictures up to `MAX_JITTER` frames off."""
    _check(strength)
    if strength == 0:
        return frames
    rng = np.random.default_rng([seed, 15])
    count = len(frames)
    off = rng.integers(1, MAX_JITTER + 1, count) * rng.choice([-1, 1], count)
    off[rng.uniform(size=count) >= strength] = 0
    return frames[np.clip(np.arange(count) + off, 0, count - 1)]


def _limited(audio: np.ndarray) -> Audio:
    """Scales so that no sample leaves -1..1, which would clip."""
    return (audio / max(1.0, float(np.max(np.abs(audio))))).astype(np.float32)
