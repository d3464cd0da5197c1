"""Exact small quadratic programs: one linear system for each set of nonzero entries.

The one thing to know: the solution of a convex problem over w >= 0 solves an equality
on the set S of its nonzero entries. With few tasks all 2^K sets are solved at once, as
one batch, and the feasible candidate with the least objective is the exact solution; no
iteration, no tolerance, no dependence on a starting point. S can always be chosen
so that its system is regular; singular ones give candidates that are not finite or
not best, and fall out. Where many solutions are equally good (two tasks with one
gradient), one of them is taken.
"""

import itertools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tqa_jax import schema

_LIMIT = 12  # 4,096 systems; each further task doubles them.


def masks(num_tasks: int, surgery: str) -> Bool[np.ndarray, "S K"]:
    """Every subset of the tasks, the empty one first.

    Raises:
        InputError: if there are too many; named after the surgery.
    """
    if num_tasks > _LIMIT:
        raise schema.InputError(
            f"surgery {surgery} got {num_tasks} tasks and tries every subset of them; "
            f"expected at most {_LIMIT}; use pcgrad, nash, aligned or imtl_g"
        )
    return np.array(list(itertools.product((False, True), repeat=num_tasks)))


def restrict(
    matrix: Float[Array, "K K"], subsets: Bool[np.ndarray, "S K"]
) -> Float[Array, "S K K"]:
    """Puts the identity in place of the rows and columns outside each subset."""
    both = subsets[:, :, None] & subsets[:, None, :]
    return jnp.where(both, matrix, jnp.eye(len(matrix), dtype=matrix.dtype))


def quadratic(
    matrix: Float[Array, "K K"], vectors: Float[Array, "*S K"]
) -> Float[Array, "*S"]:
    """Takes v' M v plus a bound on its rounding error.

    With the bound, a candidate of large entries that cancel in v but not in its
    rounding errors loses against an honest one; below, it makes no difference.
    """
    value = jnp.einsum("...i,ij,...j", vectors, matrix, vectors)
    size = jnp.abs(vectors)
    magnitude = jnp.einsum("...i,ij,...j", size, jnp.abs(matrix), size)
    epsilon = jnp.finfo(matrix.dtype).eps
    return jnp.maximum(value, 0) + epsilon * magnitude


def best(
    candidates: Float[Array, "*S K"],
    objective: Float[Array, "*S"],
    allowed: Bool[Array, "*S"],
) -> Float[Array, " K"]:
    """The allowed, finite candidate with the least objective."""
    usable = allowed & jnp.isfinite(candidates).all(-1) & jnp.isfinite(objective)
    objective = jnp.where(usable, objective, jnp.inf).reshape(-1)
    return candidates.reshape(-1, candidates.shape[-1])[jnp.argmin(objective)]


def affine(
    cosines: Float[Array, "K K"],
    norms: Float[Array, " K"],
    subsets: Bool[np.ndarray, "S K"],
    slope: Float[Array, " K"],
) -> tuple[Float[Array, "S K"], Float[Array, "S K"]]:
    """Solves min 1/2 |sum_i w_i g_i|^2 + t slope . w over sum_S w = 1, w signed.

    Its solution for every t is `point - t * direction`.

    Args:
        cosines: of the gradients g.
        norms: of the gradients.
        subsets: sets S; w is 0 elsewhere.
        slope: linear term, divided by the norms.

    Returns:
        `point` (sums to 1) and `direction` (sums to 0), both times the norms.
    """
    inverse = jnp.where(subsets, 1 / norms, 0)
    border = inverse / jnp.maximum(inverse.max(-1, keepdims=True), 1)
    matrix = jnp.block(
        [
            [restrict(cosines, subsets), border[:, :, None]],
            [border[:, None, :], jnp.zeros((len(subsets), 1, 1), cosines.dtype)],
        ]
    )
    right = jnp.zeros((*matrix.shape[:2], 2), cosines.dtype)
    right = right.at[:, -1, 0].set(1)
    right = right.at[:, :-1, 1].set(jnp.where(subsets, slope, 0))
    solution = jnp.linalg.solve(matrix, right)[:, :-1]
    point, direction = solution[..., 0], solution[..., 1]
    return point / (inverse * point).sum(-1, keepdims=True), direction


def onto_simplex(
    vectors: Float[Array, "*S K"], norms: Float[Array, " K"]
) -> Float[Array, "*S K"]:
    """Clips weights at 0 and scales them to sum 1; in and out times the norms."""
    clipped = jnp.maximum(vectors, 0)
    return clipped / (clipped / norms).sum(-1, keepdims=True)
