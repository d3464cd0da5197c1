"""Weightings that read only the losses of a step: FAMO, smooth Tchebycheff, random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.signals import TASKS, K, constant, programs, signals_of, weights_of
from tqa_jax import schema, weighting

LOSSES = np.array([0.3, 2.0, 1.0, 0.7])


# FAMO.


def test_famo_weights_are_the_gradient_of_the_weighted_log_losses():
    made, update, _ = programs("famo")
    state = made.init()
    logits = np.array([0.5, -0.3, 0.1, 0.0])
    state = state._replace(
        learned=state.learned._replace(values=jnp.asarray(logits, jnp.float32))
    )
    share = np.exp(logits) / np.exp(logits).sum()

    def objective(losses):
        return (share * jnp.log(losses)).sum()

    slope = np.asarray(jax.grad(objective)(jnp.asarray(LOSSES)))
    found = weights_of(made, state, signals_of(LOSSES))
    np.testing.assert_allclose(found, K * slope / slope.sum(), rtol=1e-5)


def test_famo_logits_descend_what_the_log_losses_fell():
    made, update, _ = programs("famo", learning_rate=0.025, decay=1e-3)
    state, logits = made.init(), np.zeros(K)
    first, second, before = np.zeros(K), np.zeros(K), None
    rng = np.random.default_rng(0)
    for number, losses in enumerate(np.exp(rng.normal(size=(8, K)))):
        state = update(state, signals_of(losses))
        if before is not None:
            fell = np.log(before) - np.log(losses)
            share = np.exp(logits) / np.exp(logits).sum()
            slope = share * (fell - share @ fell) + 1e-3 * logits
            first = 0.9 * first + 0.1 * slope
            second = 0.999 * second + 0.001 * slope**2
            scaled = second / (1 - 0.999**number)
            logits = logits - 0.025 * first / (1 - 0.9**number) / (
                np.sqrt(scaled) + 1e-8
            )
        before = losses
        np.testing.assert_allclose(state.learned.values, logits, atol=1e-5)


def test_famo_gives_more_to_the_task_that_falls_slowly():
    made, update, _ = programs("famo")
    state = made.init()
    for number in range(20):
        falling = 0.8**number
        state = update(state, signals_of([1.0, falling, falling, falling]))
    found = np.asarray(weights_of(made, state))
    assert found[0] > 1.1 and (found[1:] < 1).all()


def test_famo_compares_a_tasks_loss_with_its_own_latest():
    # Task 1 is away for a step, and its fall is counted when it is back.
    made, update, _ = programs("famo")
    everyone, some = np.ones(K, bool), np.array([True, False, True, True])
    state = update(made.init(), signals_of(np.ones(K), active=everyone))
    state = update(state, signals_of([1, 0, 1, 1], active=some))
    assert state.learned.values[1] == 0
    state = update(state, signals_of([1, 0.1, 1, 1], active=everyone))
    assert state.learned.values[1] < 0 and (state.learned.values[2:] > 0).all()


def test_famo_moves_only_tasks_that_it_can_compare():
    # Task 1 comes late: what the others fell is compared among them.
    made, update, _ = programs("famo", decay=0.0)
    some = np.array([True, False, True, True])
    one = update(made.init(), signals_of([1, 0, 1, 1], active=some))
    found = update(one, signals_of([0.5, 1, 0.5, 0.5]))
    # They all fell alike, so none moves, up to Adam's division by nearly nothing.
    np.testing.assert_allclose(found.learned.values[1], 0, atol=0)
    alone = update(one, signals_of([0.5, 0, 0.25, 0.5], active=some))
    late = update(one, signals_of([0.5, 1, 0.25, 0.5]))
    np.testing.assert_allclose(late.learned.values, alone.learned.values, rtol=1e-5)


# Smooth Tchebycheff.


@pytest.mark.parametrize("mu", [0.1, 1.0, 30.0])
def test_stch_weights_are_the_gradient_of_the_smooth_maximum(mu):
    made, _, _ = programs("stch", mu=mu)

    def objective(losses):
        return mu * jax.scipy.special.logsumexp(losses / mu)

    slope = np.asarray(jax.grad(objective)(jnp.asarray(LOSSES)))
    found = weights_of(made, made.init(), signals_of(LOSSES))
    np.testing.assert_allclose(found, K * slope, rtol=1e-4, atol=1e-6)


def test_stch_goes_from_the_maximum_to_equal_weights():
    for mu, wanted in ((1e-3, K * np.eye(K)[1]), (1e5, np.ones(K))):
        made, _, _ = programs("stch", mu=mu)
        found = weights_of(made, made.init(), signals_of(LOSSES))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("mu", [0.0, float("nan")])
def test_stch_refuses_a_mu_that_is_not_positive(mu):
    with pytest.raises(schema.InputError, match="stch.mu is .* more than 0"):
        weighting.make("stch", tasks=TASKS, mu=mu)


# Random.


def test_rlw_is_a_softmax_of_normal_draws():
    made, _, _ = programs("rlw")
    signals = signals_of(LOSSES)
    drawn = np.exp(np.asarray(jax.random.normal(signals.rng, (K,))))
    found = weights_of(made, made.init(), signals)
    np.testing.assert_allclose(found, K * drawn / drawn.sum(), rtol=1e-5)


def test_rlw_draws_anew_and_has_mean_one():
    _, _, scan = programs("rlw")
    signals = constant(LOSSES, 4000)._replace(
        rng=jax.random.split(jax.random.key(1), 4000)
    )
    _, (weights, _) = scan((), signals)
    weights = np.asarray(weights)
    # Standard error of a mean over 4,000 draws: 0.8 / sqrt(4,000) = 0.013.
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.05)
    assert np.abs(np.diff(weights, axis=0)).max(axis=-1).min() > 0
