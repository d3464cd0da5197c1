"""How clips are divided: by face, by generator, or at random; outer and inner folds.

The one thing to know: inner folds divide the training part of an outer fold as the
outer folds divide all clips, and everything that is chosen is chosen on them.
"""

import collections
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.talking_heads import clips as clips_lib
from extract import folds
from tqa_jax import schema

PROTOCOLS = {
    "face": "5 folds by face",
    "generator": "leave one generator out",
    "random": "5 random folds",
}
"""Each with what it is called in tables."""

_OUTER, _INNER = 5, 4


class Fold(NamedTuple):
    """Numbers of clips, in order."""

    train: Int[np.ndarray, " n"]
    test: Int[np.ndarray, " m"]


def outer(protocol: str, clips: clips_lib.Clips) -> list[Fold]:
    """The folds that results are about; every clip is tested once."""
    everyone = np.arange(len(clips))
    return _divide(protocol, clips, everyone, number=_OUTER, seed=0)


def inner(protocol: str, clips: clips_lib.Clips, train: np.ndarray) -> list[Fold]:
    """Folds of the training part of an outer fold, for everything that is chosen.

    Args:
        protocol: of `PROTOCOLS`.
        clips: all clips.
        train: numbers of the training clips.
    """
    return _divide(protocol, clips, train, number=_INNER, seed=1)


def _divide(
    protocol: str,
    clips: clips_lib.Clips,
    among: np.ndarray,
    *,
    number: int,
    seed: int,
) -> list[Fold]:
    groups = {
        "face": clips.faces,
        "generator": clips.generators,
        "random": np.array(clips.names),
    }[protocol][among]
    counts = collections.Counter(groups.tolist())
    if protocol == "generator":
        number = len(counts)
    if len(counts) < max(number, folds.LEAST):
        raise schema.InputError(
            f"the tables have {len(counts)} groups of clips for {PROTOCOLS[protocol]}; "
            f"expected at least {max(number, folds.LEAST)}"
        )
    found = []
    for fold in range(number):
        splits = folds.draw(counts, folds=number, fold=fold, seed=seed)
        tested = np.array([splits[group] == "test" for group in groups])
        found.append(Fold(among[~tested], among[tested]))
    return found
