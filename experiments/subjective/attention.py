"""What raters did with pairs that check their attention, and how fast they answered.

The one thing to know: a control is one clip on both sides, so that the right answer is
"equal"; a repeat is a pair that the rater has seen before, with sides swapped or not.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from experiments.subjective import ratings as ratings_lib

_HASTE = 1 / 3  # of the median time for the same pair
_CONTROL = 1.0  # points between ratings of one clip shown twice that still are equal


def measure(answers: ratings_lib.Ratings) -> dict[str, Float[np.ndarray, " I"]]:
    """Counts controls, repeats and fast answers.

    Args:
        answers: of all kinds; training counts for nothing.

    Returns:
        For each rater: `controls` and `controls_wrong`, those with a preference or,
        when none was asked for, with ratings more than a point apart on average;
        `repeats`, the share `repeats_same` with the same preference and the mean
        `repeats_rating_gap` between ratings; `fast_share` of answers that took less
        than a third of the median time for their pair or left a clip unplayed; and
        `median_seconds`. NaN where there is nothing to count.
    """
    raters = len(answers.raters)
    gaps = np.abs(answers.opinions[:, 0] - answers.opinions[:, 1])
    gap = mean(list(gaps.T), len(gaps))
    control = answers.kind == "control"
    wrong = control & (answers.left == answers.right)
    wrong &= (np.abs(answers.preference) == 1) | (
        np.isnan(answers.preference) & (gap > _CONTROL)
    )
    control &= answers.left == answers.right
    trial = np.flatnonzero(answers.kind == "trial")
    first = {(answers.rater[n], answers.item[n]): n for n in trial}
    same, rating_gap = np.full((2, len(gaps)), np.nan)
    for n in np.flatnonzero(answers.kind == "repeat"):
        before = first.get((answers.rater[n], answers.item[n]))
        if before is None:
            continue
        swapped = answers.left[n] != answers.left[before]
        sign, order = (-1, [1, 0]) if swapped else (1, [0, 1])
        chosen = sign * answers.preference[n], answers.preference[before]
        if not np.isnan(chosen).any():
            same[n] = chosen[0] == chosen[1]
        moved = np.abs(answers.opinions[n][order] - answers.opinions[before])
        rating_gap[n] = mean(moved.reshape(-1, 1), 1)[0]
    repeated = ~np.isnan(same) | ~np.isnan(rating_gap)
    timed = ~np.isnan(answers.seconds) & (answers.kind != "training")
    usual = {
        item: np.median(answers.seconds[timed & (answers.item == item)])
        for item in np.unique(answers.item[timed])
    }
    usual_here = np.array([usual.get(item, np.nan) for item in answers.item])
    watched = ~np.isnan(answers.plays) & (answers.kind != "training")
    fast = (timed & (answers.seconds < _HASTE * usual_here)) | (
        watched & (answers.plays == 0)
    )

    def count(rows: np.ndarray) -> np.ndarray:
        return np.bincount(answers.rater[rows], minlength=raters).astype(float)

    def mean_of(values: np.ndarray) -> np.ndarray:
        known = ~np.isnan(values)
        sums = np.bincount(answers.rater[known], values[known], raters)
        return ratio(sums, count(known))

    return {
        "controls": count(control),
        "controls_wrong": count(wrong),
        "repeats": count(repeated),
        "repeats_same": mean_of(same),
        "repeats_rating_gap": mean_of(rating_gap),
        "fast_share": ratio(count(fast), count(timed | watched)),
        "median_seconds": np.array(
            [
                np.median(answers.seconds[timed & (answers.rater == rater)])
                if (timed & (answers.rater == rater)).any()
                else np.nan
                for rater in range(raters)
            ]
        ),
    }


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divides, NaN where there is nothing to divide by."""
    result = np.full(len(below), np.nan)
    return np.divide(above, below, out=result, where=below > 0)


def mean(rows: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The mean over rows where it is defined."""
    values = np.array(rows, float).reshape(len(rows), size)
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))
