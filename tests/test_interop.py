"""Networks of the older PyTorch system: known scores, bad state dicts, fine-tuning.

test_parity_interop compares whole networks with PyTorch.
"""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from tests import older
from tqa_jax import batch, interop, models, schema

# The older system's own, in float32, for entries filled with scale 0.05.
LIP_SYNC = [3.3020291658, 3.1487345688, 3.1694404656, 3.0516692209]
# Of the first clip, by the PyTorch modules of test_parity_interop in float64.
SCORES = {
    "advanced": [
        2.909716314156,
        2.189576517911,
        3.441140026684,
        2.72935294991,
        2.666439971815,
    ],
    "improved": [
        4.109202115568,
        3.371213606841,
        3.236310638458,
        2.851004398527,
        3.228210533585,
    ],
    "mtl": [
        -1.150053052011,
        1.309449076036,
        0.7289938644286,
        -0.2370926058551,
        -0.393097877203,
    ],
    "baseline": [
        0.2736006028715,
        -0.2775341570359,
        0.4677654661893,
        -1.144219797291,
        -0.03602971494016,
    ],
    "optimized_mtl": [
        0.3405312248248,
        0.6670526145003,
        0.3617597935276,
        0.5253326628522,
        0.6728029160798,
    ],
}
TABLES = pathlib.Path(os.environ.get("TQA_SHARED", "")) / "spec/state_dict_shapes.json"
NAMES = (
    "advanced/config.yaml-with-PCA-dims",
    "advanced/optimized_config.yaml",
    "advanced/config.yaml-raw-dims",
    "improved/config.yaml-with-PCA-dims",
    "improved/optimized_config.yaml",
    "mtl/config.yaml-with-PCA-dims",
    "baseline/config.yaml-with-PCA-dims",
    "optimized_mtl(train_optimized)/163-768-1404-17",
    "optimized_mtl(train_optimized)/100-200-50-17",
)


@functools.cache
def make(preset, *, without="-", dtype=np.float32, **sizes):
    shapes = {
        key: shape
        for key, shape in older.SHAPES[preset].items()
        if not key.startswith(without)
    }
    sizes = older.SIZES[preset] | sizes
    return interop.from_state_dict(older.fill(shapes, dtype=dtype), preset, **sizes)


def stacked(scores):
    return np.stack([scores[task] for task in older.TASKS], axis=-1)


def test_advanced_gives_the_scores_of_the_older_system():
    widths = {"visual": 100, "audio": 200, "keypoint": 50, "au": 17}
    width, hidden = 256, (128, 64)

    def full(key, shape):
        """A size of the small network as one of the large one."""
        names = {8: width, 6: hidden[0], 4: hidden[1], 10: 1024}
        names |= {2 * 8: 2 * width, 3 * 8: 3 * width, 4 * 8: 4 * width}
        found = [names.get(size, size) for size in shape]
        modality = key.split("_encoder.")[0]
        if modality in widths and key.endswith(("net.0.weight", "proj.weight")):
            found[1] = widths[modality]
        return tuple(found)

    shapes = {
        key: full(key, shape)
        for key, shape in older.SHAPES["advanced"].items()
        if not key.startswith("_adaptive_proj.")
    }
    shapes["audio_encoder.residual_proj.weight"] = (width, 200)
    shapes["audio_encoder.residual_proj.bias"] = (width,)
    shapes |= {
        key.replace("layers.1", "layers.2"): shape
        for key, shape in shapes.items()
        if "layers.1" in key
    }
    features = older.draw(widths, clips=4, frames=12)
    values = older.fill(shapes, 0.05)
    found = interop.from_state_dict(values, "advanced", heads=8).predict(features)
    np.testing.assert_allclose(found["lip_sync"], LIP_SYNC, atol=1e-5)
    with jax.enable_x64(True):
        exact = interop.from_state_dict(values, "advanced").predict(features)
    assert exact["lip_sync"].dtype == np.float64
    # Theirs are rounded to float32.
    np.testing.assert_allclose(exact["lip_sync"], LIP_SYNC, atol=2e-6)


@pytest.mark.parametrize("preset", older.SHAPES)
def test_small_networks_give_known_scores(preset):
    features = older.draw()
    found = stacked(make(preset).predict(features))
    assert found.shape == (4, 5) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], SCORES[preset], atol=1e-5)
    with jax.enable_x64(True):
        network = make(preset, dtype=np.float64)
        exact = stacked(network.predict(features))
        narrow = {name: np.float32(x) for name, x in features.items()}
        mixed = jax.eval_shape(network.apply, network.params, narrow)
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact[0], SCORES[preset], atol=1e-12)
    assert mixed["overall"].dtype == np.float64  # As the parameters.


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("improved", "mtl")))
        for name in older.SHAPES
    ],
)
def test_parameters_can_be_tuned(preset):
    network = make(preset)
    features = older.draw(dtype=np.float32)
    start = network.predict(features)
    target = {task: value + 0.1 for task, value in start.items()}
    optimizer = optax.adam(1e-3)

    def loss(params):
        found = network.apply(params, features)
        return sum(((found[task] - target[task]) ** 2).mean() for task in target)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params, state = network.params, optimizer.init(network.params)
    losses = []
    for _ in range(20):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[0] == pytest.approx(0.05, rel=1e-3)
    assert losses[-1] < 0.5 * losses[0]
    tuned = dataclasses.replace(network, params=params).predict(features)
    assert np.abs(stacked(tuned) - stacked(target)).mean() < 0.1


def test_float64_is_never_narrowed_in_silence():
    with pytest.raises(schema.InputError, match="dtype float64 needs JAX_ENABLE_X64=1"):
        models.make(
            widths={"visual": 3},
            tasks=schema.TASKS,
            max_frames=4,
            preset="advanced",
            dtype="float64",
        )


@pytest.mark.parametrize("preset", ["advanced", "optimized_mtl"])
def test_parameters_are_those_of_our_network(preset):
    network = make(preset)
    fresh = jax.eval_shape(network.model.init, jax.random.key(0))
    ours = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), network.params)
    assert ours == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fresh)
    features = older.draw(dtype=np.float32)
    features["keypoints"] = features.pop("keypoint")
    features["action_units"] = features.pop("au")
    masks = {name: np.ones(x.shape[:2], bool) for name, x in features.items()}
    clips = batch.Batch(features, masks, None, None)
    scores = jax.jit(network.model.apply)(network.params, clips)
    np.testing.assert_allclose(
        scores, stacked(network.predict(features)), atol=1e-6, rtol=0
    )


def test_other_presets_keep_their_keys():
    for preset in ("improved", "mtl", "baseline"):
        network = make(preset)
        constant = ("_score_min", "_score_max", "_score_range")
        kept = {
            key
            for key in older.SHAPES[preset]
            if not key.endswith(constant) and not key.startswith("_adaptive_proj.")
        }
        assert network.params.keys() | network.unused.keys() == kept
        assert network.model is None


def test_entries_without_effect_are_set_apart():
    assert set(make("advanced").unused) == {
        f"dynamic_weighting.log_vars.{task}" for task in older.TASKS
    }
    assert set(make("improved").unused) == {
        *(f"loss_weights.{task}" for task in older.TASKS),
        "temperature",
    }


@pytest.mark.parametrize("shape", [(), (1,)])
def test_weights_of_tasks_may_be_of_any_kind_or_absent(shape):
    plain = make("advanced", without="dynamic_weighting.")
    assert plain.unused == {}
    values = older.fill(older.SHAPES["advanced"], dtype=np.float32)
    values = {k: v for k, v in values.items() if not k.startswith("dynamic")}
    weights = {
        f"dynamic_weighting.params.{t}": np.ones(shape, np.float32) for t in older.TASKS
    }
    found = interop.from_state_dict(values | weights, **older.SIZES["advanced"])
    assert found.unused.keys() == weights.keys()
    del weights["dynamic_weighting.params.overall"]
    with pytest.raises(
        schema.InputError, match="1 missing: dynamic_weighting.params.o"
    ):
        interop.from_state_dict(values | weights)


def test_overall_is_the_mean_where_it_has_no_head():
    found = make("mtl", without="overall_head.").predict(older.draw())
    four = np.mean([found[task] for task in older.TASKS[:4]], axis=0)
    np.testing.assert_allclose(found["overall"], four, rtol=1e-6)


@pytest.mark.parametrize("preset", ["advanced", "improved"])
def test_longer_modalities_are_cut(preset):
    longer = {
        name: x if name == "audio" else np.concatenate([x, x[:, :2] + 1], axis=1)
        for name, x in older.draw().items()
    }
    found = stacked(make(preset).predict(longer))
    np.testing.assert_allclose(found[0], SCORES[preset], atol=1e-5)


@pytest.mark.parametrize("preset", ["advanced", "improved"])
def test_a_projection_is_used_for_its_width_only(preset):
    network = make(preset)
    assert network.widths["visual"] == (5, 7) and network.widths["au"] == (3,)
    values = older.fill(older.SHAPES[preset])
    key = "_adaptive_proj.visual_proj_7_to_5"
    features = older.draw(older.WIDTHS | {"visual": 7})
    found = network.predict(features)
    visual = features["visual"] @ values[f"{key}.weight"].T + values[f"{key}.bias"]
    expected = network.predict(features | {"visual": visual})
    np.testing.assert_allclose(stacked(found), stacked(expected), atol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_older_trainer_mapped_scores_again():
    once, twice = (
        stacked(make("improved", as_trained=given).predict(older.draw()))
        for given in (False, True)
    )
    np.testing.assert_allclose(twice, 1 + 4 * sigmoid(once), atol=1e-5)
    assert twice.min() > 3.924 and twice.max() < 4.974


def test_the_older_trainer_clamped_scores():
    sizes = {"activation": "none", "score_range": (-0.5, 0.5)}
    raw, clamped = (
        stacked(make("advanced", as_trained=given, **sizes).predict(older.draw()))
        for given in (False, True)
    )
    np.testing.assert_allclose(1 + 4 * sigmoid(raw[0]), SCORES["advanced"], atol=1e-5)
    assert (raw < -0.5).any()
    np.testing.assert_allclose(clamped, raw.clip(-0.5, 0.5), atol=1e-6)


def test_score_ranges_of_improved_are_its_own():
    shapes = older.SHAPES["improved"]
    values = older.fill(shapes)
    for part, value in {"min": -1.0, "max": 1.0, "range": 2.0}.items():
        values[f"overall_head._score_{part}"] = np.array(value)
    network = interop.from_state_dict(values, "improved", **older.SIZES["improved"])
    one, other = (n.predict(older.draw()) for n in (make("improved"), network))
    np.testing.assert_allclose(other["overall"], (one["overall"] - 3) / 2, atol=1e-5)
    np.testing.assert_array_equal(other["lip_sync"], one["lip_sync"])


@pytest.mark.parametrize("preset", ["advanced", "improved", "mtl", "baseline"])
def test_networks_that_fuse_late_cannot_see_sync(preset):
    features = older.draw()
    network = make(preset)
    turned = features | {"audio": features["audio"][:, ::-1]}
    one, other = (stacked(network.predict(x)) for x in (features, turned))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_embeddings_of_modalities_add_up():
    values = older.fill(older.SHAPES["optimized_mtl"])
    swapped = dict(values)
    one, other = (f"modality_embeddings.{name}" for name in ("visual", "au"))
    swapped[one], swapped[other] = values[other], values[one]
    found = [
        stacked(
            interop.from_state_dict(x, "optimized_mtl", heads=2).predict(older.draw())
        )
        for x in (values, swapped)
    ]
    np.testing.assert_allclose(*found, atol=1e-6)
    without = make("optimized_mtl", without="modality_embeddings.")
    assert np.abs(stacked(without.predict(older.draw())) - found[0]).max() > 1e-3


@pytest.mark.parametrize("preset", older.SHAPES)
def test_what_is_wrong_with_a_state_dict_is_listed(preset):
    values = older.fill(older.SHAPES[preset])
    weights = sorted(key for key in values if key.endswith("weight"))
    gone, bent = (
        next(key for key in weights if task in key) for task in ("overall", "lip_sync")
    )
    del values[gone]
    values[bent] = np.zeros((2, 3, 4))
    values["extra.weight"] = np.zeros(3)
    with pytest.raises(schema.InputError) as error:
        interop.from_state_dict(values, preset)
    message = str(error.value)
    shape = ", ".join(map(str, older.SHAPES[preset][bent]))
    assert f"preset '{preset}'" in message
    assert f"1 missing: {gone}; 1 unknown: extra.weight; 1 of another" in message
    assert f"{bent} is (2, 3, 4), expected ({shape})" in message


def test_long_lists_are_cut_short():
    values = older.fill(older.SHAPES["baseline"])
    with pytest.raises(schema.InputError) as error:
        interop.from_state_dict(values, "improved")
    message = str(error.value)
    assert "20 unknown: au_fc.0.bias," in message and "and 15 more" in message
    assert "of another shape" not in message and len(message) < 1000
    with pytest.raises(schema.InputError, match="'baseline': 20 missing: au_fc.0.bias"):
        interop.from_state_dict({}, "baseline")


def test_every_missing_key_is_reported():
    for preset, shapes in older.SHAPES.items():
        values = {key: np.zeros(shape) for key, shape in shapes.items()}
        for key in shapes:
            rest = {k: v for k, v in values.items() if k != key}
            with pytest.raises(schema.InputError, match="missing: "):
                interop.from_state_dict(rest, preset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"preset": "best"},
            "unknown preset 'best'; available: advanced, baseline, im",
        ),
        ({"head": 4}, "interop.advanced: got an unexpected keyword argument 'head'"),
        ({"heads": 3}, "heads is 3; expected a divisor of the width, 8"),
        ({"temporal_heads": 0}, "temporal_heads is 0; expected a divisor"),
        ({"activation": "relu"}, "unknown head_activation 'relu'; available: sigmoid"),
        ({"score_range": (5, 1)}, "score_range is 5..1; expected low < high"),
    ],
)
def test_unusable_settings_are_refused(change, message):
    settings = {"preset": "advanced"} | older.SIZES["advanced"] | change
    with pytest.raises(schema.InputError, match=message):
        interop.from_state_dict(older.fill(older.SHAPES["advanced"]), **settings)


def test_values_that_are_no_numbers_are_refused():
    values = older.fill(older.SHAPES["baseline"])
    key = "audio_fc.0.bias"
    for value, message in (
        (np.full(8, np.nan), f"{key} holds NaN or infinity"),
        (np.full(8, "x"), f"{key} holds <U1; expected numbers"),
        ([1, [2]], f"{key} cannot be read"),
    ):
        with pytest.raises(schema.InputError, match=message):
            interop.from_state_dict(values | {key: value}, "baseline")
    with pytest.raises(schema.InputError, match="pass its entry 'model_state_dict'"):
        interop.from_state_dict({"model_state_dict": values, "epoch": 3}, "baseline")


def test_narrow_values_are_widened():
    values = older.fill(older.SHAPES["baseline"], dtype=ml_dtypes.bfloat16)
    network = interop.from_state_dict(values, "baseline")
    assert network.params["fusion_fc.0.weight"].dtype == jnp.float32
    exact = {key: value.astype(np.float32) for key, value in values.items()}
    one = network.predict(older.draw())
    other = interop.from_state_dict(exact, "baseline").predict(older.draw())
    np.testing.assert_array_equal(stacked(one), stacked(other))


def broken_features():
    features = older.draw()
    visual = features["visual"]
    hole = visual.copy()
    hole[0, 0, :2] = np.nan
    rest = {name: x for name, x in features.items() if name != "visual"}
    return [
        (rest, "got features of audio, keypoint, au; expected one each of visual, aud"),
        (features | {"syncnet": visual}, "expected one each of .* au or action_units"),
        (features | {"keypoints": visual}, "expected one each of .* keypoint or keyp"),
        (features | {"visual": visual[0]}, r"shape \(6, 5\); expected \(clips, frame"),
        (features | {"visual": visual[:, :0]}, r"expected \(clips, frames, 5 or 7\)"),
        (features | {"visual": visual[..., :4]}, r"visual has shape \(4, 6, 4\); exp"),
        (
            features | {"visual": visual[:3]},
            "different numbers of clips: visual 3, aud",
        ),
        (features | {"visual": hole}, "visual holds 2 numbers that are NaN or infini"),
    ]


@pytest.mark.parametrize(("features", "message"), broken_features())
def test_unusable_features_are_refused(features, message):
    with pytest.raises(schema.InputError, match=message):
        make("advanced").predict(features)


def test_frames_without_a_position_are_refused():
    network = make("optimized_mtl")
    with pytest.raises(schema.InputError, match="expected as many of each, at most 9"):
        network.predict(older.draw(frames=10))
    features = older.draw()
    features["audio"] = features["audio"][:, :4]
    with pytest.raises(schema.InputError, match="'audio': 4.*expected as many of each"):
        network.predict(features)
    unlimited = make("advanced")
    found = jax.eval_shape(unlimited.apply, unlimited.params, older.draw(frames=200))
    assert found["overall"].shape == (4,)


@pytest.mark.skipif(
    not TABLES.is_file(), reason="set TQA_SHARED: spec/state_dict_shapes.json is there"
)
@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_the_older_system_loads(name):
    tables = json.loads(TABLES.read_text())
    assert tuple(tables) == NAMES
    preset = name.split("/")[0].split("(")[0]
    table = tables[name]["state_dict"]
    values = {key: np.zeros(shape, np.float32) for key, (shape, _) in table.items()}
    network = interop.from_state_dict(values, preset)
    if preset != "baseline":
        assert network.sizes["heads"] == (16 if "optimized" in name else 8)
    size = sum(np.size(x) for x in jax.tree.leaves((network.params, network.unused)))
    if preset == "advanced":
        size -= network.params["absent"].size
    assert size == tables[name]["n_params"]
    features = {
        modality: jax.ShapeDtypeStruct((2, 150, widths[0]), np.float32)
        for modality, widths in network.widths.items()
    }
    found = jax.eval_shape(network.apply, network.params, features)
    assert {task: x.shape for task, x in found.items()} == dict.fromkeys(
        older.TASKS, (2,)
    )
