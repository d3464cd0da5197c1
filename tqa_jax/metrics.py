"""Agreement of predicted scores with opinion scores, one task at a time.

The one thing to know: every metric takes `counts`, how often each clip stands in each
of R resamples, and returns R numbers at once; a plain value is the case of one resample
that holds every clip once. `measure` is the safe entry: it drops clips without a
label and returns a `Value` whose `reason` says why a number does not exist.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from tqa_jax import logistic as logistic_lib

_Clips = Float[np.ndarray, "*R N"]
_Counts = Float[np.ndarray, "R N"]
_Draws = Float[np.ndarray, " R"]

_CONSTANT = 1e-6  # relative spread below which float32 predictions are all the same
_ON_THRESHOLD = 1e-6  # relative: 1.8 stored as float32 still counts as 1.8
_ROWS = 256  # rows of the matrix of clip pairs that are held at a time
_CELLS = 2_000_000  # resamples x clips that are worked on at a time


class Value(NamedTuple):
    """A number with its interval, or the reason why there is none.

    Attributes:
        value: the number, None when it is undefined.
        reason: why `value`, or the interval of a defined value, is None.
        low: lower end of the interval, None when there is none.
        high: upper end.
    """

    value: float | None
    reason: str = ""
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns `{"value", "low", "high"}`, or `{"value": None, "reason"}`."""
        if self.value is None:
            return {"value": None, "reason": self.reason}
        result = {"value": self.value, "low": self.low, "high": self.high}
        return result | ({"reason": self.reason} if self.reason else {})


def text(value: float, places: int = 2) -> str:
    """A number for a table, with digits after the point; all of a small one's first.

    Example:
        >>> text(1.234), text(0.001234)
        ('1.23', '0.0012')
    """
    small = 0 < abs(value) < 10.0**-places
    return f"{value:.{places}g}" if small else f"{value:.{places}f}"


def mse(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes the mean squared error, in squared units of the score."""
    return _mean((scores - labels) ** 2, counts)


def rmse(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes the root mean squared error, in units of the score."""
    return np.sqrt(mse(scores, labels, counts))


def mae(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes the mean absolute error, in units of the score."""
    return _mean(np.abs(scores - labels), counts)


def medae(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes the median absolute error, in units of the score."""
    errors = np.abs(scores - labels)
    order = np.argsort(errors)
    below = np.cumsum(counts[:, order], axis=-1)  # (R, N)
    total = below[:, -1:]
    # The two middle clips of a resample are one and the same for an odd number.
    lower = (below <= np.floor((total - 1) / 2)).sum(axis=-1)
    upper = (below <= np.floor(total / 2)).sum(axis=-1)
    return (errors[order[lower]] + errors[order[upper]]) / 2


def r2(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes the share of the labels' variance that the scores explain, at most 1."""
    spread = _mean(_centred(labels, counts) ** 2, counts)
    return 1 - mse(scores, labels, counts) / spread


def plcc(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes Pearson's linear correlation, -1 to 1."""
    x, y = _centred(scores, counts), _centred(labels, counts)
    spread = np.sqrt(_mean(x * x, counts)) * np.sqrt(_mean(y * y, counts))
    return np.clip(_mean(x * y, counts) / spread, -1, 1)


def srcc(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes Spearman's rank correlation, -1 to 1; ties share their mean rank."""
    return plcc(_ranks(scores, counts), _ranks(labels, counts), counts)


def krcc(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes Kendall's tau-b, -1 to 1: order of pairs, corrected for ties."""
    agree, untied_scores, untied_labels = np.zeros((3, len(counts)))
    for start in range(0, len(scores), _ROWS):
        rows = slice(start, start + _ROWS)
        x = np.sign(scores[rows, None] - scores)  # (rows, N)
        y = np.sign(labels[rows, None] - labels)
        for total, pairs in (
            (agree, x * y),
            (untied_scores, np.abs(x)),
            (untied_labels, np.abs(y)),
        ):
            total += ((counts @ pairs.T) * counts[:, rows]).sum(axis=-1)
    tau = agree / (np.sqrt(untied_scores) * np.sqrt(untied_labels))
    return np.clip(tau, -1, 1)  # Roots are rounded.


def ccc(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes Lin's concordance correlation (1989), -1 to 1, population moments."""
    x, y = _centred(scores, counts), _centred(labels, counts)
    gap = _mean(scores - labels, counts)
    spread = _mean(x * x, counts) + _mean(y * y, counts)
    return np.clip(2 * _mean(x * y, counts) / (spread + gap**2), -1, 1)


def accuracy(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes the share of clips whose class number is right, 0 to 1."""
    return _mean((scores == labels).astype(float), counts)


def qwk(scores: _Clips, labels: _Clips, counts: _Counts) -> _Draws:
    """Computes Cohen's kappa with quadratic weights on class numbers, -1 to 1.

    With quadratic weights the observed disagreement is the squared error of the class
    numbers, and the one expected by chance that of independent draws.
    """
    x, y = _centred(scores, counts), _centred(labels, counts)
    gap = _mean(scores - labels, counts)
    chance = _mean(x * x, counts) + _mean(y * y, counts) + gap**2
    return np.clip(1 - mse(scores, labels, counts) / chance, -1, 1)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric and what has to hold for it to exist.

    Attributes:
        function: `(scores, labels, counts) -> (R,)`.
        minimum: labelled clips needed.
        labels_vary: whether constant labels leave it undefined.
        scores_vary: whether constant predictions do.
        classes: when not 0, the number of equal classes of the score range that
            scores and labels are turned into first.
        fitted: whether scores go through the logistic mapping first.
    """

    function: Callable[..., np.ndarray]
    minimum: int = 1
    labels_vary: bool = False
    scores_vary: bool = False
    classes: int = 0
    fitted: bool = False


METRICS = {
    "plcc": Metric(plcc, minimum=3, labels_vary=True, scores_vary=True),
    "srcc": Metric(srcc, minimum=3, labels_vary=True, scores_vary=True),
    "krcc": Metric(krcc, minimum=3, labels_vary=True, scores_vary=True),
    "rmse": Metric(rmse),
    "mae": Metric(mae),
    "medae": Metric(medae),
    "mse": Metric(mse),
    "r2": Metric(r2, minimum=3, labels_vary=True),
    "ccc": Metric(ccc, minimum=3, labels_vary=True),
    "accuracy3": Metric(accuracy, classes=3),
    "qwk": Metric(qwk, minimum=3, labels_vary=True, classes=5),
    "plcc_fit": Metric(
        plcc, minimum=3, labels_vary=True, scores_vary=True, fitted=True
    ),
    "rmse_fit": Metric(rmse, fitted=True),
}
"""Every metric of an evaluation, by the name that result files use.

Predictions without spread have CCC and kappa 0 (no better than chance), but no
correlation.
"""


class Prepared(NamedTuple):
    """Scores and labels as a metric's function takes them; or why it can't."""

    scores: np.ndarray  # (N,)
    labels: np.ndarray  # (N,)
    reason: str


def prepare(
    metric: str,
    scores: _Clips,
    labels: _Clips,
    *,
    low: float,
    high: float,
    logistic: logistic_lib.Logistic | None = None,
) -> Prepared:
    """Turns scores and labels into what the metric's function takes.

    Args:
        metric: a name in `METRICS`.
        scores: predictions.
        labels: opinion scores, none missing.
        low: lower end of the score range.
        high: upper end.
        logistic: the mapping fitted on other clips, for fitted metrics.

    Returns:
        Arrays for the metric's function, and the reason when it is undefined on them.

    Raises:
        ValueError: for an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(
            f"unknown metric {metric!r}; available: {', '.join(sorted(METRICS))}"
        )
    needs = METRICS[metric]
    bad = int((~np.isfinite(scores)).sum())
    if len(labels) < needs.minimum:
        reason = f"{len(labels)} labelled clips; at least {needs.minimum} needed"
        return Prepared(scores, labels, reason)
    if bad:
        reason = f"{bad} of {len(scores)} predictions are not finite"
        return Prepared(scores, labels, reason)
    if needs.fitted:
        if logistic is None or logistic.params is None:
            reason = logistic.reason if logistic else "no logistic mapping was fitted"
            return Prepared(scores, labels, reason)
        scores = logistic_lib.apply(scores, logistic.params)
    spread = "are constant"
    if needs.classes:
        spread = f"all fall in one of {needs.classes} classes"
        scores = to_classes(scores, low=low, high=high, classes=needs.classes)
        labels = to_classes(labels, low=low, high=high, classes=needs.classes)
    every = np.ones((1, len(labels)))
    if needs.labels_vary and not varies(labels, every)[0]:
        return Prepared(scores, labels, f"labels {spread}")
    if needs.scores_vary and not varies(scores, every)[0]:
        return Prepared(scores, labels, f"predictions {spread}")
    return Prepared(scores, labels, "")


def resampled(
    metric: str,
    scores: _Clips,
    labels: _Clips,
    counts: _Counts,
) -> _Draws:
    """Computes a metric on resamples of prepared scores and labels.

    Args:
        metric: a name in `METRICS`.
        scores: from `prepare`.
        labels: from `prepare`.
        counts: how often each clip stands in each resample.

    Returns:
        One number a resample, NaN where the metric is undefined.
    """
    needs = METRICS[metric]
    defined = counts.any(axis=-1)
    if needs.labels_vary:
        defined &= varies(labels, counts)
    if needs.scores_vary:
        defined &= varies(scores, counts)
    result = np.full(len(counts), np.nan)
    step = max(1, _CELLS // max(1, counts.shape[-1]))
    with np.errstate(over="ignore"):
        for rows in np.split(np.flatnonzero(defined), range(step, len(counts), step)):
            if len(rows):
                result[rows] = needs.function(scores, labels, counts[rows])
    return np.where(np.isfinite(result), result, np.nan)


def comparable(
    metric: str,
    scores: _Clips,
    labels: _Clips,
    counts: _Counts,
) -> _Draws:
    """As `resampled`, for means and differences over tasks, groups or runs.

    A correlation of predictions that are constant, where labels vary, is 0 here: no
    better than chance. Left out, a run whose hard task collapsed would look good.
    """
    values = resampled(metric, scores, labels, counts)
    if not METRICS[metric].scores_vary:
        return values
    collapsed = varies(labels, counts) & ~varies(scores, counts)
    return np.where(collapsed, 0.0, values)


def counted(value: float | None, ccc: float | None) -> float | None:
    """What `comparable` would give for a task, from its value and its CCC.

    Constant predictions have a CCC but no correlation.
    """
    return 0.0 if value is None and ccc is not None else value


def measure(
    metric: str,
    scores: _Clips,
    labels: _Clips,
    *,
    low: float = 1.0,
    high: float = 5.0,
    logistic: logistic_lib.Logistic | None = None,
) -> Value:
    """Computes one metric of one task.

    Args:
        metric: a name in `METRICS`.
        scores: predictions.
        labels: opinion scores; NaN where missing.
        low: lower end of the score range, used by the class metrics.
        high: upper end.
        logistic: the mapping fitted on other clips, used by `plcc_fit` and `rmse_fit`.

    Returns:
        The value without an interval, or None with a reason.

    Example:
        >>> measure("mae", np.array([1.0, 2.0, 4.0]), np.array([1.5, np.nan, 4.0]))
        Value(value=0.25, reason='', low=None, high=None)
        >>> measure("plcc", np.array([1.0, 2.0, 4.0]), np.array([3.0, 3.0, 3.0])).reason
        'labels are constant'
    """
    scores, labels = present(scores, labels)
    ready = prepare(metric, scores, labels, low=low, high=high, logistic=logistic)
    if ready.reason:
        return Value(None, ready.reason)
    counts = np.ones((1, len(labels)))
    value = float(resampled(metric, ready.scores, ready.labels, counts)[0])
    if math.isnan(value):
        return Value(None, "predictions too large for the metric to be a finite number")
    return Value(value)


def present(
    scores: _Clips, labels: _Clips
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Drops clips without a label (NaN) and returns the rest as float64.

    Raises:
        ValueError: when the shapes differ or a label is infinite.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, float)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape} must be two lists of "
            "the same length"
        )
    if np.isinf(labels).any():
        raise ValueError("labels hold infinite values; mark a missing label with NaN")
    known = ~np.isnan(labels)
    return scores[known], labels[known]


def to_classes(values: _Clips, *, low: float, high: float, classes: int) -> _Clips:
    """Returns the number, 0 to classes-1, of the equal class that each value is in.

    A value on a threshold belongs to the class above; values outside the range belong
    to the outermost classes.
    """
    width = (high - low) / classes
    rounding = _ON_THRESHOLD * max(abs(low), abs(high), high - low) / width
    return np.clip(np.floor((values - low) / width + rounding), 0, classes - 1)


def varies(values: _Clips, counts: _Counts) -> Bool[np.ndarray, " R"]:
    """Says which resamples hold values that differ by more than float32 rounding."""
    low = np.where(counts > 0, values, np.inf).min(axis=-1)
    high = np.where(counts > 0, values, -np.inf).max(axis=-1)
    return high - low > _CONSTANT * np.maximum(np.abs(low), np.abs(high))


def _mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return (values * counts).sum(axis=-1) / counts.sum(axis=-1)


def _centred(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return values - _mean(values, counts)[:, None]


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the rank of each clip in each resample, (R, N); ties get the mean."""
    order = np.argsort(values, kind="stable")
    _, starts, inverse = np.unique(
        values[order], return_index=True, return_inverse=True
    )
    tied = np.add.reduceat(counts[:, order], starts, axis=-1)  # (R, distinct values)
    ranks = np.cumsum(tied, axis=-1) - (tied - 1) / 2
    result = np.empty_like(counts)
    result[:, order] = ranks[:, inverse]
    return result
