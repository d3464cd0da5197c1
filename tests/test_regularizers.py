"""Consistency against NumPy loops, and the rows that must not count."""

import jax
import numpy as np
import pytest

from tqa_jax import regularizers, schema

B, K = 12, 4
TARGET = np.array(
    [
        [1.0, 0.3, np.nan, -0.2],
        [0.3, 1.0, 0.5, 0.1],
        [np.nan, 0.5, 1.0, 0.0],
        [-0.2, 0.1, 0.0, 1.0],
    ],
    np.float32,
)
LOWER = [(i, j) for i in range(K) for j in range(i)]


def make_scores(seed=0, rows=B):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(rows, 1))
    scores = 3 + 0.7 * shared + rng.normal(size=(rows, K))
    return scores.astype(np.float32), np.ones(rows, bool)


def functions(mode):
    found = regularizers.make(mode, TARGET)
    return jax.jit(found), jax.jit(jax.grad(found))


FUNCTIONS = {mode: functions(mode) for mode in regularizers.MODES}


def reference(mode, scores):
    """The four formulas in float64, one clip and one pair at a time."""
    scores = scores.astype(np.float64)
    if mode == "std":
        return np.mean([np.std(row, ddof=1) for row in scores])
    if mode == "cov":
        return np.mean([np.var(scores[:, k]) for k in range(K)])
    pairs = {(i, j): np.corrcoef(scores[:, i], scores[:, j])[0, 1] for i, j in LOWER}
    if mode == "corr":
        return 1 - np.mean(list(pairs.values()))
    return np.mean(
        [
            (pairs[pair] - TARGET[pair]) ** 2
            for pair in LOWER
            if np.isfinite(TARGET[pair])
        ]
    )


@pytest.mark.parametrize("mode", regularizers.MODES)
def test_value_equals_the_formula(mode):
    scores, there = make_scores()
    # The epsilons of the correlation move it by some 1e-6.
    np.testing.assert_allclose(
        FUNCTIONS[mode][0](scores, there), reference(mode, scores), rtol=2e-5
    )


@pytest.mark.parametrize("mode", regularizers.MODES)
def test_gradient_equals_finite_differences(mode):
    scores, there = make_scores(1)
    found = FUNCTIONS[mode][1](scores, there)
    rng = np.random.default_rng(2)
    for _ in range(3):
        direction = rng.normal(size=scores.shape)
        ends = [reference(mode, scores + h * direction) for h in (1e-5, -1e-5)]
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(
            (found * direction).sum(), slope, rtol=2e-3, atol=1e-5
        )


@pytest.mark.parametrize("mode", regularizers.MODES)
def test_rows_that_only_fill_the_batch_change_nothing(mode):
    scores, there = make_scores()
    value, gradient = FUNCTIONS[mode]
    filled = np.concatenate([scores, np.full((5, K), 99, np.float32)])
    mask = np.concatenate([there, np.zeros(5, bool)])
    np.testing.assert_allclose(value(filled, mask), value(scores, there), rtol=1e-6)
    found = gradient(filled, mask)
    np.testing.assert_array_equal(found[B:], 0)
    np.testing.assert_allclose(found[:B], gradient(scores, there), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mode", regularizers.MODES)
def test_value_and_gradient_follow_the_score_range(mode):
    scores, there = make_scores()
    value, gradient = FUNCTIONS[mode]
    low = np.array([0.0, 1.0, 0.0, -2.0], np.float32)
    units = np.array([400.0, 1.0, 0.04, 1.0], np.float32)
    moved = low + (scores - 1) / units
    other = regularizers.make(mode, TARGET, low=low, units=units)
    np.testing.assert_allclose(other(moved, there), value(scores, there), rtol=1e-4)
    np.testing.assert_allclose(
        jax.grad(other)(moved, there) / units,
        gradient(scores, there),
        rtol=1e-3,
        atol=1e-5,
    )


def test_identical_tasks_on_a_short_range_are_consistent():
    scores, there = make_scores()
    scores = np.repeat(0.0025 * (scores[:, :1] - 1), K, axis=1)
    units = np.full(K, schema.Task("any", 0.0, 0.01).unit)
    for mode in ("corr", "std"):
        found = regularizers.make(mode, TARGET, low=np.zeros(K), units=units)
        assert found(scores, there) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("mode", ["corr", "cov", "corr_target"])
def test_fewer_than_eight_clips_count_as_zero(mode):
    scores, there = make_scores()
    value, gradient = FUNCTIONS[mode]
    there[7:] = False
    assert value(scores, there) == 0
    assert not np.any(gradient(scores, there))
    there[7] = True
    assert value(scores, there) > 0


@pytest.mark.parametrize("mode", regularizers.MODES)
@pytest.mark.parametrize("case", ["constant", "equal_tasks", "nobody", "one_clip"])
def test_value_and_gradient_stay_finite(mode, case):
    scores, there = make_scores()
    if case == "constant":
        scores[:] = 3
    elif case == "equal_tasks":
        scores[:] = scores[:, :1]
    elif case == "nobody":
        there[:] = False
    else:
        there[1:] = False
    value, gradient = FUNCTIONS[mode]
    assert np.isfinite(value(scores, there))
    assert np.isfinite(gradient(scores, there)).all()


def test_what_each_mode_calls_consistent_is_zero():
    scores, there = make_scores()
    together = scores[:, :1] * np.array([1.0, 0.5, 2.0, 1.0], np.float32)
    np.testing.assert_allclose(FUNCTIONS["corr"][0](together, there), 0, atol=1e-4)
    same = np.repeat(scores[:, :1], K, axis=1)
    assert FUNCTIONS["std"][0](same, there) == 0
    assert not np.any(FUNCTIONS["std"][1](same, there))


def test_own_correlation_is_a_target_that_is_met():
    scores, there = make_scores()
    own = np.corrcoef(scores.T).astype(np.float32)
    met = jax.jit(regularizers.make("corr_target", own))
    np.testing.assert_allclose(met(scores, there), 0, atol=1e-9)
    unknown = regularizers.make("corr_target", np.full((K, K), np.nan, np.float32))
    value, gradient = jax.jit(jax.value_and_grad(unknown))(scores, there)
    assert value == 0 and not np.any(gradient)


def test_scores_that_are_not_finite_are_not_hidden_by_unknown_targets():
    scores, there = make_scores()
    scores[3, 1] = np.nan
    assert np.isnan(FUNCTIONS["corr_target"][0](scores, there))


def test_correlation_equals_numpy():
    scores, there = make_scores(3)
    found = jax.jit(regularizers.correlation)(scores, there)
    np.testing.assert_allclose(found, np.corrcoef(scores.T), atol=1e-5)


def test_unknown_mode_is_refused_with_the_choices():
    with pytest.raises(schema.InputError, match="std, corr, cov, corr_target"):
        regularizers.make("covariance", TARGET)
