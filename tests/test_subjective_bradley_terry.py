import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from experiments.subjective import bradley_terry, transitivity

CLIPS = 6


def draw(rng, *, answers=300, raters=15, bias=0.4, tie=-0.3):
    scores = np.linspace(-1, 1, CLIPS)
    left = rng.integers(CLIPS, size=answers)
    right = (left + rng.integers(1, CLIPS, size=answers)) % CLIPS
    gap = scores[left] - scores[right] + bias
    weights = np.exp(np.stack([-gap / 2, np.full(answers, tie), gap / 2], axis=-1))
    shares = weights / weights.sum(axis=-1, keepdims=True)
    chosen = (rng.random(answers)[:, None] > shares.cumsum(axis=-1)).sum(axis=-1) - 1.0
    return left, right, chosen, rng.integers(raters, size=answers)


def negative(params, left, right, preference):
    """Davidson's likelihood, answer by answer; the mean score is held at 0."""
    total = (params[:CLIPS].sum()) ** 2
    for one, other, said in zip(left, right, preference, strict=True):
        strong = math.exp(params[one] + params[CLIPS])
        weak, equal = math.exp(params[other]), math.exp(params[CLIPS + 1])
        tied = equal * math.sqrt(strong * weak)
        weight = {1: strong, 0: tied, -1: weak}[int(said)]
        total -= math.log(weight / (strong + weak + tied))
    return total


def test_estimates_are_those_of_a_plain_optimiser():
    answers = draw(np.random.default_rng(0))
    fit = bradley_terry.fit(*answers, clips=CLIPS)
    start = np.zeros(CLIPS + 2)
    best = optimize.minimize(negative, start, args=answers[:3], options={"gtol": 1e-6})
    np.testing.assert_allclose(
        np.append(fit.scores, [fit.bias, fit.tie]), best.x, atol=1e-5
    )
    assert fit.log_likelihood == pytest.approx(-best.fun, abs=1e-8)
    assert fit.free == CLIPS - 1 + 2 and not fit.separated


def test_two_clips_have_the_closed_form():
    counts = {1: 30, 0: 10, -1: 20}
    left, right = np.array([0, 1] * 60), np.array([1, 0] * 60)
    first = np.repeat([1, 0, -1], [counts[1], counts[0], counts[-1]])
    preference = np.stack([first, -first], axis=-1).reshape(-1).astype(float)
    fit = bradley_terry.fit(left, right, preference, np.arange(120), clips=2)
    assert fit.scores[0] - fit.scores[1] == pytest.approx(math.log(30 / 20))
    assert fit.tie == pytest.approx(math.log(10 / math.sqrt(30 * 20)))
    assert fit.bias == pytest.approx(0, abs=1e-9)
    contrast = np.array([1, -1, 0, 0])
    variance = contrast @ fit.information @ contrast
    assert variance == pytest.approx(1 / 60 + 1 / 40)


def test_clustered_covariance_is_the_sandwich_in_a_loop():
    left, right, preference, rater = draw(np.random.default_rng(1), raters=9)
    fit = bradley_terry.fit(left, right, preference, rater, clips=CLIPS)
    at = np.append(fit.scores, [fit.bias, fit.tie])

    def slope(n):
        one = (left[n : n + 1], right[n : n + 1], preference[n : n + 1])
        step = 1e-5 * np.eye(len(at))
        penalty = 2 * at[:CLIPS].sum()
        found = [
            -(negative(at + s, *one) - negative(at - s, *one)) / 2e-5 for s in step
        ]
        return np.array(found) + penalty * (np.arange(len(at)) < CLIPS)

    meat = np.zeros((len(at), len(at)))
    for name in np.unique(rater):
        total = sum(slope(n) for n in np.flatnonzero(rater == name))
        meat += np.outer(total, total) * 9 / 8
    expected = fit.information @ meat @ fit.information
    np.testing.assert_allclose(fit.covariance, expected, atol=1e-5)
    # Copies of every rater under one name leave the clusters as wide as they were.
    again = bradley_terry.fit(
        *(np.tile(one, 4) for one in (left, right, preference, rater)), clips=CLIPS
    )
    np.testing.assert_allclose(again.covariance, fit.covariance, atol=1e-9)
    np.testing.assert_allclose(again.information, fit.information / 4, atol=1e-9)


def test_swapping_sides_turns_the_bias_alone():
    left, right, preference, rater = draw(np.random.default_rng(2))
    fit = bradley_terry.fit(left, right, preference, rater, clips=CLIPS)
    other = bradley_terry.fit(right, left, -preference, rater, clips=CLIPS)
    np.testing.assert_allclose(other.scores, fit.scores, atol=1e-8)
    assert other.bias == pytest.approx(-fit.bias) and other.tie == pytest.approx(
        fit.tie
    )


def test_groups_are_told_apart_and_centred():
    left, right = np.array([0, 1, 2, 3, 4, 3] * 4), np.array([1, 2, 0, 4, 3, 4] * 4)
    preference = np.array([1, 1, 1, 1, 1, 0] * 4, float)
    fit = bradley_terry.fit(left, right, preference, np.arange(24) % 6, clips=6)
    assert fit.groups.tolist() == [0, 0, 0, 1, 1, -1]
    assert fit.scores[:3].sum() == pytest.approx(0, abs=1e-9)
    assert fit.scores[3:5].sum() == pytest.approx(0, abs=1e-9)
    assert np.isnan(fit.scores[5]) and np.isnan(fit.half_width()[5])


def test_a_clip_that_always_wins_gets_a_finite_score_by_the_prior():
    left, right, preference, rater = draw(np.random.default_rng(3))
    always = (left == 5) | (right == 5)
    preference = np.where(always, np.where(left == 5, 1.0, -1.0), preference)
    fit = bradley_terry.fit(left, right, preference, rater, clips=CLIPS)
    assert fit.separated and 3 < fit.scores[5] < 12
    assert fit.scores[5] == fit.scores.max() and fit.half_width()[5] > 1
    ridge = 1 / bradley_terry.PRIOR_SD**2

    def penalised(params):
        shifted = params - np.append(np.full(CLIPS, params[:CLIPS].mean()), [0, 0])
        penalty = ridge * (shifted @ shifted) / 2
        return negative(shifted, left, right, preference) + penalty

    best = optimize.minimize(penalised, np.zeros(CLIPS + 2), options={"gtol": 1e-6})
    at = best.x - np.append(np.full(CLIPS, best.x[:CLIPS].mean()), [0, 0])
    found = np.append(fit.scores, [fit.bias, fit.tie])
    np.testing.assert_allclose(found, at, atol=1e-4)
    shares = fit.probabilities(left, right)
    chosen = shares[np.arange(len(left)), (preference + 1).astype(int)]
    assert fit.log_likelihood == pytest.approx(np.log(chosen).sum())


def test_what_cannot_be_told_is_left_out():
    # Clip 0 is always on the left: its score and the bias are one.
    fixed = bradley_terry.fit(
        np.zeros(20, int),
        np.ones(20, int),
        np.array([1.0, -1, 0, 1] * 5),
        np.arange(20),
        clips=2,
    )
    assert np.isnan(fixed.bias) and fixed.free == 2
    assert fixed.scores[0] - fixed.scores[1] == pytest.approx(math.log(2))
    left, right, preference, rater = draw(np.random.default_rng(4), tie=-50.0)
    fit = bradley_terry.fit(left, right, preference, rater, clips=CLIPS)
    assert fit.tie == -np.inf and fit.free == CLIPS and np.isfinite(fit.scores).all()
    assert fit.probabilities(left, right)[:, 1].max() == 0


def test_all_ties_and_a_pair_of_one_clip():
    pair = np.array([0, 1, 0, 1]), np.array([1, 0, 1, 0])
    fit = bradley_terry.fit(*pair, np.zeros(4), np.arange(4), clips=2)
    assert fit.separated and fit.tie > 1
    np.testing.assert_allclose(fit.scores, 0, atol=1e-9)
    with pytest.raises(ValueError, match="two different clips"):
        bradley_terry.fit(pair[0], pair[0], np.zeros(4), np.arange(4), clips=2)


def test_circular_triads_are_those_of_a_loop():
    rng = np.random.default_rng(5)
    pairs = np.array(list(itertools.combinations(range(CLIPS), 2)))
    rater = np.repeat([0, 1], len(pairs))
    left, right = np.tile(pairs, (2, 1)).T
    random = rng.choice([-1.0, 1.0], len(pairs))
    preference = np.append(np.ones(len(pairs)), random)
    found = transitivity.triads(left, right, preference, rater, raters=2, clips=CLIPS)
    wins = {}
    for (one, other), said in zip(pairs, random, strict=True):
        wins[one, other], wins[other, one] = said > 0, said < 0
    circular = sum(
        wins[a, b] == wins[b, c] == wins[c, a]
        for a, b, c in itertools.combinations(range(CLIPS), 3)
    )
    assert circular > 0
    assert found.circular.tolist() == [0, circular]
    assert found.judged.tolist() == [20, 20]
    # Kendall and Babington Smith: at most (n^3 - 4n) / 24 = 8 triads of 6 are circular.
    assert found.zeta.tolist() == [1, 1 - circular / 8]
    tied = np.where(np.arange(len(rater)) == 0, 0, preference)
    found = transitivity.triads(left, right, tied, rater, raters=2, clips=CLIPS)
    assert np.isnan(found.zeta[0]) and found.judged[0] == 20 - (CLIPS - 2)


def test_fit_is_good_for_the_model_and_bad_for_a_circle():
    left, right, preference, rater = draw(np.random.default_rng(6), answers=600)
    fit = bradley_terry.fit(left, right, preference, rater, clips=CLIPS)
    good = transitivity.goodness(fit, left, right, preference, draws=60)
    assert good["p"] > 0.05 and good["freedom"] == 2 * 30 - fit.free
    ahead = ((right - left) % CLIPS) <= CLIPS // 2
    circle = np.where(np.random.default_rng(7).random(600) < 0.8, 1.0, -1.0)
    circle *= np.where(ahead, 1, -1)
    fit = bradley_terry.fit(left, right, circle, rater, clips=CLIPS)
    bad = transitivity.goodness(fit, left, right, circle, draws=60)
    assert bad["p"] == pytest.approx(1 / 61)
    # Against the deviance in a loop over pairs.
    total = 0.0
    for one, other in {*zip(left.tolist(), right.tolist(), strict=True)}:
        here = circle[(left == one) & (right == other)]
        shares = fit.probabilities(np.array([one]), np.array([other]))[0]
        for said in (-1, 1):
            count = (here == said).sum()
            if count:
                share = count / len(here)
                total += 2 * count * math.log(share / shares[said + 1])
    assert bad["deviance"] == pytest.approx(total)


def test_p_values_of_the_fit_are_uniform_under_the_model():
    found = []
    for seed in range(40):
        left, right, preference, rater = draw(np.random.default_rng(seed), answers=120)
        fit = bradley_terry.fit(left, right, preference, rater, clips=CLIPS)
        found.append(transitivity.goodness(fit, left, right, preference, draws=30)["p"])
    assert stats.kstest(found, "uniform").pvalue > 0.01
