"""ResNet-50, -101 and -152 (He et al. 2016) as pooled features of pictures.

The one thing to know: a checkpoint's batch norms are folded into the convolutions
before them when it is read, so the parameters here are kernels and biases only. The
network is that of the hub's `microsoft/resnet-101`, with the stride in the 3x3
convolution of a block ("v1.5").
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from extract.networks import tensor_file
from tqa_jax import schema

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pictures, RGB in 0 to 1
_STD = (0.229, 0.224, 0.225)
_EPSILON = 1e-5  # of batch norm, PyTorch's default
_REDUCTION = 4  # width of a block over the width of its inner convolutions
_STEM = "embedder.embedder"
_NORM = ("weight", "bias", "running_mean", "running_var")
# What `config.json` must say, where it says anything, for the network to be this one.
_FIXED = {
    "model_type": "resnet",
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "num_channels": 3,
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a network; the defaults are ResNet-101's.

    Attributes:
        embedding_size: channels after the first convolution.
        hidden_sizes: channels after each stage.
        depths: blocks in each stage.
    """

    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 23, 3)

    @property
    def width(self) -> int:
        """Number of features."""
        return self.hidden_sizes[-1]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Config":
        """Reads the hub's `config.json`.

        Raises:
            schema.InputError: for another network, and for sizes that cannot be.
        """
        for key, expected in _FIXED.items():
            if found.get(key, expected) != expected:
                raise schema.InputError(
                    f"config.json is of another network: {key} is {found[key]!r}; "
                    f"expected {expected!r} (ResNet-50, -101 or -152)"
                )
        stem, *rest = (_sizes(found, f.name) for f in dataclasses.fields(cls))
        config = cls(stem[0], *rest)
        if len(config.hidden_sizes) != len(config.depths):
            raise schema.InputError(
                f"config.json has {len(config.hidden_sizes)} hidden_sizes and "
                f"{len(config.depths)} depths; expected one of each a stage"
            )
        if any(size % _REDUCTION for size in config.hidden_sizes):
            raise schema.InputError(
                f"config.json has hidden_sizes {list(config.hidden_sizes)}; expected "
                f"multiples of {_REDUCTION}"
            )
        return config


def _sizes(found: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = found.get(key)
    sizes = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise schema.InputError(f"config.json has {key} {value!r}; expected sizes")
    return sizes


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors, without the prefix `resnet.`."""
    result = {}
    for name, shape in _convolutions(config).items():
        result[f"{name}.convolution.weight"] = shape
        for kind in _NORM:
            result[f"{name}.normalization.{kind}"] = (shape[0],)
    return result


def from_tensors(tensors: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Turns a checkpoint's tensors into parameters, batch norms folded.

    Args:
        tensors: by the hub's names, with or without the prefix `resnet.`; a classifier
            and the batch norms' counters are ignored.
        config: sizes of the network.

    Returns:
        Parameters for `features`, float32.

    Raises:
        schema.InputError: for the first tensor that is missing, of another shape, not
            finite, or unknown.
    """
    given = {
        name.removeprefix("resnet."): value
        for name, value in tensors.items()
        if not name.startswith("classifier.") and not name.endswith("_tracked")
    }
    tensor_file.check(given, shapes(config), "ResNet")
    folded = {name: _folded(given, name) for name in _convolutions(config)}
    params = {"stem": folded[_STEM]}
    for stage, depth in enumerate(config.depths):
        blocks = []
        for block in range(depth):
            prefix = f"encoder.stages.{stage}.layers.{block}."
            blocks.append(
                {
                    name.removeprefix(prefix).replace(".", "_"): value
                    for name, value in folded.items()
                    if name.startswith(prefix)
                }
            )
        params[f"stage_{stage}_first"] = blocks[0]
        if depth > 1:
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks[1:])
            params[f"stage_{stage}_rest"] = stacked
    return {"params": params}


def _folded(given: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Multiplies a batch norm into the convolution before it."""
    kernel = np.asarray(given[f"{name}.convolution.weight"], np.float64)
    scale, shift, mean, variance = (
        np.asarray(given[f"{name}.normalization.{kind}"], np.float64) for kind in _NORM
    )
    scale = scale / np.sqrt(variance + _EPSILON)
    kernel = kernel.transpose(2, 3, 1, 0) * scale  # (O, I, H, W) -> (H, W, I, O)
    bias = shift - mean * scale
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def features(
    params: Mapping[str, Any],
    config: Config,
    pixels: UInt8[Array, "B H W 3"],
    *,
    dtype: Any = jnp.float32,
) -> Float[Array, "B D"]:
    """Pools the last stage over each picture.

    Args:
        params: from `from_tensors`.
        config: sizes of the network.
        pixels: RGB; 224 x 224 is what the usual weights were trained with.
        dtype: of activations; the features are float32.
    """
    # Accelerators round float32 products to fewer digits unless told otherwise.
    with jax.default_matmul_precision("float32"):
        return ResNet(config, dtype).apply(params, pixels)


class ResNet(nn.Module):
    """The network, from pixels to pooled features; see `features`."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, pixels: UInt8[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Runs the network."""
        x = pixels.astype(jnp.float32) * (1 / (255 * np.array(_STD, np.float32)))
        x = x - np.array(_MEAN, np.float32) / np.array(_STD, np.float32)
        x = x.astype(self.dtype)
        stem = _Convolution(self.config.embedding_size, 7, 2, self.dtype, name="stem")
        x = _pooled(nn.relu(stem(x)))
        for stage, (width, depth, projects) in enumerate(_stages(self.config)):
            stride = 2 if stage else 1
            make = functools.partial(_Block, width, dtype=self.dtype)
            x, _ = make(stride, projects, name=f"stage_{stage}_first")(x)
            if depth > 1:
                # Not only for compile time: of blocks one after another XLA for CPUs
                # adds up all residuals so far again in every block.
                rest = nn.scan(
                    _Block,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    length=depth - 1,
                )
                x, _ = rest(width, 1, False, self.dtype, name=f"stage_{stage}_rest")(x)
        return x.mean((1, 2), dtype=jnp.float32)


class _Block(nn.Module):
    """A block with a bottleneck, its strides in the 3x3 convolution."""

    width: int
    stride: int
    projects: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        inner = self.width // _REDUCTION

        def convolve(
            name: str, x: jax.Array, width: int, size: int, stride: int = 1
        ) -> jax.Array:
            return _Convolution(width, size, stride, self.dtype, name=name)(x)

        y = nn.relu(convolve("layer_0", x, inner, 1))
        y = nn.relu(convolve("layer_1", y, inner, 3, self.stride))
        y = convolve("layer_2", y, self.width, 1)
        if self.projects:
            x = convolve("shortcut", x, self.width, 1, self.stride)
        return nn.relu(x + y), None


class _Convolution(nn.Module):
    """A convolution whose output is a `stride`-th of its input."""

    width: int
    size: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        shape = (self.size, self.size, x.shape[-1], self.width)
        kernel = self.param("kernel", zeros, shape).astype(self.dtype)
        bias = self.param("bias", zeros, (self.width,)).astype(self.dtype)
        if self.size == 1:
            # A matrix product, which XLA does faster on a CPU than the convolution.
            return x[:, :: self.stride, :: self.stride] @ kernel[0, 0] + bias
        return bias + jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(self.size // 2, self.size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _pooled(x: jax.Array) -> jax.Array:
    """Largest of each 3x3 pixels, every second one; `x` is not negative.

    As a maximum of shifted pictures, since XLA's `reduce_window` is slow on a CPU. The
    border may be 0 where that is the least value there is.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        edges = [(0, 0)] * x.ndim
        edges[axis] = (1, 1)
        padded = jnp.pad(x, edges)
        parts = (
            jax.lax.slice_in_dim(padded, first, first + size, 2, axis)
            for first in range(3)
        )
        x = jnp.maximum(jnp.maximum(next(parts), next(parts)), next(parts))
    return x


def _stages(config: Config) -> list[tuple[int, int, bool]]:
    """Width and depth of each stage, and whether its first shortcut projects."""
    before = (config.embedding_size, *config.hidden_sizes)
    return [
        (width, depth, stage > 0 or width != before[stage])
        for stage, (width, depth) in enumerate(
            zip(config.hidden_sizes, config.depths, strict=True)
        )
    ]


def _block(width: int, channels: int, projects: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the kernels of a block, by their names in a checkpoint."""
    inner = width // _REDUCTION
    shortcut = {"shortcut": (width, channels, 1, 1)}
    return (shortcut if projects else {}) | {
        "layer.0": (inner, channels, 1, 1),
        "layer.1": (inner, inner, 3, 3),
        "layer.2": (width, inner, 1, 1),
    }


def _convolutions(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of all kernels, by their names in a checkpoint."""
    channels = config.embedding_size
    result = {_STEM: (channels, _FIXED["num_channels"], 7, 7)}
    for stage, (width, depth, projects) in enumerate(_stages(config)):
        for block in range(depth):
            name = f"encoder.stages.{stage}.layers.{block}"
            parts = _block(width, channels, projects and not block)
            result |= {f"{name}.{part}": shape for part, shape in parts.items()}
            channels = width
    return result
