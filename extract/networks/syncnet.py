"""SyncNet: two networks that put lips and sound where they fit near each other.

Each gives 1024 numbers, one of five face crops and one of 20 steps of 13 MFCCs of the
same 0.2 s; what goes in is in `syncnet_input`.

References:
    Chung, Zisserman 2016, "Out of time: automated lip sync in the wild". The network is
    that of its public checkpoint `syncnet_v2.model`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from extract.networks import resnet, tensors

WIDTH = 1024  # of an embedding

_FACE_CHANNELS = (3, 5)  # colours and pictures


class _Layer(NamedTuple):
    """A convolution with ReLU, and the pooling after it; `place` is in the checkpoint.

    Pooling is of 3x3: strides and padding, None without.
    """

    place: int
    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: int = 1
    pool: tuple[tuple[int, int], int] | None = None


_SOUND = (
    _Layer(0, 64, (3, 3)),
    _Layer(4, 192, (3, 3), pool=((1, 2), 0)),
    _Layer(8, 384, (3, 3)),
    _Layer(11, 256, (3, 3)),
    _Layer(14, 256, (3, 3), pool=((2, 2), 0)),
    _Layer(18, 512, (5, 4), padding=0),
)
# The checkpoint's convolutions are three-dimensional, but the first takes all five
# pictures at once and the others one: with the pictures as channels they are plane.
_FACE = (
    _Layer(0, 96, (7, 7), 2, padding=0, pool=((2, 2), 0)),
    _Layer(4, 256, (5, 5), 2, pool=((2, 2), 1)),
    _Layer(8, 256, (3, 3)),
    _Layer(11, 256, (3, 3)),
    _Layer(14, 256, (3, 3), pool=((2, 2), 0)),
    _Layer(18, 512, (6, 6), padding=0),
)


def faces(
    params: Mapping[str, Any],
    windows: UInt8[Array, "B 5 224 224 3"],
    dtype: Any = jnp.float32,
) -> Float[Array, "B 1024"]:
    """Embeds windows of face crops.

    Args:
        params: from `from_tensors`.
        windows: five crops in a row from `syncnet_input.Cropper`, RGB.
        dtype: of the computation; the result is float32.
    """
    x = jnp.moveaxis(windows, 1, 3)  # (B, 5, H, W, 3) -> (B, H, W, 5, 3)
    x = x.reshape(*x.shape[:3], -1).astype(dtype)
    return _embed(_FACE, params["face"], x)


def sounds(
    params: Mapping[str, Any],
    windows: Float[Array, "B 20 13"],
    dtype: Any = jnp.float32,
) -> Float[Array, "B 1024"]:
    """Embeds windows of sound.

    Args:
        params: from `from_tensors`.
        windows: from `syncnet_input.sound_windows`.
        dtype: of the computation; the result is float32.
    """
    x = jnp.swapaxes(windows, 1, 2)[..., None].astype(dtype)  # (B, 13, 20, 1)
    return _embed(_SOUND, params["sound"], x)


def _embed(layers: tuple[_Layer, ...], params: Mapping[str, Any], x: jax.Array):
    # Accelerators round float32 products to fewer digits unless told otherwise.
    with jax.default_matmul_precision("float32"):
        return SyncNet(layers, x.dtype).apply({"params": params}, x)


class SyncNet(nn.Module):
    """One of the two networks, see `faces` and `sounds`."""

    layers: tuple[_Layer, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 1024"]:
        """Runs the network."""
        for index, layer in enumerate(self.layers):
            _, *sizes, pool = layer
            make = _First if layer.kernel == (7, 7) else nn.Conv
            x = nn.relu(make(*sizes, dtype=self.dtype, name=f"conv{index}")(x))
            x = x if pool is None else resnet.pooled(x, *pool)
        x = x.reshape(len(x), -1)  # (B, 1, 1, 512) -> (B, 512)
        x = nn.relu(nn.Dense(512, dtype=self.dtype, name="hidden")(x))
        return nn.Dense(WIDTH, dtype=self.dtype, name="out")(x).astype(jnp.float32)


class _First(nn.Module):
    """The first convolution of faces, most of the network's time on a CPU."""

    features: int
    kernel_size: tuple[int, int]
    strides: int
    padding: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros, shape = nn.initializers.zeros, (*self.kernel_size, x.shape[-1])
        kernel = self.param("kernel", zeros, (*shape, self.features))
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        direct = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(self.strides,) * 2,
            padding=[(self.padding,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return bias + jax.lax.platform_dependent(
            x, kernel.astype(self.dtype), cpu=_by_rows, default=direct
        )


def _by_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with stride 2 as a matrix product for each row of the kernel.

    It is twice as fast as XLA's on a CPU.
    """
    size, _, channels, features = kernel.shape
    rows = kernel.reshape(size, size * channels, features)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def one(picture: jax.Array) -> jax.Array:
        height, width = ((side - size) // 2 * 2 + 1 for side in picture.shape[:2])
        wide = [picture[:, first : first + width : 2] for first in range(size)]
        wide = jnp.concatenate(wide, axis=-1)  # (H, W, C) -> (H, (W - 5) / 2, 7C)
        parts = (product(wide[n : n + height : 2], rows[n]) for n in range(size))
        return sum(parts).astype(picture.dtype)

    return jax.lax.map(one, x)  # one by one they stay in the cache


def from_tensors(checkpoint: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Makes parameters of a checkpoint's tensors, batch norms folded.

    Args:
        checkpoint: tensors as in `syncnet_v2.model`; names may start with `__S__.` or
            `module.`, and others are ignored.

    Raises:
        schema.InputError: for the first tensor that is missing, of another shape or
            not finite.
    """
    take = tensors.Tensors(
        {_bare(name): value for name, value in checkpoint.items()}, "SyncNet"
    )
    return {
        "face": _stream(take, "lip", _FACE, _FACE_CHANNELS),
        "sound": _stream(take, "aud", _SOUND, (1,)),
    }


def _stream(
    take: tensors.Tensors,
    kind: str,
    layers: tuple[_Layer, ...],
    channels: tuple[int, ...],
) -> dict[str, dict[str, np.ndarray]]:
    """Returns one network's parameters; `channels` are colours, and pictures if any."""
    params = {}
    for index, (place, width, size, *_) in enumerate(layers):
        name = f"netcnn{kind}.{place}"
        kernel = take(f"{name}.weight", width, *channels, *size)
        if channels == _FACE_CHANNELS:
            # (out, blue green red, 5, H, W) -> (out, 5 x red green blue, H, W)
            kernel = kernel[:, ::-1].swapaxes(1, 2)
        kernel = kernel.reshape(width, -1, *size).transpose(2, 3, 1, 0)
        bias = take(f"{name}.bias", width)
        norm = f"netcnn{kind}.{place + 1}"
        params[f"conv{index}"] = take.folded(kernel, norm, bias)
        channels = (width, 1)[: len(channels)]
    head = f"netfc{kind}"
    hidden, bias = take(f"{head}.0.weight", 512, 512).T, take(f"{head}.0.bias", 512)
    params["hidden"] = take.folded(hidden, f"{head}.1", bias)
    params["out"] = {
        "kernel": take(f"{head}.3.weight", WIDTH, 512).T,
        "bias": take(f"{head}.3.bias", WIDTH),
    }
    return params


def _bare(name: str) -> str:
    """Takes off what wrappers put before a tensor's name."""
    while name.startswith(("__S__.", "module.")):
        name = name.split(".", 1)[1]
    return name
