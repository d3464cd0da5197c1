"""Learned weights: the collapse, and the normalised form."""

import numpy as np

from tests.signals import (
    K,
    constant,
    learned_of,
    programs,
    signals_of,
    weights_of,
    with_values,
)


def test_learned_collapses_without_normalisation():
    made, _, scan = programs("learned", normalise=False)
    start = np.asarray(weights_of(made, made.init()))
    np.testing.assert_allclose(start, 0.5 + 1e-4, rtol=1e-6)
    _, (weights, _) = scan(made.init(), constant([1.0, 0.5, 2.0, 1.0], 5000))
    assert (np.diff(np.asarray(weights), axis=0) <= 0).all()
    assert weights[-1].max() < 0.05


def test_learned_normalised_keeps_its_sum_and_moves_to_easy_tasks():
    made, _, scan = programs("learned", learning_rate=1e-2)
    _, (weights, _) = scan(made.init(), constant([1.0, 0.5, 2.0, 1.0], 200))
    np.testing.assert_allclose(weights.sum(axis=-1), K, rtol=1e-5)
    assert weights[-1].argmax() == 1 and weights[-1].argmin() == 2


def test_learned_descends_the_gradient_of_the_weighted_sum():
    losses = np.array([1.0, 0.5, 2.0, 1.5], np.float32)
    start = np.array([0.3, -0.2, 0.1, 0.5])
    for normalise in (True, False):
        made, update, _ = programs("learned", normalise=normalise)
        state = with_values(made.init(), start)

        def total(a, normalise=normalise):
            raw = 1 / (1 + np.exp(-a)) + 1e-4
            return (raw * (K / raw.sum() if normalise else 1) * losses).sum()

        steps = 1e-6 * np.eye(K)
        slope = [(total(start + h) - total(start - h)) / 2e-6 for h in steps]
        found = learned_of(update(state, signals_of(losses))).optimizer[0].mu / 0.1
        np.testing.assert_allclose(found, slope, rtol=1e-4)


def test_learned_does_not_hide_a_loss_that_is_not_finite():
    made, update, _ = programs("learned")
    state = update(made.init(), signals_of([1.0, np.nan, 1.0, 1.0]))
    assert np.isnan(weights_of(made, state)).any()
