"""Collects the sound of a clip: 16 kHz, mono, placed by its time stamps.

Sample `n` is the instant n/16000 s after the first picture. Sound that starts late or
has gaps is missing there, never moved together.
"""

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Bool, Float

from tqa_jax import schema

SAMPLE_RATE = 16_000

_CANCELLED = 0.1  # of a channel's power: speech in opposite phase loses more, 10 dB
_QUIET = 1e-3  # of the power of the loudest second, 30 dB below
_MAX_JUMP = 1 / 25  # seconds; smaller deviations are time stamp noise


class Collector:
    """Collects mono sound at one rate, with the time stamps of its pieces."""

    def __init__(self, max_seconds: float, rate: int | None = SAMPLE_RATE) -> None:
        """Starts empty; sound beyond `max_seconds` is dropped.

        Args:
            max_seconds: most sound that is kept.
            rate: samples a second; None takes that of the first frame.
        """
        self.rate = rate
        self.pieces: list[tuple[Fraction | None, np.ndarray]] = []
        self.notes: list[str] = []
        self._channels: list[tuple[Fraction | None, np.ndarray]] = []
        self._seconds, self._room = max_seconds, None
        self._kind = self._resampler = None

    def add(self, frame: av.AudioFrame) -> None:
        """Adds a decoded frame."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind:  # a few streams change their format midway
            self.flush()
            self._kind = kind
            if self._room is None:
                self.rate = self.rate or frame.sample_rate
                self._room = int(self._seconds * self.rate)
            self._resampler = av.AudioResampler(format="flt", rate=self.rate)
        self._keep(self._resampler.resample(frame))

    def flush(self) -> None:
        """Adds what the resampler still holds."""
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))
            self._resampler = None
        pieces = [samples for _, samples in self._channels]
        channel = _cancelled(pieces, self.rate) if pieces else None
        for stamp, samples in self._channels:
            # A plain mean: FFmpeg's own mix of two channels is 3 dB louder.
            mono = samples.mean(axis=-1) if channel is None else samples[:, channel]
            self.pieces.append((stamp, mono))
        self._channels = []
        if channel is not None:
            note = f"the channels cancel out: number {channel + 1} is taken alone"
            self.notes += [note] if note not in self.notes else []

    def _keep(self, frames) -> None:
        for frame in frames:
            if self._room > 0:
                stamp = None if frame.pts is None else frame.pts * frame.time_base
                # Packed samples: PyAV reads past the planes of 8 channels and crashes.
                samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
                self._channels.append((stamp, samples))
                self._room -= frame.samples


def _cancelled(pieces: Sequence[Float[np.ndarray, "N C"]], rate: int) -> int | None:
    """Returns the loudest channel where the mean of all would lose what is in it.

    It does if it loses a second that is no quieter than `_QUIET` of the loudest.
    """
    samples = np.concatenate(pieces)
    starts = np.arange(0, len(samples), rate)
    if not len(starts):
        return None
    powers = np.add.reduceat(np.square(samples, dtype=np.float64), starts)  # (S, C)
    mixed = np.add.reduceat(np.square(samples.mean(axis=-1), dtype=np.float64), starts)
    loudest = powers.max(axis=-1)
    audible = loudest > _QUIET * loudest.max()
    # The least that is left were the other channels silent.
    alone = loudest / samples.shape[1] ** 2
    lost = audible & (mixed < _CANCELLED * alone)
    return int(np.argmax(powers.sum(axis=0))) if lost.any() else None


def place(
    pieces: Sequence[tuple[Fraction | None, Float[np.ndarray, " N"]]],
    origin: Fraction,
    rate: int = SAMPLE_RATE,
) -> list[tuple[int, Float[np.ndarray, " N"]]]:
    """Joins pieces whose time stamps follow each other and places the others.

    Args:
        pieces: time stamp in seconds, None to follow the piece before; and samples.
        origin: the time stamp of the clip's instant 0.
        rate: samples a second.

    Returns:
        Chunks, each with its first sample on the clip's time axis.
    """
    chunks: list[tuple[int, list[np.ndarray]]] = []
    end = None
    for stamp, samples in pieces:
        start = None if stamp is None else round((stamp - origin) * rate)
        if end is None:
            start = start or 0
        if end is None or (start is not None and abs(start - end) > _MAX_JUMP * rate):
            chunks.append((start, []))
            end = start
        chunks[-1][1].append(samples)
        end += len(samples)
    return [(start, np.concatenate(parts)) for start, parts in chunks]


def overlapping(chunks: Sequence[tuple[int, Float[np.ndarray, " N"]]]) -> int:
    """Counts the samples that `track` lays over others."""
    over, end = 0, None
    for start, chunk in sorted(chunks, key=lambda chunk: chunk[0]):
        last = start + len(chunk)
        over += 0 if end is None else max(0, min(end, last) - start)
        end = last if end is None else max(end, last)
    return over


def track(
    chunks: Sequence[tuple[int, Float[np.ndarray, " N"]]],
    num_rows: int,
    rate: int = SAMPLE_RATE,
) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Lays chunks on the clip's time axis.

    Args:
        chunks: from `place`.
        num_rows: rows of the clip.
        rate: samples a second.

    Returns:
        Samples of 40 ms a row, full scale 1, 0 where the file has no sound; and a mask.
    """
    length = round(num_rows * rate / schema.FPS)
    samples = np.zeros(length, np.float32)
    present = np.zeros(length, bool)
    for start, chunk in chunks:
        first = max(0, -start)
        piece = chunk[first : length - start if start < length else 0]
        at = slice(start + first, start + first + len(piece))
        samples[at], present[at] = piece, True
    # Lossy codecs overshoot full scale a little; a broken float stream by far more.
    samples = np.clip(np.nan_to_num(samples, nan=0.0), -4.0, 4.0)
    return samples, present


def heard(present: Bool[np.ndarray, " N"], num_rows: int) -> Bool[np.ndarray, " T"]:
    """Returns True where at least half of a row's 40 ms, centred, has sound.

    Args:
        present: from `track`.
        num_rows: rows of the clip.
    """
    span = round(SAMPLE_RATE / schema.FPS)
    padded = np.pad(present, (span // 2, span - span // 2))
    return padded[: num_rows * span].reshape(num_rows, span).mean(axis=-1) >= 0.5
