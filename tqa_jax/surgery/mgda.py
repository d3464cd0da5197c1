"""MGDA: the shortest gradient in the convex hull of the tasks' gradients.

Multiple-gradient descent (Desideri, Comptes Rendus Mathematique 2012), for deep
multi-task learning by Sener and Koltun (NeurIPS 2018), equation 3:

    min over w of |sum_i w_i g_i|^2 with w >= 0, sum_i w_i = 1.

Its result decreases all losses at one rate, g_i . d = |d|^2 wherever w_i > 0, or is 0
when no direction helps all: a Pareto-stationary point.

When to use it: when no task may get worse, at the price of speed; it follows the task
with the smallest gradient, so losses should be of comparable scale. Assumes nothing of
the gradients.

We differ: the papers iterate (Frank-Wolfe); we solve exactly, for up to 12 tasks. The
factors are the number of active tasks times w.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tqa_jax import surgery
from tqa_jax.surgery import _supports


def make() -> surgery.Combine:
    """Makes the minimum-norm surgery."""

    def combine(
        gram: Float[Array, "K K"], active: Bool[Array, " K"], rng: jax.Array
    ) -> Float[Array, " K"]:
        del rng
        subsets = _supports.masks(len(gram), "mgda")[1:]
        cosines, norms = surgery.cosines(surgery.scaled(gram, active))
        point, _ = _supports.affine(cosines, norms, subsets, jnp.zeros_like(norms))
        candidates = _supports.onto_simplex(point, norms)
        objective = _supports.quadratic(cosines, candidates)
        allowed = ~(subsets & ~active).any(-1)
        weights = _supports.best(candidates, objective, allowed) / norms
        return jnp.where(active, active.sum() * weights, 0)

    return combine
