"""Opinion scores of clips from ratings: means, and a model of how raters differ.

The one thing to know: a rater who rated a clip several times counts once in its mean
opinion score. The model of ITU-T P.910 (Annex E) and P.913 (12.6), rating = quality +
bias + inconsistency x noise, instead weights raters by how consistent they are, and
excludes none.
"""

import dataclasses
import warnings

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse, stats
from scipy.sparse import csgraph

from experiments.subjective import ratings as ratings_lib

_ROUNDS = 5000
_CLOSE = 1e-8  # in points of the scale, as the recommendation's program has it
_FLOOR = 0.25  # share of the overall spread below which no inconsistency is let


@dataclasses.dataclass(frozen=True)
class Votes:
    """M ratings on one scale.

    Attributes:
        rater: an index (M,).
        clip: an index (M,).
        value: the rating (M,).
    """

    rater: Int[np.ndarray, " M"]
    clip: Int[np.ndarray, " M"]
    value: Float[np.ndarray, " M"]

    def table(self, raters: int, clips: int) -> Float[np.ndarray, "I C"]:
        """Returns each rater's mean rating of each clip, NaN where there is none."""
        sums, counts = np.zeros((2, raters, clips))
        np.add.at(sums, (self.rater, self.clip), self.value)
        np.add.at(counts, (self.rater, self.clip), 1)
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def votes(answers: ratings_lib.Ratings, task: int) -> Votes:
    """Returns the ratings of a task, of left and right clips alike."""
    value = answers.opinions[:, :, task]  # (N, 2)
    rater = np.stack([answers.rater, answers.rater], axis=-1)
    clip = np.stack([answers.left, answers.right], axis=-1)
    known = ~np.isnan(value)
    return Votes(rater[known], clip[known], value[known])


def mean_opinions(
    table: Float[np.ndarray, "I C"],
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"], Int[np.ndarray, " C"]]:
    """Computes mean opinion scores.

    Args:
        table: from `Votes.table`.

    Returns:
        Of each clip the mean, half its 95 % interval (Student's t over raters, NaN for
        fewer than 2) and the number of raters.
    """
    counts = (~np.isnan(table)).sum(axis=0)
    with warnings.catch_warnings():
        # Clips that few or none rated have none.
        warnings.simplefilter("ignore", RuntimeWarning)
        means = np.nanmean(table, axis=0)
        spread = np.nanstd(table, axis=0, ddof=1)
    enough = counts > 1
    wide = stats.t.ppf(0.975, np.where(enough, counts - 1, 1))
    half = np.where(enough, wide * spread / np.sqrt(np.maximum(counts, 1)), np.nan)
    return means, half, counts


@dataclasses.dataclass(frozen=True)
class RaterModel:
    """What ratings say about clips and raters.

    Attributes:
        reason: why there is no model; all else is NaN then.
        quality: of each clip, NaN where nobody rated it (C,).
        quality_half: half its 95 % interval, which is about other ratings by the same
            raters (C,).
        bias: of each rater, mean 0, in points of the scale (I,).
        bias_half: half its 95 % interval (I,).
        inconsistency: standard deviation of each rater's noise (I,).
        inconsistency_low: lower end of its 95 % interval (I,).
        inconsistency_high: upper end (I,).
        floored: raters whose inconsistency was kept from falling to 0, where the
            likelihood has no maximum (I,).
    """

    reason: str
    quality: Float[np.ndarray, " C"]
    quality_half: Float[np.ndarray, " C"]
    bias: Float[np.ndarray, " I"]
    bias_half: Float[np.ndarray, " I"]
    inconsistency: Float[np.ndarray, " I"]
    inconsistency_low: Float[np.ndarray, " I"]
    inconsistency_high: Float[np.ndarray, " I"]
    floored: Bool[np.ndarray, " I"]


def rater_model(given: Votes, *, raters: int, clips: int) -> RaterModel:
    """Fits quality, bias and inconsistency by maximum likelihood.

    Args:
        given: ratings; several of one rater and clip are repetitions.
        raters: how many there are; those without a rating get NaN.
        clips: how many there are.

    References:
        ITU-T P.910 (2021/2022), Annex E; Li, Bampis, Janowski and Katsavounidis, "A
        simple model for subject behavior in subjective experiments" (2020). Estimates
        are theirs, but that no inconsistency falls below a quarter of the overall one
        (see `floored`). Intervals are ours: they allow for the degrees of freedom that
        estimation costs, for biases not being known exactly and for weights that are
        estimated (Meier, "Variance of a weighted mean", 1953).
    """
    by_rater = np.bincount(given.rater, minlength=raters).astype(float)
    by_clip = np.bincount(given.clip, minlength=clips).astype(float)
    graph = sparse.coo_matrix(
        (np.ones(len(given.value)), (given.rater, raters + given.clip)),
        (raters + clips, raters + clips),
    )
    parts, _ = csgraph.connected_components(graph, directed=False)
    parts -= int((by_rater == 0).sum() + (by_clip == 0).sum())
    reason = ""
    if (by_rater > 0).sum() < 2 or (by_clip > 0).sum() < 2:
        reason = "fewer than 2 raters or clips"
    elif parts > 1:
        reason = (
            f"{parts} groups of raters have no clip in common, so that their bias "
            "cannot be told from the quality of their clips"
        )
    if reason:
        some, others = np.full((2, clips), np.nan), np.full((5, raters), np.nan)
        return RaterModel(reason, *some, *others, np.zeros(raters, bool))

    def per_rater(values: np.ndarray) -> np.ndarray:
        return np.bincount(given.rater, values, raters) / np.maximum(by_rater, 1)

    quality = np.bincount(given.clip, given.value, clips) / np.maximum(by_clip, 1)
    bias = per_rater(given.value - quality[given.clip])
    rest = given.value - quality[given.clip] - bias[given.rater]
    floor = max(_FLOOR * float(np.sqrt(np.mean(rest**2))), 1e-6)
    for _ in range(_ROUNDS):
        rest = given.value - quality[given.clip] - bias[given.rater]
        inconsistency = np.maximum(np.sqrt(per_rater(rest**2)), floor)
        weight = inconsistency[given.rater] ** -2.0
        total = np.bincount(given.clip, weight, clips)
        sums = np.bincount(
            given.clip, weight * (given.value - bias[given.rater]), clips
        )
        before, quality = quality, sums / np.where(by_clip > 0, total, 1)
        bias = per_rater(given.value - quality[given.clip])
        if np.linalg.norm(quality - before) < _CLOSE:
            break
    else:
        raise RuntimeError("the model of raters did not converge")
    seen, rated = by_rater > 0, by_clip > 0
    shift = bias[seen].mean()
    # A rater's ratings are partly fitted by what they themselves move.
    share = weight / total[given.clip]
    freedom = np.bincount(given.rater, 1 - share, raters) - 1
    freedom = np.where(freedom > 0, freedom, np.nan)
    spread = inconsistency * np.sqrt(by_rater / freedom)
    errors = _standard_errors(given, spread, raters, clips)
    # Weights that are estimated look better than they are (Meier 1953).
    held = np.zeros((raters, clips))
    np.add.at(held, (given.rater, given.clip), share)
    costs = np.nansum(held * (1 - held) / freedom[:, None], axis=0)
    quality_half = stats.norm.ppf(0.975) * errors[:clips] * np.sqrt(1 + 4 * costs)
    return RaterModel(
        "",
        np.where(rated, quality + shift, np.nan),
        quality_half,
        np.where(seen, bias - shift, np.nan),
        stats.t.ppf(0.975, freedom) * errors[clips:],
        np.where(seen, inconsistency, np.nan),
        spread * np.sqrt(freedom / stats.chi2.ppf(0.975, freedom)),
        spread * np.sqrt(freedom / stats.chi2.ppf(0.025, freedom)),
        seen & (inconsistency <= floor),
    )


def _standard_errors(
    given: Votes, spread: np.ndarray, raters: int, clips: int
) -> np.ndarray:
    """Of quality and of bias, raters' noise being given; NaN for those not rated.

    They are those of a weighted regression whose biases sum to 0.
    """
    known = np.isfinite(spread[given.rater])
    if not known.any():
        return np.full(clips + raters, np.nan)
    rater, clip = given.rater[known], given.clip[known]
    weight = spread[rater] ** -2.0
    both = np.zeros((len(rater), clips + raters))
    rows = np.arange(len(rater))
    both[rows, clip] = both[rows, clips + rater] = 1
    information = (both * weight[:, None]).T @ both
    used = both.any(axis=0)
    information = information[np.ix_(used, used)]
    pin = (np.arange(clips + raters) >= clips)[used].astype(float)
    # The pin is as large as the rest, for the inverse to be exact.
    pin *= np.sqrt(np.diag(information).mean())
    inverse = np.linalg.inv(information + np.outer(pin, pin))
    errors = np.full(clips + raters, np.nan)
    variance = np.diag(inverse @ information @ inverse)
    errors[used] = np.sqrt(np.maximum(variance, 0))  # Rounding may leave -1e-17.
    return errors
