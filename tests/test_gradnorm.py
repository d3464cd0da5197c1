"""GradNorm against Algorithm 1 in float64 NumPy, and its simplified form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.signals import (
    TASKS,
    K,
    make_signals,
    programs,
    signals_of,
    weights_of,
    with_values,
)
from tqa_jax import schema, weighting


def adam(gradient, t, first, second, rate):
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    step = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return -rate * step, first, second


def gradnorm_oracle(steps, *, alpha, rate, log_domain, initial_steps, floor=1e-3):
    """Algorithm 1 in float64, every task labelled at every step."""
    w = np.ones(K)
    first, second = np.zeros(K), np.zeros(K)
    seen: list[np.ndarray] = []
    found = []
    for t, (losses, norms) in enumerate(steps, 1):
        if len(seen) < initial_steps:
            seen.append(losses)
        big = w * norms
        ratio = losses / np.mean(seen, axis=0)
        target = big.mean() * (ratio / ratio.mean()) ** alpha
        gradient = np.sign(big - target) * norms * (w if log_domain else 1)
        step, first, second = adam(gradient, t, first, second, rate)
        w = np.exp(np.log(w) + step) if log_domain else w + step
        w = np.maximum(w, floor)
        w = w * K / w.sum()
        found.append(w)
    return np.array(found)


@pytest.mark.parametrize("log_domain", [False, True])
@pytest.mark.parametrize("initial_steps", [1, 5])
def test_gradnorm_equals_algorithm_1_in_float64(log_domain, initial_steps):
    rng = np.random.default_rng(0)
    steps = np.exp(rng.normal(size=(12, 2, K)))
    wanted = gradnorm_oracle(
        steps, alpha=1.5, rate=0.025, log_domain=log_domain, initial_steps=initial_steps
    )
    with jax.enable_x64(True):
        made = weighting.make(
            "gradnorm",
            tasks=TASKS,
            log_domain=log_domain,
            initial_steps=initial_steps,
        )

        def wide(leaf):
            floats = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(jnp.float64) if floats else leaf

        state = jax.tree.map(wide, made.init())
        update = jax.jit(made.update)
        for (losses, norms), weights in zip(steps, wanted, strict=True):
            signals = weighting.Signals(
                jnp.asarray(losses),
                jnp.ones(K, bool),
                jnp.asarray(norms),
                jnp.ones(()),
                None,
            )
            state = update(state, signals)
            found = weights_of(made, state)
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, weights, rtol=1e-9, atol=1e-9)


def test_gradnorm_descends_the_gradient_of_its_objective():
    # sign(G_i - target_i) ||grad L_i||, from the formula by automatic differentiation
    # with the target held constant; Adam's first step is its sign.
    rng = np.random.default_rng(1)
    losses, norms = np.exp(rng.normal(size=(2, K))).astype(np.float32)
    made, update, _ = programs("gradnorm", log_domain=False, initial_steps=1)
    state = made.init()._replace(
        initial=jnp.asarray(np.exp(rng.normal(size=K)), jnp.float32),
        seen=jnp.ones(K, jnp.int32),
    )

    def objective(w):
        big = w * norms
        ratio = losses / state.initial
        target = jax.lax.stop_gradient(big.mean() * (ratio / ratio.mean()) ** 1.5)
        return jnp.abs(big - target).sum()

    gradient = jax.grad(objective)(jnp.ones(K))
    found = update(state, signals_of(losses, norms))
    moment = found.learned.optimizer[0].mu / 0.1
    np.testing.assert_allclose(moment, gradient, rtol=1e-5)


def test_gradnorm_without_floor_is_the_papers_form_where_a_weight_is_negative():
    # G_i = ||grad w_i L_i|| grows with |w_i|, so descending pushes on a negative weight
    # with the other sign. This is what makes the linear form diverge in long runs.
    made, update, _ = programs(
        "gradnorm", log_domain=False, initial_steps=1, floor=-np.inf
    )
    losses, norms = np.ones(K), np.array([1.0, 30.0, 2.0, 1.5])
    start = jnp.array([2.2, -0.05, 0.85, 1.0], jnp.float32)
    state = update(made.init(), signals_of(losses, norms, rate=0.0))
    state = with_values(state, start)

    def objective(w):
        big = jnp.abs(w) * norms
        return jnp.abs(big - jax.lax.stop_gradient(big.mean())).sum()

    slope = jax.grad(objective)(start)
    assert slope[1] > 0 and start[1] < 0  # The norm 1.5 is below the mean: away from 0.
    state = state._replace(
        learned=state.learned._replace(
            optimizer=jax.tree.map(jnp.zeros_like, state.learned.optimizer)
        )
    )
    found = update(state, signals_of(losses, norms))
    wanted = start - 0.025 * np.sign(slope)
    wanted = wanted * start.sum() / wanted.sum()
    np.testing.assert_allclose(weights_of(made, found), wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["gradnorm", "gradnorm_simple"])
def test_a_slow_task_rises(name):
    made, update, _ = programs(name, alpha=1.5)
    state = update(made.init(), signals_of(np.ones(K)))
    # Equal norms; task 0 kept its loss while the others halved theirs.
    for _ in range(10):
        state = update(state, signals_of([1.0, 0.5, 0.5, 0.5]))
    weights = np.asarray(weights_of(made, state))
    assert weights[0] > 1 and (weights[1:] < 1).all()


@pytest.mark.parametrize("name", ["gradnorm", "gradnorm_simple"])
def test_a_larger_norm_falls_at_equal_training_rates(name):
    made, update, _ = programs(name)
    state = made.init()
    for _ in range(10):
        state = update(state, signals_of(np.ones(K), [4.0, 1.0, 1.0, 1.0]))
    assert weights_of(made, state)[0] < 1


@pytest.mark.parametrize("log_domain", [False, True])
def test_gradnorm_equalises_norms_at_equal_training_rates(log_domain):
    norms = np.array([4.0, 1.0, 0.5, 2.0], np.float32)
    made, _, scan = programs("gradnorm", learning_rate=0.01, log_domain=log_domain)
    signals = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (800, *leaf.shape)),
        signals_of(np.ones(K), norms),
    )
    _, (weights, _) = scan(made.init(), signals)
    wanted = K * (1 / norms) / (1 / norms).sum()
    # Sign descent hovers around the solution by about its rate.
    np.testing.assert_allclose(weights[-1], wanted, atol=0.05)


def test_gradnorm_starts_from_the_mean_of_the_first_labelled_steps():
    made, update, _ = programs("gradnorm", initial_steps=3)
    state = made.init()
    losses = np.array([[2.0, 5, 0, 1], [4, 7, 0, 1], [6, 0, 0, 1], [8, 9, 3, 1]])
    active = np.array([[1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool)
    for one, there in zip(losses, active, strict=True):
        state = update(state, signals_of(one, active=there))
    np.testing.assert_allclose(state.initial, [4.0, 7.0, 3.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(state.seen, [3, 3, 1, 3])


@pytest.mark.parametrize("name", ["gradnorm", "gradnorm_simple"])
def test_training_rates_do_not_depend_on_the_losses_common_scale(name):
    made, update, scan = programs(name)
    start, _ = scan(made.init(), make_signals(13, steps=10, present=1.0))
    losses = np.array([0.3, 2.0, 1.1, 0.7])
    plain = update(start, signals_of(losses, [1.0, 2.0, 3.0, 4.0]))
    scaled = update(start, signals_of(8 * losses, [1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(
        weights_of(made, plain), weights_of(made, scaled), rtol=1e-6
    )


def test_gradnorm_steps_follow_the_networks_learning_rate():
    made, update, _ = programs("gradnorm")
    half = update(made.init(), signals_of(np.ones(K), [4.0, 1, 1, 1], rate=0.5))
    still = update(made.init(), signals_of(np.ones(K), [4.0, 1, 1, 1], rate=0.0))
    np.testing.assert_array_equal(weights_of(made, still), 1)
    # Task 0 falls and the others rise by rate * 0.025 before the sum is restored.
    raw = np.exp(0.5 * 0.025 * np.array([-1.0, 1, 1, 1]))
    np.testing.assert_allclose(weights_of(made, half), raw * K / raw.sum(), rtol=1e-5)


def test_gradnorm_floor_keeps_every_weight_above_zero():
    # A step of 0.5 would make the linear form's weights negative at once.
    made, _, scan = programs("gradnorm", learning_rate=0.5, log_domain=False)
    _, (weights, _) = scan(made.init(), make_signals(14))
    # The floor is 1e-3 before the scaling to the sum, which at most halves it here.
    assert weights.min() > 1e-4


@pytest.mark.parametrize("log_domain", [False, True])
def test_gradnorm_does_not_follow_the_rounding_of_norms_at_their_targets(log_domain):
    made, _, scan = programs("gradnorm", log_domain=log_domain)
    rng = np.random.default_rng(0)
    steps = 300
    for together in (1, 3):  # One task alone, and tasks that are alike.
        active = np.arange(K) < together
        norms = np.where(active, np.exp(rng.normal(size=(steps, 1))), 0)
        signals = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (steps, *leaf.shape)),
            signals_of(np.ones(K), active=active),
        )._replace(
            losses=jnp.asarray(0.3 + 7 * norms, jnp.float32),
            grad_norms=jnp.asarray(norms, jnp.float32),
        )
        _, (weights, states) = scan(made.init(), signals)
        moments = states.learned.optimizer[0].mu
        np.testing.assert_array_equal(moments, 0)
        np.testing.assert_allclose(weights, 1, rtol=1e-5)


def test_gradnorm_needs_at_least_one_initial_step():
    with pytest.raises(schema.InputError, match="initial_steps"):
        weighting.make("gradnorm", tasks=TASKS, initial_steps=0)


def test_gradnorm_simple_equals_its_formula():
    rng = np.random.default_rng(2)
    made, update, _ = programs("gradnorm_simple", alpha=1.5, step=0.01)
    state, w, initial = made.init(), np.ones(K), None
    for losses, norms in np.exp(rng.normal(size=(8, 2, K))):
        initial = losses if initial is None else initial
        ratio = losses / initial
        big = w * norms
        w = w - 0.01 * (big - big.mean() * (ratio / ratio.mean()) ** 1.5)
        w = np.clip(w, 1e-3, 100)
        w = w * K / w.sum()
        state = update(state, signals_of(losses, norms))
        np.testing.assert_allclose(weights_of(made, state), w, rtol=1e-5)
