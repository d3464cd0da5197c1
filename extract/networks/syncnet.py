"""Sync backend `syncnet`: how far the sound is from the mouth, by a trained network.

The one thing to know: `offset_frames` is positive when the audio is late, as in the
backend `correlation`; the public code of SyncNet prints the opposite sign. Window `t`
is the five pictures of rows t to t+4 and the sound of the same 0.2 s, so what it
measures belongs to row t+2, its middle.

Two networks give 1024 numbers each, one of five face crops and one of 20 steps of 13
MFCCs; their distance is small where lips and sound fit. The lag of the sound at which
the mean distance is least is the offset, that distance is LSE-D, and how far the
median over the lags lies above it is LSE-C.

References:
    Chung, Zisserman 2016, "Out of time: automated lip sync in the wild". Network and
    formulas are those of its public checkpoint `syncnet_v2.model`, what goes in is in
    `syncnet_input`. We differ where a lag moves a pair out of the clip: it is left
    out, while the public code compares with zeros, which bends the mean at far lags.
    Prajwal et al. 2020, "A lip sync expert is all you need", for LSE-D and LSE-C.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, UInt8

from tqa_jax import schema

_FEATURES = 4  # LSE-D, LSE-C, offset, validity: see `extract.backends.syncnet`
FRAMES = 5  # rows in a window, as in `syncnet_input`
WIDTH = 1024  # of an embedding
MAX_LAG = 15
WINDOW = 51  # windows behind a row's features, about 2 s

_MIN_WINDOWS = 20
_MIN_SHARE = 0.5  # of the windows that a lag must leave
_EPSILON = 1e-6  # added to each difference by PyTorch's `pairwise_distance`

_NORM_EPSILON = 1e-5  # PyTorch's default
_PRECISION = "highest"  # else a GPU rounds float32 to TF32


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


class _Stream(nn.Module):
    """One of the two networks: (B, H, W, C) to (B, 1024)."""

    layers: tuple[_Layer, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index, layer in enumerate(self.layers):
            x = nn.relu(_Convolution(layer, self.dtype, name=f"conv{index}")(x))
            if layer.pool is not None:
                x = _pooled(x, *layer.pool)
        x = x.reshape(len(x), -1)  # (B, 1, 1, 512) -> (B, 512)
        dense = functools.partial(nn.Dense, dtype=self.dtype, precision=_PRECISION)
        x = nn.relu(dense(512, name="hidden")(x))
        return dense(WIDTH, name="out")(x).astype(jnp.float32)


class _Convolution(nn.Module):
    layer: _Layer
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer, zeros = self.layer, nn.initializers.zeros
        shape = (*layer.kernel, x.shape[-1], layer.features)
        kernel = self.param("kernel", zeros, shape).astype(self.dtype)
        bias = self.param("bias", zeros, (layer.features,)).astype(self.dtype)

        direct = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(layer.stride,) * 2,
            padding=[(layer.padding,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_PRECISION,
        )
        if layer.kernel != (7, 7):
            return direct(x, kernel) + bias
        # Most of the network's time on a CPU, and twice as fast this way.
        found = jax.lax.platform_dependent(x, kernel, cpu=_by_rows, default=direct)
        return found + bias


def _by_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with stride 2 as one matrix product for each row of the kernel."""
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


def _pooled(x: jax.Array, strides: tuple[int, int], padding: int) -> jax.Array:
    """Largest of each 3x3 numbers; they are not negative, so the border may be 0.

    As a maximum of shifted pictures, since XLA's `reduce_window` is slow on a CPU.
    """
    for axis, stride in zip((1, 2), strides, strict=True):
        padded = jnp.pad(x, [(padding * (axis == n),) * 2 for n in range(4)])
        last = (padded.shape[axis] - 3) // stride * stride
        parts = (
            jax.lax.slice_in_dim(padded, first, first + last + 1, stride, axis)
            for first in range(3)
        )
        x = functools.reduce(jnp.maximum, parts)
    return x


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
    return _Stream(_FACE, dtype).apply({"params": params["face"]}, x)


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
    return _Stream(_SOUND, dtype).apply({"params": params["sound"]}, x)


def from_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Makes parameters of a checkpoint's tensors.

    Batch norms are folded into the convolutions before them.

    Args:
        tensors: as in `syncnet_v2.model`; names may start with `__S__.` or `module.`.

    Raises:
        schema.InputError: tensors are missing or have other shapes.
    """
    tensors = {_bare(name): value for name, value in tensors.items()}
    wrong: list[str] = []
    read = functools.partial(_take, tensors, wrong)
    params = {
        "face": _stream(read, "netcnnlip", "netfclip", _FACE, (3, FRAMES)),
        "sound": _stream(read, "netcnnaud", "netfcaud", _SOUND, (1,)),
    }
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise schema.InputError(
            f"these weights are not SyncNet's: {'; '.join(wrong[:3])}{more}; "
            "expected a checkpoint like syncnet_v2.model"
        )
    return params


def lags(
    face_embeddings: Float[np.ndarray, "W 1024"],
    sound_embeddings: Float[np.ndarray, "V 1024"],
) -> Float[np.ndarray, "W 31"]:
    """Measures the distances of each window of faces from the sounds around it.

    Args:
        face_embeddings: of each window, NaN where there is none.
        sound_embeddings: likewise.

    Returns:
        For lags -15 to 15 of the sound, in rows: the distance of window `t` of faces
        from window `t + lag` of sound; NaN where either is unknown or outside.
    """
    seen, heard = len(face_embeddings), len(sound_embeddings)
    distances = np.full((seen, 2 * MAX_LAG + 1), np.nan, np.float32)
    for column, lag in enumerate(range(-MAX_LAG, MAX_LAG + 1)):
        first, last = max(0, -lag), min(seen, heard - lag)
        if first < last:
            other = sound_embeddings[first + lag : last + lag]
            difference = face_embeddings[first:last] - other + _EPSILON
            distances[first:last, column] = np.linalg.norm(difference, axis=-1)
    return distances


class Measures(NamedTuple):
    """What the distances over the lags say; NaN where there are none.

    Attributes:
        lse_d: least mean distance over the lags; low where lips and sound fit.
        lse_c: median over the lags less the least; high where one lag stands out.
        offset_frames: the lag of the least; positive when the audio is late.
    """

    lse_d: float
    lse_c: float
    offset_frames: float


def measures(distances: Float[np.ndarray, "W 31"]) -> Measures:
    """Measures a whole clip.

    Args:
        distances: from `lags`.
    """
    known = np.isfinite(distances)
    total = np.where(known, distances, 0.0).sum(axis=0, dtype=np.float64)
    means = np.full(len(total), np.nan)
    np.divide(total, known.sum(axis=0), out=means, where=known.any(axis=0))
    if not np.isfinite(means).any():
        return Measures(math.nan, math.nan, math.nan)
    return Measures(*(float(value) for value in _measured(means)))


def features(
    distances: Float[np.ndarray, "W 31"], seen: Bool[np.ndarray, " T"]
) -> tuple[Float[np.ndarray, "T 4"], Bool[np.ndarray, " T"]]:
    """Measures about 2 s around each row.

    Row `r` is measured over the 51 windows whose middles are nearest to it, those
    that begin at rows r-27 to r+23, moved inwards at the ends of the clip.

    Args:
        distances: from `lags`; window `t` is of rows t to t+4, so W is T-4, or 0.
        seen: rows with a face.

    Returns:
        Features and mask. The mask is False in rows without a face, and where
        half of the windows or more lack face or sound. In a clip of fewer than 20
        windows, or where gaps leave too few of the lags, the row is present and all
        of its four values are 0.
    """
    num_rows, num_windows = len(seen), len(distances)
    if num_windows != max(0, num_rows - FRAMES + 1):
        raise ValueError(f"{num_windows} windows do not belong to {num_rows} rows")
    result = np.zeros((num_rows, _FEATURES), np.float32)
    mask = np.array(seen)
    if num_windows:
        window = min(WINDOW, num_windows)
        middles = np.arange(num_rows) - FRAMES // 2
        starts = np.clip(middles - window // 2, 0, num_windows - window)
        known = np.isfinite(distances)
        count = _sums(known, starts, window)
        mask &= count[:, MAX_LAG] > 0.5 * window
        means = np.full(count.shape, np.nan)
        enough = count >= max(_MIN_SHARE * window, _MIN_WINDOWS / 2)
        total = _sums(np.where(known, distances, 0.0), starts, window)
        np.divide(total, count, out=means, where=enough)
        valid = mask & (enough.sum(axis=-1) > MAX_LAG) & (window >= _MIN_WINDOWS)
        if valid.any():
            result[valid, :3] = np.stack(_measured(means[valid]), axis=-1)
            result[valid, 3] = 1.0
    result[~mask] = np.nan
    return result, mask


def _measured(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns LSE-D, LSE-C and offset of mean distances over the lags, (..., 31)."""
    least = np.nanmin(means, axis=-1)
    offset = np.nanargmin(means, axis=-1) - MAX_LAG
    return least, np.nanmedian(means, axis=-1) - least, offset


def _sums(values: np.ndarray, starts: np.ndarray, window: int) -> np.ndarray:
    """Sums `window` rows from each of `starts` on."""
    total = np.cumsum(values, axis=0, dtype=np.float64)
    total = np.concatenate([np.zeros_like(total[:1]), total])
    return total[starts + window] - total[starts]


def _take(
    tensors: Mapping[str, np.ndarray],
    wrong: list[str],
    name: str,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Takes a tensor; what is wrong with it is added to `wrong`."""
    value = tensors.get(name)
    if value is not None and value.shape == shape:
        return value.astype(np.float64)
    what = "is missing" if value is None else f"has shape {value.shape}"
    wrong.append(f"{name} {what}, expected {shape}")
    return np.ones(shape)


def _stream(
    read: Callable[[str, tuple[int, ...]], np.ndarray],
    convolutions: str,
    head: str,
    layers: tuple[_Layer, ...],
    channels: tuple[int, ...],
) -> dict[str, dict[str, np.ndarray]]:
    """Returns one network's parameters; `channels` are colours, and pictures if any."""
    params = {}
    for index, layer in enumerate(layers):
        name = f"{convolutions}.{layer.place}"
        shape = (layer.features, *channels, *layer.kernel)
        kernel = read(f"{name}.weight", shape)
        if index == 0 and len(channels) == 2:
            # (out, blue green red, 5, H, W) -> (out, 5 x red green blue, H, W)
            kernel = kernel[:, ::-1].swapaxes(1, 2)
        kernel = kernel.reshape(layer.features, -1, *layer.kernel)
        bias = read(f"{name}.bias", (layer.features,))
        norm = _norm(read, f"{convolutions}.{layer.place + 1}", layer.features)
        params[f"conv{index}"] = _folded(kernel.transpose(2, 3, 1, 0), bias, *norm)
        channels = (layer.features, 1)[: len(channels)]
    hidden = read(f"{head}.0.weight", (512, 512)), read(f"{head}.0.bias", (512,))
    norm = _norm(read, f"{head}.1", 512)
    params["hidden"] = _folded(hidden[0].T, hidden[1], *norm)
    out = read(f"{head}.3.weight", (WIDTH, 512)), read(f"{head}.3.bias", (WIDTH,))
    params["out"] = _folded(out[0].T, out[1], np.ones(WIDTH), np.zeros(WIDTH))
    return params


def _norm(read: Callable, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a batch norm as factor and summand."""
    weight, bias, mean, variance = (
        read(f"{name}.{part}", (width,))
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = weight / np.sqrt(variance + _NORM_EPSILON)
    return factor, bias - mean * factor


def _folded(kernel, bias, factor, summand) -> dict[str, np.ndarray]:
    return {
        "kernel": (kernel * factor).astype(np.float32),
        "bias": (bias * factor + summand).astype(np.float32),
    }


def _bare(name: str) -> str:
    """Takes off what wrappers put before a tensor's name."""
    while name.startswith(("__S__.", "module.")):
        name = name.split(".", 1)[1]
    return name
