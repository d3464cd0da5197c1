"""Task weightings: one file each, found by its name.

The one thing to know: a weighting is three pure functions. `make(tasks=..., **options)`
of a file in this folder returns them; a new file is available under its name at once.

- `init() -> state`: a pytree.
- `weights(state) -> (K,)`: factors on the task losses of the next step.
- `update(state, signals) -> state`: after a step. A task that had no label in the
  batch keeps its weight and takes no part in any mean.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from tqa_jax import schema

State = Any


class Signals(NamedTuple):
    """What a training step tells a weighting.

    Attributes:
        losses: mean loss of each task over the batch, unweighted.
        active: True for tasks that had a label in the batch.
        grad_norms: norm of each unweighted loss's gradient at the last shared layer.
        rate: the network's learning rate over its peak; a weighting that learns
            scales its own steps by it.
    """

    losses: Float[Array, " K"]
    active: Bool[Array, " K"]
    grad_norms: Float[Array, " K"]
    rate: Float[Array, ""]


class Weighting(NamedTuple):
    """See the module's head."""

    init: Callable[[], State]
    weights: Callable[[State], Float[Array, " K"]]
    update: Callable[[State, Signals], State]


def available() -> list[str]:
    """Names of the weightings in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def make(name: str, *, tasks: Sequence[str], **options: Any) -> Weighting:
    """Makes the weighting of a name.

    Args:
        name: a file of this folder, without `.py`.
        tasks: names of the tasks, in the order of the last axis of labels.
        **options: see the file.

    Raises:
        InputError: for an unknown name or option.
    """
    if name not in available():
        raise schema.InputError(
            f"unknown weighting {name!r}; available: {', '.join(available())}"
        )
    factory = importlib.import_module(f"{__name__}.{name}").make
    try:
        inspect.signature(factory).bind(tasks=tasks, **options)
    except TypeError as error:
        raise schema.InputError(f"weighting.{name}: {error}") from error
    return factory(tasks=tuple(tasks), **options)


class Learned(NamedTuple):
    """State of one learned number per task."""

    values: Float[Array, " K"]
    optimizer: optax.OptState


def start(
    optimizer: optax.GradientTransformation, values: Float[Array, " K"]
) -> Learned:
    """Starts one optimiser for each number, so that an absent task's counters stop."""
    return Learned(values, jax.vmap(optimizer.init)(values))


def descend(
    optimizer: optax.GradientTransformation,
    state: Learned,
    gradient: Float[Array, " K"],
    signals: Signals,
) -> Learned:
    """Takes a gradient step on the active tasks' numbers and leaves the others.

    Args:
        optimizer: its own optimiser; weight decay must not act on these numbers.
        state: numbers and optimiser state.
        gradient: of the weighting's objective with respect to the numbers.
        signals: `active` and `rate` are used.
    """
    steps, moments = jax.vmap(optimizer.update)(gradient, state.optimizer, state.values)
    found = Learned(state.values + signals.rate * steps, moments)
    return jax.tree.map(
        lambda new, old: jnp.where(signals.active, new, old), found, state
    )


def mean_over_active(
    values: Float[Array, " K"], active: Bool[Array, " K"]
) -> Float[Array, ""]:
    """Mean of the values of active tasks, 0 if there is none."""
    return jnp.where(active, values, 0).sum() / jnp.maximum(active.sum(), 1)


def renormalise(
    weights: Float[Array, " K"], before: Float[Array, " K"], active: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """Scales the active tasks' weights to the sum that they had before."""
    total = jnp.where(active, weights, 0).sum()
    wanted = jnp.where(active, before, 0).sum()
    factor = wanted / jnp.where(total > 0, total, 1)
    return jnp.where(active, weights * factor, before)
