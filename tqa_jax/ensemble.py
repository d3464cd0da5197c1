"""Several networks trained as one: seeds side by side in one compiled program.

The one thing to know: members differ in what their seed decides (parameters, dropout,
random weightings) and see the same batches. What training decides between steps (the
best epoch, stalls, the learning rate) it decides once, for the mean of their scores.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tqa_jax import batch as batches
from tqa_jax import train_step

# Leaves of a member's own have a leading axis; the rest is common.
_AXES = train_step.State(
    step=None,
    seed=0,
    params=0,
    opt_state=0,
    weighting=0,
    loss_scale=0,
    progress=None,
    skipped=None,
)


def init(
    one: Callable[[jax.Array], train_step.State], members: int
) -> Callable[[jax.Array], train_step.State]:
    """Starts members with seeds `members * seed`, `members * seed + 1`, ...

    So runs of different seeds share no member; the last must be below 2^32.
    """

    def start(seed: jax.Array) -> train_step.State:
        seeds = jnp.uint32(members) * seed + jnp.arange(members, dtype=jnp.uint32)
        state = jax.vmap(one)(seeds)
        return jax.tree.map(
            lambda axis, part: (
                part if axis == 0 else jax.tree.map(lambda leaf: leaf[0], part)
            ),
            _AXES,
            state,
            is_leaf=lambda axis: axis is None,
        )

    return start


def step(one: train_step.Step) -> train_step.Step:
    """Takes a step with every member on the same batch.

    Metrics are means over members; `skipped` is the largest.
    """
    out_axes = _AXES.replace(skipped=0)

    def together(
        state: train_step.State, batch: batches.Batch
    ) -> tuple[train_step.State, train_step.Metrics]:
        state, metrics = jax.vmap(one, in_axes=(_AXES, None), out_axes=(out_axes, 0))(
            state, batch
        )
        state = state.replace(skipped=state.skipped.max())
        worst = metrics["skipped"].max()
        metrics = jax.tree.map(lambda values: values.mean(axis=0), metrics)
        return state, metrics | {"skipped": worst}

    return together


def members(
    one: Callable[[Any, batches.Batch], Any], number: int
) -> Callable[[Any, batches.Batch], Any]:
    """Makes a function of one member's parameters one of all, with a leading axis.

    The parameters of a single network, of which `number` is 1, have no such axis.
    """
    if number == 1:
        return lambda params, batch: jax.tree.map(
            lambda leaf: leaf[None], one(params, batch)
        )
    return jax.vmap(one, in_axes=(0, None))
