"""The training step: whole-batch results whatever the split, and its guards."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tqa_jax import (
    batch,
    models,
    optim,
    pipeline,
    regularizers,
    schema,
    surgery,
    train_step,
    weighting,
)

WIDTHS = {"visual": 4, "audio": 3}
TASKS = schema.TASKS[:3]
NO_DROPOUT = {
    "dropout": 0.0,
    "temporal_dropout": 0.0,
    "fusion_dropout": 0.0,
    "head_dropout": 0.0,
    "modality_dropout": 0.0,
}
RATE = 1e-2


def make_model(tasks=TASKS, **options):
    # Path A's fixed dropout of 0.2 is left out with it.
    small = {
        "width": 8,
        "depth": 1,
        "temporal_heads": 2,
        "fusion_layers": 1,
        "fusion_heads": 2,
        "fusion_ffn": 8,
        "head_hidden": (6,),
        "paths": "b",
    }
    return models.make(
        widths=WIDTHS,
        tasks=tasks,
        max_frames=6,
        preset="synced",
        **small | NO_DROPOUT | options,
    )


def make_parts(
    model,
    name="gradnorm",
    *,
    accumulation=1,
    consistency=0.05,
    optimizer=None,
    combine=None,
    tasks=TASKS,
    **options,
):
    weights = weighting.make(name, tasks=[task.name for task in TASKS], **options)
    optimizer = optimizer or optim.make(
        learning_rate=RATE,
        schedule="constant",
        warmup_steps=0,
        total_steps=100,
        end_learning_rate=0.0,
        stretch=0.0,
        weight_decay=1e-2,
        clip_norm=1.0,
        beta1=0.9,
        beta2=0.999,
        task_factors=[1.0] * len(TASKS),
        plateau_drop=1.0,
    )
    objective = train_step.Objective(
        l1_weight=0.1,
        consistency=regularizers.make(
            "corr",
            np.eye(len(TASKS)),
            low=np.array([task.low for task in tasks]),
            units=np.array([task.unit for task in tasks]),
        ),
        consistency_weight=consistency,
        consistency_tasks=(0, 1, 2),
        smoothing=0.1,
        label_means=ranged(np.array([3.0, 2.5, 2.0]), tasks).astype(np.float32),
        units=np.array([task.unit for task in tasks]),
    )
    step = train_step.make(
        model=model,
        optimizer=optimizer,
        weights=weights,
        objective=objective,
        peak_learning_rate=RATE,
        accumulation=accumulation,
        combine=combine,
    )

    @functools.partial(jax.jit, static_argnames="scale_loss")
    def init(seed=0, scale_loss=False):
        return train_step.init(
            jnp.asarray(seed, jnp.uint32),
            model=model,
            optimizer=optimizer,
            weights=weights,
            num_tasks=len(TASKS),
            scale_loss=scale_loss,
        )

    return step, init


def ranged(values, tasks):
    """Takes scores from the 1-5 scale to tasks' own ranges."""
    low, unit = np.array([(task.low, task.unit) for task in tasks]).T
    return low + (values - 1) / unit


def make_batch(clips=16, frames=5, seed=0):
    rng = np.random.default_rng(seed)
    mask = {m: np.ones((clips, frames), bool) for m in WIDTHS}
    mask["visual"][2, 1:] = False
    mask["audio"][5] = False
    present = np.ones((clips, len(TASKS)), bool)
    present[[0, 3, 4, 9], 1] = False
    labels = np.where(present, rng.uniform(1, 5, present.shape), 0)
    features = {
        m: rng.normal(size=(clips, frames, w)).astype(np.float32)
        for m, w in WIDTHS.items()
    }
    return batch.Batch(features, mask, labels.astype(np.float32), present)


def run(step, state, found, steps=3):
    """Takes the same batch a few times in one program."""
    size = len(found.labels)
    order = np.tile(np.arange(size), (steps, 1))
    return train_step.scan(step)(state, found, order)


def assert_close(one, other, **tolerance):
    """Compares trees, but for the attention keys' biases.

    Those shift all of a query's logits alike, so they change no score; their gradient
    is rounding noise, which Adam turns into steps of full size.
    """

    def compare(path, a, b):
        name = jax.tree_util.keystr(path)
        if "['key']['bias']" not in name:
            np.testing.assert_allclose(a, b, **tolerance, err_msg=name)

    jax.tree_util.tree_map_with_path(compare, one, other)


def test_accumulation_equals_the_whole_batch():
    model = make_model()
    found = make_batch()
    results = []
    for accumulation in (1, 8):
        step, init = make_parts(model, accumulation=accumulation)
        results.append(run(step, init(), found))
    (whole, whole_metrics), (parts, parts_metrics) = results
    assert_close(whole.params, parts.params, atol=1e-5)
    assert_close(whole.weighting, parts.weighting, atol=1e-5)
    assert_close(whole_metrics, parts_metrics, rtol=1e-4, atol=1e-5)
    assert whole_metrics["consistency"][0] > 0.1
    assert np.abs(np.diff(whole_metrics["weight"], axis=0)).max() > 1e-3


def test_rows_that_fill_a_batch_change_nothing():
    model = make_model()
    step, init = make_parts(model)
    found = make_batch()
    order = np.arange(16)[None]
    filled = np.concatenate([order, np.full((1, 8), -1)], axis=1)
    one, _ = train_step.scan(step)(init(), found, order)
    other, _ = train_step.scan(step)(init(), found, filled)
    assert_close(one.params, other.params, atol=1e-6)
    assert_close(one.weighting, other.weighting, atol=1e-6)


@pytest.mark.parametrize("name", ["gradnorm", "uncertainty"])
def test_fully_masked_task_changes_nothing(name):
    model = make_model()
    found = make_batch()
    masked = found.replace(label_mask=found.label_mask & np.array([True, False, True]))
    garbage = masked.replace(labels=np.where(masked.label_mask, found.labels, np.nan))
    step, init = make_parts(model, name, consistency=0.0)
    start = init()
    heads = jax.tree.map(np.array, start.params["head"])
    weights = weighting.make(name, tasks=[task.name for task in TASKS])
    before = np.asarray(weights.weights(start.weighting, None))
    one, metrics = run(step, start, masked)
    other, _ = run(step, init(), garbage)
    assert_close(one.params, other.params, atol=0, rtol=0)
    assert metrics["loss"][:, 1].tolist() == [0, 0, 0]
    assert metrics["task_grad_norm"][:, 1].tolist() == [0, 0, 0]
    after = np.asarray(weights.weights(one.weighting, None))
    assert after[1] == before[1] and after[0] != before[0]
    for old, new in zip(
        jax.tree.leaves(heads), jax.tree.leaves(one.params["head"]), strict=True
    ):
        # Nothing but weight decay moves the absent task's head.
        np.testing.assert_allclose(new[1], old[1], atol=4 * 3 * RATE * 1e-2)
        assert np.abs(new[0] - old[0]).max() > 1e-3


def test_gradient_norms_are_those_of_each_unweighted_loss():
    model = make_model()
    found = make_batch()
    step, init = make_parts(model, consistency=0.0)
    state = init()
    params = jax.tree.map(np.array, state.params)
    _, metrics = run(step, state, found, steps=1)
    smooth = 0.9 * found.labels + 0.1 * np.array([3.0, 2.5, 2.0])

    @jax.jit
    def jacobian(params):
        def losses(params):
            error = jnp.where(
                found.label_mask, model.apply(params, found) - smooth, 0.0
            )
            total = (error**2 + 0.1 * jnp.abs(error)).sum(axis=0)
            return total / found.label_mask.sum(axis=0)

        return jax.jacobian(losses)(params)

    kernel = jacobian(params)
    for key in model.last_shared:
        kernel = kernel[key]
    want = np.linalg.norm(np.asarray(kernel).reshape(len(TASKS), -1), axis=1)
    np.testing.assert_allclose(metrics["task_grad_norm"][0], want, rtol=1e-5)


def test_network_sees_the_gradient_of_the_weighted_sum_only():
    model = make_model()
    found = make_batch()
    step, init = make_parts(model, "fixed", values={"lip_sync": 2.0, "expression": 0.5})
    state = init()
    params = jax.tree.map(np.array, state.params)
    _, metrics = run(step, state, found, steps=1)
    smooth = 0.9 * found.labels + 0.1 * np.array([3.0, 2.5, 2.0])

    @jax.jit
    def norm(params):
        def total(params):
            scores = model.apply(params, found)
            error = jnp.where(found.label_mask, scores - smooth, 0.0)
            losses = (error**2 + 0.1 * jnp.abs(error)).sum(axis=0)
            losses = losses / found.label_mask.sum(axis=0)
            agreement = regularizers.corr(scores, jnp.ones(len(scores), bool))
            return (losses * jnp.array([2.0, 0.5, 1.0])).sum() + 0.05 * agreement

        gradient = jax.grad(total)(params)
        return jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))

    np.testing.assert_allclose(metrics["grad_norm"][0], norm(params), rtol=1e-5)


def keep_gradient():
    """An optimiser that changes nothing and keeps the gradient that it was given."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"learning_rate": jnp.float32(RATE), "gradient": zeros}

    def update(gradient, state, params, **_):
        return jax.tree.map(jnp.zeros_like, params), state | {"gradient": gradient}

    return optax.GradientTransformationExtraArgs(init, update)


def leak(model, name, found, steps=4, **options):
    """Relative distance of the network's gradient from that of sum_i w_i L_i."""
    step, init = make_parts(
        model, name, consistency=0.0, optimizer=keep_gradient(), **options
    )
    state, metrics = run(step, init(), found, steps=steps)
    smooth = 0.9 * found.labels + 0.1 * np.array([3.0, 2.5, 2.0])

    @jax.jit
    @jax.grad
    def wanted(params, weights):
        error = jnp.where(found.label_mask, model.apply(params, found) - smooth, 0.0)
        losses = (error**2 + 0.1 * jnp.abs(error)).sum(axis=0)
        return (weights * losses / found.label_mask.sum(axis=0)).sum()

    gradient = wanted(state.params, metrics["weight"][-1])
    difference = jax.tree.map(jnp.subtract, state.opt_state["gradient"], gradient)
    norm = optax.tree_utils.tree_norm
    return float(norm(difference) / norm(gradient)), metrics["weight"]


@pytest.mark.parametrize("name", ["gradnorm", "stch"])
def test_weighting_does_not_leak_into_the_networks_gradient(name):
    distance, weights = leak(make_model(), name, make_batch())
    assert distance < 1e-6
    assert np.abs(weights[-1] - 1).max() > 0.02


@pytest.mark.parametrize("name", surgery.available())
def test_surgery_combines_the_shared_gradients_and_leaves_the_heads(name):
    model = make_model()
    found = make_batch()
    combine = surgery.make(name)
    weights = {"lip_sync": 2.0, "expression": 0.5}
    step, init = make_parts(
        model,
        "fixed",
        consistency=0.0,
        optimizer=keep_gradient(),
        combine=combine,
        values=weights,
    )
    state, metrics = run(step, init(), found, steps=1)
    smooth = 0.9 * found.labels + 0.1 * np.array([3.0, 2.5, 2.0])

    @jax.jit
    @jax.jacobian
    def jacobian(params):
        error = jnp.where(found.label_mask, model.apply(params, found) - smooth, 0.0)
        losses = (error**2 + 0.1 * jnp.abs(error)).sum(axis=0)
        return losses / found.label_mask.sum(axis=0)

    vector = np.array([weights.get(task.name, 1.0) for task in TASKS])
    by_task = jax.tree.map(
        lambda j: vector.reshape(-1, *[1] * (j.ndim - 1)) * j, jacobian(state.params)
    )
    kernel = by_task
    for key in model.last_shared:
        kernel = kernel[key]
    flat = np.asarray(kernel).reshape(len(TASKS), -1)
    coefficients = np.asarray(metrics["coefficient"][0])
    if name != "pcgrad":  # Draws an order.
        gram = jnp.asarray(flat @ flat.T)
        again = combine(gram, jnp.ones(3, bool), jax.random.key(0))
        np.testing.assert_allclose(coefficients, again, rtol=2e-3, atol=2e-3)
    head = by_task.pop("head")
    gradient = dict(state.opt_state["gradient"])
    assert_close(
        gradient.pop("head"),
        jax.tree.map(lambda j: j.sum(axis=0), head),
        rtol=1e-4,
        atol=1e-6,
    )
    assert_close(
        gradient,
        jax.tree.map(lambda j: jnp.tensordot(coefficients, j, axes=1), by_task),
        rtol=1e-3,
        atol=1e-5,
    )


def test_surgery_leaves_out_a_task_of_weight_zero():
    # Its gradient of length 0 would be the shortest of the hull.
    step, init = make_parts(
        make_model(),
        "fixed",
        consistency=0.0,
        combine=surgery.make("mgda"),
        values={TASKS[0].name: 0.0},
    )
    _, metrics = run(step, init(), make_batch(), steps=1)
    coefficients = np.asarray(metrics["coefficient"][0])
    assert coefficients[0] == 0
    np.testing.assert_allclose(coefficients.sum(), 2, rtol=1e-5)


def test_bfloat16_keeps_norms_and_weights_in_float32():
    found = make_batch()
    results = []
    for dtype in ("float32", "bfloat16"):
        step, init = make_parts(make_model(dtype=dtype))
        results.append(run(step, init(), found)[1])
    full, half = results
    assert half["task_grad_norm"].dtype == half["weight"].dtype == jnp.float32
    np.testing.assert_allclose(
        half["task_grad_norm"][0], full["task_grad_norm"][0], rtol=4e-2
    )
    # Rounded to bfloat16 they would be multiples of 2^-7 of their size.
    bits = np.asarray(half["task_grad_norm"]).view(np.uint32) & 0xFFFF
    assert (bits != 0).all()


def test_order_and_repetition_of_clips_do_not_matter():
    model = make_model()
    step, init = make_parts(model)
    found = make_batch()
    plain = np.arange(16)[None]
    turned = np.random.default_rng(0).permutation(16)[None]
    twice = np.tile(plain, 2)
    one, _ = train_step.scan(step)(init(), found, plain)
    for order in (turned, twice):
        other, _ = train_step.scan(step)(init(), found, order)
        assert_close(one.params, other.params, atol=2e-5)
        assert_close(one.weighting, other.weighting, atol=2e-5)


def test_same_seed_gives_the_same_bits_and_another_seed_does_not():
    model = make_model(dropout=0.3)
    step, init = make_parts(model)
    found = make_batch()
    compiled = train_step.scan(step)
    order = np.tile(np.arange(16), (3, 1))
    one, _ = compiled(init(0), found, order)
    other, _ = compiled(init(0), found, order)
    third, _ = compiled(init(1), found, order)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(third.params), strict=True)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in pairs)
    assert compiled._cache_size() == 1


def test_step_that_is_not_finite_is_skipped_and_counted():
    model = make_model()
    step, init = make_parts(model)
    found = make_batch()
    bad = {**found.features, "visual": found.features["visual"] * np.nan}
    compiled = jax.jit(step)
    start = init()
    state, metrics = compiled(start, found.replace(features=bad))
    assert_close(state.params, start.params, atol=0, rtol=0)
    assert_close(state.weighting, start.weighting, atol=0, rtol=0)
    assert_close(state.opt_state, start.opt_state, atol=0, rtol=0)
    assert int(state.step) == 1 and int(state.skipped) == 1
    assert metrics["skipped"] == 1
    state, _ = compiled(state, found.replace(features=bad))
    assert int(state.skipped) == 2
    state, metrics = compiled(state, found)
    assert int(state.skipped) == 0 and np.isfinite(metrics["total"])


def test_float16_scales_the_loss_and_backs_off_on_overflow():
    model = make_model(dtype="float16")
    step, init = make_parts(model)
    found = make_batch()
    compiled = jax.jit(step)
    state = init(scale_loss=True)
    assert float(state.loss_scale.scale) == 65536
    big = state.replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(2e9)))
    after, _ = compiled(big, found)
    assert float(after.loss_scale.scale) == 1e9 and int(after.skipped) == 1
    assert_close(after.params, big.params, atol=0, rtol=0)
    ready = state.loss_scale.replace(fin_steps=jnp.int32(2000), scale=jnp.float32(512))
    after, metrics = compiled(state.replace(loss_scale=ready), found)
    assert float(after.loss_scale.scale) == 1024 and int(after.skipped) == 0
    full_step, full_init = make_parts(make_model())
    _, full = jax.jit(full_step)(full_init(), found)
    np.testing.assert_allclose(metrics["loss"], full["loss"], rtol=2e-2)
    np.testing.assert_allclose(metrics["grad_norm"], full["grad_norm"], rtol=5e-2)
    np.testing.assert_allclose(
        metrics["task_grad_norm"], full["task_grad_norm"], rtol=5e-2
    )


def test_loss_scale_backs_off_when_only_an_unweighted_gradient_overflows():
    model = make_model(dtype="float16")
    small_weights = {task.name: 0.01 for task in TASKS}
    step, init = make_parts(model, "fixed", values=small_weights, consistency=0.0)
    state = init(scale_loss=True)
    state = state.replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(1e6)))
    compiled = jax.jit(step)
    for _ in range(12):
        state, metrics = compiled(state, make_batch())
    assert float(state.loss_scale.scale) < 1e6
    assert int(state.skipped) == 0 and np.isfinite(metrics["task_grad_norm"]).all()


@pytest.mark.parametrize("name", ["gradnorm", "stch"])
def test_training_is_the_same_on_any_score_range(name):
    ends = ((0.0, 0.01), (0.0, 100.0), (-2.0, 2.0))
    others = [
        schema.Task(task.name, *pair) for task, pair in zip(TASKS, ends, strict=True)
    ]
    found = make_batch()
    runs = []
    for tasks in (TASKS, others):
        model = make_model(tasks)
        step, init = make_parts(model, name, tasks=tasks, consistency=0.5)
        labels = ranged(found.labels.astype(np.float64), tasks).astype(np.float32)
        state, metrics = run(step, init(), found.replace(labels=labels), steps=5)
        runs.append((metrics, state.params, state.weighting))
    (first, *trees), (second, *other_trees) = runs
    for key in ("loss", "consistency", "weight", "task_grad_norm", "total"):
        np.testing.assert_allclose(second[key], first[key], rtol=1e-3, err_msg=key)
    assert_close(trees, other_trees, rtol=1e-2, atol=1e-3)


def test_loss_falls():
    model = make_model(dtype="bfloat16")
    step, init = make_parts(model, "learned")
    _, metrics = run(step, init(), make_batch(), steps=60)
    assert metrics["loss"][-1].sum() < 0.5 * metrics["loss"][0].sum()


TWO_DEVICES = """
import jax, numpy as np
from tests import test_train_step as t
from tqa_jax import train_step
assert len(jax.devices()) == 2
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
model = t.make_model(dropout=0.3)
found = t.make_batch()
order = np.tile(np.arange(16), (3, 1))
step, init = t.make_parts(model, accumulation=4)
one, one_metrics = train_step.scan(step)(init(), found, order)
state, data = jax.device_put((init(), found), everywhere)
program = train_step.scan(step, spread)
two, two_metrics = program(state, data, order)
assert len(two.params["position"].sharding.device_set) == 2
t.assert_close(one.params, two.params, atol=2e-6)
t.assert_close(one.weighting, two.weighting, atol=2e-6)
t.assert_close(one_metrics, two_metrics, rtol=1e-4, atol=1e-6)
print("equal")
"""


@pytest.mark.slow
def test_two_devices_equal_one():
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "equal", done.stderr


def test_every_step_of_an_epoch_is_one_program():
    order = pipeline.order(16, 4, seed=0, epoch=0)
    model = make_model()
    step, init = make_parts(model)
    compiled = train_step.scan(step)
    state = init()
    for epoch in range(3):
        order = pipeline.order(16, 4, seed=0, epoch=epoch)
        state, metrics = compiled(state, make_batch(), order)
        assert metrics["total"].shape == (4,)
    assert compiled._cache_size() == 1
