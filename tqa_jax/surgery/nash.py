"""Nash-MTL: the step on which the tasks would agree in a bargain.

Multi-task learning as a bargaining game (Navon, Shamsian, Achituve, Maron, Kawaguchi,
Chechik, Fetaya, ICML 2022): the direction that maximises sum_i log(g_i . d) is
d = sum_i a_i g_i with (section 3)

    G a = 1 / a, elementwise, for a > 0; G is the Gram matrix.

When to use it: when tasks are to gain in proportion, whatever the scale of their
losses: scaling a loss changes nothing. Assumes that the gradients are linearly
independent: near Pareto stationarity factors grow, for opposite gradients up to about
the inverse root of the machine precision.

We differ: the equation is where the convex 1/2 a'Ga - sum_i log a_i is least; we take
damped Newton steps in place of a sequence of convex programs, at every step. The paper
leaves the length of d, sqrt(K), to the learning rate; we take G over the mean squared
norm of its gradients, so that |d|^2 = sum_i |g_i|^2, as in plain summation of
orthogonal gradients. A task whose gradient is 0 has factor 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tqa_jax import surgery

_STEPS = 20  # Exact up to condition numbers of 1e5, in float32 up to its rounding.


def make() -> surgery.Combine:
    """Makes Nash bargaining surgery."""

    def combine(
        gram: Float[Array, "K K"], active: Bool[Array, " K"], rng: jax.Array
    ) -> Float[Array, " K"]:
        del rng
        num_tasks = len(gram)
        epsilon = jnp.finfo(gram.dtype).eps
        cosines, norms = surgery.cosines(surgery.scaled(gram, active))
        identity = jnp.eye(num_tasks, dtype=gram.dtype)
        # Gradients of which a combination of positive weights vanishes have no
        # solution, and here one that is 0 up to the root of the least eigenvalue.
        values, vectors = jnp.linalg.eigh(cosines)
        least = num_tasks * jnp.finfo(jnp.float32).eps  # More needs more steps.
        values = jnp.maximum(values, least)
        cosines = (vectors * values) @ vectors.T

        # In x = a times norms, G becomes the cosines; absent tasks stay at x = 1.
        def step(x: Float[Array, " K"], _: None) -> tuple[Float[Array, " K"], None]:
            gains = x * (cosines @ x)
            x = x * jnp.sqrt(num_tasks / gains.sum())  # Best on its ray.
            gains = x * (cosines @ x)
            hessian = identity + x[:, None] * cosines * x
            change = jnp.linalg.solve(hessian, 1 - gains)
            decrement = jnp.sqrt(jnp.maximum(change @ (1 - gains), 0))
            return x * (1 + change / (1 + decrement)), None

        x, _ = jax.lax.scan(step, jnp.ones_like(norms), length=_STEPS)
        return jnp.where(active & (norms > epsilon), x / norms, 0)

    return combine
