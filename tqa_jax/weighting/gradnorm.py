"""GradNorm (Chen, Badrinarayanan, Lee, Rabinovich, ICML 2018), Algorithm 1.

With G_i = ||grad_W (w_i L_i)|| at the last shared layer W, G the mean of the G_i, and
r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)), the weights descend

    L_grad = sum_i |G_i - G r_i^alpha|,

the target held constant, so dL_grad/dw_i = sign(G_i - G r_i^alpha) ||grad_W L_i|| for
positive weights: no second-order differentiation. After each step the weights are
scaled to their sum, K. A task that learns slowly (r_i > 1) gets a larger gradient.

We differ from the paper in three documented defaults. The step is taken on log w_i,
which keeps weights positive: the paper's linear step makes them negative in long runs,
and a negative weight maximises its task's loss (see `experiments.gradnorm_toy`). It is
scaled with the network's learning-rate schedule. L_i(0) is the mean over the first
`initial_steps` steps in which the task has labels. With
`log_domain=False, initial_steps=1, floor=-1e9` it is the paper's form up to the
schedule.

When to use it: task losses of very different size, none of which may starve. It needs
gradients at a layer that all tasks share, and assumes that L_i(0) is what an untrained
network has: after a warm start the rates r_i mean little. On small sets the task that
does not generalise is the slow one, and is given the weight of those that do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from tqa_jax import schema, weighting

_TINY = 1e-8
_AT_TARGET = 1e-6  # relative


class State(NamedTuple):
    """Weights and the losses that training started from."""

    learned: weighting.Learned  # log w or w
    initial: Float[Array, " K"]
    seen: Int[Array, " K"]


def make(
    *,
    tasks: Sequence[str],
    alpha: float = 1.5,
    learning_rate: float = 0.025,
    floor: float = 1e-3,
    log_domain: bool = True,
    initial_steps: int = 5,
) -> weighting.Weighting:
    """Makes GradNorm weights.

    Args:
        tasks: names of the tasks.
        alpha: strength of the pull toward equal training rates; 0 pins equal norms.
        learning_rate: of Adam on the weights, at the network's peak learning rate.
        floor: least weight before the weights are scaled to their sum.
        log_domain: descend on log w instead of w.
        initial_steps: labelled steps whose mean loss is L_i(0).
    """
    if initial_steps < 1:
        raise schema.InputError(
            f"weighting.gradnorm.initial_steps is {initial_steps}; expected 1 or more"
        )
    num_tasks = len(tasks)
    optimizer = optax.adam(learning_rate)

    def init() -> State:
        start = jnp.full(num_tasks, 0.0 if log_domain else 1.0, jnp.float32)
        return State(
            weighting.start(optimizer, start),
            jnp.zeros(num_tasks, jnp.float32),
            jnp.zeros(num_tasks, jnp.int32),
        )

    def weights(state: State, signals: weighting.Signals) -> Float[Array, " K"]:
        return jnp.exp(state.learned.values) if log_domain else state.learned.values

    def update(state: State, signals: weighting.Signals) -> State:
        active = signals.active
        learning = active & (state.seen < initial_steps)
        seen = state.seen + learning
        initial = jnp.where(
            learning,
            state.initial + (signals.losses - state.initial) / jnp.maximum(seen, 1),
            state.initial,
        )
        before = weights(state, signals)
        norms = jnp.abs(before) * signals.grad_norms
        ratio = signals.losses / jnp.maximum(initial, _TINY)
        rate = ratio / jnp.maximum(weighting.mean_over_active(ratio, active), _TINY)
        target = weighting.mean_over_active(norms, active) * rate**alpha
        # At its target, a norm is off by rounding, whose sign Adam would follow.
        off = jnp.abs(norms - target) > _AT_TARGET * target
        gradient = jnp.where(off, jnp.sign(norms - target), 0) * signals.grad_norms
        gradient = gradient * (before if log_domain else jnp.sign(before))
        gradient = jnp.where(active, gradient, 0)
        learned = weighting.descend(optimizer, state.learned, gradient, signals)
        stepped = jnp.exp(learned.values) if log_domain else learned.values
        after = weighting.renormalise(jnp.maximum(stepped, floor), before, active)
        # Not through exp and log again, whose rounding would move absent tasks.
        found = jnp.log(after) if log_domain else after
        values = jnp.where(active, found, learned.values)
        return State(learned._replace(values=values), initial, seen)

    return weighting.Weighting(init, weights, update)
