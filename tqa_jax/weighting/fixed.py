"""Fixed weights: the honest baseline.

Tuned fixed weights with ordinary regularisation often match every dynamic scheme
(Kurin et al. 2022, "In Defense of the Unitary Scalarization for Deep Multi-Task
Learning"): tune these first, and give every other scheme the same budget. To freeze
what a dynamic weighting found ("GradNorm static"), put the means of its `weight/<task>`
in `metrics.jsonl` here. Costs nothing.
"""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from tqa_jax import hyperparameters, schema, weighting


def make(
    *, tasks: Sequence[str], values: Mapping[str, float] | None = None
) -> weighting.Weighting:
    """Makes constant weights.

    Args:
        tasks: names of the tasks.
        values: weight by task name; a task that is not named has 1.

    Raises:
        InputError: for an unknown task, or a weight that is negative or not finite.
    """
    vector = [1.0] * len(tasks)
    for name, value in (values or {}).items():
        if name not in tasks:
            raise schema.InputError(
                f"weighting.fixed.values names unknown task {name!r}; "
                f"available: {', '.join(tasks)}"
            )
        if hyperparameters.known(value) and not (math.isfinite(value) and value >= 0):
            raise schema.InputError(
                f"weighting.fixed.values.{name} is {value}; expected 0 or more"
            )
        vector[list(tasks).index(name)] = value
    return weighting.Weighting(
        init=lambda: (),
        weights=lambda state, signals: jnp.array(vector, jnp.float32),
        update=lambda state, signals: state,
    )
