"""Figures of several runs on the same clips, and differences between them.

The one thing to know: two things vary that nobody chose, seed and clips. A figure is
the mean over seeds; its interval is over sources, drawn alike for all runs, so that
draws of two runs may be subtracted, and a difference is tested over both.
"""

import math

import numpy as np
from jaxtyping import Float

from tqa_jax import intervals, statistics

BIAS = "bias"


def figures(
    metric: str,
    scores: Float[np.ndarray, "S N"],
    labels: Float[np.ndarray, " N"],
    counts: Float[np.ndarray, "R N"],
) -> Float[np.ndarray, "S R"]:
    """Computes a figure of each run on each resample.

    Args:
        metric: `srcc`, `plcc`, `rmse`, `mae`, or `bias`, the mean of score - label.
        scores: of each run.
        labels: opinion scores; NaN where missing.
        counts: from `statistics.resample_sources`.

    Returns:
        The figures, NaN where undefined; see `metrics.comparable`.
    """
    if metric != BIAS:
        return intervals.figures(metric, scores, labels, counts)
    known = ~np.isnan(labels)
    number = counts[:, known].sum(axis=-1)
    total = (scores - labels)[:, known].astype(float) @ counts[:, known].T
    return np.where(number, total / np.where(number, number, 1), np.nan)


def estimate(values: Float[np.ndarray, "S R"]) -> dict[str, float | None]:
    """Says what a figure is, how sure it is, and whether it is 0.

    Args:
        values: of each run on the clips as they are, then on resamples.

    Returns:
        `value` (mean over seeds), `sd` over seeds, `low` and `high` (95 % interval
        over sources), `p_seeds` (t-test) and `p_clips` (bootstrap), both two-sided
        against 0. None where undefined: p with fewer than 3 seeds, too few sources,
        or a figure that fewer than 90 % of the resamples have.
    """
    found = dict.fromkeys(("value", "sd", "low", "high", "p_seeds", "p_clips"))
    plain = values[:, 0]
    if not np.isfinite(plain).all():
        return found
    found["value"] = float(plain.mean())
    if len(plain) > 1:
        found["sd"] = float(plain.std(ddof=1))
    found["p_seeds"] = statistics.paired_t(plain)
    found["low"], found["high"], p = statistics.paired(values[:, 1:].mean(axis=0))
    found["p_clips"] = p if len(plain) >= statistics.MIN_SEEDS else None
    return found


def interval(found: dict[str, float | None], sign: str = "") -> str:
    """A figure from `estimate` with its interval, for a table.

    Args:
        found: from `estimate`.
        sign: "+" to show that of positive numbers.
    """
    if found["value"] is None or not math.isfinite(found["value"]):
        return "-"
    text = f"{found['value']:{sign}.3f}"
    if found["low"] is None:
        return text
    return f"{text} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"
