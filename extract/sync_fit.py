"""Fits the sync head to clips without labels, and tests it on clips left out.

The one thing to know: the clips teach by themselves what belongs together. Each is
compared with shifted copies of itself, moved to where it fits best, and the head is
fitted again, so clips that are late or early by a few frames do no harm; a delay that
all share becomes the head's zero.

There is no randomness, but for the bootstrap intervals, which have a fixed seed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from extract import sound
from extract.backends import _sync
from extract.backends import head as sync_head
from tqa_jax import schema

MIN_SECONDS = 20.0
"""Least length of all clips together; 60 s of many speakers is a start."""
TEST_ROWS = 100
"""Rows of a stretch that is tested, 4 s."""

_COMPONENTS = 8
_MOUTH_DIMENSIONS = 30  # principal components kept, a guard against overfitting
_SOUND_DIMENSIONS = 40
_ROUNDS = 3  # of moving each clip to where it fits best
_MAX_MOVE = 5  # rows
_FOLDS = 20  # at most; with more clips, several are left out at a time
_HOP = 10  # rows between tested stretches
_RESAMPLES = 10_000
_SHIFTS = np.arange(-_sync.MAX_LAG, _sync.MAX_LAG + 1)
_PIECE = round(sound.SAMPLE_RATE / schema.FPS)  # samples a row


@dataclasses.dataclass(frozen=True)
class Clip:
    """What training needs of a clip of T rows; see `sync_head.features`."""

    name: str
    points: Float[np.ndarray, "T 478 3"]
    aspect: float
    samples: Float[np.ndarray, " N"]
    present: Bool[np.ndarray, " N"]

    def described(self) -> tuple[Float[np.ndarray, "T M"], Float[np.ndarray, "T S"]]:
        """Returns mouth and sound as the head sees them before its maps."""
        rows = len(self.points)
        return (
            sync_head.mouth(self.points, self.aspect),
            sync_head.speech(self.samples, self.present, rows),
        )


@dataclasses.dataclass(frozen=True)
class Tested:
    """How a head that never saw a clip did on it.

    Attributes:
        name: of the clip.
        seconds: its length.
        own: offset of the untouched clip in frames, by the head, from all of it.
        errors: (stretches, 31), frames between the shift found and the one planted,
            when the own offset was taken out of the sound before; no rows when the
            clip is shorter than a stretch.
        errors_as_is: the same, with the sound as it is in the file.
    """

    name: str
    seconds: float
    own: int
    errors: np.ndarray
    errors_as_is: np.ndarray


def fit(
    described: Sequence[tuple[np.ndarray, np.ndarray]],
) -> sync_head.Head:
    """Fits a head and where each clip's sound lies, in turns.

    Args:
        described: mouth and sound of each clip, from `Clip.described`.

    Raises:
        schema.InputError: less than `MIN_SECONDS` of faces with sound.
    """
    offsets = [0] * len(described)
    for _ in range(_ROUNDS):
        head = _correlate(described, offsets)
        found = [own_offset(head, *item, _MAX_MOVE) for item in described]
        middle = int(np.median(found))
        moved = [offset - middle for offset in found]
        if moved == offsets:
            return head
        offsets = moved
    return _correlate(described, offsets)


def own_offset(
    head: sync_head.Head, mouth: np.ndarray, speech: np.ndarray, limit: int
) -> int:
    """Returns the lag in frames, up to `limit`, at which a whole clip fits best."""
    found = _score(head, mouth, speech)
    found[np.abs(_SHIFTS) > limit] = np.nan
    return 0 if np.isnan(found).all() else int(_SHIFTS[np.nanargmax(found)])


def _score(head, mouth: np.ndarray, speech: np.ndarray) -> Float[np.ndarray, " 31"]:
    seen = (mouth - head.mouth_mean) @ head.mouth_map
    heard = (speech - head.sound_mean) @ head.sound_map
    return _sync.correlate(seen, heard, np.zeros(1, int), len(mouth))[0]


def _correlate(described, offsets: Sequence[int]) -> sync_head.Head:
    """Canonical correlation analysis between principal components of both sides."""
    width = sync_head.MOUTH_WIDTH
    count, total, square = 0, 0.0, 0.0
    for (mouth, speech), offset in zip(described, offsets, strict=True):
        rows = np.arange(max(0, -offset), len(mouth) - max(0, offset))
        joined = np.concatenate([mouth[rows], speech[rows + offset]], axis=-1)
        joined = joined[np.isfinite(joined[:, 0]) & np.isfinite(joined[:, -1])]
        count += len(joined)
        total += joined.sum(axis=0)
        square += joined.T @ joined
    if count < MIN_SECONDS * schema.FPS:
        raise schema.InputError(
            f"{count / schema.FPS:.1f} s of faces with sound; a sync head needs at "
            f"least {MIN_SECONDS:g} s, and learns from each further minute"
        )
    mean = total / count
    covariance = square / count - np.outer(mean, mean)
    mouth_white = _whitening(covariance[:width, :width], _MOUTH_DIMENSIONS)
    sound_white = _whitening(covariance[width:, width:], _SOUND_DIMENSIONS)
    u, strength, v = np.linalg.svd(
        mouth_white.T @ covariance[:width, width:] @ sound_white
    )
    weight = np.sqrt(strength[:_COMPONENTS])
    return sync_head.Head(
        mouth_mean=mean[:width],
        mouth_map=mouth_white @ u[:, :_COMPONENTS] * weight,
        sound_mean=mean[width:],
        sound_map=sound_white @ v[:_COMPONENTS].T * weight,
        num_clips=len(described),
        seconds=count / schema.FPS,
    )


def _whitening(covariance: np.ndarray, dimensions: int) -> np.ndarray:
    """Returns the map to the largest principal components, of unit spread each."""
    spread, directions = np.linalg.eigh(covariance)
    kept = np.maximum(spread[-dimensions:], 1e-6 * max(spread[-1], 1e-12))
    return directions[:, -dimensions:] / np.sqrt(kept)


def evaluate(
    clips: Sequence[Clip],
    described: Sequence[tuple[np.ndarray, np.ndarray]],
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Tested]:
    """Tests on each clip a head that was trained without it.

    A clip's own offset is what the head finds in the whole untouched clip; the planted
    shift plays no part in it.

    Args:
        clips: to train and test on.
        described: `Clip.described` of each.
        progress: wraps what is gone through.

    Raises:
        schema.InputError: too little is left to train on.
    """
    folds = min(len(clips), _FOLDS)
    if folds < 2:
        raise schema.InputError("one clip: --evaluate needs others to train on")
    heads = [
        fit([item for at, item in enumerate(described) if at % folds != fold])
        for fold in progress(range(folds))
    ]
    tested = []
    for at in progress(range(len(clips))):
        clip, head = clips[at], heads[at % folds]
        own = own_offset(head, *described[at], _sync.MAX_LAG)
        as_is = planted_errors(clip, head, 0)
        errors = planted_errors(clip, head, own) if own else as_is
        seconds = len(clip.points) / schema.FPS
        tested.append(Tested(clip.name, seconds, own, errors, as_is))
    return tested


def planted_errors(
    clip: Clip, head: sync_head.Head, own: int
) -> Float[np.ndarray, "W 31"]:
    """Plants shifts and returns by how many frames the head is wrong.

    Every stretch of 4 s is measured by itself: nothing outside it is seen or heard,
    and where a shift leaves the clip there is no sound.

    Args:
        clip: the clip.
        head: trained without it.
        own: rows by which the clip's sound is late; taken out first.
    """
    described: dict[int, np.ndarray] = {}

    def speech(row: int) -> np.ndarray:
        if row not in described:
            described[row] = sync_head.speech(*_cut(clip, row), TEST_ROWS)
        return described[row]

    errors = []
    for start in range(0, len(clip.points) - TEST_ROWS + 1, _HOP):
        mouth = sync_head.mouth(clip.points[start : start + TEST_ROWS], clip.aspect)
        for planted in _SHIFTS:
            found = _score(head, mouth, speech(start - planted + own))
            miss = np.inf if np.isnan(found).all() else _SHIFTS[np.nanargmax(found)]
            errors.append(abs(miss - planted))
    return np.array(errors, np.float64).reshape(-1, len(_SHIFTS))


def _cut(clip: Clip, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `TEST_ROWS` rows of sound from `row`, which may lie outside the clip."""
    chunks = [(-row * _PIECE, values) for values in (clip.samples, clip.present)]
    samples, _ = sound.track(chunks[:1], TEST_ROWS)
    present, _ = sound.track(chunks[1:], TEST_ROWS)
    return samples, present > 0.5


def table(tested: Sequence[Tested]) -> str:
    """Writes what `evaluate` found, with 95 % bootstrap intervals over clips."""
    lines = [
        f"{'clip':32} {'s':>5} {'own':>4} {'windows':>7} {'exact':>6} {'+-1':>5} "
        f"{'+-2':>5} {'+-1 as is':>9}"
    ]
    shares = []
    for one in tested:
        line = f"{one.name[-32:]:32} {one.seconds:5.1f} {one.own:4d}"
        if not len(one.errors):
            lines.append(f"{line} {'too short to be tested':>22}")
            continue
        share = [np.mean(one.errors <= limit) for limit in (0, 1, 2)]
        share.append(np.mean(one.errors_as_is <= 1))
        shares.append(share)
        lines.append(
            f"{line} {len(one.errors):7d} {share[0]:6.2f} {share[1]:5.2f} "
            f"{share[2]:5.2f} {share[3]:9.2f}"
        )
    if not shares:
        return "\n".join([*lines, f"no clip has {TEST_ROWS / schema.FPS:g} s"])
    values = np.array(shares)
    drawn = np.random.default_rng(0).integers(
        len(values), size=(_RESAMPLES, len(values))
    )
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975), axis=0)
    names = ("exact", "within 1 frame", "within 2 frames", "within 1 frame, as is")
    count = sum(len(one.errors) for one in tested)
    lines.append(
        f"mean of {len(values)} clips ({count} stretches of {TEST_ROWS / schema.FPS:g} "
        f"s, {len(_SHIFTS)} shifts each), 95 % interval over clips:"
    )
    for name, mean, a, b in zip(names, values.mean(axis=0), low, high, strict=True):
        lines.append(f"  {name:22} {mean:.2f} ({a:.2f} to {b:.2f})")
    return "\n".join(lines)
