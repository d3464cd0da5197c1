"""Measures in a finished copy what was planted, by comparing it with its original.

The one thing to know: eight flaws have a physical measure that is known beforehand and
must come out again, within the tolerances below. For `compression` and `damping` what
can be measured is another quantity than what was set, and falls as strength rises: of
`damping` it is said whether there is an effect at all, of `compression` nothing.
"""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np
from jaxtyping import Float
from scipy import optimize, signal

from extract import decode, sound
from extract.degrading import damping, degrade_plan, flaws, planting
from extract.degrading.planting import Faces

_FRAME = flaws.RATE // flaws.FPS  # samples
_BLUR_PICTURES = 5  # that the width of the blur is fitted to
_STILL = 0.4  # of the original's change from picture to picture
_LEAST_EFFECT = 0.2  # of damping at strength 1, on what is measured
_MIN_MOVING = 0.2  # share of the original's pictures; else stillness says nothing
_NOISE = 0.1  # grey levels of change that are the codec's
_SMALL = 320  # pixels, long side of pictures that are looked for at other instants
_REFERENCE = 1e-3  # of full scale; swapped sound differs by more almost everywhere


@dataclasses.dataclass(frozen=True)
class Measure:
    """A planted flaw as it was found in the copy.

    Attributes:
        flaw: its name.
        strength: in 0..1.
        unit: of the following.
        planted: what the strength means.
        measured: what was found; NaN where nothing could be.
        agrees: whether the two agree; None where they are different quantities.
    """

    flaw: str
    strength: float
    unit: str
    planted: float
    measured: float
    agrees: bool | None


def measure(
    copy: degrade_plan.Copy,
    samples: Float[np.ndarray, " N"],
    path: pathlib.Path,
    *,
    max_seconds: float,
    faces: Faces | None,
    model: pathlib.Path,
) -> tuple[Measure, ...]:
    """Measures the flaws of a finished copy.

    Args:
        copy: what was planted.
        samples: the original's sound, from `planting.hear`.
        path: the copy.
        max_seconds: as for `planting.plant`.
        faces: of the original, for the flaw `damping`.
        model: from `landmarks.find_model`, likewise.

    Raises:
        decode.ClipError: the copy does not have the original's length.
    """
    media = decode.Media()
    shown = planting.pictures(path, media, max_seconds)
    seen = {}
    for flaw in copy.strengths:
        if flaw in _PICTURE:
            before = planting.pictures(copy.original.path, decode.Media(), max_seconds)
            seen[flaw] = _PICTURE[flaw](zip(before, shown, strict=True), copy)
    for _ in shown:
        pass
    if media.rows * _FRAME != len(samples):
        raise decode.ClipError(
            f"the copy has {media.rows} frames; its original {len(samples) // _FRAME}"
        )
    heard, _ = sound.track(media.chunks, media.rows)
    result = []
    for flaw, strength in copy.strengths.items():
        if flaw in _SOUND:
            values = _SOUND[flaw](samples, heard, copy)
        elif flaw == "damping":
            found = planting.find_faces(path, model, max_seconds)
            values = _damping(faces, found, strength)
        else:
            values = seen[flaw]
        result.append(Measure(flaw, strength, *values))
    return tuple(result)


def _offset(before, after, copy):
    lags = signal.correlation_lags(len(after), len(before))
    best = lags[np.argmax(signal.correlate(after, before))]
    planted = flaws.offset_frames(copy.strengths["offset"], copy.seed)
    agrees = abs(best - planted * _FRAME) <= flaws.RATE // 1000
    return "frames the sound is late", planted, best / _FRAME, bool(agrees)


def _noise(before, after, copy):
    # What is not proportional to the signal is noise, however the sum was scaled.
    share = np.dot(after, before) / np.dot(before, before)
    rest = np.sum((after - share * before) ** 2, dtype=np.float64)
    measured = 10 * np.log10(np.sum((share * before) ** 2, dtype=np.float64) / rest)
    low, high = flaws.SNR_DB
    planted = low + (high - low) * copy.strengths["noise"]
    return "dB signal to noise", planted, measured, bool(abs(measured - planted) < 1)


def _band_limit(before, after, copy):
    options = {"fs": flaws.RATE, "nperseg": 1024}
    at, both = signal.csd(before, after, **options)
    alone = signal.welch(before, **options)[1]
    gain = np.abs(both) / np.maximum(alone, 1e-30)
    # Forwards and backwards, the filter takes half of the amplitude at its cut-off.
    below = np.flatnonzero((gain < 0.5) & (at > 300))
    measured = float(at[below[0]]) if len(below) else np.nan
    planted = flaws.cutoff_hz(copy.strengths["band_limit"])
    return "Hz cut-off", planted, measured, bool(abs(measured / planted - 1) < 0.1)


def _clipping(before, after, copy):
    at_limit = np.abs(after) >= np.max(np.abs(after)) * (1 - 1e-3)
    measured = at_limit.sum() / np.count_nonzero(before)
    planted = flaws.MAX_CLIPPED * copy.strengths["clipping"]
    agrees = abs(measured - planted) < 0.01
    return "share of samples at the limit", planted, measured, bool(agrees)


def _swap(before, after, copy):
    foreign = np.flatnonzero(np.abs(after - before) > _REFERENCE)
    measured = (np.ptp(foreign) + 1) / len(before) if len(foreign) else 0.0
    planted = copy.strengths["swap"]
    # Where both are silent, they do not differ.
    agrees = abs(measured - planted) < 0.05
    return "share of foreign sound", planted, measured, bool(agrees)


def _blur(pairs, copy):
    chosen = _spread(pairs, _BLUR_PICTURES)
    greys = [(_grey(a), _grey(b)) for a, b in chosen]
    planted = flaws.MAX_BLUR * copy.strengths["blur"] * len(greys[0][0])

    def error(sigma: float) -> float:
        return sum(
            float(np.mean((cv2.GaussianBlur(a, (0, 0), sigma) - b) ** 2))
            for a, b in greys
        )

    found = optimize.minimize_scalar(
        error,
        bounds=(0.1, 2 * flaws.MAX_BLUR * len(greys[0][0]) + 0.2),
        method="bounded",
        options={"xatol": 0.01},
    )
    agrees = abs(found.x - planted) < max(0.15 * planted, 0.1)
    return "pixels standard deviation", planted, float(found.x), bool(agrees)


def _compression(pairs, copy):
    errors = [np.mean((_grey(a) - _grey(b)) ** 2) for a, b in pairs]
    low, high = flaws.QUANTISER
    crf = low + (high - low) * copy.strengths["compression"]
    measured = 10 * np.log10(255**2 / np.mean(errors))
    return "crf; measured: dB signal to noise of grey", crf, float(measured), None


def _freeze(pairs, copy):
    changes = []
    last = None
    for both in pairs:
        greys = [_grey(pixels) for pixels in both]
        if last is not None:
            changes.append(
                [np.mean(np.abs(a - b)) for a, b in zip(greys, last, strict=True)]
            )
        last = greys
    before, after = np.array(changes).T
    held = np.diff(planting.picks(copy, len(changes) + 1)) == 0
    # Where the original itself stands still, nothing can be seen of the flaw.
    moves = before > _NOISE
    if moves.mean() < _MIN_MOVING:
        return "share of still frames", held.mean(), math.nan, None
    still = after[moves] < _STILL * before[moves]
    agrees = abs(still.mean() - held[moves].mean()) < 0.05
    return "share of still frames", held.mean(), float(still.mean()), bool(agrees)


def _jitter(pairs, copy):
    reach = flaws.MAX_JITTER
    near: collections.deque = collections.deque(maxlen=2 * reach + 1)
    waiting: collections.deque = collections.deque()
    off = []
    for at, (before, after) in enumerate(pairs):
        near.append((at, _small(before)))
        waiting.append((at, _small(after)))
        if at >= reach:
            off.append(_is_off(near, *waiting.popleft()))
    off += [_is_off(near, *late) for late in waiting]
    planted = np.mean(planting.picks(copy, len(off)) != np.arange(len(off)))
    measured = float(np.mean(off))
    agrees = abs(measured - planted) < 0.1
    return "share of frames off", planted, measured, bool(agrees)


def _is_off(near, at: int, picture: np.ndarray) -> bool:
    """Tells whether a picture looks like one of another instant."""
    errors = {
        index: float(np.mean(np.abs(other - picture)))
        for index, other in near
        if abs(index - at) <= flaws.MAX_JITTER
    }
    return min(errors.values()) < errors[at]


def _damping(before: Faces, after: Faces, strength: float):
    was, now = (damping.expression(f.activations[f.seen]) for f in (before, after))
    unit = "movement left, of the mesh; measured: of brow and smile blendshapes"
    if not was > 0:
        return unit, 1 - strength, math.nan, None
    # Another quantity, so only whether there is an effect can be said.
    agrees = now / was < 1 - _LEAST_EFFECT * strength
    return unit, 1 - strength, now / was, bool(agrees)


_SOUND: Mapping[str, Callable] = {
    "offset": _offset,
    "swap": _swap,
    "noise": _noise,
    "band_limit": _band_limit,
    "clipping": _clipping,
}
_PICTURE: Mapping[str, Callable] = {
    "blur": _blur,
    "compression": _compression,
    "freeze": _freeze,
    "jitter": _jitter,
}


def _spread(pairs: Iterator, count: int) -> list:
    """Returns pairs spread over a clip of unknown length, few at any time."""
    kept, step = [], 1
    for at, pair in enumerate(pairs):
        if at % step == 0:
            kept.append(pair)
        if len(kept) == 2 * count:
            kept, step = kept[::2], 2 * step
    return kept


def _grey(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY).astype(
        np.float32
    )


def _small(pixels: np.ndarray) -> np.ndarray:
    grey = _grey(pixels)
    scale = min(1.0, _SMALL / max(grey.shape))
    size = [max(1, round(scale * side)) for side in reversed(grey.shape)]
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
