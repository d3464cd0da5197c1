"""Whether one side was favoured, and whether A was judged otherwise than B.

The one thing to know: answers are averaged within a rater first, and raters are what
tests and intervals count. A against B means something only where A and B are the same
two conditions in every pair, and it holds for the clips of the study: with other clips
it would vary more than these intervals say.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from experiments.subjective import ratings as ratings_lib
from tqa_jax import statistics


def over_raters(
    values: Float[np.ndarray, " N"], rater: Int[np.ndarray, " N"]
) -> dict[str, Any]:
    """Tests whether answers differ from 0 on average.

    Args:
        values: of each answer, NaN where there is none.
        rater: who answered.

    Returns:
        `raters`, `answers`; `value`, the mean over raters of their means; `low`, `high`
        (95 %, Student's t), `p` (t-test), `p_wilcoxon` (signed ranks) and `effect`
        (Cohen's d of the means); None with a `reason` where there is none.
    """
    known = ~np.isnan(values)
    _, cluster = np.unique(rater[known], return_inverse=True)
    counts = np.bincount(cluster)
    found: dict[str, Any] = {"raters": len(counts), "answers": int(known.sum())}
    found |= dict.fromkeys(("value", "low", "high", "p", "p_wilcoxon", "effect"))
    if not len(counts):
        return found | {"reason": "no answers"}
    means = np.bincount(cluster, values[known]) / counts
    found["value"] = float(means.mean())
    if len(counts) < statistics.MIN_SEEDS:
        return found | {"reason": "no test: fewer than 3 raters"}
    found["p"] = statistics.paired_t(means)
    if found["p"] is None:
        return found | {"reason": "no test: all raters have the same mean"}
    spread = means.std(ddof=1)
    half = stats.t.ppf(0.975, len(counts) - 1) * spread / np.sqrt(len(counts))
    found["low"], found["high"] = found["value"] - half, found["value"] + half
    method = "exact" if len(np.unique(np.abs(means))) == len(means) <= 50 else "approx"
    found["p_wilcoxon"] = float(
        stats.wilcoxon(np.round(means, 9), zero_method="wilcox", method=method).pvalue
        if np.round(means, 9).any()
        else 1.0
    )
    found["effect"] = found["value"] / spread
    return {key: float(v) if isinstance(v, np.floating) else v
            for key, v in found.items()}  # fmt: skip


def sides(trials: ratings_lib.Ratings) -> list[dict[str, Any]]:
    """Compares left with right: preference, then the ratings of each task."""
    return _compare(trials, np.ones(len(trials.rater)))


def conditions(trials: ratings_lib.Ratings) -> list[dict[str, Any]]:
    """Compares A with B: preference, then the ratings of each task."""
    return _compare(trials, np.where(trials.a_left, 1.0, -1.0))


def _compare(trials: ratings_lib.Ratings, sign: np.ndarray) -> list[dict[str, Any]]:
    gaps = trials.opinions[:, 0] - trials.opinions[:, 1]
    measured = {"preference": trials.preference}
    measured |= {task: gaps[:, k] for k, task in enumerate(trials.tasks)}
    rows = [
        {"measure": name} | over_raters(sign * values, trials.rater)
        for name, values in measured.items()
    ]
    statistics.correct(rows, ("p",), "_holm")
    return rows
