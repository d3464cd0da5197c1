import math

import numpy as np
import pytest
from scipy import stats

from experiments.subjective import agreement, opinions

NAN = math.nan
# Sample data of the program that goes with ITU-T P.910, Annex E (Netflix, Apache-2.0):
# a row a clip, a digit a rater, 0 for no rating; and the qualities that it prints.
SAMPLE = """
50542535555555555555 13525555454555555555 35554545344555555445 14345554454555455555
45034555555555555445 43255535555555555555 13451454454555355435 35424545553555555455
52133455355555555445 12113111131221112112 55313122232342122122 52434222243335222422
55554333353443223333 55435444454454334334 14455555555554454553 14143545555555454554
42554545555555455555 25325555555555555555 55553355554555555545 45535223133235112222
12245122132242312213 45352323342343312223 15354233353342323323 55551443353444434334
55554544455445555344 51454555455555545555 34425555455545555555 41353111111111111111
33131123131312222222 53225313143434333212
""".split()
QUALITY = """
4.824887709558456 4.791559600114693 4.602088696915011 4.633082509950083
4.801586928908753 4.813440312693993 4.3674008081376 4.694719242928383
4.629570626478145 1.4450089142936005 2.0970066788659283 2.4923423620724154
3.1698582810662237 3.832882528340058 4.528820823578037 4.554564170369048
4.816558073967046 4.884637528241065 4.712849614983354 2.221442648253051
2.016187383248598 2.6066772583577773 2.902991925875862 3.6211204641638286
4.311168354339704 4.809070235365625 4.8111288717720955 0.991002017504287
2.0613479197105797 2.7776680239570384
""".split()
# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011): 4 observers.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)
# Shrout and Fleiss (1979), table 2: 4 judges, 6 targets.
JUDGES = np.array(
    [[9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2], [5, 3, 6, 2, 6, 4], [8, 2, 8, 6, 9, 7]],
    float,
)


def votes(table):
    rater, clip = np.nonzero(~np.isnan(table))
    return opinions.Votes(rater, clip, table[rater, clip])


def sample():
    digits = np.array([[float(d) for d in row] for row in SAMPLE]).T
    return np.where(digits == 0, NAN, digits)  # (20 raters, 30 clips)


def test_rater_model_equals_the_recommendations_program():
    found = opinions.rater_model(votes(sample()), raters=20, clips=30)
    np.testing.assert_allclose(found.quality, [float(q) for q in QUALITY], atol=1e-6)
    assert found.bias.mean() == pytest.approx(0, abs=1e-12) and not found.reason
    assert not found.floored.any()


def test_rater_model_is_a_maximum_of_the_likelihood():
    rng = np.random.default_rng(0)
    table = rng.normal(3, 1, (1, 15)) + rng.normal(0, 0.5, (12, 15))
    table[rng.random(table.shape) < 0.2] = NAN
    given = votes(table)
    found = opinions.rater_model(given, raters=12, clips=15)
    assert not found.floored.any()

    def likelihood(quality, bias, inconsistency):
        rest = given.value - quality[given.clip] - bias[given.rater]
        return stats.norm.logpdf(rest, scale=inconsistency[given.rater]).sum()

    at = [found.quality, found.bias, found.inconsistency]
    best = likelihood(*at)
    for part in range(3):
        for n in range(len(at[part])):
            for step in (-1e-3, 1e-3):
                moved = [one.copy() for one in at]
                moved[part][n] += step
                assert likelihood(*moved) < best


def test_standard_errors_are_those_of_equal_raters():
    # Equal inconsistency and a full table: the variance of a mean over raters.
    rng = np.random.default_rng(1)
    table = rng.normal(3, 0.5, (200, 12))
    found = opinions.rater_model(votes(table), raters=200, clips=12)
    expected = 1.96 * 0.5 / math.sqrt(200)
    np.testing.assert_allclose(found.quality_half, expected, rtol=0.12)
    np.testing.assert_allclose(
        np.median(found.bias_half), 2.2 * 0.5 / 12**0.5, rtol=0.1
    )


def test_groups_of_raters_without_a_common_clip_have_no_model():
    table = np.full((4, 4), NAN)
    table[:2, :2], table[2:, 2:] = 3, 4
    found = opinions.rater_model(votes(table), raters=4, clips=4)
    assert "2 groups of raters" in found.reason and np.isnan(found.quality).all()
    found = opinions.rater_model(votes(table[:1]), raters=1, clips=4)
    assert "fewer than 2" in found.reason


def test_a_rater_whom_the_likelihood_would_follow_is_held_and_named():
    rng = np.random.default_rng(2)
    table = rng.normal(3, 1, (4, 10))
    table[0] = np.nanmean(table[1:], axis=0)
    found = opinions.rater_model(votes(table), raters=4, clips=10)
    assert found.floored.tolist() == [True, False, False, False]
    assert found.inconsistency[0] > 0.1


def test_mean_opinions_count_a_rater_once():
    given = opinions.Votes(
        np.array([0, 0, 0, 1, 2]),
        np.array([0, 0, 0, 0, 1]),
        np.array([1.0, 1, 4, 4, 5]),
    )
    mean, half, counts = opinions.mean_opinions(given.table(3, 3))
    assert mean[:2].tolist() == [3, 5] and counts.tolist() == [2, 1, 0]
    expected = stats.t.ppf(0.975, 1) * np.std([2, 4], ddof=1) / math.sqrt(2)
    assert (
        half[0] == pytest.approx(expected) and np.isnan(half[1]) and np.isnan(mean[2])
    )


def test_alpha_is_the_published_value_and_that_of_a_loop():
    found = agreement.alpha(OBSERVERS)
    assert found.value == pytest.approx(0.8491071428571428)
    assert found.low < found.value < found.high <= 1
    rng = np.random.default_rng(3)
    table = rng.normal(size=(5, 7)) + 1000 + 2 * np.arange(7)
    table[rng.random(table.shape) < 0.3] = NAN
    units = [c[~np.isnan(c)] for c in table.T]
    units = [u for u in units if len(u) > 1]
    pooled = np.concatenate(units)
    n = len(pooled)
    observed = sum(((u[:, None] - u) ** 2).sum() / (len(u) - 1) for u in units) / n
    expected = ((pooled[:, None] - pooled) ** 2).sum() / (n * (n - 1))
    value = agreement.alpha(table, resamples=0).value
    assert value == pytest.approx(1 - observed / expected, abs=1e-9)


def test_undefined_agreement_has_a_reason():
    assert "equal" in agreement.alpha(np.full((3, 3), 2.0)).reason
    assert "2 raters" in agreement.alpha(np.array([[1.0, 2], [NAN, NAN]])).reason
    assert agreement.correlation(np.full((3, 3), 2.0)).mean.reason
    assert "gaps" in agreement.correlation(np.array([[1.0, NAN], [NAN, 2]])).mean.reason
    perfect = agreement.correlation(np.tile([1.0, 2, 3], (4, 1)))
    assert perfect.mean.value == 1 and "perfectly" in perfect.mean.reason


def test_correlations_are_the_published_ones():
    found = agreement.correlation(JUDGES)
    assert found.single.value == pytest.approx(0.289764, abs=1e-6)
    assert found.mean.value == pytest.approx(0.620051, abs=1e-6)
    for value, ends in ((found.single, (0.02, 0.76)), (found.mean, (0.07, 0.93))):
        assert (round(value.low, 2), round(value.high, 2)) == ends


def test_correlations_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(4)
    true = 1 / (1 + 0.3 + 0.8)
    held = 0
    for _ in range(300):
        table = rng.normal(size=(1, 15)) + math.sqrt(0.3) * rng.normal(size=(12, 1))
        found = agreement.correlation(
            table + math.sqrt(0.8) * rng.normal(size=(12, 15))
        )
        held += found.single.low <= true <= found.single.high
    assert stats.binomtest(held, 300, 0.95).pvalue > 0.01


def test_full_block_leaves_out_what_has_gaps():
    table = np.arange(20.0).reshape(4, 5)
    table[1, :4] = NAN
    table[2, 3] = NAN
    block = agreement.full_block(table)
    assert block.shape == (3, 4) and not np.isnan(block).any()
    found = agreement.correlation(np.append(JUDGES, np.full((1, 6), NAN), axis=0))
    assert (found.raters, found.clips) == (4, 6)
