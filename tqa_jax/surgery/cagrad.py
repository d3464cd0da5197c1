"""CAGrad: near the mean gradient, the step that helps the worst task most.

Conflict-averse gradient descent (Liu, Liu, Jin, Stone, Liu, NeurIPS 2021). With the
mean gradient g0, the problem of the paper and its dual (algorithm 1)

    max over d of min_i g_i . d with |d - g0| <= c |g0|,
    min over w of g_w . g0 + c |g0| |g_w| with w >= 0, sum_i w_i = 1

for g_w = sum_i w_i g_i give d = g0 + c |g0| g_w / |g_w|.

When to use it: to temper conflicts while still descending the mean loss, to which it
converges for c < 1. c = 0 is plain summation; large c resembles MGDA. The authors' runs
on NYUv2 and Cityscapes have c = 0.4. Assumes nothing of the gradients.

We differ: the dual is solved exactly, for up to 12 tasks, not by iteration; |g_w|
counts as at least 1e-3 of the root mean square of the gradients' norms, so that factors
stay bounded where a combination of the gradients vanishes. The step is divided by 1 + c
(one of the authors' choices in code), so that gradients that agree are summed. The
factors are the number of active tasks times the paper's: with K tasks,
(1 + K c |g0| / |g_w| w_i) / (1 + c).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tqa_jax import schema, surgery
from tqa_jax.surgery import _supports

_LEAST_NORM = 1e-3


def make(*, c: float = 0.4) -> surgery.Combine:
    """Makes conflict-averse surgery.

    Args:
        c: radius of the ball around the mean gradient over its norm, in [0, 1).
    """
    if not 0 <= c < 1:
        raise schema.InputError(f"surgery.cagrad.c is {c}; expected 0 <= c < 1")

    def combine(
        gram: Float[Array, "K K"], active: Bool[Array, " K"], rng: jax.Array
    ) -> Float[Array, " K"]:
        del rng
        subsets = _supports.masks(len(gram), "cagrad")[1:]
        cosines, norms = surgery.cosines(surgery.scaled(gram, active))
        # Everything is in weights times norms, where the Gram matrix is the cosines.
        count = jnp.maximum(active.sum(), 1)
        mean = jnp.where(active, norms, 0) / count
        slope = cosines @ mean
        radius = c * jnp.sqrt(_supports.quadratic(cosines, mean))

        # On a set S, w = point - t direction and |g_w|^2 = |g_point|^2 + t^2 fall,
        # so that t^2 (radius^2 - fall) = |g_point|^2.
        point, direction = _supports.affine(cosines, norms, subsets, slope)
        fall = direction @ slope
        nearest = jnp.einsum("si,ij,sj->s", point, cosines, point)
        length = jnp.sqrt(nearest / (radius**2 - fall))
        # The points stand for sets on which g_w = 0, where the objective has a kink.
        candidates = jnp.stack([point, point - length[:, None] * direction])
        candidates = _supports.onto_simplex(candidates, norms)
        sizes = jnp.sqrt(_supports.quadratic(cosines, candidates))
        allowed = jnp.broadcast_to(~(subsets & ~active).any(-1), sizes.shape)
        found = _supports.best(candidates, candidates @ slope + radius * sizes, allowed)

        size = jnp.sqrt(_supports.quadratic(cosines, found))
        size = jnp.maximum(size, _LEAST_NORM)
        factors = (1 + count * radius / size * found / norms) / (1 + c)
        return jnp.where(active, factors, 0)

    return combine
