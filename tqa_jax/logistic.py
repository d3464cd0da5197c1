"""The logistic mapping after which the video quality field reports PLCC and RMSE.

It is fitted on validation clips and only applied to test clips: a fit on the test clips
would leak their labels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage, optimize, special

_MIN_LABELS = 5  # one more than there are parameters
_CONSTANT = 1e-6  # relative spread below which float32 values are all the same
_PLACES = 96  # of the middle that are tried, at predictions and between them
_SLOPES = 40  # that are tried
# Of place and log slope, in spreads of the predictions: float32 tells no more apart.
_BOUNDS = (-500, np.log(1e-7)), (500, np.log(1e3))
_STARTS = 16
_SATURATED = 0.01  # share of the step within which a clip tells nothing of its place


class Logistic(NamedTuple):
    """A mapping of predictions to opinion scores, or the reason why there is none.

    Attributes:
        params: b1, b2, b3, b4 of `apply`; None when the fit failed.
        reason: why `params` is None.
    """

    params: tuple[float, float, float, float] | None
    reason: str = ""


def fit(
    scores: Float[np.ndarray, " N"],
    labels: Float[np.ndarray, " N"],
    *,
    low: float = 1.0,
    high: float = 5.0,
) -> Logistic:
    """Fits the 4-parameter logistic by least squares.

    Args:
        scores: validation predictions.
        labels: validation opinion scores; NaN where missing.
        low: lower end of the score range, which no mapped score leaves.
        high: upper end.

    Returns:
        Parameters, or the reason why there are none: fewer than 5 labelled clips,
        constant or non-finite values, a mapping that falls, which would turn
        predictions against the labels into a good result, or one that is not
        identified: a step that lies anywhere between two predictions.

    References:
        Video Quality Experts Group, "Final report from the VQEG on the validation of
        objective models of video quality assessment", 2000, section 4. We differ: b1
        and b2 stay within the score range, where validation clips seldom tell them;
        they are solved for exactly at every b3 and b4 (variable projection: Golub and
        Pereyra 1973), which start from the best places of a grid.
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
    # Units in which tolerances can be absolute.
    origin, unit = scores.min(), np.ptp(scores)
    x, y = (scores - origin) / unit, (labels - low) / (high - low)

    def curve(place: np.ndarray) -> np.ndarray:
        middle, log_slope = np.moveaxis(np.clip(place, *_BOUNDS), -1, 0)[..., None]
        return special.expit((x - middle) / np.exp(log_slope))

    def errors(place: np.ndarray) -> np.ndarray:
        share = curve(place)
        top, bottom = _levels(share, y)
        return bottom + (top - bottom) * share - y

    points = np.unique(x)
    slopes = np.geomspace(max(np.diff(points).min() / 8, 1e-7), 64, _SLOPES)
    middles = np.sort(np.concatenate([points, (points[1:] + points[:-1]) / 2]))
    middles = middles[np.linspace(0, len(middles) - 1, _PLACES).round().astype(int)]
    middles = np.unique(np.concatenate([middles, np.linspace(-1, 2, 25)]))
    grid = np.stack(np.meshgrid(middles, np.log(slopes), indexing="ij"), axis=-1)
    share = curve(grid)
    top, bottom = (level[..., None] for level in _levels(share, y))
    squares = ((bottom + (top - bottom) * share - y) ** 2).sum(axis=-1)
    hollow = squares == ndimage.minimum_filter(squares, 3)
    order = np.argsort(squares[hollow], kind="stable")[:_STARTS]
    starts = grid[hollow][order]
    tried = [optimize.least_squares(errors, start, method="lm") for start in starts]
    best = min(tried, key=lambda one: one.cost).x
    best = np.clip(best, *_BOUNDS)
    share = curve(best)
    top, bottom = (float(level) for level in _levels(share, y))
    if top <= bottom:
        return Logistic(
            None, "logistic fit: labels fall as validation predictions rise"
        )
    inside = (share > _SATURATED) & (share < 1 - _SATURATED)
    if len(np.unique(x[inside])) < 2:
        return Logistic(
            None,
            "logistic fit: not identified, the labels step between two predictions",
        )
    b1, b2 = low + (high - low) * top, low + (high - low) * bottom
    return Logistic(
        (b1, b2, float(origin + unit * best[0]), float(unit * np.exp(best[1])))
    )


def _levels(
    share: Float[np.ndarray, "*G N"], y: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "*G"], Float[np.ndarray, "*G"]]:
    """Solves for the ends of the curve, both in 0..1, that are nearest to the labels.

    A convex problem in a square: the solution is the free one if that lies inside,
    else the best on one of the four sides.
    """
    rest = 1 - share
    aa, bb, ab = (share**2).sum(-1), (rest**2).sum(-1), (share * rest).sum(-1)
    ay, by = share @ y, rest @ y
    with np.errstate(divide="ignore", invalid="ignore"):
        size = aa * bb - ab**2
        candidates = [
            ((ay * bb - by * ab) / size, (by * aa - ay * ab) / size),
            *((top, (by - ab * top) / bb) for top in (0.0, 1.0)),
            *(((ay - ab * bottom) / aa, bottom) for bottom in (0.0, 1.0)),
        ]
    levels = np.array([np.broadcast_arrays(*pair, aa)[:2] for pair in candidates])
    levels = np.clip(np.nan_to_num(levels), 0, 1)  # A free one outside cannot be best.
    tops, bottoms = levels[:, 0], levels[:, 1]
    squares = aa * tops**2 + bb * bottoms**2 + 2 * ab * tops * bottoms
    pick = np.argmin(squares - 2 * (ay * tops + by * bottoms), axis=0)[None]
    return (
        np.take_along_axis(tops, pick, axis=0)[0],
        np.take_along_axis(bottoms, pick, axis=0)[0],
    )


def apply(
    scores: Float[np.ndarray, " N"], params: tuple[float, float, float, float]
) -> Float[np.ndarray, " N"]:
    """Maps predictions: b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|))."""
    b1, b2, b3, b4 = params
    slope = max(abs(b4), np.finfo(float).tiny)
    with np.errstate(over="ignore"):
        return b2 + (b1 - b2) * special.expit((scores - b3) / slope)
