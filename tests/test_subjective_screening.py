import numpy as np
import pytest
from scipy import stats

from experiments.subjective import attention, bradley_terry, opinions, screening, truth


def simulated(seed=0, **settings):
    return truth.simulate(truth.Settings(**settings), np.random.default_rng(seed))


def test_bt500_counts_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    table = np.round(rng.standard_t(3, size=(25, 30)) + 3, 1)
    table[0] = rng.uniform(-3, 9, 30)
    table[rng.random(table.shape) < 0.1] = np.nan
    rater, clip = np.nonzero(~np.isnan(table))
    given = opinions.Votes(rater, clip, table[rater, clip])
    above, below, rated = screening.bt500([given, given], 25)
    p, q, limits = np.zeros(25), np.zeros(25), set()
    for column in table.T:
        some = column[~np.isnan(column)]
        normal = 2 <= stats.kurtosis(some, fisher=False) <= 4
        limits.add(normal)
        far = (2 if normal else 20**0.5) * some.std(ddof=1)
        for i, value in enumerate(column):
            p[i] += value >= some.mean() + far
            q[i] += value <= some.mean() - far
    assert limits == {True, False} and p[0] > 1 and q.sum() > 5
    np.testing.assert_array_equal(above, 2 * p)
    np.testing.assert_array_equal(below, 2 * q)
    np.testing.assert_array_equal(rated, 2 * (~np.isnan(table)).sum(axis=1))


def test_correlations_are_with_the_others_and_the_worst_goes_first():
    rng = np.random.default_rng(1)
    quality = rng.normal(size=20)
    table = quality + 0.2 * rng.normal(size=(6, 20))
    table[4], table[5] = rng.normal(size=20), -quality
    table[0, :3] = np.nan
    found, out = screening.correlations([table], 6)
    assert out.tolist() == [False] * 4 + [True] * 2
    others = np.nanmean(np.delete(table, 5, axis=0), axis=0)
    assert found[5] == pytest.approx(np.corrcoef(table[5], others)[0, 1])
    rest = np.nanmean(table[1:], axis=0)[3:]
    assert found[0] == pytest.approx(np.corrcoef(table[0, 3:], rest)[0, 1])
    flat = np.tile(np.arange(4.0), (3, 1))
    flat[0] = 1
    found, out = screening.correlations([flat], 3)
    assert np.isnan(found[0]) and not out.any()


def test_preference_fit_is_the_standardised_log_likelihood():
    _, answers = simulated(raters=8, clips=5, trials=10, careless=0)
    trials = answers.trials()
    found = screening.preference_fit(trials)
    others = trials.take(trials.rater != 3)
    fit = bradley_terry.fit(
        others.left, others.right, others.preference, others.rater, clips=5
    )
    said = expected = variance = 0.0
    for n in np.flatnonzero(trials.rater == 3):
        shares = fit.probabilities(trials.left[n : n + 1], trials.right[n : n + 1])[0]
        logs = np.log(shares)
        said += logs[int(trials.preference[n]) + 1]
        expected += shares @ logs
        variance += shares @ logs**2 - (shares @ logs) ** 2
    assert found[3] == pytest.approx((said - expected) / variance**0.5)


def test_preference_fit_is_standard_for_raters_like_the_others():
    _, answers = simulated(raters=150, clips=8, trials=28, careless=0)
    found = screening.preference_fit(answers.trials())
    assert abs(found.mean()) < 0.25 and 0.8 < found.std() < 1.2


def test_attention_is_counted():
    _, answers = simulated(raters=5, clips=6, trials=8, careless=0)
    seconds, plays = np.full(len(answers.rater), 20.0), np.ones(len(answers.rater))
    mine = answers.rater == 2
    seconds[np.flatnonzero(mine & (answers.kind == "trial"))[:3]] = 2.0
    plays[np.flatnonzero(mine & (answers.kind == "control"))[:1]] = 0
    preference = answers.preference.copy()
    preference[np.flatnonzero(mine & (answers.kind == "control"))[0]] = -1
    repeat = np.flatnonzero(mine & (answers.kind == "repeat"))
    first = [
        np.flatnonzero(mine & (answers.kind == "trial") & (answers.item == item))[0]
        for item in answers.item[repeat]
    ]
    # Sides are swapped: the same choice has the other sign.
    assert (answers.left[repeat] == answers.right[first]).all()
    preference[first], preference[repeat] = [1, 1], [-1, 1]
    changed = answers.opinions.copy()
    changed[repeat] = answers.opinions[first][:, ::-1] + 0.5
    given = answers.__class__(
        **{
            **answers.__dict__,
            "seconds": seconds,
            "plays": plays,
            "preference": preference,
            "opinions": changed,
        }
    )
    found = attention.measure(given)
    assert found["controls"].tolist() == [2] * 5
    assert found["controls_wrong"].tolist() == [0, 0, 1, 0, 0]
    assert found["repeats"][2] == 2 and found["repeats_same"][2] == 0.5
    assert found["repeats_rating_gap"][2] == pytest.approx(0.5)
    # Two of the three may be the usual time of a pair that nobody else saw.
    assert 1 / 12 < found["fast_share"][2] <= 4 / 12
    assert found["fast_share"][[0, 1, 3, 4]].max() == 0
    assert found["median_seconds"].tolist() == [20] * 5


def test_careless_raters_are_named_and_the_rest_mostly_not():
    known, answers = simulated(seed=3, careless=4)
    found = screening.screen(answers)
    careless = {answers.raters[n] for n in np.flatnonzero(known.careless)}
    for rule, least, most in (
        ("bt500", 2, 4),
        ("p913", 4, 13),
        ("p910", 3, 2),
        ("preferences", 1, 2),
        ("attention", 2, 0),
    ):
        named = set(found.named[rule])
        assert len(named & careless) >= least, rule
        assert len(named - careless) <= most, rule


def test_no_ratings_and_no_preferences_give_nobody():
    _, answers = simulated(raters=4, clips=5, trials=5, careless=0)
    empty = answers.__class__(
        **{
            **answers.__dict__,
            "opinions": np.full_like(answers.opinions, np.nan),
            "preference": np.full(len(answers.rater), np.nan),
            "seconds": np.full(len(answers.rater), np.nan),
            "plays": np.full(len(answers.rater), np.nan),
        }
    )
    found = screening.screen(empty)
    assert not any(found.named.values())
    assert np.isnan(found.columns["inconsistency"]).all()
    assert "fewer than 2" in found.models["overall"].reason
