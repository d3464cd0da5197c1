"""The Improved network, the predecessor of Advanced: wider encoders, ReLU, own heads.

The one thing to know: score ranges are in the state dict, one a task, and are no
parameters; `loss_weights` and `temperature` are there too and no score uses them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tqa_jax import interop, schema
from tqa_jax.interop import _layers, _layout

_TIME = _layout.Block("multihead_attn", "ffn.0", "ffn.3")
_ENCODER = ("4 width", "2 width", "width")  # Outputs of an encoder's layers.
_ACTIVATIONS = ("sigmoid", "tanh", "none")
_BUFFERS = ("_score_min", "_score_max", "_score_range")


def make(
    arrays: Mapping[str, np.ndarray],
    *,
    heads: int | None = None,
    temporal_heads: int = 8,
    activation: str = "sigmoid",
    as_trained: bool = False,
) -> interop.Parts:
    """Builds the network.

    Args:
        arrays: of the state dict.
        heads: of the transformer over modalities; see `_layout.pick_heads`.
        temporal_heads: of the attention in time.
        activation: what maps raw scores to the range: `sigmoid`, `tanh` or `none`.
        as_trained: also maps and clamps scores as the older trainer did behind the
            network; see `_layers.as_trained`.

    Raises:
        InputError: for a state dict of another network, or an unusable size.
    """
    if activation not in _ACTIVATIONS:
        raise schema.InputError(
            f"unknown activation {activation!r}; available: {', '.join(_ACTIVATIONS)}"
        )
    layers = len(_layout.indices(arrays, r"multimodal_fusion\.layers\.(\d+)\.")) or 1
    hidden = {
        task: len(_layout.indices(arrays, rf"{task}_head\.head\.(\d+)\.")) // 2
        for task in _layout.TASKS
    }
    sizes = _layout.check(
        arrays, _find_layout(arrays, layers, hidden), preset="improved"
    )
    heads = _layout.pick_heads(heads, sizes, layers)
    _layout.check_heads("temporal_heads", temporal_heads, sizes["width"])
    projections = _layout.projections(arrays)
    ranges = {
        task: (
            arrays[f"{task}_head._score_min"].item(),
            arrays[f"{task}_head._score_range"].item(),
        )
        for task in _layout.TASKS
    }

    def forward(params, features, dtype):
        features = _layers.cut(_layers.project(features, projections))
        encoded = [
            _encode(params, f"{name}_encoder", features[name])
            for name in _layout.MODALITIES
        ]
        x = jnp.stack(encoded)  # (M, B, T, D)
        x = _layers.block(params, "temporal_attention", x, temporal_heads, _TIME)
        pooled = jnp.concatenate([x.mean(axis=-2), _peak(x)], axis=-1)
        tokens = _layers.dense(params, "pool_proj", pooled)  # (M, B, D)
        one = jnp.concatenate(
            [
                _layers.dense(params, f"multi_scale_fusion.projections.{i}", token)
                for i, token in enumerate(tokens)
            ],
            axis=-1,
        )
        key = "multi_scale_fusion.fusion_network"
        one = jax.nn.relu(_layers.dense(params, f"{key}.0", one))
        one = _layers.dense(params, f"{key}.3", one)
        other = jnp.moveaxis(tokens, 0, -2)  # (B, M, D)
        for layer in range(layers):
            key = f"multimodal_fusion.layers.{layer}"
            other = _layers.block(params, key, other, heads)
        shared = (one + other.mean(axis=-2)) / 2
        scores = {
            task: _layers.to_range(
                _head(params, f"{task}_head", shared, hidden[task]),
                *ranges[task],
                activation,
            )
            for task in _layout.TASKS
        }
        return _layers.as_trained(scores, ranges, activation) if as_trained else scores

    constants = {
        key: value
        for key, value in arrays.items()
        if key.startswith("_adaptive_proj.") or key.endswith(_BUFFERS)
    }
    unused = {
        key: value
        for key, value in arrays.items()
        if key == "temperature" or key.startswith("loss_weights.")
    }
    return interop.Parts(
        params={
            key: value
            for key, value in arrays.items()
            if key not in constants and key not in unused
        },
        forward=forward,
        widths={
            name: (sizes[name], *projections.get(name, ()))
            for name in _layout.MODALITIES
        },
        sizes={**sizes, "layers": layers, "heads": heads}
        | {"temporal_heads": temporal_heads},
        unused=unused,
    )


def _peak(x: jax.Array) -> jax.Array:
    """Largest over frames; its gradient goes to the first of equals, as PyTorch's.

    That of `max` compares `x` with its maximum, and is NaN where a compiler computed
    `x` twice with different rounding.
    """
    place = x.argmax(axis=-2, keepdims=True)
    return jnp.take_along_axis(x, place, axis=-2).squeeze(-2)


def _encode(params: _layers.Params, key: str, x: jax.Array) -> jax.Array:
    residual = x
    if f"{key}.residual_proj.weight" in params:
        residual = _layers.dense(params, f"{key}.residual_proj", x)
    for layer in range(len(_ENCODER)):
        x = _layers.dense(params, f"{key}.encoder.{4 * layer}", x)
        x = jax.nn.relu(_layers.norm(params, f"{key}.encoder.{4 * layer + 1}", x))
    return x + residual


def _head(params: _layers.Params, key: str, x: jax.Array, hidden: int) -> jax.Array:
    x = x * params[f"{key}.feature_scale"]
    for i in range(hidden):
        x = _layers.dense(params, f"{key}.head.{4 * i}", x)
        x = _layers.gelu(_layers.norm(params, f"{key}.head.{4 * i + 1}", x))
    return _layers.dense(params, f"{key}.head.{4 * hidden}", x)[..., 0]


def _find_layout(
    arrays: Mapping[str, np.ndarray], layers: int, hidden: Mapping[str, int]
) -> _layout.Layout:
    dense, norm = _layout.dense, _layout.norm
    found = _layout.adaptive(arrays) | {"temperature": (1,)}
    for name in _layout.MODALITIES:
        key = f"{name}_encoder"
        inputs = name
        for layer, outputs in enumerate(_ENCODER):
            found |= dense(f"{key}.encoder.{4 * layer}", outputs, inputs)
            found |= norm(f"{key}.encoder.{4 * layer + 1}", outputs)
            inputs = outputs
    found |= _layout.block("temporal_attention", "4 width", _TIME)
    for layer in range(layers):
        found |= _layout.block(f"multimodal_fusion.layers.{layer}", "ffn")
    for i in range(len(_layout.MODALITIES)):
        found |= dense(f"multi_scale_fusion.projections.{i}", "width", "width")
    key = "multi_scale_fusion.fusion_network"
    found |= dense(f"{key}.0", "2 width", "4 width")
    found |= dense(f"{key}.3", "width", "2 width")
    found |= dense("pool_proj", "width", "2 width")
    for task in _layout.TASKS:
        key = f"{task}_head"
        found |= {f"{key}.feature_scale": (1,), f"loss_weights.{task}": ()}
        found |= {f"{key}.{name}": () for name in _BUFFERS}
        inputs = "width"
        for i in range(hidden[task]):
            outputs = f"{key}_{i}"
            found |= dense(f"{key}.head.{4 * i}", outputs, inputs)
            found |= norm(f"{key}.head.{4 * i + 1}", outputs)
            inputs = outputs
        found |= dense(f"{key}.head.{4 * hidden[task]}", 1, inputs)
    return found | _layout.residuals(arrays, found)
