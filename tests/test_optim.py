"""Schedules against closed forms, and which parameters each part touches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tqa_jax import optim, schema

K = 3
PEAK, END = 3e-3, 1e-5


def rates(transform, stalls):
    """The rate of every step; `stalls` lists the number of stalls so far."""
    params = jnp.ones(())

    def body(state, stalled):
        updates, after = transform.update(params, state, stalls=stalled)
        return after, (state.learning_rate, updates)

    @jax.jit
    def run(stalls):
        return jax.lax.scan(body, transform.init(params), stalls)[1]

    found, updates = run(jnp.asarray(stalls, jnp.int32))
    np.testing.assert_array_equal(updates, -found)
    return np.asarray(found, np.float64)


def closed_form(step, *, warmup, total, peak=PEAK, end=END):
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(total - warmup, 1))
    return end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2


@pytest.mark.parametrize(
    ("warmup", "total"), [(0, 40), (1, 40), (10, 40), (7, 400), (20, 5000)]
)
def test_cosine_equals_the_closed_form_at_every_step(warmup, total):
    transform = optim.cosine(PEAK, warmup_steps=warmup, total_steps=total, end=END)
    found = rates(transform, [0] * (total + 20))
    wanted = [closed_form(s, warmup=warmup, total=total) for s in range(total + 20)]
    np.testing.assert_allclose(found, wanted, atol=1e-6 * PEAK, rtol=1e-5)
    assert found[-1] == np.float32(END)


def test_a_million_steps_end_at_their_end():
    total, warmup = 1_000_000, 1000
    found = rates(
        optim.cosine(PEAK, warmup_steps=warmup, total_steps=total, end=END),
        np.zeros(total + 1, int),
    )
    for step in (1000, 250_000, 500_000, 990_000, 999_000, total):
        wanted = closed_form(step, warmup=warmup, total=total)
        np.testing.assert_allclose(found[step], wanted, rtol=1e-4)
    assert found[total - 10_000] > END + 2e-4 * PEAK


def test_cosine_equals_optax():
    ours = optim.cosine(PEAK, warmup_steps=8, total_steps=60, end=END)
    schedule = jax.jit(optax.warmup_cosine_decay_schedule(0.0, PEAK, 8, 60, END))
    found = rates(ours, [0] * 60)
    # Optax's warm-up starts at 0, ours at its first step above 0.
    np.testing.assert_allclose(found[8:], schedule(np.arange(8, 60)), rtol=1e-4)
    np.testing.assert_allclose(found[:8], schedule(np.arange(1, 9)), rtol=1e-5)


def adaptive(total=100, warmup=10, stretch=0.5):
    return optim.cosine(
        PEAK, warmup_steps=warmup, total_steps=total, end=END, stretch=stretch
    )


def random_stalls(seed, steps):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.uniform(size=steps) < 0.03)


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_never_jumps_and_never_rises(seed):
    found = rates(adaptive(), random_stalls(seed, 2000))
    steepest = math.pi / 2 * (PEAK - END) / 90
    after = np.diff(found[10:])
    assert after.max() <= 0
    assert after.min() >= -steepest * (1 + 1e-5)
    np.testing.assert_allclose(np.diff(found[:10]), PEAK / 10, rtol=1e-4)


def test_a_stall_lengthens_what_is_left_by_the_stretch():
    at = 55  # Half of the cosine is done.
    stalls = np.zeros(300, int)
    stalls[at:] = 1
    found = rates(adaptive(), stalls)
    plain = rates(adaptive(), np.zeros(300))
    np.testing.assert_array_equal(found[: at + 1], plain[: at + 1])
    assert (found[at + 1 : 120] > plain[at + 1 : 120]).all()
    # 45 steps were left; they take 67.5.
    for step in range(at, 123):
        wanted = closed_form(55 + (step - at) / 1.5, warmup=10, total=100)
        np.testing.assert_allclose(found[step], wanted, rtol=1e-4, atol=1e-8)
    assert found[122] > END and found[123] == np.float32(END)


def test_two_stalls_at_once_lengthen_twice():
    transform = adaptive()
    state = transform.init(jnp.ones(()))
    _, state = transform.update(jnp.ones(()), state, stalls=jnp.int32(2))
    np.testing.assert_allclose(state.period, 90 * 1.5**2, rtol=1e-6)
    _, state = transform.update(jnp.ones(()), state, stalls=jnp.int32(2))
    np.testing.assert_allclose(state.period, 90 * 1.5**2, rtol=1e-6)


def test_the_end_value_stays_whatever_stalls():
    found = rates(adaptive(), np.r_[np.zeros(150), np.arange(1, 50)].astype(int))
    np.testing.assert_array_equal(found[101:], np.float32(END))


def test_stalls_in_warm_up_leave_the_warm_up_alone():
    found = rates(adaptive(), np.arange(10) // 3)
    np.testing.assert_allclose(found, PEAK * np.arange(1, 11) / 10, rtol=1e-6)


def make_params():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "encode": {
            "dense": {"kernel": draw(4, 4), "bias": draw(4)},
            "norm": {"scale": draw(4), "bias": draw(4)},
        },
        "head": {
            "stack": {"out": {"kernel": draw(K, 4, 1), "bias": draw(K, 1)}},
        },
        "positions": draw(5, 4),
    }


def test_scale_heads_acts_on_heads_by_task_only():
    params = make_params()
    transform = optim.scale_heads([1.0, 2.0, 0.5], drop=0.1)
    found, _ = transform.update(
        params, transform.init(params), task_stalls=jnp.array([0, 1, 2])
    )
    factor = np.array([1.0, 2.0 * 0.1, 0.5 * 0.01])
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        old = params
        for key in path:
            old = old[key.key]
        if path[0].key == "head":
            wanted = old * factor.reshape(K, *[1] * (old.ndim - 1))
            np.testing.assert_allclose(leaf, wanted, rtol=1e-6)
        else:
            np.testing.assert_array_equal(leaf, old)


def test_weight_decay_marks_kernels_only():
    marked = optim.decayed(make_params())
    assert marked["encode"]["dense"] == {"kernel": True, "bias": False}
    assert marked["encode"]["norm"] == {"scale": False, "bias": False}
    assert marked["head"]["stack"]["out"] == {"kernel": True, "bias": False}
    assert marked["positions"] is False


def make(**changes):
    options = {
        "learning_rate": PEAK,
        "schedule": "warmup_cosine",
        "warmup_steps": 2,
        "total_steps": 20,
        "end_learning_rate": END,
        "stretch": 0.1,
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "beta1": 0.9,
        "beta2": 0.99,
        "task_factors": [1.0] * K,
        "plateau_drop": 1.0,
    }
    return optim.make(**options | changes)


def follow(optimizer, params, gradients, stalls=0):
    told = {"stalls": np.int32(stalls), "task_stalls": np.zeros(K, np.int32)}

    def body(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params, **told)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params, gradients):
        return jax.lax.scan(body, (params, optimizer.init(params)), gradients)[0]

    return run(params, jax.tree.map(lambda *leaves: np.stack(leaves), *gradients))


def make_gradients(params, steps=6):
    rng = np.random.default_rng(1)

    def draw(leaf):
        return (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    return [jax.tree.map(draw, params) for _ in range(steps)]


def test_the_whole_optimiser_equals_a_numpy_adamw():
    params = make_params()
    gradients = make_gradients(params)
    found, state = follow(make(), params, gradients)

    flat, _ = jax.tree.flatten(params)
    decays = jax.tree.leaves(optim.decayed(params))
    value = [np.asarray(x, np.float64) for x in flat]
    first = [np.zeros_like(x) for x in value]
    second = [np.zeros_like(x) for x in value]
    for t, gradient in enumerate(gradients, 1):
        parts = [np.asarray(x, np.float64) for x in jax.tree.leaves(gradient)]
        norm = math.sqrt(sum((g**2).sum() for g in parts))
        assert norm > 1, "nothing to clip"
        rate = closed_form(t - 1, warmup=2, total=20)
        for i, g in enumerate(parts):
            g = g / norm
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.99 * second[i] + 0.01 * g**2
            step = first[i] / (1 - 0.9**t)
            step = step / (np.sqrt(second[i] / (1 - 0.99**t)) + 1e-8)
            value[i] = value[i] - rate * (step + 0.05 * decays[i] * value[i])
    for one, two in zip(jax.tree.leaves(found), value, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        optim.rate(state), closed_form(6, warmup=2, total=20), rtol=1e-5
    )


def test_a_head_factor_of_zero_freezes_that_head_alone():
    params = make_params()
    gradients = make_gradients(params, 3)
    plain, _ = follow(make(), params, gradients)
    found, _ = follow(make(task_factors=[1.0, 0.0, 1.0]), params, gradients)
    for name in ("kernel", "bias"):
        old, new, free = (
            tree["head"]["stack"]["out"][name] for tree in (params, found, plain)
        )
        np.testing.assert_array_equal(new[1], old[1])
        np.testing.assert_array_equal(new[::2], free[::2])
        assert np.any(free[1] != old[1])
    jax.tree.map(np.testing.assert_array_equal, found["encode"], plain["encode"])


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", PEAK),
        ("warmup_cosine", closed_form(10, warmup=2, total=20)),
        ("adaptive_cosine", closed_form(2 + 8 / 1.1**2, warmup=2, total=20)),
    ],
)
def test_schedule_of_a_name(schedule, wanted):
    params = {"head": {"kernel": np.ones((K, 1), np.float32)}}
    gradients = [params] * 10
    _, state = follow(make(schedule=schedule), params, gradients, stalls=2)
    np.testing.assert_allclose(optim.rate(state), wanted, rtol=1e-5)


def test_state_is_float32_and_int32():
    params = make_params()
    _, state = follow(make(), params, make_gradients(params, 1))
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype in (jnp.float32, jnp.int32) and not leaf.weak_type


def test_unknown_schedule_is_refused_with_the_choices():
    with pytest.raises(schema.InputError, match="warmup_cosine, adaptive_cosine, con"):
        make(schedule="cosine")
