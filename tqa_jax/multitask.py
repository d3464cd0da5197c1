"""Backward pass of many tasks through one network: each task's share, then the sum.

The one thing to know: the heads are disjoint and each reads its own copy of the shared
features, so that one pull through all heads gives every task's gradient at the shared
features. K small products turn those into gradients of the last shared layer, whose
inner products (the Gram matrix) are all that weightings and surgery need; then one
weighted cotangent goes through the trunk. No second-order differentiation anywhere,
and what is not asked for is not computed under `jit`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float

from tqa_jax import schema

Params = Any
Joined = Any
Outputs = Any


class Functions(NamedTuple):
    """A network and its losses, in parts.

    Attributes:
        trunk: everything before the last shared layer.
        join: the last shared layer; what it returns is read by every task.
        heads: task i reads copy i of the shared features, and only its parameters.
        losses: loss i depends on the outputs of head i alone.
    """

    trunk: Callable[[Params], Joined]
    join: Callable[[Params, Joined], Float[Array, "*B D"]]
    heads: Callable[[Params, Float[Array, "K *B D"]], Outputs]
    losses: Callable[[Outputs], Float[Array, " K"]]


class Forward(NamedTuple):
    """What is known after the forward pass.

    Attributes:
        outputs: of the heads.
        losses: of each task, unweighted.
        gram: inner products of the unweighted losses' gradients at the last shared
            layer, float32 whatever the network computes in.
        backward: `(weights, coefficients=None, extra=None) -> gradient`: of the sum of
            weights_i * loss_i, plus the outputs' cotangent `extra`. Coefficients
            multiply the tasks' gradients where they enter the shared layers, and
            leave the heads alone.
    """

    outputs: Outputs
    losses: Float[Array, " K"]
    gram: Float[Array, "K K"]
    backward: Callable[..., Params]


def forward(
    functions: Functions,
    params: Params,
    *,
    path: Sequence[str],
    num_tasks: int,
    scale: Float[Array, ""] | float = 1.0,
) -> Forward:
    """Runs the network and prepares the backward pass.

    Args:
        functions: the network and its losses.
        params: of the network.
        path: keys of the last shared parameter W, at which `gram` is taken.
        num_tasks: K.
        scale: of everything that goes backward, undone in the results (float16).
    """
    joined, pull_trunk = jax.vjp(functions.trunk, params)
    shared, pull_join = jax.vjp(functions.join, params, joined)
    copies = jnp.broadcast_to(shared, (num_tasks, *shared.shape))
    outputs, pull_heads = jax.vjp(functions.heads, params, copies)
    losses, pull_losses = jax.vjp(functions.losses, outputs)
    ones = jnp.ones_like(losses)

    (cotangent,) = pull_losses(ones * scale)
    _, by_task = pull_heads(cotangent)  # (K, *B, D)
    gradients = jax.vmap(lambda one: _at(pull_join(one)[0], path))(by_task)
    flat = gradients.reshape(num_tasks, -1)
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32)) / scale
    gram = jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)

    def backward(weights, coefficients=None, extra=None):
        (cotangent,) = pull_losses(weights * scale)
        if extra is not None:
            cotangent = jax.tree.map(lambda a, b: a + b * scale, cotangent, extra)
        of_heads, weighted = pull_heads(cotangent)
        at_shared = weighted.sum(axis=0)
        if coefficients is not None:
            change = ((coefficients - 1) * weights).astype(by_task.dtype)
            at_shared = at_shared + jnp.tensordot(change, by_task, axes=1)
        of_join, at_joined = pull_join(at_shared)
        (of_trunk,) = pull_trunk(at_joined)
        return jax.tree.map(
            lambda a, b, c: (a + b + c) / scale, of_heads, of_join, of_trunk
        )

    return Forward(outputs, losses, gram, backward)


def check_shared(
    join: Callable[[Params, Joined], Any],
    params: Params,
    joined: Joined,
    path: Sequence[str],
) -> None:
    """Checks that a parameter can be the W of `forward`.

    What `join` returns is read by all tasks, so a parameter that it depends on is
    shared; one that it does not is a head's, or lies deeper in the trunk.

    Args:
        join: the last shared layer.
        params: parameters, or their shapes.
        joined: what it reads, or its shapes.
        path: keys of the parameter.

    Raises:
        InputError: with the parameters to choose from.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = ["/".join(key.key for key in keys) for keys, _ in leaves]
    jaxpr = jax.make_jaxpr(join)(params, joined).jaxpr
    needed = {var for var in jaxpr.outvars if isinstance(var, core.Var)}
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed |= {v for v in equation.invars if isinstance(v, core.Var)}
    shared = [
        name for name, var in zip(paths, jaxpr.invars, strict=False) if var in needed
    ]
    name = "/".join(path)
    if name not in shared:
        what = "not in the last shared layer" if name in paths else "no parameter"
        raise schema.InputError(
            f"weighting.shared {name!r} is {what}, which all tasks share; "
            f"available: {', '.join(shared)}"
        )


def _at(tree: Params, path: Sequence[str]) -> jax.Array:
    for key in path:
        tree = tree[key]
    return tree
