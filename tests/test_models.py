"""The networks: masks, time, size, precision, and what presets can see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tqa_jax import batch, models, schema
from tqa_jax.models import presets

WIDTHS = {"visual": 5, "audio": 4, "keypoints": 6, "action_units": 3, "sync": 2}
TASKS = (*schema.TASKS[:2], schema.Task("liked", 0.0, 10.0))
SMALL = {
    "width": 16,
    "temporal_heads": 2,
    "fusion_heads": 4,
    "fusion_layers": 2,
    "fusion_ffn": 24,
    "head_hidden": (12, 8),
}
VARIANTS = [
    ("advanced", {}),
    ("synced", {}),
    ("optimized_mtl", {"temporal_layers": 2}),
    ("advanced", {"paths": "a", "pooling": "max", "head_activation": "tanh"}),
    ("synced", {"paths": "b", "pooling": "mean", "head_activation": "none"}),
    ("synced", {"temporal_window": 2}),
    ("advanced", {"temporal_layers": 0}),
]


def make(preset, widths=WIDTHS, **options):
    model = models.make(
        widths=widths, tasks=TASKS, max_frames=12, preset=preset, **SMALL | options
    )
    compiled = {
        name: jax.jit(getattr(model, name))
        for name in ("apply", "trunk", "join", "heads")
    }
    return model._replace(**compiled)


def make_batch(clips=3, frames=7, seed=0):
    rng = np.random.default_rng(seed)
    mask = {m: np.ones((clips, frames), bool) for m in WIDTHS}
    mask["keypoints"][0, 2:4] = False
    mask["audio"][1] = False
    return batch.Batch(
        {
            m: rng.normal(size=(clips, frames, w)).astype(np.float32)
            for m, w in WIDTHS.items()
        },
        mask,
        np.ones((clips, len(TASKS)), np.float32),
        np.ones((clips, len(TASKS)), bool),
    )


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: f"{v[0]}-{len(v[1])}")
def variant(request):
    preset, options = request.param
    model = make(preset, **options)
    return model, model.init(jax.random.key(0))


def change(found, name, values):
    return found.replace(features={**found.features, name: values})


def test_padding_and_masked_values_change_nothing(variant):
    model, params = variant
    apply = model.apply
    clips = make_batch()
    want = apply(params, clips)
    padded = batch.Batch(
        {m: np.pad(x, ((0, 0), (0, 5), (0, 0))) for m, x in clips.features.items()},
        {m: np.pad(x, ((0, 0), (0, 5))) for m, x in clips.frame_mask.items()},
        clips.labels,
        clips.label_mask,
    )
    np.testing.assert_allclose(apply(params, padded), want, rtol=1e-6, atol=1e-6)
    garbage = clips
    for name, mask in clips.frame_mask.items():
        rows = np.where(mask[..., None], clips.features[name], 1e3)
        garbage = change(garbage, name, rows.astype(np.float32))
    np.testing.assert_allclose(apply(params, garbage), want, rtol=1e-6, atol=1e-6)


def test_scores_of_a_clip_do_not_depend_on_the_others(variant):
    model, params = variant
    clips = make_batch()
    alone = jax.tree.map(lambda x: x[1:2], clips)
    np.testing.assert_allclose(
        model.apply(params, alone)[0], model.apply(params, clips)[1], atol=1e-5
    )


def test_the_three_parts_make_the_whole_and_last_shared_is_shared(variant):
    model, params = variant
    clips = make_batch()
    joined = model.trunk(params, clips)
    shared = model.join(params, joined)
    copies = jnp.broadcast_to(shared, (len(TASKS), *shared.shape))
    np.testing.assert_allclose(
        model.heads(params, copies), model.apply(params, clips), atol=1e-6
    )
    jacobian = jax.jit(jax.jacobian(lambda p: model.apply(p, clips).sum(axis=0)))(
        params
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(jacobian):
        # Every parameter counts; a bias before a softmax over keys shifts nothing.
        if "'key']['bias'" not in jax.tree_util.keystr(path):
            assert jnp.abs(leaf).max() > 0, path
    for key in model.last_shared:
        jacobian = jacobian[key]
    norms = np.linalg.norm(np.asarray(jacobian).reshape(len(TASKS), -1), axis=1)
    assert (norms > 1e-6).all()


def test_sizes_are_those_of_the_older_system():
    # 4,876,943 and 20,695,045 parameters were counted there, with widths after PCA.
    widths = {"visual": 100, "audio": 200, "keypoints": 50, "action_units": 17}

    def count(preset):
        model = models.make(
            widths=widths, tasks=schema.TASKS, max_frames=150, preset=preset
        )
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes)), shapes

    advanced, shapes = count("advanced")
    # There: five task weights; here: a token for each absent modality.
    assert advanced - shapes["absent"].size == 4_876_943 - 5
    assert count("optimized_mtl")[0] == 20_695_045


def test_scores_stay_in_the_range_of_their_task():
    model = make("synced")
    params = model.init(jax.random.key(0))
    clips = change(make_batch(), "visual", 1e4 * make_batch().features["visual"])
    scores = np.asarray(model.apply(params, clips))
    for k, task in enumerate(TASKS):
        assert (scores[:, k] >= task.low).all() and (scores[:, k] <= task.high).all()
    raw = make("synced", head_activation="none").apply(params, make_batch())
    mapped = model.apply(params, make_batch())
    np.testing.assert_allclose(mapped[:, 2], 10 / (1 + np.exp(-raw[:, 2])), rtol=1e-5)


def shifted(clips, name, by):
    return change(clips, name, np.roll(clips.features[name], by, axis=1))


def test_synced_sees_the_order_of_frames_and_advanced_cannot():
    clips = make_batch()
    clips = clips.replace(
        frame_mask={m: np.ones_like(x) for m, x in clips.frame_mask.items()}
    )
    moved = shifted(clips, "audio", 2)
    blind, seeing = make("advanced"), make("synced")
    params = blind.init(jax.random.key(0))
    np.testing.assert_allclose(
        blind.apply(params, moved), blind.apply(params, clips), atol=2e-6
    )
    params = seeing.init(jax.random.key(0))
    change_of = np.abs(seeing.apply(params, moved) - seeing.apply(params, clips))
    assert change_of.max() > 1e-3


def test_absent_modality_is_its_token_and_all_absent_is_finite():
    model = make("synced")
    params = model.init(jax.random.key(0))
    clips = make_batch()
    none = clips.replace(
        frame_mask={m: np.zeros_like(x) for m, x in clips.frame_mask.items()}
    )
    scores = np.asarray(model.apply(params, none))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores, scores[:1].repeat(3, 0), atol=1e-6)
    moved = {**params, "absent": params["absent"] + 1.0}
    difference = np.abs(model.apply(moved, clips) - model.apply(params, clips))
    assert difference[1].max() > 1e-3  # The clip without audio.
    np.testing.assert_array_equal(difference[[0, 2]], 0)


def test_rng_turns_dropout_and_modality_dropout_on():
    model = make("synced", dropout=0.0, temporal_dropout=0.0, fusion_dropout=0.0)
    params = model.init(jax.random.key(0))
    clips = make_batch()
    np.testing.assert_array_equal(
        model.apply(params, clips, jax.random.key(1)),
        model.apply(params, clips, jax.random.key(1)),
    )
    one = model.apply(params, clips, jax.random.key(1))
    other = model.apply(params, clips, jax.random.key(2))
    assert np.abs(one - other).max() > 1e-4
    only = make("synced", widths={"visual": 5}, modality_dropout=0.999)
    params = only.init(jax.random.key(0))
    unmasked = make_batch()
    unmasked = unmasked.replace(
        features={"visual": unmasked.features["visual"]},
        frame_mask={"visual": np.ones((3, 7), bool)},
    )
    joined = only.trunk(params, unmasked, jax.random.key(0))
    absent = only.trunk(
        {**params, "absent": params["absent"] + 9}, unmasked, jax.random.key(0)
    )
    # The last modality is never dropped, so the token is never used.
    np.testing.assert_array_equal(joined["hidden"], absent["hidden"])


@pytest.mark.parametrize(
    ("preset", "policy"),
    [
        ("optimized_mtl", "dots_saveable"),
        pytest.param("synced", "nothing_saveable", marks=pytest.mark.slow),
        pytest.param(
            "advanced", "dots_with_no_batch_dims_saveable", marks=pytest.mark.slow
        ),
    ],
)
def test_remat_changes_no_gradient(preset, policy):
    clips = make_batch()

    def gradient(remat):
        small = {"temporal_layers": 1, "fusion_layers": 1, "depth": 1}
        model = make(preset, remat=remat, **small)
        params = model.init(jax.random.key(0))

        def loss(params):
            return (model.apply(params, clips, jax.random.key(3)) ** 2).sum()

        jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
        return jax.jit(jax.grad(loss))(params), jaxpr.count("remat")

    plain, without = gradient("")
    again, with_remat = gradient(policy)
    assert with_remat > without
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        plain,
        again,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_keeps_float32_parameters_and_scores(dtype):
    clips = make_batch()
    full, low = make("synced"), make("synced", dtype=dtype)
    params = low.init(jax.random.key(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    scores = low.apply(params, clips)
    assert scores.dtype == jnp.float32
    assert low.join(params, low.trunk(params, clips)).dtype == dtype
    # Two to three digits of mantissa through some twenty layers.
    tolerance = {"bfloat16": 0.1, "float16": 0.02}[dtype]
    np.testing.assert_allclose(scores, full.apply(params, clips), atol=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "big"}, "unknown preset 'big'; available: advanced, optimized"),
        ({"preset": "synced", "dtype": "int8"}, "unknown dtype 'int8'"),
        ({"preset": "synced", "paths": "c"}, "unknown paths 'c'; available: a, b"),
        ({"preset": "synced", "wdith": 3}, "unknown model option 'wdith'"),
        ({"preset": "synced", "remat": "all"}, "unknown remat 'all'"),
        ({"preset": "synced", "temporal_heads": 3}, "no multiple"),
        ({"preset": "synced", "temporal_window": -1}, "temporal_window is -1; exp"),
        ({"preset": "synced", "temporal_layers": -1}, "is -1; expected at least 0"),
        (
            {"preset": "optimized_mtl", "temporal_layers": 0},
            "temporal_layers is 0; expected at least 1",
        ),
    ],
)
def test_impossible_model_is_refused(options, message):
    with pytest.raises(schema.InputError, match=message):
        make(**options)


def test_more_frames_than_positions_are_refused():
    model = make("synced")
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="got 13 frames; .* positions for 12"):
        model.apply(params, make_batch(frames=13))


def test_every_preset_names_every_field():
    fields = set(presets.PRESETS["advanced"])
    assert all(set(preset) == fields for preset in presets.PRESETS.values())
