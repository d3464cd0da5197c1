"""Smooth Tchebycheff scalarisation (Lin et al., ICML 2024).

    minimise mu log sum_i exp(L_i / mu),   so   w_i = softmax(L / mu)_i

here scaled to the number of labelled tasks. The task with the largest loss gets most:
for when the worst score matters, not the mean. Preferences and ideal losses of the
paper are 1 and 0. Losses must be comparable, as errors in one unit are (see
`schema.Task.unit`). As mu falls it becomes the plain maximum, as mu grows, equal
weights. Costs nothing and has no memory.
"""

from collections.abc import Sequence

from tqa_jax import hyperparameters, schema, weighting


def make(*, tasks: Sequence[str], mu: float = 1.0) -> weighting.Weighting:
    """Makes smooth Tchebycheff weights.

    Args:
        tasks: names of the tasks.
        mu: smoothness, in units of the loss.

    Raises:
        InputError: for a mu that is not positive.
    """
    if hyperparameters.known(mu) and not mu > 0:
        raise schema.InputError(f"weighting.stch.mu is {mu}; expected more than 0")

    def weights(state, signals):
        return weighting.softmax(signals.losses / mu, signals.active)

    return weighting.Weighting(lambda: (), weights, lambda state, signals: state)
