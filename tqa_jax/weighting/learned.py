"""Learned weights sigmoid(a) + epsilon, normalised to sum K.

Without the normalisation the objective, sum of w_i L_i, has no counter-term: every
weight falls until nothing is learned (Kendall et al. 2018 report the same of linear
weights). `normalise=False` is that original form, kept for comparison only. With it,
weight still flows to the tasks that are already easiest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from tqa_jax import weighting


class State(NamedTuple):
    """Learned numbers, and the weights; an absent task keeps its weight."""

    learned: weighting.Learned
    weights: Float[Array, " K"]


def make(
    *,
    tasks: Sequence[str],
    learning_rate: float = 1e-3,
    epsilon: float = 1e-4,
    normalise: bool = True,
) -> weighting.Weighting:
    """Makes learned weights.

    Args:
        tasks: names of the tasks.
        learning_rate: of Adam on a, at the network's peak learning rate.
        epsilon: added to each sigmoid.
        normalise: scales the weights to sum K.
    """
    num_tasks = len(tasks)
    optimizer = optax.adam(learning_rate)

    def scaled(values, before, active):
        raw = jax.nn.sigmoid(values) + epsilon
        if normalise:
            return weighting.renormalise(raw, before, active)
        return jnp.where(active, raw, before)

    def init() -> State:
        learned = weighting.start(optimizer, jnp.zeros(num_tasks, jnp.float32))
        ones = jnp.ones(num_tasks, jnp.float32)
        return State(learned, scaled(learned.values, ones, ones > 0))

    def update(state: State, signals: weighting.Signals) -> State:
        active = signals.active
        losses = jnp.where(active, signals.losses, 0)

        def objective(values):
            return (scaled(values, state.weights, active) * losses).sum()

        gradient = jax.grad(objective)(state.learned.values)
        learned = weighting.descend(optimizer, state.learned, gradient, signals)
        return State(learned, scaled(learned.values, state.weights, active))

    return weighting.Weighting(init, lambda state, signals: state.weights, update)
