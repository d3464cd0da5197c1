"""Patience, stalls and the best value, against a loop."""

import jax
import numpy as np
import pytest

from tqa_jax import progress


def follow(values, *, patience=3, least=0.0, state=None):
    """All states after each validation of a selection metric and one task."""
    state = state or progress.init(1)
    found = []
    for value in values:
        row = value if isinstance(value, tuple) else (value, value)
        state = progress.advance(state, row, patience=patience, least=least)
        found.append(state)
    return found


def test_counts_equal_a_loop():
    rng = np.random.default_rng(0)
    values = [None if v < -1 else v for v in rng.normal(size=40).tolist()]
    best, since, stalls = -np.inf, 0, 0
    for value, state in zip(values, follow(values, patience=2), strict=True):
        if value is not None and value > best:
            best, since = value, 0
        else:
            since += 1
            stalls += since % 2 == 0
        np.testing.assert_array_equal(state.since, since)
        np.testing.assert_array_equal(state.stalls, stalls)
        np.testing.assert_allclose(state.best, best, rtol=1e-7)
    assert state.epoch == 40


def test_a_stall_comes_at_every_multiple_of_the_patience():
    states = follow([1.0] + [0.0] * 7, patience=3)
    assert [int(s.since[0]) for s in states] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [int(s.stalls[0]) for s in states] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_an_improvement_ends_the_wait_and_keeps_the_stalls():
    state = follow([1.0, 0.0, 0.0, 0.0, 2.0, 0.0], patience=3)[-1]
    assert int(state.since[0]) == 1 and int(state.stalls[0]) == 1
    assert float(state.best[0]) == 2.0


@pytest.mark.parametrize("bad", [None, float("nan"), float("-inf")])
def test_undefined_counts_as_no_improvement(bad):
    states = follow([bad, bad, 0.5, bad], patience=2)
    assert [int(s.since[0]) for s in states] == [1, 2, 0, 1]
    assert [int(s.stalls[0]) for s in states] == [0, 1, 1, 1]
    assert states[1].best[0] == -np.inf
    assert states[-1].best[0] == 0.5


def test_tasks_are_counted_apart():
    state = follow([(1.0, 1.0), (0.0, 2.0), (0.0, None)], patience=2)[-1]
    np.testing.assert_array_equal(state.since, [2, 1])
    np.testing.assert_array_equal(state.stalls, [1, 0])
    np.testing.assert_array_equal(state.best, [1.0, 2.0])


def test_an_equal_or_too_small_gain_is_none():
    assert [int(s.since[0]) for s in follow([1.0, 1.0])] == [0, 1]
    found = [int(s.since[0]) for s in follow([1.0, 1.05, 1.11], least=0.1)]
    assert found == [0, 1, 0]


def test_negative_values_improve_upward():
    states = follow([-2.0, -1.0, -1.5])
    assert [int(s.since[0]) for s in states] == [0, 0, 1]


def test_types_and_shapes_stay_so_that_a_resumed_state_fits():
    start = progress.init(3)
    after = progress.advance(start, [1.0, None, 0.0, 2.0], patience=1, least=0.0)
    assert jax.tree.structure(start) == jax.tree.structure(after)
    for one, two in zip(jax.tree.leaves(start), jax.tree.leaves(after), strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype


def test_a_state_that_was_stored_goes_on_as_if_nothing_had_happened():
    values = [0.1, None, 0.3, 0.2, 0.2, 0.2, 0.4]
    whole = follow(values, patience=2)[-1]
    stored = jax.tree.map(np.asarray, follow(values[:4], patience=2)[-1])
    resumed = follow(values[4:], patience=2, state=stored)[-1]
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
