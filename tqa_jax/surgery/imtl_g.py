"""IMTL-G: the step on which every task's gradient has the same projection.

Impartial multi-task learning, its gradient part (Liu, Li, Kuang, Xue, Chen, Yang, Liao,
Zhang, ICLR 2021), section 3.1: with unit gradients u_i, find a with sum_i a_i = 1 and

    u_i . d = u_j . d for all i, j, d = sum_i a_i g_i,

which is a proportional to G^-1 |g| (Quinton and Rey 2024).

Gradients that are linearly dependent leave either no direction but d = 0 that has the
same projection on all (opposite ones, or three in a plane that no half of it holds), or
one direction with any length. The first gives factors of 0; the second the direction of
the pseudo-inverse (of the cosines), turned to where projections are positive.

When to use it: when every task should advance equally far along its own gradient,
whatever its loss's scale. Assumes gradients far from linear dependence: factors may
be negative, and have no bound where the sum that they are divided by is near 0. Where
it is 0 up to rounding, all factors are 0.

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
        values, vectors = jnp.linalg.eigh(cosines)
        null = values <= rounding * values[-1]
        ones = present.astype(gram.dtype)
        along = ones @ vectors
        inverse = jnp.where(null, 0, along / jnp.where(null, 1, values))
        found = jnp.where(present, vectors @ inverse, 0)
        total = (found / norms).sum()
        # Null vectors change factors and not d. If one has a sum, no d but 0 is equal
        # along all; if one changes the factors' sum, d has any length and sign.
        frustrated, free = (
            jnp.square(jnp.where(null, side @ vectors, 0)).sum()
            > 10 * rounding * jnp.square(side).sum()
            for side in (ones, ones * norms.max() / norms)
        )
        turned = jnp.where(free, jnp.abs(total), total)
        magnitude = jnp.where(present, jnp.maximum(jnp.abs(found), 1) / norms, 0).sum()
        usable = (jnp.abs(total) > rounding * magnitude) & ~frustrated
        factor = jnp.where(usable, active.sum() / jnp.where(usable, turned, 1), 0)
        return factor * found / norms

    return combine
