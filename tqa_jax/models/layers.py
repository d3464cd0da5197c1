"""Building blocks: encoders, transformer block, masked pooling, heads.

The one thing to know: dropout is on exactly when an rng named `dropout` is given to
`apply`; there is no train flag. Parameters, layer-norm statistics, softmax and scores
are float32, or float64 if that is `dtype`, the type of the other activations.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from tqa_jax.models import attention, dropout

_EPSILON = 1e-5


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU, x Phi(x) (Hendrycks and Gimpel 2016), that keeps its derivative.

    Saving Phi(x) + x phi(x) instead of x takes as much memory, and the backward pass
    has neither erf nor exp.
    """
    return _gelu(x)[0]


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    below = 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    slope = below + wide * density
    return (wide * below).astype(x.dtype), slope.astype(x.dtype)


gelu.defvjp(_gelu, lambda slope, g: (g * slope,))


class ResidualEncoder(nn.Module):
    """Dense-LayerNorm-GELU-Dropout, `depth` times, beside a projected residual."""

    width: int
    depth: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*B T D"]) -> Float[Array, "*B T W"]:
        """Encodes each frame on its own."""
        residual = x.astype(self.dtype)
        if x.shape[-1] != self.width:
            residual = nn.Dense(self.width, dtype=self.dtype, name="residual")(x)
        for layer in range(self.depth):
            x = nn.Dense(self.width, dtype=self.dtype, name=f"dense_{layer}")(x)
            x = nn.LayerNorm(_EPSILON, dtype=self.dtype, name=f"norm_{layer}")(x)
            x = dropout.Dropout(self.dropout)(gelu(x))
        return x + residual


class Embedder(nn.Module):
    """Dense-ReLU-Dropout-Dense."""

    hidden: int
    width: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*B T D"]) -> Float[Array, "*B T W"]:
        """Encodes each frame on its own."""
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="dense_0")(x))
        return nn.Dense(self.width, dtype=self.dtype, name="dense_1")(
            dropout.Dropout(self.dropout)(x)
        )


class TransformerBlock(nn.Module):
    """Post-norm self-attention and ReLU feed-forward (Vaswani et al. 2017).

    `hidden` and `finish` are the two halves of `__call__`, cut before the last matrix
    product, for weightings that need gradients of that matrix alone.
    """

    heads: int
    ffn_width: int
    dropout: float
    attention_dropout: float
    dtype: Any
    width: int
    window: int = 0
    remat: bool = False

    def setup(self) -> None:
        """Makes the layers."""
        self.attention = attention.SelfAttention(
            self.heads, self.attention_dropout, self.dtype, self.window, self.remat
        )
        self.norm_0 = nn.LayerNorm(_EPSILON, dtype=self.dtype)
        self.norm_1 = nn.LayerNorm(_EPSILON, dtype=self.dtype)
        self.expand = nn.Dense(self.ffn_width, dtype=self.dtype)
        self.contract = nn.Dense(self.width, dtype=self.dtype)
        self.drop = dropout.Dropout(self.dropout)

    def hidden(
        self, x: Float[Array, "*B T D"], mask: Bool[Array, "*B T"]
    ) -> tuple[Float[Array, "*B T D"], Float[Array, "*B T F"]]:
        """Runs everything before the last matrix product.

        Args:
            x: tokens.
            mask: tokens that may be attended to. A query that may attend to nothing
                gets a finite value without meaning; mask it later.

        Returns:
            The residual stream and the feed-forward's hidden layer.
        """
        x = self.norm_0(x + self.drop(self.attention(x, mask)))
        return x, self.drop(nn.relu(self.expand(x)))

    def finish(
        self, x: Float[Array, "*B T D"], hidden: Float[Array, "*B T F"]
    ) -> Float[Array, "*B T D"]:
        """Runs the last matrix product, residual and norm."""
        return self.norm_1(x + self.drop(self.contract(hidden)))

    def __call__(
        self, x: Float[Array, "*B T D"], mask: Bool[Array, "*B T"]
    ) -> Float[Array, "*B T D"]:
        """Runs the whole block."""
        return self.finish(*self.hidden(x, mask))


def pool(
    x: Float[Array, "*B T D"], mask: Bool[Array, "*B T"], kind: str
) -> Float[Array, "*B P"]:
    """Pools over time the frames that are there.

    Args:
        x: frames.
        mask: True for frames to pool.
        kind: `mean`, `max`, or `mean_max` for both side by side, mean first.

    Returns:
        Zeros where no frame is there.
    """
    keep = mask[..., None]
    parts = []
    if kind in ("mean", "mean_max"):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        total = jnp.where(keep, x, 0).astype(wide).sum(axis=-2)
        parts.append(total / jnp.maximum(keep.sum(axis=-2), 1))
    if kind in ("max", "mean_max"):
        peak = jnp.where(keep, x, -jnp.inf).max(axis=-2)
        parts.append(jnp.where(keep.any(axis=-2), peak, 0))
    return jnp.concatenate([part.astype(x.dtype) for part in parts], axis=-1)


class _Head(nn.Module):
    """One task's multilayer perceptron to a raw score."""

    hidden: Sequence[int]
    dropout: float
    style: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, " B"]:
        last = len(self.hidden) - 1
        if self.style == "normed":
            x = x * self.param("scale", nn.initializers.ones, (1,)).astype(self.dtype)
        for layer, width in enumerate(self.hidden):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense_{layer}")(x)
            if self.style == "normed":
                x = nn.LayerNorm(_EPSILON, dtype=self.dtype, name=f"norm_{layer}")(x)
                x = dropout.Dropout(self.dropout / (2 if layer == last else 1))(gelu(x))
            else:
                x = nn.relu(x)
                x = x if layer == last else dropout.Dropout(self.dropout)(x)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return nn.Dense(1, dtype=wide, name="out")(x)[..., 0]


class Heads(nn.Module):
    """K heads with stacked parameters (leading axis K) and their score ranges.

    Attributes:
        ranges: lowest and highest score of each task.
        hidden: widths of the hidden layers.
        dropout: rate after each hidden layer.
        style: `normed` has a learned input scale, LayerNorm and GELU, and half the
            dropout after the last hidden layer; `plain` has ReLU and no dropout there.
        activation: what maps raw scores to the range: `sigmoid`, `tanh`, or `none`.
        dtype: of hidden activations; scores are float32 at least.
    """

    ranges: Sequence[tuple[float, float]]
    hidden: Sequence[int]
    dropout: float
    style: str
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, features: Float[Array, "K B D"]) -> Float[Array, "B K"]:
        """Scores clips from one copy of the shared features for each task.

        One copy a task, since the heads are disjoint: a single backward pass through
        all of them then gives each task's gradient separately.
        """
        head = nn.vmap(
            _Head,
            in_axes=0,
            out_axes=-1,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
        )
        raw = head(self.hidden, self.dropout, self.style, self.dtype, name="stack")(
            features
        )  # float32 at least
        low, high = jnp.array(self.ranges, raw.dtype).T
        if self.activation == "sigmoid":
            return low + (high - low) * nn.sigmoid(raw)
        if self.activation == "tanh":
            return low + (high - low) * 0.5 * (jnp.tanh(raw) + 1)
        return raw
