"""The logistic mapping after which the video quality field reports PLCC and RMSE.

The one thing to know: it is fitted on validation clips and only applied to test clips.
A fit on the test clips would leak their labels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

_MIN_LABELS = 5  # one more than there are parameters
_EVALUATIONS = 20_000
_CONSTANT = 1e-6  # relative spread below which float32 values are all the same


class Logistic(NamedTuple):
    """A mapping of predictions to opinion scores, or the reason why there is none.

    Attributes:
        params: b1, b2, b3, b4 of `apply`; None when the fit failed.
        reason: why `params` is None.
    """

    params: tuple[float, float, float, float] | None
    reason: str = ""


def fit(scores: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"]) -> Logistic:
    """Fits the 4-parameter logistic by least squares.

    Args:
        scores: validation predictions.
        labels: validation opinion scores; NaN where missing.

    Returns:
        Parameters, or the reason why there are none: fewer than 5 labelled clips,
        constant or non-finite values, no convergence, or a mapping that falls, which
        would turn predictions against the labels into a good result.

    References:
        Video Quality Experts Group, "Final report from the VQEG on the validation of
        objective models of video quality assessment", 2000, section 4. Start values:
        largest and smallest label, mean and a quarter of the sd of the predictions.
    """
    known = ~np.isnan(labels)
    scores, labels = np.asarray(scores, float)[known], np.asarray(labels, float)[known]
    if len(labels) < _MIN_LABELS:
        found = f"{len(labels)} validation labels; {_MIN_LABELS} needed"
        return Logistic(None, f"logistic fit: {found}")
    for name, values in (("labels", labels), ("predictions", scores)):
        if not np.isfinite(values).all():
            return Logistic(None, f"logistic fit: validation {name} are not finite")
        if np.ptp(values) <= _CONSTANT * np.abs(values).max():
            return Logistic(None, f"logistic fit: validation {name} are constant")
    start = [labels.max(), labels.min(), scores.mean(), scores.std() / 4]
    found = optimize.least_squares(
        lambda params: apply(scores, params) - labels,
        start,
        method="lm",
        max_nfev=_EVALUATIONS,
    )
    if not found.success:
        return Logistic(None, f"logistic fit: {found.message}")
    if found.x[0] <= found.x[1]:
        return Logistic(
            None, "logistic fit: labels fall as validation predictions rise"
        )
    b1, b2, b3, b4 = (float(value) for value in found.x)
    return Logistic((b1, b2, b3, abs(b4)))


def apply(
    scores: Float[np.ndarray, " N"], params: tuple[float, float, float, float]
) -> Float[np.ndarray, " N"]:
    """Maps predictions: b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|))."""
    b1, b2, b3, b4 = params
    slope = max(abs(b4), np.finfo(float).tiny)
    with np.errstate(over="ignore"):
        return b2 + (b1 - b2) * special.expit((scores - b3) / slope)
