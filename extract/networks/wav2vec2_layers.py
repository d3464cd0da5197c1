"""Layers of HuBERT base and Wav2Vec2 base: convolutions and transformer.

The convolutions are matrix products here, since a kernel that is no longer than twice
the stride sees one or two rows of `stride` samples. Long clips go through them in
stretches and through attention in blocks of queries, so that the memory a clip needs
grows with its length only.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from tqa_jax.models import layers

KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
FIELD = 400  # samples that a frame is computed from, 25 ms
HOP = 320  # samples from one frame to the next, 20 ms

_STRETCH = 250  # most frames of a clip to go through the convolutions together
_QUERIES = 512  # frames that attend at a time
_EPSILON = 1e-5  # of the group norm


class Convolutions(nn.Module):
    """From samples to frames: convolution and GELU, seven times.

    The first has a group norm with a group a channel, over the frames of each clip.
    """

    widths: Sequence[int]
    dtype: Any

    @nn.compact
    def __call__(
        self, samples: Float[Array, "B N"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B F C"]:
        """Runs all seven.

        Args:
            samples: clips, each followed by anything.
            lengths: samples of each clip.

        Returns:
            Frames; those that see what follows a clip mean nothing.
        """
        zeros = nn.initializers.zeros
        sizes = zip(KERNELS, (1, *self.widths[:-1]), self.widths, strict=True)
        kernels = [
            self.param(f"kernel_{index}", zeros, (taps * inputs, outputs))
            for index, (taps, inputs, outputs) in enumerate(sizes)
        ]
        scale = self.param("scale", zeros, self.widths[:1])
        bias = self.param("bias", zeros, self.widths[:1])
        mean, variance = _statistics(samples, lengths, kernels[0])
        scale = scale * jax.lax.rsqrt(variance + _EPSILON)  # (B, C)
        first = (kernels[0] * scale[:, None]).astype(self.dtype)
        bias = (bias - mean * scale)[:, None].astype(self.dtype)
        rest = [kernel.astype(self.dtype) for kernel in kernels[1:]]

        def run(stretch: jax.Array) -> jax.Array:
            x = layers.gelu(_windows(stretch.astype(self.dtype)) @ first + bias)
            for kernel, size in zip(rest, KERNELS[1:], strict=True):
                x = layers.gelu(_halved(x, kernel, size))
            return x

        return _in_stretches(run, samples, (samples.shape[-1] - FIELD) // HOP + 1)


def _windows(samples: jax.Array) -> jax.Array:
    """What each output of the first convolution sees: (B, N) -> (B, T, 10)."""
    size, stride = KERNELS[0], STRIDES[0]
    count = (samples.shape[-1] - size) // stride + 1
    rows = samples[:, : (count + 1) * stride].reshape(len(samples), count + 1, stride)
    return jnp.concatenate([rows[:, :-1], rows[:, 1:]], axis=-1)


def _halved(x: jax.Array, kernel: jax.Array, size: int) -> jax.Array:
    """A convolution of stride 2 and size 2 or 3: (B, T, C) -> (B, T', O)."""
    channels = x.shape[-1]
    count = (x.shape[1] - size) // 2 + 1
    pairs = x[:, : 2 * count].reshape(len(x), count, 2 * channels)
    result = pairs @ kernel[: 2 * channels]
    if size == 3:
        result += x[:, 2 : 2 * count + 1 : 2] @ kernel[2 * channels :]
    return result


def _statistics(
    samples: jax.Array, lengths: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over time of what the first convolution gives: (B, C) each."""
    windows = _windows(samples)  # (B, T, 10)
    counts = jnp.maximum(1, (lengths - KERNELS[0]) // STRIDES[0] + 1)[:, None]
    keep = (jnp.arange(windows.shape[1]) < counts)[..., None]
    mean = jnp.where(keep, windows, 0).sum(1) / counts
    centred = jnp.where(keep, windows - mean[:, None], 0)
    rows = min(_STRETCH * HOP // STRIDES[0], centred.shape[1])
    centred = jnp.pad(centred, ((0, 0), (0, -centred.shape[1] % rows), (0, 0)))
    parts = centred.reshape(len(samples), -1, rows, KERNELS[0]).swapaxes(0, 1)
    squares = jax.lax.map(lambda part: jnp.square(part @ kernel).sum(1), parts)
    return mean @ kernel, squares.sum(0) / counts


def _in_stretches(
    run: Callable[[jax.Array], jax.Array], samples: jax.Array, count: int
) -> jax.Array:
    """Gives `run` the samples of so many frames at a time, and joins its frames."""
    more = FIELD - HOP
    stretches = math.ceil(count / _STRETCH)
    if stretches == 1:
        return run(samples[:, : count * HOP + more])
    size = math.ceil(count / stretches) * HOP
    short = max(0, stretches * size + more - samples.shape[-1])
    padded = jnp.pad(samples, ((0, 0), (0, short)))

    def part(index: jax.Array) -> jax.Array:
        return run(jax.lax.dynamic_slice_in_dim(padded, index * size, size + more, 1))

    x = jax.lax.map(part, jnp.arange(stretches))  # (S, B, F, C)
    x = x.swapaxes(0, 1).reshape(len(samples), -1, x.shape[-1])
    return x[:, :count]


class Layer(nn.Module):
    """Post-norm self-attention and feed-forward."""

    heads: int
    ffn_width: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F D"], keep: Bool[Array, "B F"]
    ) -> Float[Array, "B F D"]:
        """Runs the layer; only frames of `keep` are attended to."""
        width = x.shape[-1]

        def dense(name: str, width: int) -> nn.Dense:
            return nn.Dense(width, dtype=self.dtype, name=name)

        inputs = dense("inputs", 3 * width)(x)
        inputs = inputs.reshape(*x.shape[:-1], 3, self.heads, -1)
        attended = _attend(*inputs.transpose(2, 0, 3, 1, 4), keep)
        attended = attended.swapaxes(1, 2).reshape(x.shape)
        x = norm("norm_0", self.epsilon, self.dtype)(x + dense("out", width)(attended))
        y = layers.gelu(dense("expand", self.ffn_width)(x))
        y = dense("contract", width)(y)
        return norm("norm_1", self.epsilon, self.dtype)(x + y)


def norm(name: str, epsilon: float, dtype: Any) -> nn.LayerNorm:
    """Makes a layer norm whose variance is not a difference of large numbers."""
    return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)


def _attend(
    query: Float[Array, "B H F D"],
    key: Float[Array, "B H F D"],
    value: Float[Array, "B H F D"],
    keep: Bool[Array, "B F"],
) -> Float[Array, "B H F D"]:
    """Attends to the frames of `keep`, in blocks of queries when there are many."""
    query = query * query.shape[-1] ** -0.5
    # Finite, so that a clip without frames gives numbers too.
    bias = jnp.where(keep, 0.0, -1e9)[:, None, None]  # (B, H, Q, F)

    def block(query: jax.Array) -> jax.Array:
        scores = jnp.einsum(
            "bhqd,bhfd->bhqf", query, key, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(scores + bias).astype(value.dtype)
        return jnp.einsum("bhqf,bhfd->bhqd", weights, value)

    frames = query.shape[2]
    if frames <= _QUERIES:
        return block(query)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, -frames % _QUERIES), (0, 0)))
    parts = query.reshape(*query.shape[:2], -1, _QUERIES, query.shape[-1])
    result = jax.lax.map(block, jnp.moveaxis(parts, 2, 0))
    return jnp.moveaxis(result, 0, 2).reshape(query.shape)[:, :, :frames]
