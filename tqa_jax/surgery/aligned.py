"""Aligned-MTL: the gradients are made orthogonal and of equal length, then summed.

Independent component alignment (Senushkin, Patakin, Kuznetsov, Konushin, CVPR 2023),
algorithm 1. With eigenvalues l and eigenvectors V of the Gram matrix, the balance
transformation

    B = sqrt(l_min) V diag(l)^(-1/2) V'

replaces the K gradients by the nearest ones (up to scale) that are orthogonal and
equally long, so that their matrix has condition number 1; l_min, the least nonzero
eigenvalue, is the paper's choice of scale that ensures convergence. The sum of the
replaced gradients is sum_i (B 1)_i g_i.

When to use it: when both conflict and dominance hurt. Assumes gradients far from linear
dependence: two tasks in near agreement make l_min, and so the whole step, small, and
factors may be negative.

Eigenvalues below K times the machine epsilon of the largest count as zero. The factors
are the number of active tasks times the paper's, for equal preferences.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tqa_jax import surgery


def make() -> surgery.Combine:
    """Makes surgery by alignment."""

    def combine(
        gram: Float[Array, "K K"], active: Bool[Array, " K"], rng: jax.Array
    ) -> Float[Array, " K"]:
        del rng
        values, vectors = jnp.linalg.eigh(surgery.scaled(gram, active))
        least = len(gram) * jnp.finfo(gram.dtype).eps * values[-1]
        counts = values > least
        smallest = jnp.where(counts, values, jnp.inf).min()
        shrink = jnp.where(counts, jnp.sqrt(smallest / jnp.where(counts, values, 1)), 0)
        coordinates = active.astype(gram.dtype) @ vectors
        return jnp.where(active, vectors @ (shrink * coordinates), 0)

    return combine
