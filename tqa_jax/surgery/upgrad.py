"""UPGrad: each gradient is made harmless to all tasks first, then they are summed.

Unconflicting projection of gradients (Quinton and Rey, "Jacobian descent for
multi-objective optimization", arXiv 2406.16232, 2024): the mean over i of the
projections of g_i onto the dual cone {d: g_j . d >= 0 for all j}, each of which is
(proposition 1) sum_j v_j g_j with

    min over v of |sum_j v_j g_j|^2 with v >= e_i.

When to use it: the first surgery to try. It never worsens a task to first order, lets
a task with larger gradient count more, and without conflict is plain summation.
Assumes nothing of the gradients.

We differ: solved exactly, for up to 12 tasks, without the regularisation that a
quadratic-program solver needs. The factors are the number of active tasks times the
paper's weights.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tqa_jax import surgery
from tqa_jax.surgery import _supports


def make() -> surgery.Combine:
    """Makes surgery by projection onto the dual cone."""

    def combine(
        gram: Float[Array, "K K"], active: Bool[Array, " K"], rng: jax.Array
    ) -> Float[Array, " K"]:
        del rng
        subsets = _supports.masks(len(gram), "upgrad")
        cosines, norms = surgery.cosines(surgery.scaled(gram, active))
        # v = e_i + z, z >= 0: on the set of nonzero z, the gradient of the norm is 0.
        right = jnp.where(subsets[:, :, None], -cosines, 0)
        extra = jnp.linalg.solve(_supports.restrict(cosines, subsets), right)
        extra = jnp.maximum(jnp.swapaxes(extra, -1, -2), 0)  # (S, K of i, K of j)
        candidates = jnp.eye(len(gram), dtype=gram.dtype) + extra
        objective = _supports.quadratic(cosines, candidates)
        allowed = ~(subsets & ~active).any(-1)
        pick = jax.vmap(_supports.best, in_axes=(1, 1, None))
        projections = pick(candidates, objective, allowed)
        return jnp.where(active, jnp.where(active, norms, 0) @ projections / norms, 0)

    return combine
