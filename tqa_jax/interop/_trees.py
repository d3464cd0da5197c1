"""Entries of PyTorch layers as parameters of our `models.Evaluator`.

The one thing to know: kernels are inputs by outputs, attention's are split by head, and
the heads of tasks are stacked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tqa_jax import batch, models, schema
from tqa_jax.interop import _layout

Arrays = Mapping[str, np.ndarray]

OUR_NAMES = {
    name: {"keypoint": "keypoints", "au": "action_units"}.get(name, name)
    for name in _layout.MODALITIES
}
"""Names of the modalities in our data sets, by the older system's."""


def dense(arrays: Arrays, key: str) -> dict[str, np.ndarray]:
    """Returns a linear layer."""
    return {"kernel": arrays[f"{key}.weight"].T, "bias": arrays[f"{key}.bias"]}


def norm(arrays: Arrays, key: str) -> dict[str, np.ndarray]:
    """Returns a layer norm."""
    return {"scale": arrays[f"{key}.weight"], "bias": arrays[f"{key}.bias"]}


def block(
    arrays: Arrays,
    key: str,
    heads: int,
    names: _layout.Block = _layout.Block(),  # noqa: B008
) -> dict[str, Any]:
    """Returns a transformer block."""
    return {
        "attention": _attention(arrays, f"{key}.{names.attention}", heads),
        "norm_0": norm(arrays, f"{key}.norm1"),
        "norm_1": norm(arrays, f"{key}.norm2"),
        "expand": dense(arrays, f"{key}.{names.expand}"),
        "contract": dense(arrays, f"{key}.{names.contract}"),
    }


def _attention(arrays: Arrays, key: str, heads: int) -> dict[str, Any]:
    weights = np.split(arrays[f"{key}.in_proj_weight"], 3)
    biases = np.split(arrays[f"{key}.in_proj_bias"], 3)
    width = len(weights[0])
    split = heads, width // heads
    out = dense(arrays, f"{key}.out_proj")
    return {
        name: {"kernel": weight.T.reshape(width, *split), "bias": bias.reshape(split)}
        for name, weight, bias in zip(
            ("query", "key", "value"), weights, biases, strict=True
        )
    } | {"out": out | {"kernel": out["kernel"].reshape(*split, width)}}


def stack(trees: Sequence[Any]) -> Any:
    """Returns trees of one structure as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def tasks(score_range: Sequence[float]) -> tuple[schema.Task, ...]:
    """Returns the five tasks with one range.

    Raises:
        InputError: for a range that is none.
    """
    low, high = score_range
    if not low < high:
        raise schema.InputError(f"score_range is {low}..{high}; expected low < high")
    return tuple(schema.Task(name, low, high) for name in _layout.TASKS)


def run(
    model: models.Model, params: Any, features: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Scores clips with one of our networks.

    Args:
        model: of the five tasks.
        params: its parameters.
        features: by the older names, all frames measured.
    """
    clips = batch.Batch(
        {OUR_NAMES[name]: x for name, x in features.items()},
        {OUR_NAMES[name]: jnp.ones(x.shape[:-1], bool) for name, x in features.items()},
        None,
        None,
    )
    scores = model.apply(params, clips)
    return {task: scores[..., k] for k, task in enumerate(_layout.TASKS)}
