"""The basic MTL network: frames are averaged, then a transformer over modalities.

The one thing to know: scores are raw, in no range. Without a head of its own `overall`
is the mean of the other tasks.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tqa_jax import interop
from tqa_jax.interop import _layers, _layout

_FUSION = "multimodal_fusion.transformer.layers"


def make(
    arrays: Mapping[str, np.ndarray], *, heads: int | None = None
) -> interop.Parts:
    """Builds the network.

    Args:
        arrays: of the state dict.
        heads: of the transformer over modalities; see `_layout.pick_heads`.

    Raises:
        InputError: for a state dict of another network, or an unusable size.
    """
    pattern = _FUSION.replace(".", r"\.")
    layers = len(_layout.indices(arrays, rf"{pattern}\.(\d+)\.")) or 1
    tasks = _layout.TASKS
    if not any(key.startswith("overall_head.") for key in arrays):
        tasks = tuple(task for task in tasks if task != "overall")
    hidden = {
        task: len(_layout.indices(arrays, rf"{task}_head\.head\.(\d+)\.")[1:])
        for task in tasks
    }
    sizes = _layout.check(arrays, _find_layout(layers, hidden), preset="mtl")
    heads = _layout.pick_heads(heads, sizes, layers)

    def forward(params, features, dtype):
        tokens = []
        for name in _layout.MODALITIES:
            x = features[name]
            for layer in (0, 3):
                key = f"{name}_encoder.encoder.{layer}"
                x = jax.nn.relu(_layers.dense(params, key, x))
            tokens.append(x.mean(axis=-2))
        x = jnp.stack(tokens, axis=-2) + params["multimodal_fusion.pos_encoding"]
        for layer in range(layers):
            x = _layers.block(params, f"{_FUSION}.{layer}", x, heads)
        x = x.mean(axis=-2)
        scores = {
            task: _head(params, f"{task}_head", x, hidden[task]) for task in tasks
        }
        if "overall" not in scores:
            scores["overall"] = jnp.stack(list(scores.values())).mean(axis=0)
        return scores

    return interop.Parts(
        params=dict(arrays),
        forward=forward,
        widths={name: (sizes[name],) for name in _layout.MODALITIES},
        sizes={**sizes, "layers": layers, "heads": heads},
        unused={},
    )


def _head(params: _layers.Params, key: str, x: jax.Array, hidden: int) -> jax.Array:
    for i in range(hidden):
        x = jax.nn.relu(_layers.dense(params, f"{key}.head.{3 * i}", x))
    return _layers.dense(params, f"{key}.head.{3 * hidden}", x)[..., 0]


def _find_layout(layers: int, hidden: Mapping[str, int]) -> _layout.Layout:
    dense = _layout.dense
    tokens = len(_layout.MODALITIES)
    found: _layout.Layout = {"multimodal_fusion.pos_encoding": (1, tokens, "width")}
    for name in _layout.MODALITIES:
        found |= dense(f"{name}_encoder.encoder.0", "2 width", name)
        found |= dense(f"{name}_encoder.encoder.3", "width", "2 width")
    for layer in range(layers):
        found |= _layout.block(f"{_FUSION}.{layer}", "ffn")
    for task, count in hidden.items():
        inputs = "width"
        for i in range(count):
            outputs = f"{task}_head_{i}"
            found |= dense(f"{task}_head.head.{3 * i}", outputs, inputs)
            inputs = outputs
        found |= dense(f"{task}_head.head.{3 * count}", 1, inputs)
    return found
