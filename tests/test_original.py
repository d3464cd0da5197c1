"""`advanced` is the older PyTorch system's Advanced network, by a value it gave.

Its entries are filled by a rule from their names, so no weights are needed; the wanted
scores were computed there with the same rule, in float32.
"""

import zlib

import jax
import numpy as np

from tqa_jax import batch, models, schema

WIDTHS = {"visual": 100, "audio": 200, "keypoints": 50, "action_units": 17}
NAMES = {"visual": "visual", "audio": "audio", "keypoints": "keypoint"} | {
    "action_units": "au"
}
D, HEADS, LAYERS = 256, 8, 3
LIP_SYNC = [3.3020291658, 3.1487345688, 3.1694404656, 3.0516692209]


def entry(key, *shape):
    rng = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    values = 0.05 * rng.standard_normal(shape)
    one = key.endswith("feature_scale") or (len(shape) == 1 and key.endswith("weight"))
    return (values + one).astype(np.float32)


def dense(key, out_width, in_width):
    return {
        "kernel": entry(f"{key}.weight", out_width, in_width).T,
        "bias": entry(f"{key}.bias", out_width),
    }


def norm(key, width=D):
    return {"scale": entry(f"{key}.weight", width), "bias": entry(f"{key}.bias", width)}


def attention(key):
    weight = entry(f"{key}.in_proj_weight", 3 * D, D).reshape(3, D, D)
    bias = entry(f"{key}.in_proj_bias", 3 * D).reshape(3, HEADS, D // HEADS)
    parts = {
        name: {"kernel": weight[i].T.reshape(D, HEADS, D // HEADS), "bias": bias[i]}
        for i, name in enumerate(("query", "key", "value"))
    }
    out = dense(f"{key}.out_proj", D, D)
    out["kernel"] = out["kernel"].reshape(HEADS, D // HEADS, D)
    return {**parts, "out": out}


def block(key, attn, expand, contract):
    return {
        "attention": attention(f"{key}.{attn}"),
        "norm_0": norm(f"{key}.norm1"),
        "norm_1": norm(f"{key}.norm2"),
        "expand": dense(f"{key}.{expand}", 4 * D, D),
        "contract": dense(f"{key}.{contract}", D, 4 * D),
    }


def head(key):
    return {
        "scale": entry(f"{key}.feature_scale", 1),
        "dense_0": dense(f"{key}.net.0", 128, D),
        "norm_0": norm(f"{key}.net.1", 128),
        "dense_1": dense(f"{key}.net.4", 64, 128),
        "norm_1": norm(f"{key}.net.5", 64),
        "out": dense(f"{key}.net.8", 1, 64),
    }


def make_params():
    params = {}
    for ours, theirs in NAMES.items():
        key = f"{theirs}_encoder"
        encoder = {"residual": dense(f"{key}.residual_proj", D, WIDTHS[ours])}
        for layer in range(3):
            width = D if layer else WIDTHS[ours]
            encoder[f"dense_{layer}"] = dense(f"{key}.net.{4 * layer}", D, width)
            encoder[f"norm_{layer}"] = norm(f"{key}.net.{4 * layer + 1}")
        params[f"encoders_{ours}"] = encoder
    params["time_0"] = block("temporal_block", "attn", "ffn.0", "ffn.3")
    params["pool_dense"] = dense("pool_proj", D, 2 * D)
    for layer in range(LAYERS):
        key = f"multimodal_fusion.layers.{layer}"
        params[f"path_b_{layer}"] = block(key, "self_attn", "linear1", "linear2")
    params["path_a_expand"] = dense("multi_scale_fusion.0", 2 * D, 4 * D)
    params["path_a_contract"] = dense("multi_scale_fusion.3", D, 2 * D)
    stacks = [head(f"heads.{task.name}") for task in schema.TASKS]
    params["head"] = {"stack": jax.tree.map(lambda *x: np.stack(x), *stacks)}
    params["absent"] = np.zeros((len(WIDTHS), D), np.float32)
    return params


def test_advanced_gives_the_scores_of_the_original():
    model = models.make(
        widths=WIDTHS, tasks=schema.TASKS, max_frames=150, preset="advanced"
    )
    rng = np.random.RandomState(12345)
    features = {
        name: rng.standard_normal((4, 12, width)).astype(np.float32)
        for name, width in WIDTHS.items()
    }
    params = make_params()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    clips = batch.Batch(
        features, {name: np.ones((4, 12), bool) for name in WIDTHS}, None, None
    )
    scores = jax.jit(model.apply)(params, clips)
    np.testing.assert_allclose(scores[:, 0], LIP_SYNC, atol=1e-5)
