"""Homoscedastic uncertainty weighting (Kendall, Gal, Cipolla 2018, eq. 7).

With s = log sigma^2 the objective of a task is e^-s L + s: twice the paper's
1/2 e^-s L + 1/2 s, hence the same optimum s = log L and the same relative weights.
The weights' sum is free; where it falls, so does the effective learning rate. s is
clipped to +-`limit`, since a loss near zero would drive e^-s to infinity. The
objective can be negative: never stop early on it. An absent task's s stands still; its
term + s alone would drive the weight up.

When to use it: losses of different scale, a short run. It needs losses only and
assumes Gaussian errors of one size a task. At the optimum w_i = 1 / L_i: a task that
is nearly learned gets ever more.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from tqa_jax import weighting


def make(
    *, tasks: Sequence[str], learning_rate: float = 1e-3, limit: float = 5.0
) -> weighting.Weighting:
    """Makes uncertainty weights.

    Args:
        tasks: names of the tasks.
        learning_rate: of Adam on s, at the network's peak learning rate.
        limit: bound on |s|; weights stay within e^-limit .. e^limit.
    """
    optimizer = optax.adam(learning_rate)

    def init() -> weighting.Learned:
        return weighting.start(optimizer, jnp.zeros(len(tasks), jnp.float32))

    def update(state, signals):
        gradient = 1 - jnp.exp(-state.values) * signals.losses
        found = weighting.descend(optimizer, state, gradient, signals)
        return found._replace(values=jnp.clip(found.values, -limit, limit))

    def weights(state, signals):
        return jnp.exp(-state.values)

    return weighting.Weighting(init, weights, update)
