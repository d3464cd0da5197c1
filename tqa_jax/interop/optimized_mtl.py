"""OptimizedMTLModel: embedders, mean over modalities, positions, plain heads.

The one thing to know: it is the preset `optimized_mtl` of our `models.Evaluator` with
scores from 0 to 1, as the network gives them; the older system never mapped them on.
"""

from collections.abc import Mapping

import numpy as np

from tqa_jax import interop, models, schema
from tqa_jax.interop import _layout, _trees

_HEAD = (0, 3, 5)  # Linear layers of a head.


def make(arrays: Mapping[str, np.ndarray], *, heads: int = 16) -> interop.Parts:
    """Builds the network.

    Args:
        arrays: of the state dict, with or without embeddings of the modalities.
        heads: of the attention in time.

    Raises:
        InputError: for a state dict of another network, or an unusable size.
    """
    layers = len(_layout.indices(arrays, r"transformer\.layers\.(\d+)\.")) or 1
    embeddings = {
        f"modality_embeddings.{name}": (1, 1, "width") for name in _layout.MODALITIES
    }
    sizes = _layout.check(
        arrays, _find_layout(layers), embeddings, preset="optimized_mtl"
    )
    _layout.check_heads("heads", heads, sizes["width"])
    embedded = next(iter(embeddings)) in arrays

    def network(dtype: str) -> models.Model:
        return models.make(
            widths={ours: sizes[name] for name, ours in _trees.OUR_NAMES.items()},
            tasks=_trees.tasks((0.0, 1.0)),
            max_frames=sizes["max_frames"],
            preset="optimized_mtl",
            dtype=dtype,
            width=sizes["width"],
            embedder_hidden={
                ours: sizes[f"{name}_hidden"] for name, ours in _trees.OUR_NAMES.items()
            },
            modality_embeddings=embedded,
            temporal_layers=layers,
            temporal_heads=heads,
            temporal_ffn=sizes["ffn"],
            head_hidden=(sizes["head_0"], sizes["head_1"]),
        )

    def forward(params, features, dtype):
        frames = {name: x.shape[-2] for name, x in features.items()}
        if len(set(frames.values())) > 1 or max(frames.values()) > sizes["max_frames"]:
            raise schema.InputError(
                f"optimized_mtl got frames {frames}; expected as many of each, "
                f"at most {sizes['max_frames']}"
            )
        return _trees.run(network(dtype), params, features)

    return interop.Parts(
        params=_params(arrays, layers, heads, embedded),
        forward=forward,
        widths={name: (sizes[name],) for name in _layout.MODALITIES},
        sizes={**sizes, "layers": layers, "heads": heads},
        unused={},
        model=network("float32"),
    )


def _find_layout(layers: int) -> _layout.Layout:
    dense = _layout.dense
    found: _layout.Layout = {"pos_encoding": ("max_frames", "width")}
    for name in _layout.MODALITIES:
        key = f"feature_embedders.{name}"
        found |= dense(f"{key}.0", f"{name}_hidden", name)
        found |= dense(f"{key}.3", "width", f"{name}_hidden")
    for layer in range(layers):
        found |= _layout.block(f"transformer.layers.{layer}", "ffn")
    for task in _layout.TASKS:
        outputs = ("head_0", "head_1", 1)
        inputs = ("width", "head_0", "head_1")
        for place, output, width in zip(_HEAD, outputs, inputs, strict=True):
            found |= dense(f"task_heads.{task}.{place}", output, width)
    return found


def _params(
    arrays: Mapping[str, np.ndarray], layers: int, heads: int, embedded: bool
) -> dict:
    params = {"position": arrays["pos_encoding"]}
    for name, ours in _trees.OUR_NAMES.items():
        key = f"feature_embedders.{name}"
        params[f"encoders_{ours}"] = {
            "dense_0": _trees.dense(arrays, f"{key}.0"),
            "dense_1": _trees.dense(arrays, f"{key}.3"),
        }
    if embedded:
        params["modality"] = np.concatenate(
            [arrays[f"modality_embeddings.{name}"][0] for name in _layout.MODALITIES]
        )
    for layer in range(layers):
        key = f"transformer.layers.{layer}"
        params[f"time_{layer}"] = _trees.block(arrays, key, heads)
    stacks = [
        {
            ours: _trees.dense(arrays, f"task_heads.{task}.{place}")
            for ours, place in zip(("dense_0", "dense_1", "out"), _HEAD, strict=True)
        }
        for task in _layout.TASKS
    ]
    params["head"] = {"stack": _trees.stack(stacks)}
    return params
