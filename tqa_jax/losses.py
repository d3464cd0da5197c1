"""Regression losses that know which labels are missing.

The one thing to know: they return sums and counts. Only the code that holds the whole
batch divides, so micro-batches and devices add up to the whole batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def task_loss_sums(
    scores: Float[Array, "*B K"],
    labels: Float[Array, "*B K"],
    present: Bool[Array, "*B K"],
    *,
    l1_weight: float = 0.1,
    units: Float[Array, " K"] | float = 1.0,
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """Sums squared plus weighted absolute error over the labelled clips of each task.

    Args:
        scores: predictions on the tasks' opinion scales.
        labels: opinion scores on the same scales; ignored where `present` is False.
        present: True where the clip has a label for the task.
        l1_weight: factor on the absolute error.
        units: factors on errors, see `schema.Task.unit`.

    Returns:
        Loss sums and label counts, one entry per task. A task without labels has
        count 0 and sum 0, and sends no gradient.

    Example:
        >>> scores = jnp.array([[2.0, 3.0]])
        >>> labels = jnp.array([[1.0, -1.0]])
        >>> sums, counts = task_loss_sums(scores, labels, labels >= 1.0)
        >>> [round(float(s), 3) for s in sums], [int(c) for c in counts]
        ([1.1, 0.0], [1, 0])
    """
    if not scores.shape == labels.shape == present.shape:
        raise ValueError(
            f"scores {scores.shape}, labels {labels.shape} and present "
            f"{present.shape} must have one shape"
        )
    # Masked before squaring: a huge or NaN error times zero would still be NaN.
    error = jnp.where(present, scores - labels, 0).astype(jnp.float32)
    error = error * jnp.asarray(units, jnp.float32)
    loss = jnp.square(error) + l1_weight * jnp.abs(error)
    axes = tuple(range(loss.ndim - 1))
    return loss.sum(axis=axes), present.sum(axis=axes).astype(jnp.float32)


def mean(sums: Float[Array, " K"], counts: Float[Array, " K"]) -> Float[Array, " K"]:
    """Divides sums by counts; a task without labels has mean 0."""
    return sums / jnp.maximum(counts, 1)


def smooth(
    labels: Float[Array, "*B K"], means: Float[Array, " K"], amount: float
) -> jax.Array:
    """Shrinks labels toward the training mean: label smoothing for regression.

    Args:
        labels: opinion scores.
        means: mean label of each task over the training split.
        amount: 0 leaves labels as they are, 1 replaces them by the mean.
    """
    return (1 - amount) * labels + amount * means
