"""Networks of the older PyTorch system, from their state dicts.

The one thing to know: a preset is a file of this folder, and the state dict says the
sizes, all but the number of attention heads. `advanced` and `optimized_mtl` become
parameters of our own `models.Evaluator`, so that our trainer and exporter take them on;
`improved`, `mtl` and `baseline` keep PyTorch's keys.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tqa_jax import models, plugins, schema
from tqa_jax.interop import _layout, _trees

Params = Any
Scores = dict[str, Float[Array, " B"]]


class Parts(NamedTuple):
    """What a file of this folder makes of a state dict.

    Attributes:
        params: a tree of arrays.
        forward: `(params, features, dtype) -> scores by task`, for features by the
            older names, in that type.
        widths: that each modality may have, the network's own first.
        sizes: what was read from shapes or assumed.
        unused: entries that no score depends on.
        model: the same network as ours, where it is one.
    """

    params: Params
    forward: Callable[..., Scores]
    widths: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    unused: Mapping[str, np.ndarray]
    model: models.Model | None = None


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the older system.

    Attributes:
        params: for fine-tuning; float32, or float64 where entries are and
            `jax_enable_x64` is set. After it, `dataclasses.replace(network,
            params=tuned)` predicts with them.
        apply: `(params, features) -> scores`, compiled; see `predict`. Without
            dropout: for that use `model`.
        sizes: read from the shapes, or assumed, as the number of attention heads.
        widths: that each modality may have, the network's own first.
        unused: entries that no score depends on: weights of task losses and a
            temperature.
        model: for `advanced` and `optimized_mtl` the network that `params` are of, in
            float32; else None. It calls modalities as our data sets do.
    """

    params: Params
    apply: Callable[[Params, Mapping[str, jax.Array]], Scores]
    sizes: Mapping[str, int]
    widths: Mapping[str, tuple[int, ...]]
    unused: Mapping[str, np.ndarray]
    model: models.Model | None

    def predict(
        self, features: Mapping[str, Float[np.ndarray, "B T _"]]
    ) -> dict[str, Float[np.ndarray, " B"]]:
        """Scores clips.

        Args:
            features: by modality: `visual`, `audio`, `keypoint` or `keypoints`, `au` or
                `action_units`; every frame is taken as measured.

        Returns:
            Scores by task, float32, or float64 where features or parameters are and
            `jax_enable_x64` is set.

        Raises:
            InputError: for a modality that is missing, unknown, of the wrong shape, or
                not finite.
        """
        arrays = {name: np.asarray(value) for name, value in features.items()}
        arrays = _name(arrays, self.widths)
        for name, array in arrays.items():
            bad = array.size - int(np.isfinite(array).sum())
            if bad:
                raise schema.InputError(
                    f"{name} holds {bad} numbers that are NaN or infinite; the older "
                    "system's trainer put 0 for NaN and 1e6 or -1e6 for infinity"
                )
        found = self.apply(self.params, arrays)
        return {task: np.asarray(found[task]) for task in _layout.TASKS}


def available() -> list[str]:
    """Names of the presets in this folder."""
    return plugins.names(__name__)


def from_state_dict(
    state_dict: Mapping[str, Any], preset: str = "advanced", **sizes: Any
) -> Network:
    """Builds a network of the older PyTorch system from its parameters.

    Args:
        state_dict: NumPy arrays by PyTorch's keys, or what converts to them, as tensors
            on the CPU.
        preset: which network, see `available`.
        **sizes: what the state dict does not say, as `heads=16` or
            `activation="none"`; see `make` in the file of the preset.

    Raises:
        InputError: for an unknown preset or size, or a state dict of another network;
            keys that are missing, unknown or of another shape are listed.

    Example:
        With `safetensors.numpy.load_file(path)`, or `dict(numpy.load(path))` for an
        `.npz`, or `torch.load(path, weights_only=True)["model_state_dict"]`:

        >>> def filled(*shape):
        ...     return np.full(shape, 0.1)
        >>> state_dict = {"fusion_fc.0.weight": filled(3, 8)}
        >>> state_dict["fusion_fc.0.bias"] = filled(3)
        >>> for name in ("visual", "audio", "keypoint", "au"):
        ...     state_dict[f"{name}_fc.0.weight"] = filled(2, 5)
        ...     state_dict[f"{name}_fc.0.bias"] = filled(2)
        >>> for task in schema.TASKS:
        ...     state_dict[f"{task.name}_head.weight"] = filled(1, 3)
        ...     state_dict[f"{task.name}_head.bias"] = filled(1)
        >>> network = from_state_dict(state_dict, "baseline")
        >>> features = {name: np.ones((4, 6, 5)) for name in network.widths}
        >>> round(float(network.predict(features)["overall"][0]), 3)
        0.274
    """
    if preset not in available():
        raise schema.InputError(
            f"unknown preset {preset!r}; available: {', '.join(available())}"
        )
    parts = plugins.make(__name__, preset, arrays=_layout.read(state_dict), **sizes)

    @jax.jit
    def apply(params, features):
        leaves = jax.tree.leaves((params, features))
        dtype = jnp.result_type(jnp.float32, *leaves)
        named = _name(features, parts.widths)
        ready = {name: jnp.asarray(x, dtype) for name, x in named.items()}
        return parts.forward(params, ready, str(dtype))

    return Network(
        params=jax.tree.map(jnp.asarray, parts.params),
        apply=apply,
        sizes=dict(parts.sizes),
        widths=dict(parts.widths),
        unused=dict(parts.unused),
        model=parts.model,
    )


def _name(
    features: Mapping[str, jax.Array], widths: Mapping[str, tuple[int, ...]]
) -> dict[str, jax.Array]:
    """Returns features by the older names, in their order.

    Raises:
        InputError: see `Network.predict`.
    """
    found = {}
    for name, ours in _trees.OUR_NAMES.items():
        given = [key for key in dict.fromkeys((name, ours)) if key in features]
        if len(given) == 1:
            found[name] = features[given[0]]
    if len(found) < len(widths) or len(found) < len(features):
        expected = (
            " or ".join(dict.fromkeys(pair)) for pair in _trees.OUR_NAMES.items()
        )
        raise schema.InputError(
            f"got features of {', '.join(features) or 'nothing'}; expected one each of "
            f"{', '.join(expected)}"
        )
    clips = {x.shape[0] for x in found.values() if x.ndim}
    for name, x in found.items():
        if x.ndim != 3 or not x.shape[1] or x.shape[-1] not in widths[name]:
            wanted = " or ".join(map(str, widths[name]))
            raise schema.InputError(
                f"{name} has shape {x.shape}; expected (clips, frames, {wanted})"
            )
    if len(clips) > 1:
        raise schema.InputError(
            "modalities have different numbers of clips: "
            + ", ".join(f"{name} {x.shape[0]}" for name, x in found.items())
        )
    return found
