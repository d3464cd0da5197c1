"""FAMO, fast adaptive multitask optimisation (Liu, Feng, Stone, Liu, NeurIPS 2023).

With z = softmax(xi) over task logits xi, the network descends c sum_i z_i log L_i
(Algorithm 1), c = 1 / sum_j (z_j / L_j), so

    w_i proportional to z_i / L_i,   scaled here to the number of labelled tasks,

and the logits descend z . (log L(t) - log L(t + 1)): a task whose loss falls more
slowly than the others' gets more. It needs losses only, for any number of tasks.

We differ from the paper in one point: L(t + 1) is the loss of the next step, on the
next batch, instead of the same batch run again, which would cost a forward pass, and it
counts from the step after. The difference has the batches' noise in it, which Adam
averages; small batches want a smaller learning rate. Losses must be positive; one of
zero counts as 1e-8.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from tqa_jax import weighting

_TINY = 1e-8


class State(NamedTuple):
    """Logits, and the log loss of each task's latest labelled step."""

    learned: weighting.Learned
    log_loss: Float[Array, " K"]
    seen: Bool[Array, " K"]


def make(
    *, tasks: Sequence[str], learning_rate: float = 0.025, decay: float = 1e-3
) -> weighting.Weighting:
    """Makes FAMO weights.

    Args:
        tasks: names of the tasks.
        learning_rate: of Adam on the logits, at the network's peak learning rate.
        decay: gamma, pulls logits to zero; added to their gradient before Adam.
    """
    num_tasks = len(tasks)
    optimizer = optax.chain(optax.add_decayed_weights(decay), optax.adam(learning_rate))

    def init() -> State:
        zeros = jnp.zeros(num_tasks, jnp.float32)
        return State(
            weighting.start(optimizer, zeros), zeros, jnp.zeros(num_tasks, bool)
        )

    def weights(state, signals):
        logits = state.learned.values - jnp.log(jnp.maximum(signals.losses, _TINY))
        return weighting.softmax(logits, signals.active)

    def update(state: State, signals: weighting.Signals) -> State:
        active = signals.active
        log_loss = jnp.log(jnp.maximum(signals.losses, _TINY))
        compared = active & state.seen
        fell = jnp.where(compared, state.log_loss - log_loss, 0)
        _, pull = jax.vjp(
            lambda values: jax.nn.softmax(jnp.where(compared, values, -jnp.inf)),
            state.learned.values,
        )
        (gradient,) = pull(fell)
        return State(
            weighting.descend(
                optimizer, state.learned, gradient, signals._replace(active=compared)
            ),
            jnp.where(active, log_loss, state.log_loss),
            state.seen | active,
        )

    return weighting.Weighting(init, weights, update)
