"""Random loss weighting (Lin, Ye, Zhang, Tsang, TMLR 2022).

    w = K softmax(z),   z_i ~ N(0, 1), drawn anew at every step

The control for every dynamic scheme: one that does not beat it has not used what it
measures. Its gradient has the expectation of equal weights and more variance. Costs
nothing and has no memory; the draw is over the tasks that have labels in the batch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tqa_jax import weighting


def make(*, tasks: Sequence[str]) -> weighting.Weighting:
    """Makes random weights.

    Args:
        tasks: names of the tasks.
    """

    def weights(state, signals):
        drawn = jax.random.normal(signals.rng, (len(tasks),), jnp.float32)
        return weighting.softmax(drawn, signals.active)

    return weighting.Weighting(lambda: (), weights, lambda state, signals: state)
