"""The Advanced network: encoders, time attention, two fusion paths, normed heads.

The one thing to know: it is the preset `advanced` of our `models.Evaluator`, with all
frames there. Modalities of unequal length are cut, not aligned.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tqa_jax import interop, models
from tqa_jax.interop import _layers, _layout, _trees

_TIME = _layout.Block("attn", "ffn.0", "ffn.3")
_DEPTH = 3
_ANY_FRAMES = 2**30  # It has no positions, so that no table limits the frames.


def make(
    arrays: Mapping[str, np.ndarray],
    *,
    heads: int | None = None,
    temporal_heads: int = 8,
    score_range: Sequence[float] = (1.0, 5.0),
    activation: str = "sigmoid",
    as_trained: bool = False,
) -> interop.Parts:
    """Builds the network.

    Args:
        arrays: of the state dict.
        heads: of the transformer over modalities; see `_layout.pick_heads`.
        temporal_heads: of the attention in time.
        score_range: lowest and highest score.
        activation: what maps raw scores to the range: `sigmoid`, `tanh` or `none`.
        as_trained: also maps and clamps scores as the older trainer did behind the
            network; see `_layers.as_trained`.

    Raises:
        InputError: for a state dict of another network, or an unusable size.
    """
    layers = len(_layout.indices(arrays, r"multimodal_fusion\.layers\.(\d+)\.")) or 1
    hidden = len(_layout.indices(arrays, r"heads\.\w+\.net\.(\d+)\.")) // 2
    weights = [_weights(arrays, kind) for kind in ("params", "log_vars")]
    layout = _find_layout(arrays, layers, hidden)
    sizes = _layout.check(arrays, layout, *weights, preset="advanced")
    heads = _layout.pick_heads(heads, sizes, layers)
    _layout.check_heads("temporal_heads", temporal_heads, sizes["width"])

    def network(dtype: str) -> models.Model:
        return models.make(
            widths={ours: sizes[name] for name, ours in _trees.OUR_NAMES.items()},
            tasks=_trees.tasks(score_range),
            max_frames=_ANY_FRAMES,
            preset="advanced",
            dtype=dtype,
            width=sizes["width"],
            temporal_heads=temporal_heads,
            fusion_layers=layers,
            fusion_heads=heads,
            fusion_ffn=sizes["ffn"],
            head_hidden=tuple(sizes[f"head_{i}"] for i in range(hidden)),
            head_activation=activation,
        )

    projections = _layout.projections(arrays)
    low, high = score_range

    def forward(params, features, dtype):
        features = _layers.cut(_layers.project(features, projections))
        scores = _trees.run(network(dtype), params, features)
        if not as_trained:
            return scores
        ranges = dict.fromkeys(scores, (low, high - low))
        return _layers.as_trained(scores, ranges, activation)

    return interop.Parts(
        params=_params(arrays, layers, hidden, heads, temporal_heads),
        forward=forward,
        widths={
            name: (sizes[name], *projections.get(name, ()))
            for name in _layout.MODALITIES
        },
        sizes={**sizes, "layers": layers, "heads": heads}
        | {"temporal_heads": temporal_heads},
        unused={k: v for k, v in arrays.items() if k.startswith("dynamic_weighting.")},
        model=network("float32"),
    )


def _find_layout(
    arrays: Mapping[str, np.ndarray], layers: int, hidden: int
) -> _layout.Layout:
    dense, norm = _layout.dense, _layout.norm
    found = _layout.adaptive(arrays)
    for name in _layout.MODALITIES:
        key = f"{name}_encoder"
        for layer in range(_DEPTH):
            inputs = "width" if layer else name
            found |= dense(f"{key}.net.{4 * layer}", "width", inputs)
            found |= norm(f"{key}.net.{4 * layer + 1}", "width")
    found |= _layout.block("temporal_block", "4 width", _TIME)
    for layer in range(layers):
        found |= _layout.block(f"multimodal_fusion.layers.{layer}", "ffn")
    found |= dense("pool_proj", "width", "2 width")
    found |= dense("multi_scale_fusion.0", "2 width", "4 width")
    found |= dense("multi_scale_fusion.3", "width", "2 width")
    for task in _layout.TASKS:
        key = f"heads.{task}"
        found[f"{key}.feature_scale"] = (1,)
        inputs = "width"
        for i in range(hidden):
            found |= dense(f"{key}.net.{4 * i}", f"head_{i}", inputs)
            found |= norm(f"{key}.net.{4 * i + 1}", f"head_{i}")
            inputs = f"head_{i}"
        found |= dense(f"{key}.net.{4 * hidden}", 1, inputs)
    return found | _layout.residuals(arrays, found)


def _weights(arrays: Mapping[str, np.ndarray], kind: str) -> _layout.Layout:
    """Entries of the task weights; GradNorm's have no axis."""
    keys = [f"dynamic_weighting.{kind}.{task}" for task in _layout.TASKS]
    shapes = {arrays[key].shape for key in keys if key in arrays}
    return dict.fromkeys(keys, () if shapes == {()} else (1,))


def _params(
    arrays: Mapping[str, np.ndarray],
    layers: int,
    hidden: int,
    heads: int,
    temporal_heads: int,
) -> dict:
    dense, norm = _trees.dense, _trees.norm
    params = {}
    for name, ours in _trees.OUR_NAMES.items():
        key = f"{name}_encoder"
        encoder = {}
        for layer in range(_DEPTH):
            encoder[f"dense_{layer}"] = dense(arrays, f"{key}.net.{4 * layer}")
            encoder[f"norm_{layer}"] = norm(arrays, f"{key}.net.{4 * layer + 1}")
        if f"{key}.residual_proj.weight" in arrays:
            encoder["residual"] = dense(arrays, f"{key}.residual_proj")
        params[f"encoders_{ours}"] = encoder
    params["time_0"] = _trees.block(arrays, "temporal_block", temporal_heads, _TIME)
    for layer in range(layers):
        key = f"multimodal_fusion.layers.{layer}"
        params[f"path_b_{layer}"] = _trees.block(arrays, key, heads)
    params["pool_dense"] = dense(arrays, "pool_proj")
    params["path_a_expand"] = dense(arrays, "multi_scale_fusion.0")
    params["path_a_contract"] = dense(arrays, "multi_scale_fusion.3")
    params["head"] = {
        "stack": _trees.stack(
            [_head(arrays, f"heads.{task}", hidden) for task in _layout.TASKS]
        )
    }
    # The older system had no token for a missing modality.
    bias = params["pool_dense"]["bias"]
    params["absent"] = np.zeros((len(_layout.MODALITIES), len(bias)), bias.dtype)
    return params


def _head(arrays: Mapping[str, np.ndarray], key: str, hidden: int) -> dict:
    head = {
        "scale": arrays[f"{key}.feature_scale"],
        "out": _trees.dense(arrays, f"{key}.net.{4 * hidden}"),
    }
    for i in range(hidden):
        head[f"dense_{i}"] = _trees.dense(arrays, f"{key}.net.{4 * i}")
        head[f"norm_{i}"] = _trees.norm(arrays, f"{key}.net.{4 * i + 1}")
    return head
