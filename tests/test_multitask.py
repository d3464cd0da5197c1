"""The backward pass in parts equals differentiating the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tqa_jax import batch, models, multitask, schema

K, B, D = 4, 6, 5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_network(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    params = {
        "trunk": draw(7, D),
        "join": {"kernel": draw(D, D), "bias": draw(D)},
        "head": {"kernel": draw(K, D), "bias": draw(K)},
    }
    x, labels = draw(B, 7), draw(B, K)
    functions = multitask.Functions(
        trunk=lambda p: jnp.tanh(x @ p["trunk"]),
        join=lambda p, h: jnp.tanh(h @ p["join"]["kernel"] + p["join"]["bias"]),
        heads=lambda p, c: (
            jnp.einsum("kbd,kd->bk", c, p["head"]["kernel"]) + p["head"]["bias"]
        ),
        losses=lambda scores: ((scores - labels) ** 2).mean(axis=0),
    )
    return functions, params


def losses_of(functions, params):
    shared = functions.join(params, functions.trunk(params))
    copies = jnp.broadcast_to(shared, (K, *shared.shape))
    return functions.losses(functions.heads(params, copies))


@functools.partial(jax.jit, static_argnames=("path", "scale"))
def passes(weights, coefficients, extra, path=("join", "kernel"), scale=1.0):
    functions, params = make_network()
    found = multitask.forward(functions, params, path=path, num_tasks=K, scale=scale)
    return (
        found.losses,
        found.gram,
        found.backward(weights),
        found.backward(weights, coefficients),
        found.backward(weights, extra=extra),
    )


@jax.jit
def jacobian():
    functions, params = make_network()
    return jax.jacobian(functools.partial(losses_of, functions))(params)


WEIGHTS = np.array([0.5, 2.0, 1.0, 0.1])
COEFFICIENTS = np.array([1.0, 0.0, -0.5, 3.0])
EXTRA = np.random.default_rng(1).normal(size=(B, K))


def assert_trees_close(one, other, tolerance=1e-12):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        one,
        other,
    )


@pytest.mark.parametrize("path", [("join", "kernel"), ("join", "bias")])
def test_gram_holds_the_inner_products_of_each_tasks_gradient(path):
    _, gram, *_ = passes(WEIGHTS, COEFFICIENTS, EXTRA, path=path)
    flat = np.asarray(jacobian()[path[0]][path[1]]).reshape(K, -1)
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-12)


def test_gradient_is_that_of_the_weighted_sum_and_nothing_else():
    _, _, gradient, _, _ = passes(WEIGHTS, COEFFICIENTS, EXTRA)
    wanted = jax.tree.map(lambda j: jnp.tensordot(WEIGHTS, j, axes=1), jacobian())
    assert_trees_close(gradient, wanted)


def test_coefficients_act_on_shared_parameters_only():
    *_, gradient, _ = passes(WEIGHTS, COEFFICIENTS, EXTRA)
    combined = WEIGHTS * COEFFICIENTS
    jac = jacobian()
    wanted = {
        "trunk": jnp.tensordot(combined, jac["trunk"], axes=1),
        "join": jax.tree.map(lambda j: jnp.tensordot(combined, j, axes=1), jac["join"]),
        "head": jax.tree.map(lambda j: jnp.tensordot(WEIGHTS, j, axes=1), jac["head"]),
    }
    assert_trees_close(gradient, wanted)


def test_extra_cotangent_is_added():
    *_, gradient = passes(WEIGHTS, COEFFICIENTS, EXTRA)
    functions, params = make_network()

    @jax.jit
    @jax.grad
    def wanted(params):
        shared = functions.join(params, functions.trunk(params))
        scores = functions.heads(params, jnp.broadcast_to(shared, (K, *shared.shape)))
        return (WEIGHTS * functions.losses(scores)).sum() + (EXTRA * scores).sum()

    assert_trees_close(gradient, wanted(params))


def test_scale_changes_no_result():
    one = passes(WEIGHTS, COEFFICIENTS, EXTRA)
    other = passes(WEIGHTS, COEFFICIENTS, EXTRA, scale=1024.0)
    assert_trees_close(one, other)


TASKS = schema.TASKS[:3]


def make_model(**options):
    small = {
        "width": 8,
        "depth": 1,
        "temporal_heads": 2,
        "fusion_layers": 1,
        "fusion_heads": 2,
        "fusion_ffn": 8,
        "head_hidden": (6,),
    }
    return models.make(
        widths={"visual": 4, "audio": 3},
        tasks=TASKS,
        max_frames=5,
        **small | options,
    )


def shapes(model):
    features = {"visual": jnp.zeros((2, 5, 4)), "audio": jnp.zeros((2, 5, 3))}
    mask = {name: jnp.ones((2, 5), bool) for name in features}
    one = batch.Batch(features, mask, jnp.zeros((2, 3)), jnp.ones((2, 3), bool))
    params = jax.eval_shape(model.init, jax.random.key(0))
    return params, jax.eval_shape(model.trunk, params, one)


@pytest.mark.parametrize(
    ("options", "there"),
    [
        ({"preset": "synced"}, "path_a_contract/kernel"),
        ({"preset": "synced", "gate": True}, "path_gate/kernel"),
        ({"preset": "advanced", "paths": "a"}, "path_a_contract/bias"),
        ({"preset": "advanced", "paths": "b"}, "path_b_0/contract/kernel"),
        ({"preset": "optimized_mtl", "temporal_layers": 2}, "time_1/contract/kernel"),
    ],
)
def test_shared_parameters_are_told_from_heads_and_trunk(options, there):
    model = make_model(**options)
    params, joined = shapes(model)
    for path in (model.last_shared, tuple(there.split("/"))):
        multitask.check_shared(model.join, params, joined, path)
    for path, what in (
        (("head", "dense_0", "kernel"), "is no"),
        (("encoders_visual", "dense_0", "kernel"), "is no"),
    ):
        with pytest.raises(schema.InputError, match=f"{what}.*available: .*{there}"):
            multitask.check_shared(model.join, params, joined, path)


def test_a_parameter_of_the_trunk_is_refused_as_not_in_the_last_shared_layer():
    model = make_model(preset="synced")
    params, joined = shapes(model)
    with pytest.raises(schema.InputError, match="'position' is not in the last shared"):
        multitask.check_shared(model.join, params, joined, ("position",))
    with pytest.raises(schema.InputError, match="'a/b' is no parameter"):
        multitask.check_shared(model.join, params, joined, ("a", "b"))
