"""ResNet-50, -101 and -152 (He et al. 2016) as pooled features of pictures.

A checkpoint's batch norms are folded into the convolutions before them when it is
read, so the parameters here are kernels and biases only. The network is that of the
hub's `microsoft/resnet-101`, with the stride in the 3x3 convolution of a block
("v1.5").
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from extract.networks import tensors

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pictures, RGB in 0 to 1
_STD = (0.229, 0.224, 0.225)
_REDUCTION = 4  # width of a block over the width of its inner convolutions
_FIXED = {
    "model_type": ("resnet",),
    "layer_type": ("bottleneck",),
    "hidden_act": ("relu",),
    "num_channels": (3,),
    "downsample_in_first_stage": (False,),
    "downsample_in_bottleneck": (False,),
}


class ResNet(nn.Module):
    """The network, from pixels to pooled features; the defaults are ResNet-101's.

    Attributes:
        embedding_size: channels after the first convolution.
        hidden_sizes: channels after each stage.
        depths: blocks in each stage.
        dtype: of activations; the features are float32.
    """

    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 23, 3)
    dtype: Any = jnp.float32

    # Accelerators round float32 products to fewer digits unless told otherwise.
    @jax.default_matmul_precision("float32")
    @nn.compact
    def __call__(self, pixels: UInt8[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Pools the last stage over each picture.

        Args:
            pixels: RGB; 224 x 224 is what the usual weights were trained with.
        """
        x = pixels.astype(jnp.float32) * (1 / (255 * np.array(_STD, np.float32)))
        x = x - np.array(_MEAN, np.float32) / np.array(_STD, np.float32)
        stem = nn.Conv(self.embedding_size, (7, 7), 2, 3, dtype=self.dtype, name="stem")
        x = pooled(nn.relu(stem(x.astype(self.dtype))), (2, 2), 1)
        for stage, width in enumerate(self.hidden_sizes):
            make = functools.partial(_Block, width, dtype=self.dtype)
            projects = stage > 0 or width != x.shape[-1]
            first = make(2 if stage else 1, projects, name=f"stage_{stage}_first")
            x, _ = first(x)
            if self.depths[stage] > 1:
                # Not only for compile time: of blocks one after another XLA for CPUs
                # adds up all residuals so far again in every block.
                rest = nn.scan(
                    _Block,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    length=self.depths[stage] - 1,
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
        inner, stride = self.width // _REDUCTION, self.stride
        # For XLA on a CPU 1x1 convolutions are slower than matrix products.
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        y = nn.relu(dense(inner, name="layer_0")(x))
        middle = nn.Conv(inner, (3, 3), stride, 1, dtype=self.dtype, name="layer_1")
        y = dense(self.width, name="layer_2")(nn.relu(middle(y)))
        if self.projects:
            x = dense(self.width, name="shortcut")(x[:, ::stride, ::stride])
        return nn.relu(x + y), None


def pooled(
    x: Float[Array, "B H W C"], strides: tuple[int, int], padding: int
) -> Float[Array, "B h w C"]:
    """Takes the largest of each 3x3 numbers, which are not negative.

    As a maximum of shifted pictures, since XLA's `reduce_window` is slow on a CPU. The
    border may be 0, where that is the least value there is.
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


def from_json(config: Mapping[str, Any], dtype: Any = jnp.float32) -> ResNet:
    """Makes the network that the hub's `config.json` describes; see `tensors.sizes`."""
    return tensors.sizes(ResNet, config, _FIXED)(dtype=dtype)


def from_tensors(
    checkpoint: Mapping[str, np.ndarray], network: ResNet
) -> dict[str, Any]:
    """Turns a checkpoint's tensors into parameters, batch norms folded.

    Args:
        checkpoint: tensors by the hub's names, with or without the prefix `resnet.`; a
            classifier and the batch norms' counters are ignored.
        network: that they are for.

    Returns:
        Parameters of the network, float32.

    Raises:
        schema.InputError: for the first tensor that is missing, of another shape, not
            finite, or unknown.
    """
    take = tensors.Tensors(
        {
            name.removeprefix("resnet."): value
            for name, value in checkpoint.items()
            if not name.startswith("classifier.") and not name.endswith("_tracked")
        },
        "ResNet",
    )

    def layer(name: str, outputs: int, inputs: int, size: int) -> dict[str, np.ndarray]:
        kernel = take(f"{name}.convolution.weight", outputs, inputs, size, size)
        kernel = kernel.transpose(2, 3, 1, 0)  # (O, I, H, W) -> (H, W, I, O)
        kernel = kernel[0, 0] if size == 1 else kernel
        return take.folded(kernel, f"{name}.normalization")

    channels = network.embedding_size
    params = {"stem": layer("embedder.embedder", channels, 3, 7)}
    stages = zip(network.hidden_sizes, network.depths, strict=True)
    for stage, (width, depth) in enumerate(stages):
        inner, blocks = width // _REDUCTION, []
        for block in range(depth):
            name = f"encoder.stages.{stage}.layers.{block}"
            parts = {
                "layer_0": layer(f"{name}.layer.0", inner, channels, 1),
                "layer_1": layer(f"{name}.layer.1", inner, inner, 3),
                "layer_2": layer(f"{name}.layer.2", width, inner, 1),
            }
            if not block and (stage or width != channels):
                parts["shortcut"] = layer(f"{name}.shortcut", width, channels, 1)
            blocks.append(parts)
            channels = width
        first, *rest = blocks
        params[f"stage_{stage}_first"] = first
        if rest:
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rest)
            params[f"stage_{stage}_rest"] = stacked
    take.finish()
    return {"params": params}
