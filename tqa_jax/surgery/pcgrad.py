"""PCGrad: what points against another task is taken out of each gradient.

Projecting conflicting gradients (Yu, Kumar, Gupta, Levine, Hausman, Finn, NeurIPS
2020), algorithm 1: for each task i, starting from p = g_i, for all other tasks j in
random order

    p <- p - (p . g_j) / |g_j|^2 g_j if p . g_j < 0,

and the p of all tasks are summed. Each p is a combination of the g_j, so the Gram
matrix is all that's needed.

When to use it: a light correction when some tasks conflict; without conflict it is
plain summation. The result depends on the order beyond two tasks and may still conflict
with a task. Assumes nothing of the gradients.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tqa_jax import surgery


def make() -> surgery.Combine:
    """Makes surgery by random successive projections."""

    def combine(
        gram: Float[Array, "K K"], active: Bool[Array, " K"], rng: jax.Array
    ) -> Float[Array, " K"]:
        orders = jnp.argsort(jax.random.uniform(rng, gram.shape, jnp.float32))
        return project(gram, active, orders)

    return combine


def project(
    gram: Float[Array, "K K"], active: Bool[Array, " K"], orders: Int[Array, "K K"]
) -> Float[Array, " K"]:
    """Projects in given orders.

    Args:
        gram: as for every surgery.
        active: True for tasks that had a label in the batch.
        orders: row i, a permutation of the tasks, is the order for task i.

    Returns:
        Factors on the gradients.
    """
    gram = surgery.scaled(gram, active)
    num_tasks = len(gram)
    own = jnp.eye(num_tasks, dtype=gram.dtype)
    squares = jnp.diagonal(gram)
    factors = own  # Row i: task i's gradient in terms of all.
    for place in range(num_tasks):
        other = own[orders[:, place]]  # One-hot rows.
        inner = ((other @ gram) * factors).sum(-1)
        square = other @ squares
        conflict = (
            (inner < 0) & (square > 0) & (orders[:, place] != jnp.arange(num_tasks))
        )
        part = jnp.where(conflict, inner / jnp.where(conflict, square, 1), 0)
        factors = factors - part[:, None] * other
    return jnp.where(active, active.astype(gram.dtype) @ factors, 0)
