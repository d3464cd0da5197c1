"""Dynamic weight average (Liu, Johns, Davison, CVPR 2019, eq. 7).

    w_i = K exp(r_i / T) / sum_j exp(r_j / T),   r_i = L_i(e - 1) / L_i(e - 2)

with L_i(e) the task's mean loss over epoch e: a task whose loss falls slowly gets more.
It needs no gradients. It sees only ratios from epoch to epoch, so it moves weights by
little (with T = 2, halving against standing still is 0.78 to 1), and late in training
it follows noise.

A task takes part after two epochs in which it had labels, and has r_i = 1 before. Its
epochs end when it has a label in a later one, so nothing about it changes without one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tqa_jax import hyperparameters, schema, weighting

_TINY = 1e-8


class State(NamedTuple):
    """Mean losses by epoch; -1 stands for an epoch that has not been."""

    weights: Float[Array, " K"]
    mean: Float[Array, " K"]  # Of the epoch that runs.
    count: Int[Array, " K"]
    last: Float[Array, " K"]  # Of the last epoch with labels, and of the one before.
    before: Float[Array, " K"]
    epoch: Int[Array, " K"]  # In which the task last had a label.
    step: Int[Array, ""]


def make(
    *, tasks: Sequence[str], steps_per_epoch: int, temperature: float = 2.0
) -> weighting.Weighting:
    """Makes dynamic-weight-average weights.

    Args:
        tasks: names of the tasks.
        steps_per_epoch: steps over which losses are averaged.
        temperature: T; larger means more equal weights.

    Raises:
        InputError: for a temperature that is not positive.
    """
    if hyperparameters.known(temperature) and not temperature > 0:
        raise schema.InputError(
            f"weighting.dwa.temperature is {temperature}; expected more than 0"
        )
    num_tasks = len(tasks)

    def init() -> State:
        zeros = jnp.zeros(num_tasks, jnp.float32)
        counts = jnp.zeros(num_tasks, jnp.int32)
        return State(
            zeros + 1, zeros, counts, zeros - 1, zeros - 1, counts, jnp.int32(0)
        )

    def update(state: State, signals: weighting.Signals) -> State:
        active = signals.active
        epoch = state.step // steps_per_epoch
        ended = active & (state.epoch < epoch) & (state.count > 0)
        before = jnp.where(ended, state.last, state.before)
        last = jnp.where(ended, state.mean, state.last)
        count = jnp.where(ended, 0, state.count) + active
        mean = jnp.where(ended, 0, state.mean)
        mean = mean + jnp.where(active, (signals.losses - mean) / count, 0)
        ratio = jnp.where(before >= 0, last / jnp.maximum(before, _TINY), 1)
        found = jax.nn.softmax(ratio / temperature)
        return State(
            weighting.renormalise(found, state.weights, active),
            mean,
            count,
            last,
            before,
            jnp.where(active, epoch, state.epoch),
            state.step + active.any(),
        )

    return weighting.Weighting(init, lambda state, signals: state.weights, update)
