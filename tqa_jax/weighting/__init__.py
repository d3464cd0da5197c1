"""Task weightings: one file each, found by its name.

The one thing to know: a weighting is three pure functions. `make(tasks=..., **options)`
of a file in this folder returns them; a new file is available under its name at once.

- `init() -> state`: a pytree.
- `weights(state, signals) -> (K,)`: factors on the task losses of this step.
- `update(state, signals) -> state`: after a step. A task that had no label in the
  batch keeps its weight and takes no part in any mean; a weighting without memory
  gives it 1.

None costs more than 3 % of a training step at standard size (measured: README), since
gradients by task go through the heads and the last shared layer only.

A `make` that takes `label_variances` (K,) or `steps_per_epoch` is given them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from tqa_jax import plugins

State = Any


class Signals(NamedTuple):
    """What a training step tells a weighting.

    Attributes:
        losses: mean loss of each task over the batch, unweighted.
        active: True for tasks that had a label in the batch.
        grad_norms: norm of each unweighted loss's gradient at the last shared layer.
        rate: the network's learning rate over its peak; a weighting that learns
            scales its own steps by it.
        rng: for a weighting that draws; differs from step to step and run to run.
    """

    losses: Float[Array, " K"]
    active: Bool[Array, " K"]
    grad_norms: Float[Array, " K"]
    rate: Float[Array, ""]
    rng: jax.Array


class Weighting(NamedTuple):
    """See the module's head."""

    init: Callable[[], State]
    weights: Callable[[State, Signals], Float[Array, " K"]]
    update: Callable[[State, Signals], State]


def available() -> list[str]:
    """Names of the weightings in this folder."""
    return plugins.names(__name__)


def make(
    name: str,
    *,
    tasks: Sequence[str],
    facts: Mapping[str, Any] | None = None,
    **options: Any,
) -> Weighting:
    """Makes the weighting of a name.

    Args:
        name: a file of this folder, without `.py`.
        tasks: names of the tasks, in the order of the last axis of labels.
        facts: what is known of the run, see the module's head; what the weighting
            does not take is left out.
        **options: see the file.

    Raises:
        InputError: for an unknown name or option.
    """
    if name in available():
        wanted = {
            k: v for k, v in (facts or {}).items() if plugins.takes(__name__, name, k)
        }
        options = wanted | options
    return plugins.make(__name__, name, tasks=tuple(tasks), **options)


class Learned(NamedTuple):
    """State of one learned number per task.

    A weighting whose whole state this is learns log-variances, which the log shows.
    """

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
    """Scales the active tasks' weights so that all sum to their number.

    Absent tasks keep theirs. The sum that the active ones had before would do, but for
    rounding errors, which add up over steps.
    """
    total = jnp.where(active, weights, 0).sum()
    wanted = len(weights) - jnp.where(active, 0, before).sum()
    factor = wanted / jnp.where(total > 0, total, 1)
    return jnp.where(active, weights * factor, before)


def softmax(
    logits: Float[Array, " K"], active: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """Softmax over active tasks, scaled to their number; absent tasks have 1."""
    some = jnp.where(active, logits, -jnp.inf)
    some = some - jnp.where(active.any(), some.max(), 0)
    share = jnp.where(active, jnp.exp(some), 0)
    share = share / jnp.maximum(share.sum(), 1)  # The largest is 1.
    return jnp.where(active, share * active.sum(), 1.0)
