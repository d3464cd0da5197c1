"""Plants known flaws into a clip: pure functions of frames, audio, strength and seed.

The one thing to know: a strength runs from 0 (nothing is changed, the same array comes
back) to 1, and the constants below say what 1 means. Frames are RGB at 25 Hz, audio is
mono at `RATE`; any clip will do.

Arrays of frames hold a whole clip. What streams instead: `blur` works on any number of
frames, `compressed` takes and gives them one by one, and `freeze_picks` and
`jitter_picks` only say which frame to show.
"""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
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
_FADE = 320  # samples, 20 ms: joins in swapped and in shifted audio

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

    What leaves at one end comes in at the other, so that there is speech throughout;
    where the ends meet, the sound fades out and in, without a click.
    """
    shift = offset_frames(strength, seed) * RATE // FPS
    if not shift:
        return audio
    moved = np.roll(audio, shift)
    away = np.abs(np.arange(len(audio)) + 0.5 - shift % len(audio))
    near = away < _FADE
    moved[near] *= (away[near] / _FADE).astype(audio.dtype)
    return moved


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

    Samples of digital silence (exactly 0) do not count. The loudness (root mean square)
    stays, unless samples would leave -1..1.
    """
    _check(strength)
    heard = audio[audio != 0]
    if strength == 0 or not len(heard):
        return audio
    limit = np.quantile(np.abs(heard), 1 - MAX_CLIPPED * strength)
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
    decoded = np.stack(list(compressed(frames, strength)))
    assert len(decoded) == len(frames), (len(decoded), len(frames))
    return decoded


def compressed(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], strength: float, *, x264: str = ""
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yields what `compression` gives, with the encoded clip in memory, not its frames.

    Args:
        frames: one after the other.
        strength: above 0.
        x264: further settings, as in `encode.SAME_BYTES`; without these, widths that
            are no multiple of 256 do not give the same bytes twice.

    Raises:
        schema.InputError: for pictures of odd width or height, which 4:2:0 lacks.
    """
    _check(strength)
    quantiser = QUANTISER[0] + (QUANTISER[1] - QUANTISER[0]) * strength
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        options = {"crf": f"{quantiser:.2f}", "preset": "veryfast", "threads": "1"}
        options |= {"x264-params": x264} if x264 else {}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for index, pixels in enumerate(frames):
            if index == 0:
                height, width = pixels.shape[:2]
                if height % 2 or width % 2:
                    raise schema.InputError(
                        f"pictures are {width}x{height}; expected even width and height"
                    )
                stream.width, stream.height = width, height
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        for picture in container.decode(video=0):
            yield picture.to_ndarray(format="rgb24")


def freeze(frames: Frames, strength: float, seed: int) -> Frames:
    """Holds pictures still in a few stretches, `MAX_FROZEN * strength` of the clip."""
    picks = freeze_picks(len(frames), strength, seed)
    return frames if _in_order(picks) else frames[picks]


def freeze_picks(count: int, strength: float, seed: int) -> Int[np.ndarray, " T"]:
    """Returns which of `count` frames a frozen clip shows at each instant."""
    _check(strength)
    frozen = round(MAX_FROZEN * strength * (count - 1))
    if frozen == 0:
        return np.arange(count)
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
    return np.array(picked)


def jitter(frames: Frames, strength: float, seed: int) -> Frames:
    """Shows a share `strength` of the pictures up to `MAX_JITTER` frames off."""
    picks = jitter_picks(len(frames), strength, seed)
    return frames if _in_order(picks) else frames[picks]


def jitter_picks(count: int, strength: float, seed: int) -> Int[np.ndarray, " T"]:
    """Returns which of `count` frames a jittering clip shows at each instant."""
    _check(strength)
    if strength == 0:
        return np.arange(count)
    rng = np.random.default_rng([seed, 15])
    off = rng.integers(1, MAX_JITTER + 1, count) * rng.choice([-1, 1], count)
    off[rng.uniform(size=count) >= strength] = 0
    return np.clip(np.arange(count) + off, 0, count - 1)


def _in_order(picks: Int[np.ndarray, " T"]) -> bool:
    return np.array_equal(picks, np.arange(len(picks)))


def _limited(audio: np.ndarray) -> Audio:
    """Scales so that no sample leaves -1..1, which would clip."""
    return (audio / max(1.0, float(np.max(np.abs(audio))))).astype(np.float32)
