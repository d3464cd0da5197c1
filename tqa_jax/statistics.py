"""What chance could have done: resamples of sources, intervals, paired tests, Holm.

Clips of one source (speaker or source video) are not independent, so resamples draw
whole sources; over clips, intervals are too narrow. With few sources they still are:
where 95 % are asked for, a simulation with dependent clips found 78-88 % with 5
sources, 84-90 % with 10, 87-91 % with 20 and 94 % with 50 (over clips: 71-80 %).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLES = 4000
"""p cannot be below 2 / (this + 1), which Holm multiplies by the number of rows."""
MIN_SOURCES = 3
"""Sources without which resampling them gives no interval."""
MIN_SEEDS = 3
"""Seeds without which a difference has no p-value: others could differ as much."""
_ENDS = (2.5, 97.5)  # percentiles
_DEFINED = 0.9  # share of resamples that must have a value


class Paired(NamedTuple):
    """What resamples say of a difference; None where too few of them have one.

    Attributes:
        low: lower end of the 95 % interval.
        high: upper end.
        p: two-sided, of the difference being 0.
    """

    low: float | None
    high: float | None
    p: float | None


def resample_sources(
    sources: Sequence[Any],
    resamples: int = RESAMPLES,
    seed: int | np.random.Generator = 0,
    *,
    least: int = MIN_SOURCES,
) -> Float[np.ndarray, "1+R N"]:
    """Draws resamples of sources with replacement; every draw takes all its clips.

    Args:
        sources: source of each clip.
        resamples: number of resamples, R.
        seed: of the draws, or where they come from.
        least: with fewer sources nothing is drawn.

    Returns:
        How often each clip stands in each resample; the first row is the clips as they
        are, once each. Depends on the set of sources, not on the order of the clips.
    """
    names, inverse = np.unique(np.asarray(sources), return_inverse=True)
    every = np.ones((1, len(inverse)))
    if len(names) < max(least, 1) or not resamples:
        return every
    shares = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), shares, size=resamples)
    return np.concatenate([every, drawn[:, inverse]])


def interval(draws: Float[np.ndarray, " R"]) -> tuple[float | None, float | None]:
    """Ends of the 95 % percentile interval (Efron 1979).

    Args:
        draws: the figure on each resample; NaN where it is undefined.

    Returns:
        None twice where fewer than 90 % of the resamples have a value.
    """
    defined = draws[np.isfinite(draws)]
    if not len(defined) or len(defined) < _DEFINED * len(draws):
        return None, None
    low, high = np.percentile(defined, _ENDS)
    return float(low), float(high)


def paired(draws: Float[np.ndarray, " R"]) -> Paired:
    """Interval and test of a difference of two figures on the same resamples.

    Args:
        draws: the difference on each resample; NaN where it is undefined.

    Returns:
        Its interval, and p = min(1, 2 (1 + t) / (1 + R)), where t is the number of the
        R defined draws on the rarer side of 0, draws of exactly 0 being on both
        (Davison and Hinkley 1997, eq. 4.11). So p cannot be below 2 / (1 + R).
    """
    low, high = interval(draws)
    if low is None:
        return Paired(None, None, None)
    defined = draws[np.isfinite(draws)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return Paired(low, high, min(1.0, 2 * (1 + float(tail)) / (1 + len(defined))))


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of a paired t-test: of a mean difference of 0.

    Args:
        differences: of each seed, or rater.

    Returns:
        None for fewer than 3, and where they differ by rounding only.
    """
    values = np.asarray(differences, float)
    if len(values) < MIN_SEEDS:
        return None
    if values.std(ddof=1) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return None
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def mean_over_tasks(
    parts: Sequence[Float[np.ndarray, "S R"]],
) -> Float[np.ndarray, "S R"]:
    """Averages tasks, or groups: on each resample those defined in every run.

    Args:
        parts: a figure of each run on each resample, one array a task; NaN where it is
            undefined.
    """
    values = np.array(parts)  # (parts, S, R)
    defined = np.isfinite(values).all(axis=1, keepdims=True)
    total = np.where(defined, values, 0).sum(axis=0)
    number = defined.sum(axis=0)
    return np.where(number, total / np.maximum(number, 1), np.nan)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Corrects p-values for their number (Holm 1979); None stays None."""
    order = sorted((value, i) for i, value in enumerate(values) if value is not None)
    result: list[float | None] = [None] * len(values)
    largest = 0.0
    for place, (value, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * value))
        result[i] = largest
    return result


def correct(
    rows: Sequence[dict[str, Any]], names: Iterable[str], suffix: str = ""
) -> None:
    """Writes Holm's correction of columns of p-values into rows.

    Args:
        rows: the family.
        names: of the columns, each corrected alone.
        suffix: of the column that is written; empty replaces the plain p-values.
    """
    for name in names:
        corrected = holm([row[name] for row in rows])
        for row, value in zip(rows, corrected, strict=True):
            row[name + suffix] = value
