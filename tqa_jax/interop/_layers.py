"""Layers of PyTorch networks, as functions of a flat dict of PyTorch's entries.

The one thing to know: parameters keep their keys and their layout (`weight` is outputs
by inputs), so that what was tuned here goes back to PyTorch as it is.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tqa_jax.interop import _layout

Params = Mapping[str, jax.Array]
Features = dict[str, jax.Array]  # Each (B, T, D).

_EPSILON = 1e-5


def dense(params: Params, key: str, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
    """Applies a linear layer."""
    return x @ params[f"{key}.weight"].T + params[f"{key}.bias"]


def norm(params: Params, key: str, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Applies a layer norm."""
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / jnp.sqrt((x**2).mean(axis=-1, keepdims=True) + _EPSILON)
    return x * params[f"{key}.weight"] + params[f"{key}.bias"]


def gelu(x: jax.Array) -> jax.Array:
    """Applies GELU in its exact form."""
    return jax.nn.gelu(x, approximate=False)


def attention(
    params: Params, key: str, x: Float[Array, "*B T D"], heads: int
) -> Float[Array, "*B T D"]:
    """Applies self-attention of all tokens to all; rows of its input are Q, K, V."""
    packed = x @ params[f"{key}.in_proj_weight"].T + params[f"{key}.in_proj_bias"]
    split = packed.reshape(*x.shape[:-1], 3, heads, -1)  # (*B, T, 3, H, d)
    query, keys, value = jnp.moveaxis(split, -3, 0)
    scores = jnp.einsum("...qhd,...khd->...hqk", query, keys)
    weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1)
    found = jnp.einsum("...hqk,...khd->...qhd", weights, value).reshape(x.shape)
    return dense(params, f"{key}.out_proj", found)


def block(
    params: Params,
    key: str,
    x: Float[Array, "*B T D"],
    heads: int,
    names: _layout.Block = _layout.Block(),  # noqa: B008
) -> Float[Array, "*B T D"]:
    """Applies a transformer block: norms come last, the activation is ReLU."""
    x = x + attention(params, f"{key}.{names.attention}", x, heads)
    x = norm(params, f"{key}.norm1", x)
    inner = jax.nn.relu(dense(params, f"{key}.{names.expand}", x))
    return norm(
        params, f"{key}.norm2", x + dense(params, f"{key}.{names.contract}", inner)
    )


def cut(features: Features) -> Features:
    """Cuts modalities to the frames that all of them have, from the start."""
    frames = min(x.shape[-2] for x in features.values())
    return {name: x[..., :frames, :] for name, x in features.items()}


def project(
    features: Features,
    projections: Mapping[str, Mapping[int, tuple[np.ndarray, np.ndarray]]],
) -> Features:
    """Brings modalities of another width to that of the network.

    The projections are constants and no parameters: the older system drew them after
    its optimiser was made and never trained them.

    Args:
        features: as given.
        projections: see `_layout.projections`.
    """
    found = dict(features)
    for name, x in features.items():
        if x.shape[-1] in projections.get(name, {}):
            kernel, bias = projections[name][x.shape[-1]]
            found[name] = x @ jnp.asarray(kernel, x.dtype) + jnp.asarray(bias, x.dtype)
    return found


def to_range(
    raw: jax.Array, low: float | jax.Array, span: float | jax.Array, activation: str
) -> jax.Array:
    """Maps raw scores to their range: `sigmoid`, `tanh` or `none`."""
    if activation == "sigmoid":
        return low + span * jax.nn.sigmoid(raw)
    if activation == "tanh":
        return low + span * 0.5 * (jnp.tanh(raw) + 1)
    return raw


def as_trained(
    scores: Mapping[str, jax.Array],
    ranges: Mapping[str, Sequence[float | jax.Array]],
    activation: str,
) -> dict[str, jax.Array]:
    """Maps scores a second time and clamps them, as the older trainer did.

    Args:
        scores: of the network.
        ranges: lowest score and width of the range, by task.
        activation: of the network; the trainer put a sigmoid behind any, if there
            was one.
    """
    found = {}
    for task, value in scores.items():
        low, span = ranges[task]
        if activation != "none":
            value = to_range(value, low, span, "sigmoid")
        found[task] = jnp.clip(value, low, low + span)
    return found
