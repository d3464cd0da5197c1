"""One contract for every weighting on disk; each has its own test file besides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.signals import (
    STEPS,
    TASKS,
    K,
    make_signals,
    programs,
    same,
    signals_of,
    step_of,
    weights_of,
)
from tqa_jax import schema, weighting

NAMES = weighting.available()
DRAWN = ("rlw",)  # Its weights are random.
FREE = ("fixed", "imtl_l", "uncertainty")  # Their weights' sum is not K.


@pytest.fixture(scope="module", params=NAMES)
def each(request):
    return request.param, *programs(request.param)


# The contract.


def test_equal_tasks_start_with_one(each):
    name, made, _, _ = each
    if name in DRAWN:
        pytest.skip("draws its weights")
    np.testing.assert_allclose(weights_of(made, made.init()), 1, rtol=1e-6)


def test_weights_stay_finite_and_not_negative(each):
    _, made, _, scan = each
    _, (weights, _) = scan(made.init(), make_signals())
    assert weights.shape == (STEPS, K) and weights.dtype == jnp.float32
    assert np.isfinite(weights).all() and (np.asarray(weights) >= 0).all()


def test_state_keeps_its_structure_and_types(each):
    _, made, update, _ = each
    before = made.init()
    after = update(before, step_of(make_signals(), 0))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for one, two in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype


def test_jit_and_scan_equal_plain_steps(each):
    _, made, update, scan = each
    signals = make_signals(1)
    _, (scanned, _) = scan(made.init(), signals)
    state = made.init()
    for number in range(STEPS):
        state = update(state, step_of(signals, number))
        np.testing.assert_allclose(
            weights_of(made, state, step_of(signals, number)),
            scanned[number],
            rtol=2e-5,
            atol=1e-7,
        )
    first = made.update(made.init(), step_of(signals, 0))
    np.testing.assert_allclose(
        weights_of(made, first, step_of(signals, 0)), scanned[0], rtol=1e-5
    )


def test_an_absent_tasks_weight_changes_no_bit(each):
    _, made, update, _ = each
    signals, state = make_signals(2), made.init()
    for number in range(STEPS):
        one = step_of(signals, number)
        new = update(state, one)
        np.testing.assert_array_equal(
            np.asarray(weights_of(made, new, one))[~one.active],
            np.asarray(weights_of(made, state, one))[~one.active],
        )
        state = new


def test_an_absent_tasks_state_changes_no_bit(each):
    _, made, update, _ = each
    signals, state = make_signals(2), made.init()
    for number in range(STEPS):
        one = step_of(signals, number)
        new = update(state, one)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
            if a.shape == (K,):
                np.testing.assert_array_equal(a[~one.active], b[~one.active])
        state = new


def test_a_step_without_labels_changes_nothing(each):
    _, made, update, scan = each
    state, _ = scan(made.init(), make_signals(3))
    same(update(state, signals_of(np.zeros(K), np.zeros(K), np.zeros(K, bool))), state)


def test_what_an_absent_task_reports_is_not_read(each):
    _, made, _, scan = each
    signals = make_signals(4)
    wild = signals._replace(
        losses=np.where(signals.active, signals.losses, np.float32(1e6)),
        grad_norms=np.where(signals.active, signals.grad_norms, np.float32(1e6)),
    )
    same(scan(made.init(), signals), scan(made.init(), wild))


def test_a_task_that_comes_late_starts_like_one_that_was_there(each):
    # Its own counters, such as Adam's, have to start with it.
    _, made, _, scan = each
    rng = np.random.default_rng(5)
    losses = np.exp(rng.normal(size=(20, K))).astype(np.float32)
    norms = np.exp(rng.normal(size=(20, K))).astype(np.float32)
    rate = np.ones(20, np.float32)
    rngs = jax.random.split(jax.random.key(5), 20)

    def run(active):
        active = np.broadcast_to(active, (20, K))
        return scan(made.init(), weighting.Signals(losses, active, norms, rate, rngs))[
            0
        ]

    nobody = weighting.Signals(
        np.zeros((30, K), np.float32),
        np.zeros((30, K), bool),
        np.zeros((30, K), np.float32),
        np.ones(30, np.float32),
        jax.random.split(jax.random.key(6), 30),
    )
    late, _ = scan(made.init(), nobody)
    everyone = np.ones((20, K), bool)
    late, _ = scan(late, weighting.Signals(losses, everyone, norms, rate, rngs))
    np.testing.assert_allclose(
        weights_of(made, late), weights_of(made, run(everyone)), rtol=1e-6
    )


@pytest.mark.parametrize("zero", ["losses", "grad_norms", "both", "rate"])
def test_zeros_stay_finite(each, zero):
    _, made, _, scan = each
    signals = make_signals(6)
    parts = ("losses", "grad_norms") if zero == "both" else (zero,)
    gone = {part: np.zeros_like(getattr(signals, part)) for part in parts}
    state, (weights, _) = scan(made.init(), signals._replace(**gone))
    assert np.isfinite(weights).all() and (np.asarray(weights) >= 0).all()
    # And a loss that comes after zeros.
    state, (weights, _) = scan(state, signals)
    assert np.isfinite(weights).all() and (np.asarray(weights) >= 0).all()
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_extreme_losses_and_norms_stay_finite(each, size):
    _, made, _, scan = each
    signals = make_signals(7)
    scaled = signals._replace(
        losses=signals.losses * np.float32(size),
        grad_norms=signals.grad_norms * np.float32(size),
    )
    _, (weights, _) = scan(made.init(), scaled)
    assert np.isfinite(weights).all() and (np.asarray(weights) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_task_works(name):
    made, _, scan = programs(name, tasks=("overall",))
    _, (weights, _) = scan(made.init(), make_signals(8, tasks=1))
    assert weights.shape == (STEPS, 1) and np.isfinite(weights).all()
    if name not in FREE or name == "fixed":
        np.testing.assert_allclose(weights, 1, rtol=1e-5)


def test_vmap_over_two_runs_equals_two_runs(each):
    _, made, _, scan = each
    runs = [make_signals(seed) for seed in (9, 10)]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    start = jax.vmap(lambda _: made.init())(np.arange(2))
    _, (found, _) = jax.vmap(scan)(start, both)
    for number, run in enumerate(runs):
        _, (wanted, _) = scan(made.init(), run)
        np.testing.assert_allclose(found[number], wanted, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FREE])
def test_weights_sum_to_the_number_of_tasks(name):
    made, _, scan = programs(name)
    _, (weights, _) = scan(made.init(), make_signals(11))
    np.testing.assert_allclose(weights.sum(axis=-1), K, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DRAWN])
def test_order_of_tasks_does_not_matter(name):
    made, _, scan = programs(name)
    signals, turn = make_signals(12), np.array([2, 0, 3, 1])
    turned = signals._replace(
        losses=signals.losses[:, turn],
        active=signals.active[:, turn],
        grad_norms=signals.grad_norms[:, turn],
    )
    _, (weights, _) = scan(made.init(), signals)
    _, (found, _) = scan(made.init(), turned)
    np.testing.assert_allclose(found, weights[:, turn], rtol=1e-4)


# Finding them by name.


def test_a_new_file_is_a_new_weighting(tmp_path, monkeypatch):
    source = """
import jax.numpy as jnp
from tqa_jax import weighting
def make(*, tasks, factor=2.0):
    return weighting.Weighting(
        lambda: (),
        lambda state, signals: jnp.full(len(tasks), factor),
        lambda state, signals: state,
    )
"""
    (tmp_path / "doubled.py").write_text(source)
    monkeypatch.setattr(weighting, "__path__", [*weighting.__path__, str(tmp_path)])
    assert "doubled" in weighting.available()
    made = weighting.make("doubled", tasks=TASKS, facts={"other": 1}, factor=3.0)
    np.testing.assert_array_equal(weights_of(made, made.init()), 3.0)


def test_weightings_on_disk_are_available():
    assert {"fixed", "gradnorm", "gradnorm_simple", "learned", "uncertainty"} <= set(
        NAMES
    )


def test_unknown_name_is_refused_with_the_choices():
    with pytest.raises(schema.InputError, match="'grad_norm'.*fixed, gradnorm"):
        weighting.make("grad_norm", tasks=TASKS)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_is_refused_by_name(name):
    with pytest.raises(schema.InputError, match=f"weighting.{name}: .*alpa"):
        facts = {"label_variances": np.ones(K), "steps_per_epoch": 7}
        weighting.make(name, tasks=TASKS, facts=facts, alpa=1.0)


# Shared parts.


def test_softmax_shares_the_number_of_active_tasks():
    logits = np.array([1.0, 400.0, 3.0, 2.0], np.float32)
    active = np.array([True, False, True, True])
    found = weighting.softmax(logits, active)
    wanted = 3 * np.exp([1, 3, 2]) / np.exp([1, 3, 2]).sum()
    np.testing.assert_allclose(found[active], wanted, rtol=1e-6)
    assert found[1] == 1
    np.testing.assert_array_equal(weighting.softmax(logits, np.zeros(4, bool)), 1)


def test_mean_over_active():
    values, active = np.array([1.0, 2.0, 6.0]), np.array([True, False, True])
    assert weighting.mean_over_active(values, active) == 3.5
    assert weighting.mean_over_active(values, np.zeros(3, bool)) == 0


def test_renormalise_scales_active_tasks_so_that_all_sum_to_their_number():
    weights = np.array([1.0, 5.0, 3.0], np.float32)
    before = np.array([1.0, 0.5, 1.501], np.float32)  # Off by what rounding added up to
    active = np.array([True, False, True])
    found = weighting.renormalise(weights, before, active)
    np.testing.assert_allclose(found, [0.625, 0.5, 1.875], rtol=1e-6)


@pytest.mark.parametrize("name", ["gradnorm", "gradnorm_simple", "learned", "dwa"])
def test_weights_sum_to_the_number_of_tasks_after_a_long_masked_run(name):
    made, _, scan = programs(name)
    _, (weights, _) = scan(made.init(), make_signals(3, steps=30_000))
    np.testing.assert_allclose(weights.sum(axis=-1), K, atol=1e-5)
