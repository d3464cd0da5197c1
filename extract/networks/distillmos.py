"""DistillMOS: what listeners would say of 7.68 s of speech, as a Flax module.

A spectrum whose sizes are compressed goes through six convolutions and seven layers of
a transformer; attention pools what comes out. Batch norms are multiplied into the
layers beside them when the weights are read.

References:
    Stahl, Gamper 2025, "Distillation and Pruning for Scalable Self-Supervised
    Representation-Based Speech Quality Assessment". Variant 7.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from extract.networks import tensors, wav2vec2_layers

SAMPLES = 122_880
"""Samples that it hears, at 16 kHz."""
WIDTH = 200
"""Of the pooled embedding."""

_HOP, _WINDOW = 160, 320
_CHANNELS = (64, 64, 128, 256, 256, 256)
_STRIDES = ((1, 1), (2, 1), (2, 1), (2, 1), (2, 1), (2, 2))  # over hertz and time
_BINS = 4  # that are left of 161
_FRAMES = SAMPLES // _HOP // 2
_LAYERS, _HEADS = 7, 8
_EPSILON = 1e-5
_HEAD = "transformer_pool_attn"


class DistillMos(nn.Module):
    """The network."""

    # Accelerators round float32 products to fewer digits unless told otherwise.
    @jax.default_matmul_precision("float32")
    @nn.compact
    def __call__(self, samples: Float[Array, "B 122880"]) -> Float[Array, "B 201"]:
        """Judges windows of speech, whatever their loudness.

        Returns:
            The opinion, 1 to 5, and the embedding from which it is one product away.
        """
        peak = jnp.abs(samples).max(axis=-1, keepdims=True)
        x = spectrum(samples / (peak + 1e-8))
        for index, (width, stride) in enumerate(zip(_CHANNELS, _STRIDES, strict=True)):
            padding = ((0, 0), (1, 1))
            x = nn.Conv(width, (3, 3), stride, padding, name=f"conv_{index}")(x)
            x = nn.leaky_relu(x, 0.1)
        x = x.transpose(0, 2, 3, 1)  # (B, F, T, C) -> (B, T, C, F)
        x = x.reshape(*x.shape[:2], -1)
        positions = self.param("positions", nn.initializers.zeros, (_FRAMES, WIDTH))
        x = nn.Dense(WIDTH, name="projection")(x) + positions
        for index in range(_LAYERS):
            x = _Layer(name=f"layer_{index}")(x)
        scale = self.param("scale", nn.initializers.ones, (WIDTH,))
        x = x * scale + self.param("bias", nn.initializers.zeros, (WIDTH,))
        weights = nn.Dense(1, name="attend")(
            nn.relu(nn.Dense(2 * WIDTH, name="pool")(x))
        )
        pooled = (jax.nn.softmax(weights, axis=1) * x).sum(axis=1)
        opinion = 1 + 4 * nn.sigmoid(nn.Dense(1, name="opinion")(pooled))
        return jnp.concatenate([opinion, pooled], axis=-1)


class _Layer(nn.Module):
    """Post-norm self-attention and feed-forward."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        parts = nn.Dense(3 * WIDTH, name="inputs")(x)
        parts = parts.reshape(*x.shape[:-1], 3, _HEADS, -1)
        query, key, value = (parts[..., part, :, :] for part in range(3))
        attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        norm = wav2vec2_layers.norm
        x = x + nn.Dense(WIDTH, name="out")(attended)
        x = norm("norm_0", _EPSILON, jnp.float32)(x)
        y = nn.relu(nn.Dense(2 * WIDTH, name="expand")(x))
        y = nn.Dense(WIDTH, name="contract")(y)
        return norm("norm_1", _EPSILON, jnp.float32)(x + y)


def spectrum(samples: Float[Array, "B N"]) -> Float[Array, "B 161 T 2"]:
    """Returns real and imaginary parts, 100 a second, sizes to the power of 0.3."""
    side = (_WINDOW - _HOP) // 2
    padded = jnp.pad(samples, ((0, 0), (side, side)), mode="reflect")
    halves = padded.reshape(len(samples), -1, _HOP)
    windows = jnp.concatenate([halves[:, :-1], halves[:, 1:]], axis=-1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    bins = jnp.fft.rfft(windows * hann.astype(np.float32), axis=-1).swapaxes(1, 2)
    parts = jnp.stack([bins.real, bins.imag], axis=-1)
    size = jnp.maximum(jnp.sqrt(jnp.square(parts).sum(-1, keepdims=True)), 1e-12)
    return size**0.3 * parts / size


def from_tensors(checkpoint: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Turns the package's tensors into parameters, float32.

    Raises:
        schema.InputError: for the first tensor that is missing, of another shape, not
            finite, or unknown.
    """
    take = tensors.Tensors(
        {
            name: value
            for name, value in checkpoint.items()
            if not name.endswith("num_batches_tracked")
        },
        "DistillMOS",
    )

    def linear(name: str, inputs: int, outputs: int, sign: str = ".") -> dict:
        kernel = take(f"{name}{sign}weight", outputs, inputs).T
        return {"kernel": kernel, "bias": take(f"{name}{sign}bias", outputs)}

    def norm(name: str) -> dict[str, np.ndarray]:
        scale, bias = (take(f"{name}.{part}", WIDTH) for part in ("weight", "bias"))
        return {"scale": scale, "bias": bias}

    def batch_norm(name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
        identity = take.folded(np.ones((1, width)), name)
        return identity["kernel"][0], identity["bias"]

    params: dict[str, Any] = {}
    channels = 2
    for index, width in enumerate(_CHANNELS):
        kernel = take(f"cnn.cnn.{2 * index}.weight", width, channels, 3, 3)
        bias = take(f"cnn.cnn.{2 * index}.bias", width)
        params[f"conv_{index}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
        channels = width
    body = f"{_HEAD}.transformer"
    inputs = channels * _BINS
    projection = linear(f"{body}.linear_proj", inputs, WIDTH)
    for name in (f"{body}.norm", f"{_HEAD}.norm_input"):  # the last before it first
        scale, shift = batch_norm(name, inputs)
        bias = projection["bias"] + shift @ projection["kernel"]
        projection = {"kernel": projection["kernel"] * scale[:, None], "bias": bias}
    params["projection"] = projection
    params["positions"] = take(f"{body}.position_encoding.pe", 1, _FRAMES, WIDTH)[0]
    for index in range(_LAYERS):
        name = f"{body}.transformer_encoder.layers.{index}"
        params[f"layer_{index}"] = {
            "inputs": linear(f"{name}.self_attn.in_proj", WIDTH, 3 * WIDTH, "_"),
            "out": linear(f"{name}.self_attn.out_proj", WIDTH, WIDTH),
            "norm_0": norm(f"{name}.norm1"),
            "expand": linear(f"{name}.linear1", WIDTH, 2 * WIDTH),
            "contract": linear(f"{name}.linear2", 2 * WIDTH, WIDTH),
            "norm_1": norm(f"{name}.norm2"),
        }
    params["scale"], params["bias"] = batch_norm(f"{_HEAD}.norm_trans", WIDTH)
    params["pool"] = linear(f"{_HEAD}.pool.linear1", WIDTH, 2 * WIDTH)
    params["attend"] = linear(f"{_HEAD}.pool.linear2", 2 * WIDTH, 1)
    params["opinion"] = linear(f"{_HEAD}.pool.linear3", WIDTH, 1)
    take.finish()
    return {"params": params}
