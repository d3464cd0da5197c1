"""Dynamic weight average against the paper's equation, and who takes part in it."""

import jax
import numpy as np
import pytest

from tests.signals import TASKS, K, programs, signals_of, weights_of
from tqa_jax import schema, weighting

PERIOD = 7  # Steps of an epoch, see `programs`.


def feed(made, update, losses, active=None):
    """Weights before every step, and after the last."""
    state, found = made.init(), []
    for number, one in enumerate(losses):
        found.append(np.asarray(weights_of(made, state)))
        there = None if active is None else active[number]
        state = update(state, signals_of(one, active=there))
    return np.array([*found, weights_of(made, state)])


def test_weights_follow_the_equation():
    made, update, _ = programs("dwa", temperature=1.5)
    losses = np.exp(np.random.default_rng(0).normal(size=(4 * PERIOD, K)))
    found = feed(made, update, losses)
    np.testing.assert_array_equal(found[: 2 * PERIOD], 1)
    means = losses.reshape(4, PERIOD, K).mean(axis=1)
    for epoch in (2, 3):
        ratio = means[epoch - 1] / means[epoch - 2]
        wanted = K * np.exp(ratio / 1.5) / np.exp(ratio / 1.5).sum()
        # The first step of an epoch ends the last, so its own weights are one behind.
        for step in range(epoch * PERIOD + 1, (epoch + 1) * PERIOD):
            np.testing.assert_allclose(found[step], wanted, rtol=1e-5)


def test_a_task_that_learns_slowly_gets_more():
    made, update, _ = programs("dwa")
    falling = 0.9 ** np.arange(3 * PERIOD)
    losses = np.stack([np.ones_like(falling), falling, falling, falling], axis=-1)
    found = feed(made, update, losses)[-1]
    assert found[0] > 1 and (found[1:] < 1).all()


def test_a_task_needs_two_labelled_epochs():
    made, update, _ = programs("dwa")
    losses = np.tile(0.5 ** np.arange(5.0).repeat(PERIOD)[:, None], (1, K))
    losses[:, 1] = 1.0
    active = np.ones((5 * PERIOD, K), bool)
    active[: 2 * PERIOD, 0] = False  # Task 0 comes in the third epoch.
    found = feed(made, update, losses, active)
    # Ratios in the fourth epoch: 1 (not known), 1, 1/2, 1/2.
    fourth = found[3 * PERIOD + 2]
    assert fourth[0] == pytest.approx(fourth[1], rel=1e-5) and fourth[0] > fourth[2]
    # In the fifth it is known to fall like the others.
    fifth = found[4 * PERIOD + 2]
    np.testing.assert_allclose(fifth[[0, 2, 3]], fifth[0], rtol=1e-5)
    assert fifth[1] > fifth[0]
    np.testing.assert_allclose(found.sum(axis=-1), K, rtol=1e-5)


def test_vmapped_runs_may_be_in_different_epochs():
    made, update, _ = programs("dwa")
    losses = np.exp(np.random.default_rng(1).normal(size=(3 * PERIOD, K)))
    alone = feed(made, update, losses)[-1]
    states = jax.vmap(lambda _: made.init())(np.arange(2))
    for one in losses:
        signals = jax.tree.map(
            lambda leaf: jax.numpy.stack([leaf, leaf]), signals_of(one)
        )
        states = jax.vmap(update)(states, signals)
    both = jax.vmap(lambda state: weights_of(made, state))(states)
    np.testing.assert_allclose(both, [alone, alone], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(schema.InputError, match="temperature .* more than 0"):
        weighting.make(
            "dwa", tasks=TASKS, facts={"steps_per_epoch": 3}, temperature=temperature
        )
