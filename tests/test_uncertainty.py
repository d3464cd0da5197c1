"""Uncertainty weighting against the paper, and IMTL-L, which is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.signals import (
    K,
    constant,
    learned_of,
    programs,
    signals_of,
    weights_of,
    with_values,
)


def test_uncertainty_reaches_the_papers_optimum():
    # d/ds (e^-s L + s) = 0 at s = log L, so the weight is 1 / L.
    losses = np.array([0.2, 1.0, 3.0, 10.0])
    made, _, scan = programs("uncertainty", learning_rate=0.05)
    state, _ = scan(made.init(), constant(losses, 600))
    np.testing.assert_allclose(learned_of(state).values, np.log(losses), atol=2e-3)
    np.testing.assert_allclose(weights_of(made, state), 1 / losses, rtol=3e-3)


def test_uncertainty_gradient_is_twice_the_papers():
    rng = np.random.default_rng(3)
    losses = np.exp(rng.normal(size=K)).astype(np.float32)
    s = rng.normal(size=K).astype(np.float32)
    made, update, _ = programs("uncertainty")
    found = learned_of(update(with_values(made.init(), s), signals_of(losses)))

    def paper(s):
        return (0.5 * jnp.exp(-s) * losses + 0.5 * s).sum()

    wanted = 2 * jax.grad(paper)(jnp.asarray(s))
    np.testing.assert_allclose(found.optimizer[0].mu / 0.1, wanted, rtol=1e-5)


@pytest.mark.parametrize(("loss", "bound"), [(0.0, -2.0), (1e9, 2.0)])
def test_uncertainty_is_clipped(loss, bound):
    made, _, scan = programs("uncertainty", learning_rate=0.1, limit=2.0)
    state, (weights, _) = scan(made.init(), constant([loss] * K, 100))
    np.testing.assert_allclose(learned_of(state).values, bound, rtol=1e-6)
    np.testing.assert_allclose(weights[-1], np.exp(-bound), rtol=1e-5)


def test_an_absent_tasks_uncertainty_does_not_run_away():
    # The term + s alone would drive s down and the weight up.
    made, _, scan = programs("uncertainty", learning_rate=0.1)
    signals = constant([1.0, 1.0, 1.0, 0.0], 200)
    active = np.broadcast_to([True, True, True, False], (200, K))
    _, (weights, _) = scan(made.init(), signals._replace(active=active))
    np.testing.assert_array_equal(weights[:, 3], 1)


def test_imtl_l_descends_the_gradient_of_its_objective_and_equals_uncertainty():
    rng = np.random.default_rng(4)
    losses = np.exp(rng.normal(size=(20, K)))
    one, step_one, _ = programs("imtl_l", learning_rate=0.05)
    other, step_other, _ = programs("uncertainty", learning_rate=0.05)
    a, b, s = one.init(), other.init(), np.zeros(K)
    first, second = np.zeros(K), np.zeros(K)
    for t, loss in enumerate(losses, 1):
        slope = np.exp(s) * loss - 1  # d/ds (e^s L - s)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        s = s - 0.05 * first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        a, b = step_one(a, signals_of(loss)), step_other(b, signals_of(loss))
        np.testing.assert_allclose(weights_of(one, a), np.exp(s), rtol=1e-4)
        np.testing.assert_array_equal(weights_of(one, a), weights_of(other, b))
