"""Whether preferences follow one order, and whether Bradley-Terry describes them.

The one thing to know: a rater who prefers a to b, b to c and c to a has judged a
circular triad. One who chooses at random does so in a quarter of the triads; few of
them can be counted when a rater sees few pairs of the same clips.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.subjective import bradley_terry
from tqa_jax import metrics

_CELLS = 3  # right, neither, left


class Triads(NamedTuple):
    """Triads of clips all three pairs of which were decided.

    Attributes:
        circular: of each rater (I,).
        judged: of each rater (I,).
        zeta: Kendall's coefficient of consistence, NaN for raters who did not decide
            all pairs of the clips that they saw, or saw fewer than 3 (I,).
        majority_circular: among triads of clips, by the majority of all raters.
        majority_judged: triads of clips with three majorities.
    """

    circular: Float[np.ndarray, " I"]
    judged: Float[np.ndarray, " I"]
    zeta: Float[np.ndarray, " I"]
    majority_circular: int
    majority_judged: int


def triads(
    left: Int[np.ndarray, " N"],
    right: Int[np.ndarray, " N"],
    preference: Float[np.ndarray, " N"],
    rater: Int[np.ndarray, " N"],
    *,
    raters: int,
    clips: int,
) -> Triads:
    """Counts circular triads.

    Args:
        left: clip on the left of each answer.
        right: clip on the right.
        preference: 1 for left, 0 for equal, -1 for right.
        rater: who answered; a rater's answers to one pair are added.
        raters: how many there are.
        clips: how many there are.

    References:
        Kendall and Babington Smith, "On the method of paired comparisons" (1940).
    """
    margins = np.zeros((raters, clips, clips))
    np.add.at(margins, (rater, left, right), preference)
    np.add.at(margins, (rater, right, left), -preference)
    wins = margins > 0
    circular, judged, zeta = np.zeros(raters), np.zeros(raters), np.full(raters, np.nan)
    for one in range(raters):
        circular[one], judged[one] = _count(wins[one])
        seen = wins[one].any(axis=0) | wins[one].any(axis=1)
        n = int(seen.sum())
        if n >= 3 and wins[one].sum() == n * (n - 1) / 2:
            most = n * (n**2 - (1 if n % 2 else 4)) / 24
            zeta[one] = 1 - circular[one] / most
    bad, total = _count(margins.sum(axis=0) > 0)
    return Triads(circular, judged, zeta, bad, total)


def _count(wins: np.ndarray) -> tuple[int, int]:
    """Circular triads and all triads with three decided pairs."""
    decided = (wins | wins.T).astype(float)
    forward = wins.astype(float)
    circular = np.trace(forward @ forward @ forward) / 3
    return round(circular), round(np.trace(decided @ decided @ decided) / 6)


def goodness(
    fit: bradley_terry.Fit,
    left: Int[np.ndarray, " N"],
    right: Int[np.ndarray, " N"],
    preference: Float[np.ndarray, " N"],
    *,
    draws: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Tests Bradley-Terry against shares of their own for every ordered pair.

    Args:
        fit: of these answers.
        left: clip on the left of each answer.
        right: clip on the right.
        preference: 1 for left, 0 for equal, -1 for right.
        draws: of answers from the fitted model. Their deviances, not the chi-squared
            distribution, give `p`, since there are few answers a pair.
        seed: of the draws.

    Returns:
        `deviance` (likelihood ratio), `freedom` (its degrees) and `p`, small when the
        model does not hold; a `reason` instead of numbers when there is nothing to
        test. Answers count as independent.
    """
    pairs = len(set(zip(left.tolist(), right.tolist(), strict=True)))
    outcomes = _CELLS - 1 if np.isfinite(fit.tie) else _CELLS - 2
    freedom = pairs * outcomes - fit.free
    if freedom <= 0:
        return metrics.Value(
            None, "the model has as many parameters as there are shares to describe"
        ).to_json()
    deviance = _deviance(fit, left, right, preference)
    rng = np.random.default_rng(seed)
    bounds = fit.probabilities(left, right).cumsum(axis=-1)[:, :-1]
    worse = 0
    for _ in range(draws):
        drawn = (rng.random(len(left))[:, None] > bounds).sum(axis=-1) - 1.0
        # Raters matter for intervals only.
        again = bradley_terry.fit(
            left, right, drawn, np.zeros(len(left), int), clips=len(fit.scores)
        )
        worse += _deviance(again, left, right, drawn) >= deviance
    return {
        "deviance": deviance,
        "freedom": freedom,
        "p": (1 + worse) / (1 + draws),
        "draws": draws,
    }


def _deviance(
    fit: bradley_terry.Fit, left: np.ndarray, right: np.ndarray, preference: np.ndarray
) -> float:
    counts = np.zeros((len(fit.scores), len(fit.scores), _CELLS))
    np.add.at(counts, (left, right, (preference + 1).astype(int)), 1)
    totals = counts.sum(axis=-1, keepdims=True)
    some = counts > 0
    shares = np.divide(counts, totals, out=np.ones_like(counts), where=some)
    return 2 * float((counts * np.log(shares)).sum() - fit.log_likelihood)
