"""Gradient surgeries: one file each, found by its name.

The one thing to know: a surgery is one pure function of the K x K Gram matrix of the
tasks' gradients. `make(**options)` of a file in this folder returns it; a new file is
available under its name at once.

- `combine(gram, active, rng) -> (K,)`: factors c; the shared layers receive
  sum_i c_i g_i in place of sum_i g_i. The g_i are gradients of the *weighted* losses
  at the last shared layer, `gram[i, j]` is g_i . g_j, and c_i = 1 is plain summation.
- A task without a label in the batch has factor 0, whatever `gram` holds in its row.
  A single task left has factor 1.
- Papers that average tasks have weights that sum to 1 where we have factors that sum
  to the number of active tasks.

None costs more than 2 % of a training step at standard size with five tasks (measured:
README). Nothing here is differentiated; the caller holds the factors constant. Factors
are in the precision of `gram`, which should be float32 or more and come of a product in
full precision: where gradients conflict, the answer lies in the small differences.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tqa_jax import plugins

Combine = Callable[
    [Float[Array, "K K"], Bool[Array, " K"], jax.Array], Float[Array, " K"]
]


def available() -> list[str]:
    """Names of the surgeries in this folder."""
    return plugins.names(__name__)


def make(name: str, **options: Any) -> Combine:
    """Makes the surgery of a name.

    Args:
        name: a file of this folder, without `.py`.
        **options: see the file.

    Raises:
        InputError: for an unknown name or option.
    """
    combine = plugins.make(__name__, name, **options)

    def precise(
        gram: Float[Array, "K K"], active: Bool[Array, " K"], rng: jax.Array
    ) -> Float[Array, " K"]:
        # By default, accelerators round the factors of float32 products.
        with jax.default_matmul_precision("highest"):
            return combine(gram, active, rng)

    return precise


def scaled(gram: Float[Array, "K K"], active: Bool[Array, " K"]) -> Float[Array, "K K"]:
    """Zeroes absent tasks' rows and columns; makes the others' mean diagonal 1.

    Gradients are as small or large as the loss happens to be; after this, tolerances
    can be absolute.
    """
    gram = jnp.where(active[:, None] & active[None, :], gram, 0)
    size = jnp.trace(gram) / jnp.maximum(active.sum(), 1).astype(gram.dtype)
    return gram / jnp.where(size > 0, size, 1)


def cosines(
    gram: Float[Array, "K K"],
) -> tuple[Float[Array, "K K"], Float[Array, " K"]]:
    """Splits a scaled Gram matrix into cosines and norms.

    Gradients often differ in norm by orders of magnitude, which makes the Gram matrix
    ill-conditioned though the directions are fine. Solving with cosines avoids that.

    Returns:
        Cosines with an exact unit diagonal, and norms, which are at least the machine
        epsilon: a zero gradient counts as one of that norm, orthogonal to the others.
    """
    epsilon = jnp.finfo(gram.dtype).eps
    norms = jnp.maximum(jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0)), epsilon)
    found = gram / norms / norms[:, None]
    return jnp.where(jnp.eye(len(gram), dtype=bool), 1, found), norms
