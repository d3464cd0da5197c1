"""Which raters stand out, by several rules side by side.

The one thing to know: nobody is excluded here. Every rule names raters, the analysis
gives results with all of them and without those that each rule names, and whoever
reports a study chooses a rule before looking at the answers, and says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from experiments.subjective import attention, bradley_terry, opinions
from experiments.subjective import ratings as ratings_lib

CORRELATION = 0.75
"""Least correlation with the others (P.913, 11.4; its value for pairs of rater and
mean opinion over about a hundred clips)."""
OUTLYING = 2.0
"""Robust standard deviations from the raters' median that are too many (ours)."""
UNLIKELY = -2.5
"""Standard deviations by which preferences may be less likely than expected (ours)."""
WRONG = 0.5
"""Share of attention checks answered wrong that is too much (ours)."""
FAST = 0.2
"""Share of answers given too fast that is too much (ours)."""

RULES = {
    "bt500": "ITU-R BT.500: too many ratings far from the others', above and below",
    "p913": f"ITU-T P.913: ratings correlate less than {CORRELATION} with the others'",
    "p910": "ITU-T P.910 Annex E: inconsistency far above the other raters'",
    "preferences": "preferences far less likely than the others' scores make them",
    "attention": "controls wrong, or answers too fast or without playing both clips",
}


@dataclasses.dataclass(frozen=True)
class Screening:
    """What is known about each of I raters; NaN where it is not.

    Attributes:
        named: by rule, names of the raters who stand out.
        columns: by name, a number for each rater: `answers`; `bt500_above`,
            `bt500_below` (counts P and Q) and `bt500_share`; `correlation`; `bias` and
            `inconsistency` (mean over tasks) and `inconsistency_z`; `preference_z`;
            `left_share` (of decided preferences); `controls`, `controls_wrong`;
            `repeats`, `repeats_same`, `repeats_rating_gap`; `fast_share`,
            `median_seconds`.
        models: by task, the model of raters.
    """

    named: Mapping[str, Sequence[str]]
    columns: Mapping[str, Float[np.ndarray, " I"]]
    models: Mapping[str, opinions.RaterModel]


def screen(answers: ratings_lib.Ratings) -> Screening:
    """Applies all rules.

    Args:
        answers: of all kinds.
    """
    raters, clips = len(answers.raters), len(answers.clips)
    trials = answers.trials()
    given = {task: opinions.votes(trials, k) for k, task in enumerate(answers.tasks)}
    models = {
        task: opinions.rater_model(some, raters=raters, clips=clips)
        for task, some in given.items()
    }
    columns = {"answers": np.bincount(trials.rater, minlength=raters).astype(float)}
    above, below, rated = bt500(list(given.values()), raters)
    columns |= {"bt500_above": above, "bt500_below": below}
    columns["bt500_share"] = attention.ratio(above + below, rated)
    tables = [some.table(raters, clips) for some in given.values()]
    columns["correlation"], dissenting = correlations(tables, raters)
    columns["bias"] = attention.mean([one.bias for one in models.values()], raters)
    columns["inconsistency"] = attention.mean(
        [one.inconsistency for one in models.values()], raters
    )
    columns["inconsistency_z"] = _robust(np.log(columns["inconsistency"]))
    columns["preference_z"] = preference_fit(trials)
    decided = np.abs(trials.preference) == 1
    columns["left_share"] = attention.ratio(
        np.bincount(trials.rater[trials.preference == 1], minlength=raters),
        np.bincount(trials.rater[decided], minlength=raters),
    )
    columns |= attention.measure(answers)
    balance = np.abs(attention.ratio(above - below, above + below))
    flags = {
        "bt500": (columns["bt500_share"] > 0.05) & (balance < 0.3),
        "p913": dissenting,
        "p910": columns["inconsistency_z"] > OUTLYING,
        "preferences": columns["preference_z"] < UNLIKELY,
        "attention": (
            attention.ratio(columns["controls_wrong"], columns["controls"]) >= WRONG
        )
        | (columns["fast_share"] > FAST),
    }
    named = {
        rule: [answers.raters[i] for i in np.flatnonzero(flag)]
        for rule, flag in flags.items()
    }
    return Screening(named, columns, models)


def bt500(
    given: Sequence[opinions.Votes], raters: int
) -> tuple[Float[np.ndarray, " I"], Float[np.ndarray, " I"], Float[np.ndarray, " I"]]:
    """Counts ratings that are far from the others', as ITU-R BT.500 does.

    A rater is to be rejected when (P + Q) / ratings > 0.05 and |P - Q| / (P + Q) < 0.3.

    Args:
        given: ratings by task; a presentation is a clip and a task.
        raters: how many.

    Returns:
        P, ratings at least 2 standard deviations above the mean of their presentation
        (sqrt(20) where its kurtosis is not within 2 to 4); Q, below; and ratings.

    References:
        ITU-R BT.500-13, Annex 2, 2.3.1; BT.500-15, Part 1, Annex 1.
    """
    above, below, rated = np.zeros((3, raters))
    for some in given:
        for clip in np.unique(some.clip):
            here = some.clip == clip
            value, rater = some.value[here], some.rater[here]
            np.add.at(rated, rater, 1)
            gap = value - value.mean()
            second = (gap**2).mean()
            if len(value) < 2 or second == 0:
                continue
            kurtosis = (gap**4).mean() / second**2
            spread = np.sqrt((gap**2).sum() / (len(value) - 1))
            limit = (2 if 2 <= kurtosis <= 4 else np.sqrt(20)) * spread
            np.add.at(above, rater, gap >= limit)
            np.add.at(below, rater, gap <= -limit)
    return above, below, rated


def correlations(
    tables: Sequence[Float[np.ndarray, "I C"]], raters: int
) -> tuple[Float[np.ndarray, " I"], Bool[np.ndarray, " I"]]:
    """Correlates each rater's ratings with the mean of the others'.

    Args:
        tables: ratings by task, a row a rater and a column a clip.
        raters: how many.

    Returns:
        The mean correlation over tasks when all raters are in, and who is to be
        rejected: as P.913 has it, the worst below the limit goes first, and the rest
        are correlated anew.
    """
    out = np.zeros(raters, bool)
    first = found = _correlations(tables, out)
    while (np.where(out, np.inf, found) < CORRELATION).any():
        out[np.nanargmin(np.where(out, np.inf, found))] = True
        found = _correlations(tables, out)
    return first, out


def _correlations(tables: Sequence[np.ndarray], out: np.ndarray) -> np.ndarray:
    found = np.full((len(tables), len(out)), np.nan)
    for task, table in enumerate(tables):
        known = ~np.isnan(table) & ~out[:, None]
        values = np.where(known, table, 0)
        counts, sums = known.sum(axis=0), values.sum(axis=0)
        for rater in np.flatnonzero(~out):
            others = counts - known[rater]
            shared = known[rater] & (others > 0)
            if shared.sum() < 3:
                continue
            mine = table[rater, shared]
            theirs = (sums - values[rater])[shared] / others[shared]
            if np.ptp(mine) > 0 and np.ptp(theirs) > 0:
                found[task, rater] = np.corrcoef(mine, theirs)[0, 1]
    return attention.mean(list(found), len(out))


def preference_fit(trials: ratings_lib.Ratings) -> Float[np.ndarray, " I"]:
    """Says how likely each rater's preferences are under scores from the others.

    Returns:
        Log likelihood minus what the model expects of it, in standard deviations (the
        person fit l_z of Drasgow, Levine and Williams, 1985): near 0 for a rater like
        the others, far below for one who chooses at random. Pairs with a clip that
        only this rater compared, or that the others did not connect, do not count.
    """
    result = np.full(len(trials.raters), np.nan)
    decided = ~np.isnan(trials.preference) & (trials.left != trials.right)
    for rater in range(len(result)):
        mine = decided & (trials.rater == rater)
        others = trials.take(decided & (trials.rater != rater))
        if not mine.any() or not len(others.rater):
            continue
        fit = bradley_terry.fit(
            others.left,
            others.right,
            others.preference,
            others.rater,
            clips=len(trials.clips),
        )
        left, right = fit.groups[trials.left], fit.groups[trials.right]
        mine &= (left == right) & (left >= 0)
        shares = fit.probabilities(trials.left[mine], trials.right[mine])
        chosen = (trials.preference[mine] + 1).astype(int)
        # A tie is impossible when no other rater chose one.
        kept = shares[np.arange(len(chosen)), chosen] > 0
        shares, chosen = shares[kept], chosen[kept]
        logs = np.log(np.where(shares > 0, shares, 1))
        expected = (shares * logs).sum(axis=-1)
        spread = np.sqrt(((shares * logs**2).sum(axis=-1) - expected**2).sum())
        if spread > 0:
            said = logs[np.arange(len(chosen)), chosen].sum()
            result[rater] = (said - expected.sum()) / spread
    return result


def _robust(values: np.ndarray) -> np.ndarray:
    """Distances from the median in robust standard deviations."""
    if np.isnan(values).all():
        return np.full(len(values), np.nan)
    gap = values - np.nanmedian(values)
    spread = 1.4826 * np.nanmedian(np.abs(gap))
    return np.full(len(values), np.nan) if spread == 0 else gap / spread
