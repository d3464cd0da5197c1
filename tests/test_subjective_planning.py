import json
import math

import numpy as np
import pytest
from scipy import special, stats

from experiments.subjective import __main__ as command
from experiments.subjective import planning


@pytest.mark.parametrize(
    ("effect", "raters"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.2, 8)]
)
def test_raters_are_those_of_the_tables(effect, raters):
    """Paired t-test, two-sided .05, power .8 (G*Power; Cohen 1988, table 2.4.1)."""
    assert planning.t_test_raters(effect, 1.0, level=0.05, power=0.8) == raters


def test_power_of_the_t_test_is_that_of_a_simulation():
    rng = np.random.default_rng(0)
    trials, raters, level = 10, 18, 0.05 / 5
    sd = planning.rating_sd(trials, between=0.3, within=0.8, correlation=0.25)
    own = 0.4 + 0.3 * rng.normal(size=(4000, raters, 1))
    shared = math.sqrt(0.25) * rng.normal(size=(4000, raters, trials))
    noise = math.sqrt(0.75) * rng.normal(size=(2, 4000, raters, trials))
    a, b = 0.8 * (shared + noise)
    means = (own + a - b).mean(axis=-1)
    found = (stats.ttest_1samp(means, 0, axis=-1).pvalue < level).mean()
    assert found == pytest.approx(
        planning.t_test_power(0.4, sd, raters, level), abs=0.03
    )


def test_power_of_preferences_is_that_of_a_simulation():
    rng = np.random.default_rng(1)
    trials, raters, share, ties, alike = 20, 20, 0.62, 0.2, 0.05
    mean, sd = planning.preference_moments(trials, share, ties=ties, alike=alike)
    # With chance `alike` to the half an answer is the rater's own, else a fresh one.
    chances = [(1 - ties) * share, ties, (1 - ties) * (1 - share)]
    size = (4000, raters)
    own = rng.choice([1, 0, -1], p=chances, size=(*size, 1))
    fresh = rng.choice([1, 0, -1], p=chances, size=(*size, trials))
    means = np.where(rng.random((*size, trials)) < alike**0.5, own, fresh).mean(-1)
    assert means.mean() == pytest.approx(mean, abs=0.005)
    assert means.std() == pytest.approx(sd, rel=0.02)
    found = (stats.ttest_1samp(means, 0, axis=-1).pvalue < 0.05).mean()
    expected = planning.t_test_power(mean, sd, raters, 0.05)
    assert 0.5 < expected < 0.95 and found == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("share", "answers"), [(0.6, 50), (0.35, 81), (0.9, 12)])
def test_power_of_the_sign_test_is_that_of_a_sum(share, answers):
    total = 0.0
    for wins in range(answers + 1):
        tail = sum(
            special.comb(answers, k) for k in range(min(wins, answers - wins) + 1)
        )
        if 2 * tail / 2**answers <= 0.05:
            total += stats.binom.pmf(wins, answers, share)
    found = planning.sign_test_power(share, answers, ties=0.0, level=0.05)
    assert found == pytest.approx(total, abs=1e-9)


def test_sign_test_with_ties_is_that_of_a_simulation():
    rng = np.random.default_rng(2)
    answers = planning.sign_test_answers(0.65, ties=0.3, level=0.05, power=0.8)
    decided = rng.binomial(answers, 0.7, 5000)
    wins = rng.binomial(decided, 0.65)
    tail = stats.binom.cdf(np.minimum(wins, decided - wins), decided, 0.5)
    assert (2 * tail <= 0.05).mean() == pytest.approx(0.8, abs=0.03)
    found = planning.sign_test_power(0.65, answers - 3, ties=0.3, level=0.05)
    assert found < 0.8 + 0.02


def test_more_trials_cannot_make_up_for_raters_who_differ():
    few, many = (
        planning.t_test_raters(
            0.3,
            planning.rating_sd(trials, between=0.5, within=0.8, correlation=0.0),
            level=0.05,
            power=0.8,
        )
        for trials in (5, 10_000)
    )
    limit = planning.t_test_raters(0.3, 0.5, level=0.05, power=0.8)
    assert few > many and many in (limit, limit + 1)


def test_command_prints_a_table_and_json(capsys):
    arguments = ["plan", "--effect=0.5", "--sd_between=1", "--sd_within=0.001"]
    assert command.main([*arguments, "--comparisons=5", "--preference=0.6"]) == 0
    said = capsys.readouterr().out
    assert "level 0.01" in said and "| 20 | 51 | 1020 |" in said
    assert command.main([*arguments, "--trials", "7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["ratings_raters"] == 34
    assert 0.8 <= found["rows"][0]["ratings_power"] < 0.82
    assert command.main(["plan", "--effect=0.0001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["ratings_raters"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give --effect, --preference or both"),
        (["--effect=0"], "no difference to find"),
        (["--preference=0.5"], "no difference to find"),
        (["--preference=1"], "between 0 and 1"),
        (["--effect=1", "--power=1"], "--power is 1.0; expected 0.05"),
        (["--effect=nan"], "--effect is nan"),
        (["--effect=1", "--trials", "0"], "--trials is 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(capsys, given, message):
    assert command.main(["plan", *given]) == 2
    assert message in capsys.readouterr().err
