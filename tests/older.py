"""State dicts of the older PyTorch system's five networks, small and filled by a rule.

The one thing to know: an entry's values follow from its key, so that anyone who has the
keys and shapes has the same network.
"""

import zlib

import numpy as np

MODALITIES = ("visual", "audio", "keypoint", "au")
TASKS = ("lip_sync", "expression", "audio_quality", "cross_modal", "overall")
D = 8
# `audio` is as wide as the network, so that its encoder has no residual layer.
WIDTHS = {"visual": 5, "audio": D, "keypoint": 6, "au": 3}
MAX_FRAMES = 9


def linear(key, outputs, inputs):
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def norm(key, width):
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def block(key, attention="self_attn", one="linear1", two="linear2", ffn=10):
    return {
        f"{key}.{attention}.in_proj_weight": (3 * D, D),
        f"{key}.{attention}.in_proj_bias": (3 * D,),
        **linear(f"{key}.{attention}.out_proj", D, D),
        **linear(f"{key}.{one}", ffn, D),
        **linear(f"{key}.{two}", D, ffn),
        **norm(f"{key}.norm1", D),
        **norm(f"{key}.norm2", D),
    }


def layers(key, widths, *, step, normed):
    """Linear layers every `step` places, each but a last scalar one with its norm."""
    found = {}
    for place, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        found |= linear(f"{key}.{step * place}", outputs, inputs)
        if normed and outputs > 1:
            found |= norm(f"{key}.{step * place + 1}", outputs)
    return found


def advanced():
    found = block("temporal_block", "attn", "ffn.0", "ffn.3", 4 * D)
    for name, width in WIDTHS.items():
        key = f"{name}_encoder"
        found |= layers(f"{key}.net", (width, D, D, D), step=4, normed=True)
        if width != D:
            found |= linear(f"{key}.residual_proj", D, width)
    for i in range(2):
        found |= block(f"multimodal_fusion.layers.{i}")
    found |= linear("pool_proj", D, 2 * D)
    found |= linear("multi_scale_fusion.0", 2 * D, 4 * D)
    found |= linear("multi_scale_fusion.3", D, 2 * D)
    for task in TASKS:
        found |= layers(f"heads.{task}.net", (D, 6, 4, 1), step=4, normed=True)
        found[f"heads.{task}.feature_scale"] = (1,)
        found[f"dynamic_weighting.log_vars.{task}"] = (1,)
    return found | linear("_adaptive_proj.visual_proj_7_to_5", 5, 7)


def improved():
    found = block("temporal_attention", "multihead_attn", "ffn.0", "ffn.3", 4 * D)
    found["temperature"] = (1,)
    for name, width in WIDTHS.items():
        key = f"{name}_encoder"
        widths = (width, 4 * D, 2 * D, D)
        found |= layers(f"{key}.encoder", widths, step=4, normed=True)
        if width != D:
            found |= linear(f"{key}.residual_proj", D, width)
    for i in range(2):
        found |= block(f"multimodal_fusion.layers.{i}")
    for i in range(4):
        found |= linear(f"multi_scale_fusion.projections.{i}", D, D)
    found |= linear("multi_scale_fusion.fusion_network.0", 2 * D, 4 * D)
    found |= linear("multi_scale_fusion.fusion_network.3", D, 2 * D)
    found |= linear("pool_proj", D, 2 * D)
    for task in TASKS:
        widths = (D, 12, 7, 1) if task == "overall" else (D, 6, 1)
        found |= layers(f"{task}_head.head", widths, step=4, normed=True)
        found |= {f"{task}_head.feature_scale": (1,), f"loss_weights.{task}": ()}
        found |= {f"{task}_head._score_{part}": () for part in ("min", "max", "range")}
    return found | linear("_adaptive_proj.visual_proj_7_to_5", 5, 7)


def mtl():
    found = {"multimodal_fusion.pos_encoding": (1, 4, D)}
    for name, width in WIDTHS.items():
        key = f"{name}_encoder.encoder"
        found |= layers(key, (width, 2 * D, D), step=3, normed=False)
    for i in range(2):
        found |= block(f"multimodal_fusion.transformer.layers.{i}")
    for task in TASKS:
        found |= layers(f"{task}_head.head", (D, 12, 9, 1), step=3, normed=False)
    return found


def baseline():
    found = linear("fusion_fc.0", 7, 4 * D)
    for name, width in WIDTHS.items():
        found |= linear(f"{name}_fc.0", D, width)
    for task in TASKS:
        found |= linear(f"{task}_head", 1, 7)
    return found


def optimized_mtl():
    found = {"pos_encoding": (MAX_FRAMES, D)}
    for name, width in WIDTHS.items():
        hidden = {"visual": 6, "au": 4}.get(name, 10)
        found |= linear(f"feature_embedders.{name}.0", hidden, width)
        found |= linear(f"feature_embedders.{name}.3", D, hidden)
        found[f"modality_embeddings.{name}"] = (1, 1, D)
    for i in range(2):
        found |= block(f"transformer.layers.{i}", ffn=4 * D)
    for task in TASKS:
        key = f"task_heads.{task}"
        found |= linear(f"{key}.0", 12, D) | linear(f"{key}.3", 9, 12)
        found |= linear(f"{key}.5", 1, 9)
    return found


SHAPES = {
    make.__name__: make() for make in (advanced, improved, mtl, baseline, optimized_mtl)
}
# Those of small size; the number of heads is in no shape.
SIZES = {
    "advanced": {"heads": 4, "temporal_heads": 2},
    "improved": {"heads": 4, "temporal_heads": 2},
    "mtl": {"heads": 4},
    "baseline": {},
    "optimized_mtl": {"heads": 2},
}


def entry(key, shape, scale):
    rng = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    one = key.endswith("feature_scale") or (len(shape) == 1 and key.endswith("weight"))
    return scale * rng.standard_normal(tuple(shape)) + one


def fill(shapes, scale=0.4, dtype=np.float64):
    """Fills entries from their keys; score ranges are 1 to 5."""
    values = {key: entry(key, shape, scale) for key, shape in shapes.items()}
    for part, value in {"min": 1.0, "max": 5.0, "range": 4.0}.items():
        for key in values:
            if key.endswith(f"_score_{part}"):
                values[key] = np.array(value)
    return {key: np.asarray(value, dtype) for key, value in values.items()}


def draw(widths=WIDTHS, clips=4, frames=6, dtype=np.float64):
    """Draws features, in the order of modalities."""
    rng = np.random.RandomState(12345)
    return {
        name: rng.standard_normal((clips, frames, widths[name])).astype(dtype)
        for name in MODALITIES
    }
