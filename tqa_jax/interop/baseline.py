"""The Baseline network: frames are averaged, modalities side by side, linear heads.

The one thing to know: scores are raw, in no range.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tqa_jax import interop
from tqa_jax.interop import _layers, _layout


def make(arrays: Mapping[str, np.ndarray]) -> interop.Parts:
    """Builds the network.

    Args:
        arrays: of the state dict.

    Raises:
        InputError: for a state dict of another network.
    """
    layout = _layout.dense("fusion_fc.0", "fused", f"{len(_layout.MODALITIES)} width")
    for name in _layout.MODALITIES:
        layout |= _layout.dense(f"{name}_fc.0", "width", name)
    for task in _layout.TASKS:
        layout |= _layout.dense(f"{task}_head", 1, "fused")
    sizes = _layout.check(arrays, layout, preset="baseline")

    def forward(params, features, dtype):
        tokens = [
            _layers.dense(params, f"{name}_fc.0", features[name].mean(axis=-2))
            for name in _layout.MODALITIES
        ]
        x = jax.nn.relu(jnp.concatenate(tokens, axis=-1))
        x = jax.nn.relu(_layers.dense(params, "fusion_fc.0", x))
        return {
            task: _layers.dense(params, f"{task}_head", x)[..., 0]
            for task in _layout.TASKS
        }

    return interop.Parts(
        params=dict(arrays),
        forward=forward,
        widths={name: (sizes[name],) for name in _layout.MODALITIES},
        sizes=sizes,
        unused={},
    )
