"""How well raters agree: Krippendorff's alpha and intraclass correlations.

The one thing to know: alpha takes whatever cells a table has; an intraclass correlation
needs a full one, so raters and clips with the most gaps are left out until there are
none, and the result says how many are left. Both are 1 for perfect agreement.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from tqa_jax import metrics, statistics


class Correlation(NamedTuple):
    """Intraclass correlations of a full block of a table.

    Attributes:
        single: of one rater, absolute agreement, both effects random: ICC(2,1).
        mean: of the mean of the block's raters: ICC(2,k).
        raters: in the block.
        clips: in the block.
    """

    single: metrics.Value
    mean: metrics.Value
    raters: int
    clips: int


def alpha(
    table: Float[np.ndarray, "I C"], *, resamples: int = 2000, seed: int = 0
) -> metrics.Value:
    """Computes Krippendorff's alpha for interval data.

    Args:
        table: ratings, a row a rater and a column a clip; NaN where there is none.
        resamples: of the bootstrap of clips that the 95 % interval is from; 0 for
            none.
        seed: of the bootstrap.

    References:
        Krippendorff, "Computing Krippendorff's alpha-reliability" (2011). Raters are
        not resampled: copies of a rater would agree perfectly.
    """
    known = ~np.isnan(table)
    paired = known.sum(axis=0) > 1
    values = np.where(known, table, 0)[:, paired]
    if paired.sum() < 2:
        return metrics.Value(None, "fewer than 2 clips were rated by 2 raters")
    count = known[:, paired].sum(axis=0).astype(float)
    # Far from 0, sums of squares lose digits.
    values = np.where(known[:, paired], values - values.sum() / count.sum(), 0)
    sums, squares = values.sum(axis=0), (values**2).sum(axis=0)
    within = 2 * (count * squares - sums**2) / (count - 1)

    def of(weights: np.ndarray) -> np.ndarray:
        n = weights @ count
        expected = 2 * (n * (weights @ squares) - (weights @ sums) ** 2) / (n - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - (weights @ within) / expected

    if np.ptp(table[known & paired]) == 0:
        return metrics.Value(None, "all ratings are equal")
    value, *draws = of(
        statistics.resample_sources(range(len(count)), resamples, seed, least=1)
    )
    low, high = statistics.interval(np.array(draws))
    short = resamples and low is None
    reason = "no interval: undefined on many resamples" if short else ""
    return metrics.Value(float(value), reason, low, high)


def correlation(table: Float[np.ndarray, "I C"]) -> Correlation:
    """Computes ICC(2,1) and ICC(2,k) with their 95 % intervals.

    Args:
        table: ratings, a row a rater and a column a clip; NaN where there is none.

    References:
        Shrout and Fleiss (1979); McGraw and Wong (1996), ICC(A,1) and ICC(A,k), whose
        intervals are by F distributions with Satterthwaite's degrees of freedom.
    """
    block = full_block(table)
    raters, clips = block.shape
    if raters < 2 or clips < 2:
        none = metrics.Value(
            None, "no 2 raters rated the same 2 clips once gaps are left out"
        )
        return Correlation(none, none, raters, clips)
    grand = block.mean()
    rows = raters * ((block.mean(axis=0) - grand) ** 2).sum() / (clips - 1)
    columns = clips * ((block.mean(axis=1) - grand) ** 2).sum() / (raters - 1)
    rest = block - block.mean(axis=0) - block.mean(axis=1, keepdims=True) + grand
    error = (rest**2).sum() / ((clips - 1) * (raters - 1))
    total = rows + (raters - 1) * error + raters * (columns - error) / clips
    if total <= 1e-12 * max(1.0, grand**2):
        none = metrics.Value(None, "all ratings are equal")
        return Correlation(none, none, raters, clips)
    single = (rows - error) / total
    spread = rows + (columns - error) / clips
    if error <= 1e-12 * rows and columns <= 1e-12 * rows:
        sure = metrics.Value(1.0, "no interval: raters agree perfectly")
        return Correlation(sure, sure, raters, clips)
    a = raters * single / (clips * (1 - single))
    b = 1 + raters * single * (clips - 1) / (clips * (1 - single))
    freedom = (a * columns + b * error) ** 2 / (
        (a * columns) ** 2 / (raters - 1)
        + (b * error) ** 2 / ((clips - 1) * (raters - 1))
    )
    noise = raters * columns + (raters * clips - raters - clips) * error
    f = stats.f.ppf(0.975, clips - 1, freedom)
    low = clips * (rows - f * error) / (f * noise + clips * rows)
    f = stats.f.ppf(0.975, freedom, clips - 1)
    high = clips * (f * rows - error) / (noise + clips * f * rows)
    ends = [raters * end / (1 + (raters - 1) * end) for end in (low, high)]
    return Correlation(
        metrics.Value(float(single), low=float(low), high=float(high)),
        metrics.Value(float((rows - error) / spread), low=ends[0], high=ends[1]),
        raters,
        clips,
    )


def full_block(table: Float[np.ndarray, "I C"]) -> Float[np.ndarray, "I2 C2"]:
    """Leaves out the rater or clip with the most gaps, by share, until none is left."""
    missing = np.isnan(table)
    rows, columns = np.arange(len(table)), np.arange(table.shape[1])
    while missing.size and missing.any():
        by_row, by_column = missing.mean(axis=1), missing.mean(axis=0)
        if by_row.max() >= by_column.max():
            rows = np.delete(rows, by_row.argmax())
        else:
            columns = np.delete(columns, by_column.argmax())
        missing = np.isnan(table[np.ix_(rows, columns)])
    return table[np.ix_(rows, columns)]
