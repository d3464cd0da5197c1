"""Self-attention, to all frames or to those near by.

The one thing to know: parameters and numbers are those of
`flax.linen.MultiHeadDotProductAttention`, in a form that XLA runs faster: one product
makes queries, keys and values; heads come before time; weights stay unnormalised until
after the last product, which also makes the backward pass short. With a window, time
and memory grow with T, not with its square.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from tqa_jax import hyperparameters
from tqa_jax.models import dropout

_FEW_FRAMES = 32  # Queries in a block at least: smaller products are slow.
_HIDDEN = -1e30  # Added to a score, leaves nothing of it; finite, so that none is NaN.

WEIGHTS = "attention"
"""Collection that `SelfAttention` writes its weights to when it is mutable."""


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017).

    Attributes:
        heads: number of heads; divides the width.
        dropout: rate on the attention weights; may be traced.
        dtype: of everything but parameters and softmax.
        window: how many tokens away, on either side, a token attends to; 0 for all.
        remat: takes one head after another and keeps none of its weights, which are
            computed again in the backward pass.
    """

    heads: int
    dropout: float | jax.Array
    dtype: Any
    window: int = 0
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B T D"], mask: Bool[Array, "*B T"]
    ) -> Float[Array, "*B T D"]:
        """Attends.

        Args:
            x: tokens.
            mask: tokens that may be attended to. A query that may attend to nothing
                gets a finite value without meaning.
        """
        width, size = x.shape[-1], x.shape[-1] // self.heads
        split = (self.heads, size)
        kernels, biases = zip(
            *(_Projection((width,), split, name=f"{n}")() for n in _INPUTS), strict=True
        )
        x, kernel, bias = nn.dtypes.promote_dtype(
            x,
            jnp.concatenate(kernels, axis=-1),
            jnp.concatenate(biases),
            dtype=self.dtype,
        )
        projected = (x @ kernel + bias).reshape(*x.shape[:-1], len(_INPUTS), *split)
        query, key, value = jnp.moveaxis(projected, -3, 0).swapaxes(-3, -2)
        query = query * jnp.asarray(1 / math.sqrt(size), query.dtype)  # (*B, H, T, d)
        if self.is_mutable_collection(WEIGHTS) and not self.is_initializing():
            self.sow(WEIGHTS, "weights", all_weights(query, key, mask, self.window))
        found = self._near(query, key, value, mask[..., None, :])
        found = found.swapaxes(-3, -2).reshape(x.shape)
        kernel, bias = _Projection(split, (width,), name="out")()
        found, kernel, bias = nn.dtypes.promote_dtype(
            found, kernel, bias, dtype=self.dtype
        )
        return found @ kernel + bias

    def _near(
        self,
        query: Float[Array, "*B H T d"],
        key: Float[Array, "*B H T d"],
        value: Float[Array, "*B H T d"],
        mask: Bool[Array, "*B 1 T"],
    ) -> Float[Array, "*B H T d"]:
        """Attends within the window, by blocks of queries where that is less work."""
        frames, window = query.shape[-2], self.window
        if not 0 < window < frames - 1:
            return self._all(query, key, value, mask[..., None, :])
        block = max(window, _FEW_FRAMES)
        place = jnp.arange(min(frames, block + 2 * window))
        if frames <= block + 2 * window:
            band = jnp.abs(place[:, None] - place) <= window
            return self._all(query, key, value, mask[..., None, :] & band)

        def blocks(x):  # (..., T, d) -> (..., n, block, d)
            pad = [(0, 0)] * (x.ndim - 2) + [(0, -frames % block), (0, 0)]
            return jnp.pad(x, pad).reshape(*x.shape[:-2], -1, block, x.shape[-1])

        def surrounded(x):  # (..., T, d) -> (..., n, window + block + window, d)
            x = blocks(x)
            none = jnp.zeros_like(x[..., :1, :window, :])
            before = jnp.concatenate([none, x[..., :-1, -window:, :]], axis=-3)
            after = jnp.concatenate([x[..., 1:, :window, :], none], axis=-3)
            return jnp.concatenate([before, x, after], axis=-2)

        ahead = place - jnp.arange(block)[:, None]
        band = (ahead >= 0) & (ahead <= 2 * window)
        seen = surrounded(mask[..., None]).swapaxes(-1, -2) & band
        found = self._all(
            blocks(query), surrounded(key), surrounded(value), seen, heads=-4
        )
        return found.reshape(*query.shape[:-2], -1, query.shape[-1])[..., :frames, :]

    def _all(
        self,
        query: Float[Array, "*B Q d"],
        key: Float[Array, "*B T d"],
        value: Float[Array, "*B T d"],
        mask: Bool[Array, "*#B #Q T"],
        heads: int = -3,
    ) -> Float[Array, "*B Q d"]:
        """Attends to all keys in the mask; `heads` is the axis of heads."""
        bias = jnp.where(mask, 0.0, jnp.float32(_HIDDEN))
        if hyperparameters.off(self.dropout) or not self.has_rng("dropout"):
            return self._each(query, key, value, bias, None, None, heads)
        ones = jnp.ones((*query.shape[:-1], key.shape[-2]), jnp.float32)
        kept = dropout.drop(ones, self.dropout, self.make_rng("dropout")) > 0
        scale = 1 / (1 - jnp.float32(self.dropout))
        return self._each(query, key, value, bias, kept, scale, heads)

    def _each(self, query, key, value, bias, kept, scale, heads):
        """Runs `_attention`, with `remat` on one head after another."""
        if not self.remat:
            return _attention(query, key, value, bias, kept, scale)
        # Not one clip after another: clips may be spread over devices.
        bias = bias.squeeze(heads)

        @jax.checkpoint
        def one(head):
            query, key, value, kept = head
            return _attention(query, key, value, bias, kept, scale)

        first = jax.tree.map(
            lambda x: jnp.moveaxis(x, heads, 0), (query, key, value, kept)
        )
        return jnp.moveaxis(jax.lax.map(one, first), 0, heads)


_INPUTS = ("query", "key", "value")


class _Projection(nn.Module):
    """Parameters of a linear map between groups of axes, as those of Flax's attention.

    Returns:
        The kernel as a matrix, the bias as a vector.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        matrix = math.prod(self.inputs), math.prod(self.outputs)

        def draw(rng, shape):
            return nn.initializers.lecun_normal()(rng, matrix).reshape(shape)

        kernel = self.param("kernel", draw, (*self.inputs, *self.outputs))
        bias = self.param("bias", nn.initializers.zeros, self.outputs)
        return kernel.reshape(matrix), bias.ravel()


def all_weights(
    query: Float[Array, "*B H T d"],
    key: Float[Array, "*B H T d"],
    mask: Bool[Array, "*B T"],
    window: int = 0,
) -> Float[Array, "*B H T T"]:
    """Computes the weights of attention, all T x T of them: to look at, not to train.

    Args:
        query: scaled.
        key: one a token.
        mask: tokens that may be attended to.
        window: see `SelfAttention`.

    Returns:
        The share that each query (second last axis) gives to each token. Those of a
        query that may attend to nothing mean nothing.
    """
    seen = mask[..., None, None, :]
    if window:
        place = jnp.arange(mask.shape[-1])
        seen = seen & (jnp.abs(place[:, None] - place) <= window)
    scores = _product("...qd,...kd->...qk", query, key)
    return nn.softmax(scores + jnp.where(seen, 0.0, jnp.float32(_HIDDEN)), axis=-1)


@jax.custom_vjp
def _attention(query, key, value, bias, kept, scale):
    """softmax(q k + bias) v, with weights that are not `kept` dropped.

    What the forward pass keeps is one number for each weight: its sign says whether it
    was dropped. The backward pass is that of FlashAttention (Dao et al. 2022, appendix
    B) with the weights at hand: the row sum of a softmax's gradient is that of the
    output times its cotangent.
    """
    return _forward(query, key, value, bias, kept, scale)[0]


def _product(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """Multiplies in the type of `other` and adds up in float32 at least."""
    dtype = jnp.promote_types(other.dtype, jnp.float32)
    return jnp.einsum(
        equation, one.astype(other.dtype), other, preferred_element_type=dtype
    )


def _forward(query, key, value, bias, kept, scale):
    scores = _product("...qd,...kd->...qk", query, key) + bias
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    share = 1 / weights.sum(axis=-1, keepdims=True)  # (..., Q, 1)
    if kept is not None:
        weights = jnp.where(kept, weights, -weights)
    weights = weights.astype(value.dtype)
    scaled = share if kept is None else share * scale
    total = _product("...qk,...kd->...qd", jnp.maximum(weights, 0), value)
    found = (total * scaled).astype(value.dtype)
    return found, (query, key, value, weights, share, scaled, total)


def _backward(saved, cotangent):
    query, key, value, weights, share, scaled, total = saved
    cotangent = (cotangent * scaled).astype(value.dtype)
    row = (cotangent * total).sum(axis=-1, keepdims=True) * share
    of_weights = _product("...qd,...kd->...qk", cotangent, value)
    used = jnp.maximum(weights, 0)
    of_scores = (used * of_weights - jnp.abs(weights) * row).astype(key.dtype)
    found = (
        _product("...qk,...kd->...qd", of_scores, key),
        _product("...qk,...qd->...kd", of_scores, query),
        _product("...qk,...qd->...kd", used, cotangent),
    )
    return *(one.astype(key.dtype) for one in found), None, None, None


_attention.defvjp(_forward, _backward)
