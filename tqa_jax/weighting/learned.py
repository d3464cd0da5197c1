"""Learned weights sigmoid(a) + epsilon, normalised to sum K.

Without the normalisation the objective, sum of w_i L_i, has no counter-term: every
weight falls until nothing is learned (Kendall et al. 2018 report the same of linear
weights). `normalise=False` is that original form, kept for comparison only. With it,
weight still flows to the tasks that are already easiest.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from tqa_jax import weighting


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

    def init() -> weighting.Learned:
        start = jnp.zeros(num_tasks, jnp.float32)
        return weighting.Learned(start, optimizer.init(start))

    def of(values):
        raw = jax.nn.sigmoid(values) + epsilon
        return raw * num_tasks / raw.sum() if normalise else raw

    def update(state, signals):
        losses = jnp.where(signals.active, signals.losses, 0)

        def objective(values):
            if not normalise:
                return (of(values) * losses).sum()
            # Absent tasks keep their weight, so only the active ones compete.
            raw = jax.nn.sigmoid(values) + epsilon
            share = raw / jnp.where(signals.active, raw, 0).sum()
            return signals.active.sum() * (share * losses).sum()

        gradient = jnp.where(signals.active.any(), jax.grad(objective)(state.values), 0)
        return weighting.descend(optimizer, state, jnp.nan_to_num(gradient), signals)

    return weighting.Weighting(init, lambda state: of(state.values), update)
