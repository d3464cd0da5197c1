"""IMTL-G: the step on which every task's gradient has the same projection.

Impartial multi-task learning, its gradient part (Liu, Li, Kuang, Xue, Chen, Yang, Liao,
Zhang, ICLR 2021), section 3.1: with unit gradients u_i, find a with sum_i a_i = 1 and

    u_i . d = u_j . d for all i, j, d = sum_i a_i g_i,

which is a proportional to G^-1 |g| (Quinton and Rey 2024, for dependent gradients with
the pseudo-inverse; here that of the cosines).

When to use it: when every task should advance equally far along its own gradient,
whatever its loss's scale. Assumes gradients far from linear dependence: factors may
be negative, and have no bound where the sum that they are divided by is near 0. Where
it is 0 up to rounding, as for opposite gradients, all factors are 0.

The factors are the number of active tasks times the paper's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tqa_jax import surgery


def make() -> surgery.Combine:
    """Makes impartial surgery."""

    def combine(
        gram: Float[Array, "K K"], active: Bool[Array, " K"], rng: jax.Array
    ) -> Float[Array, " K"]:
        del rng
        epsilon = jnp.finfo(gram.dtype).eps
        cosines, norms = surgery.cosines(surgery.scaled(gram, active))
        present = active & (norms > epsilon)
        rounding = len(gram) * epsilon
        inverse = jnp.linalg.pinv(cosines, rtol=rounding, hermitian=True)
        found = jnp.where(present, inverse @ present.astype(gram.dtype), 0)
        total = (found / norms).sum()
        magnitude = jnp.where(present, jnp.maximum(jnp.abs(found), 1) / norms, 0).sum()
        usable = jnp.abs(total) > rounding * magnitude
        factor = jnp.where(usable, active.sum() / jnp.where(usable, total, 1), 0)
        return factor * found / norms

    return combine
