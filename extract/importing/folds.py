"""Splits by source for cross-validation: every source is tested in one fold.

The one thing to know: fold f is the test split, fold f + 1 the validation split (the
first after the last), the others are for training.
"""

import hashlib
from collections.abc import Mapping

from tqa_jax import schema

LEAST = 3
"""Fewest folds: one each for training, validation and test."""


def draw(
    clips: Mapping[str, int], *, folds: int, fold: int, seed: int = 0
) -> dict[str, str]:
    """Draws a split for each source.

    Args:
        clips: number of clips of each source; folds get about as many clips each.
        folds: number of folds.
        fold: which one is the test split, from 0.
        seed: another seed gives other folds; the order of `clips` does not matter.

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

    def digest(source: str) -> bytes:
        return hashlib.sha256(f"{seed}:{source}".encode()).digest()

    sizes = [(0, 0)] * folds  # clips and sources
    result = {}
    # Sources with many clips come first: what is left then fills the folds up.
    for source in sorted(clips, key=lambda name: (-clips[name], digest(name))):
        place = min(range(folds), key=sizes.__getitem__)
        sizes[place] = (sizes[place][0] + clips[source], sizes[place][1] + 1)
        result[source] = {0: "test", 1: "validation"}.get(
            (place - fold) % folds, "train"
        )
    return result
