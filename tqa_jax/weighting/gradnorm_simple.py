"""A GradNorm without optimiser: w_i falls by step (G_i - G r_i^alpha).

The rule of the older PyTorch system, with its defects removed: norms are those of the
weighted losses at a layer that all tasks share, and the weights are scaled to sum K
after every step. G_i, G, r_i are as in `gradnorm`. Unlike there, the size of a step
follows the size of the gradients, so `step` must be chosen for the losses at hand: use
`gradnorm` unless you compare with that system.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tqa_jax import weighting

_TINY = 1e-8


class State(NamedTuple):
    """Weights, and the first loss of each task that has been seen."""

    weights: Float[Array, " K"]
    initial: Float[Array, " K"]
    seen: Bool[Array, " K"]


def make(
    *,
    tasks: Sequence[str],
    alpha: float = 1.5,
    step: float = 0.01,
    floor: float = 1e-3,
    ceiling: float = 100.0,
) -> weighting.Weighting:
    """Makes the simplified GradNorm weights.

    Args:
        tasks: names of the tasks.
        alpha: strength of the pull toward equal training rates.
        step: factor on the difference of norms, at the network's peak learning rate.
        floor: least weight before the weights are scaled to their sum.
        ceiling: largest weight before the weights are scaled to their sum.
    """

    def init() -> State:
        ones = jnp.ones(len(tasks), jnp.float32)
        return State(ones, jnp.zeros_like(ones), jnp.zeros(len(tasks), bool))

    def update(state: State, signals: weighting.Signals) -> State:
        active = signals.active
        initial = jnp.where(active & ~state.seen, signals.losses, state.initial)
        norms = state.weights * signals.grad_norms
        ratio = signals.losses / jnp.maximum(initial, _TINY)
        rate = ratio / jnp.maximum(weighting.mean_over_active(ratio, active), _TINY)
        target = weighting.mean_over_active(norms, active) * rate**alpha
        stepped = state.weights - signals.rate * step * (norms - target)
        weights = weighting.renormalise(
            jnp.clip(stepped, floor, ceiling), state.weights, active
        )
        return State(weights, initial, state.seen | active)

    return weighting.Weighting(init, lambda state, signals: state.weights, update)
