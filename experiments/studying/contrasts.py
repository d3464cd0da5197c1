"""Figures of several runs on the same clips, and differences between them.

The one thing to know: two things vary that nobody chose, seed and clips. A figure is
the mean over seeds; its interval is over sources, drawn alike for all runs, so that
draws of two runs may be subtracted, and a difference is tested over both.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from tqa_jax import comparison, intervals, metrics

BIAS = "bias"
RESAMPLES = 4000
"""p cannot be below 2 / (this + 1), which Holm multiplies by the number of rows."""
_LEAST_SEEDS = 3
_DEFINED = 0.9  # Share of resamples that must have a value.
_LEVEL = (2.5, 97.5)


def resamples(
    sources: Sequence[str], number: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "R N"]:
    """Says how often each clip stands in each resample of sources.

    Args:
        sources: of each clip.
        number: of resamples.
        seed: of the draws.

    Returns:
        The clips as they are in the first row, then the resamples; none of them when
        there are fewer than 3 sources, which give no interval.
    """
    every = np.ones((1, len(sources)))
    if len(set(sources)) < intervals.MIN_SOURCES:
        return every
    rng = np.random.default_rng(seed)
    drawn = intervals.source_counts(sources, resamples=number, rng=rng)
    return np.concatenate([every, drawn])


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
        counts: from `resamples`.

    Returns:
        The figures, NaN where undefined; see `metrics.comparable`.
    """
    known = ~np.isnan(labels)
    scores, counts = scores[:, known], counts[:, known]
    labels = labels[known].astype(float)
    found = np.full((len(scores), len(counts)), np.nan)
    if not known.any():
        return found
    there = counts.sum(axis=-1) > 0
    for run, one in enumerate(np.asarray(scores, float)):
        if metric == BIAS:
            total = counts[there] @ (one - labels)
            found[run, there] = total / counts[there].sum(axis=-1)
            continue
        if len(labels) >= metrics.METRICS[metric].minimum:
            found[run, there] = metrics.comparable(metric, one, labels, counts[there])
    return found


def mean(parts: Sequence[Float[np.ndarray, "S R"]]) -> Float[np.ndarray, "S R"]:
    """Averages tasks or groups: on each resample those defined in every run.

    Args:
        parts: from `figures`, or differences of such.
    """
    values = np.array(parts)  # (parts, S, R)
    defined = np.isfinite(values).all(axis=1, keepdims=True)
    total = np.where(defined, values, 0).sum(axis=0)
    number = defined.sum(axis=0)
    return np.where(number, total / np.maximum(number, 1), np.nan)


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
    if len(plain) >= _LEAST_SEEDS and np.ptp(plain) > 0:
        found["p_seeds"] = float(stats.ttest_1samp(plain, 0.0).pvalue)
    drawn = values[:, 1:].mean(axis=0)
    defined = drawn[np.isfinite(drawn)]
    if len(defined) and len(defined) >= _DEFINED * len(drawn):
        found["low"], found["high"] = map(float, np.percentile(defined, _LEVEL))
        if len(plain) >= _LEAST_SEEDS:
            tail = min((defined <= 0).sum(), (defined >= 0).sum())
            found["p_clips"] = min(1.0, 2 * (1 + float(tail)) / (1 + len(defined)))
    return found


def correct(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Replaces columns of p-values by Holm's correction over the rows."""
    for name in names:
        corrected = comparison.holm([row[name] for row in rows])
        for row, value in zip(rows, corrected, strict=True):
            row[name] = value


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
