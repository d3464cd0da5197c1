"""Fits the sync head to clips without labels, and tests it on clips left out.

The clips teach by themselves what belongs together. Each is
compared with shifted copies of itself, moved to where it fits best, and the head is
fitted again, so clips that are late or early by a few frames do no harm; a delay that
all share becomes the head's zero.

There is no randomness, but for the bootstrap intervals, which have a fixed seed.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from extract import backends, sound
from extract.backends import _sync
from extract.backends import head as sync_head
from tqa_jax import schema, statistics

MIN_SECONDS = 20.0
"""Least length of all clips together; 60 s of many speakers is a start."""
NEEDED = (
    f"a sync head needs at least {MIN_SECONDS:g} s of faces with sound, and learns "
    "from each further minute"
)
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


def described(
    clip: backends.Clip,
) -> tuple[Float[np.ndarray, "T M"], Float[np.ndarray, "T S"]]:
    """Returns mouth and sound of a clip as the head sees them before its maps."""
    return (
        sync_head.mouth(clip.points, clip.aspect),
        sync_head.speech(clip.samples, clip.present, clip.rows),
    )


def fit(
    clips: Sequence[tuple[np.ndarray, np.ndarray]],
) -> sync_head.Head:
    """Fits a head and where each clip's sound lies, in turns.

    Args:
        clips: mouth and sound of each, from `described`.

    Raises:
        schema.InputError: less than `MIN_SECONDS` of faces with sound.
    """
    offsets = [0] * len(clips)
    for _ in range(_ROUNDS):
        head = _correlate(clips, offsets)
        best = [own_offset(head, *clip, _MAX_MOVE) for clip in clips]
        middle = int(np.median(best))
        moved = [offset - middle for offset in best]
        if moved == offsets:
            return head
        offsets = moved
    return _correlate(clips, offsets)


def own_offset(
    head: sync_head.Head, mouth: np.ndarray, speech: np.ndarray, limit: int
) -> int:
    """Returns the lag in frames, up to `limit`, at which a whole clip fits best."""
    scores = _score(head, mouth, speech)
    scores[np.abs(_SHIFTS) > limit] = np.nan
    return int(_best(scores, none=0))


def _best(scores: Float[np.ndarray, " 31"], *, none: float) -> float:
    """Returns the lag of the highest score; `none` where no lag has one."""
    return none if np.isnan(scores).all() else _SHIFTS[np.nanargmax(scores)]


def _score(head, mouth: np.ndarray, speech: np.ndarray) -> Float[np.ndarray, " 31"]:
    seen = (mouth - head.mouth_mean) @ head.mouth_map
    heard = (speech - head.sound_mean) @ head.sound_map
    return _sync.correlate(seen, heard, np.zeros(1, int), len(mouth))[0]


def _correlate(clips, offsets: Sequence[int]) -> sync_head.Head:
    """Canonical correlation analysis between principal components of both sides."""
    width = sync_head.MOUTH_WIDTH
    count, total, square = 0, 0.0, 0.0
    for (mouth, speech), offset in zip(clips, offsets, strict=True):
        rows = np.arange(max(0, -offset), len(mouth) - max(0, offset))
        joined = np.concatenate([mouth[rows], speech[rows + offset]], axis=-1)
        joined = joined[np.isfinite(joined[:, 0]) & np.isfinite(joined[:, -1])]
        count += len(joined)
        total += joined.sum(axis=0)
        square += joined.T @ joined
    if count < MIN_SECONDS * schema.FPS:
        raise schema.InputError(
            f"{count / schema.FPS:.1f} s of faces with sound; {NEEDED}"
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
        num_clips=len(clips),
        seconds=count / schema.FPS,
    )


def _whitening(covariance: np.ndarray, dimensions: int) -> np.ndarray:
    """Returns the map to the largest principal components, of unit spread each."""
    spread, directions = np.linalg.eigh(covariance)
    kept = np.maximum(spread[-dimensions:], 1e-6 * max(spread[-1], 1e-12))
    return directions[:, -dimensions:] / np.sqrt(kept)


def evaluate(
    clips: Mapping[str, backends.Clip],
) -> str:
    """Tests on each clip a head that was trained without it.

    A clip's own offset is what the head finds in the whole untouched clip; the planted
    shift plays no part in it.

    Args:
        clips: to train and test on, by name.

    Returns:
        A table of the clips, and their means with 95 % bootstrap intervals over clips.

    Raises:
        schema.InputError: too little is left to train on.
    """
    folds = min(len(clips), _FOLDS)
    if folds < 2:
        raise schema.InputError("one clip: --evaluate needs others to train on")
    ready = [described(clip) for clip in clips.values()]
    heads = [
        fit([clip for at, clip in enumerate(ready) if at % folds != fold])
        for fold in range(folds)
    ]
    lines = [
        f"{'clip':32} {'s':>5} {'own':>4} {'windows':>7} {'exact':>6} {'+-1':>5} "
        f"{'+-2':>5} {'+-1 as is':>9}"
    ]
    shares, count = [], 0
    for at, (name, clip) in enumerate(clips.items()):
        head = heads[at % folds]
        own = own_offset(head, *ready[at], _sync.MAX_LAG)
        as_is = planted_errors(clip, head, 0)
        errors = planted_errors(clip, head, own) if own else as_is
        line = f"{name[-32:]:32} {clip.rows / schema.FPS:5.1f} {own:4d}"
        if len(errors):
            share = [np.mean(errors <= limit) for limit in (0, 1, 2)]
            share.append(np.mean(as_is <= 1))
            line += " {:7d} {:6.2f} {:5.2f} {:5.2f} {:9.2f}".format(len(errors), *share)
            shares.append(share)
            count += len(errors)
        else:
            line += f" {'too short to be tested':>22}"
        lines.append(line)
    if not shares:
        return "\n".join([*lines, f"no clip has {TEST_ROWS / schema.FPS:g} s"])
    lines.append(
        f"mean of {len(shares)} clips ({count} stretches of {TEST_ROWS / schema.FPS:g} "
        f"s, {len(_SHIFTS)} shifts each), 95 % interval over clips:"
    )
    names = ("exact", "within 1 frame", "within 2 frames", "within 1 frame, as is")
    values = np.array(shares)
    counts = statistics.resample_sources(range(len(values)), _RESAMPLES, least=1)
    means = counts @ values / len(values)  # (1 + R, shares)
    for name, (mean, *draws) in zip(names, means.T, strict=True):
        low, high = statistics.interval(np.array(draws))
        lines.append(f"  {name:22} {mean:.2f} ({low:.2f} to {high:.2f})")
    return "\n".join(lines)


def planted_errors(
    clip: backends.Clip, head: sync_head.Head, own: int
) -> Float[np.ndarray, "W 31"]:
    """Plants shifts and returns by how many frames the head is wrong.

    Every stretch of 4 s is measured by itself: nothing outside it is seen or heard,
    and where a shift leaves the clip there is no sound.

    Args:
        clip: the clip; one shorter than a stretch gives no rows.
        head: trained without it.
        own: rows by which the clip's sound is late; taken out first.
    """

    @functools.cache
    def speech(row: int) -> np.ndarray:
        return sync_head.speech(*_cut(clip, row), TEST_ROWS)

    errors = []
    for start in range(0, clip.rows - TEST_ROWS + 1, _HOP):
        mouth = sync_head.mouth(clip.points[start : start + TEST_ROWS], clip.aspect)
        for planted in _SHIFTS:
            scores = _score(head, mouth, speech(start - planted + own))
            errors.append(abs(_best(scores, none=np.inf) - planted))
    return np.array(errors, np.float64).reshape(-1, len(_SHIFTS))


def _cut(clip: backends.Clip, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `TEST_ROWS` rows of sound from `row`, which may lie outside the clip."""
    chunks = [(-row * _PIECE, values) for values in (clip.samples, clip.present)]
    samples, _ = sound.track(chunks[:1], TEST_ROWS)
    present, _ = sound.track(chunks[1:], TEST_ROWS)
    return samples, present > 0.5
