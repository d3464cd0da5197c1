"""Splits drawn by source: folds for cross-validation, or one split of 70/15/15."""

import hashlib
from collections.abc import Mapping

from tqa_jax import schema

LEAST = 3
"""Fewest folds, and fewest sources: one each for training, validation and test."""
SPLIT_NAMES = {name: name for name in schema.SPLITS} | dict.fromkeys(
    ("val", "valid"), "validation"
)
"""What files may call a split."""
SPLIT_SHARES: Mapping[str, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}


def draw(
    clips: Mapping[str, int], *, folds: int, fold: int, seed: int = 0
) -> dict[str, str]:
    """Draws folds: `fold` is for test, the next for validation, others for training.

    Args:
        clips: number of clips of each source; folds get about as many clips each.
        folds: number of folds; the first comes after the last.
        fold: from 0.
        seed: another seed gives other folds; the order of `clips` does not matter.

    Returns:
        The split of each source.

    Raises:
        schema.InputError: for too few folds or sources, or a fold out of range.
    """
    if folds < LEAST:
        raise schema.InputError(f"--folds is {folds}; expected at least {LEAST}")
    if not 0 <= fold < folds:
        raise schema.InputError(f"--fold is {fold}; expected 0 to {folds - 1}")
    if len(clips) < folds:
        raise schema.InputError(
            f"{folds} folds by source need as many sources; got {len(clips)}"
        )
    sizes = [(0, 0)] * folds  # clips and sources
    result = {}
    # Sources with many clips come first: what is left then fills the folds up.
    for source in sorted(_shuffled(clips, seed), key=clips.__getitem__, reverse=True):
        place = min(range(folds), key=sizes.__getitem__)
        sizes[place] = (sizes[place][0] + clips[source], sizes[place][1] + 1)
        result[source] = {0: "test", 1: "validation"}.get(
            (place - fold) % folds, "train"
        )
    return result


def draw_splits(clips: Mapping[str, int], *, seed: int, path: object) -> dict[str, str]:
    """Draws one split with `SPLIT_SHARES` of the clips, as nearly as sources allow.

    Args:
        clips: number of clips of each source.
        seed: as for `draw`.
        path: what has no splits, for the message if there are fewer than 3 sources.

    Returns:
        The split of each source.
    """
    if len(clips) < LEAST:
        raise schema.InputError(
            f"{path} has no split and only {len(clips)} sources; a split by source "
            "into train, validation and test needs 3: add a `split` column, or a "
            "`source` column if the clips are of more speakers"
        )
    lacking = {
        name: share * sum(clips.values()) for name, share in SPLIT_SHARES.items()
    }
    empty = list(lacking)
    result = {}
    for index, source in enumerate(_shuffled(clips, seed)):
        # The last sources go to splits that have none yet.
        open_splits = empty if len(clips) - index <= len(empty) else lacking
        split = max(open_splits, key=lacking.__getitem__)
        result[source] = split
        lacking[split] -= clips[source]
        empty = [name for name in empty if name != split]
    return result


def _shuffled(clips: Mapping[str, int], seed: int) -> list[str]:
    """Returns the sources in an order that depends on nothing but names and seed."""

    def digest(source: str) -> bytes:
        return hashlib.sha256(f"{seed}:{source}".encode()).digest()

    return sorted(clips, key=digest)
