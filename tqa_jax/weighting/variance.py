"""Fixed weights by label variance: every task in units of its own spread.

    w_i proportional to 1 / Var(labels_i),   scaled to sum K

A mean squared error over the label variance is 1 - R^2, so this is regression on
z-scored labels: the principled form of a hand-set weight such as 1000 on one task.
Costs nothing. Use it where tasks spread over different shares of their score ranges.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tqa_jax import schema, weighting


def make(
    *, tasks: Sequence[str], label_variances: Float[np.ndarray, " K"]
) -> weighting.Weighting:
    """Makes weights from the variances of training labels.

    Args:
        tasks: names of the tasks.
        label_variances: of each task's training labels, as on a 1-5 scale.

    Raises:
        InputError: for a task whose labels do not vary.
    """
    variances = np.asarray(label_variances, np.float64)
    for name, value in zip(tasks, variances, strict=True):
        if not (np.isfinite(value) and value > 0):
            raise schema.InputError(
                f"weighting.variance: the training labels of {name!r} have variance "
                f"{value:g}; expected more than 0: label more clips or use fixed"
            )
    vector = (1 / variances) * len(tasks) / (1 / variances).sum()
    return weighting.Weighting(
        init=lambda: (),
        weights=lambda state, signals: jnp.array(vector, jnp.float32),
        update=lambda state, signals: state,
    )
