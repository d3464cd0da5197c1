"""One contract for every weighting on disk, then each against its paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tqa_jax import schema, weighting

TASKS = ("lip_sync", "audio_quality", "expression", "overall")
K = len(TASKS)
STEPS = 50
NAMES = weighting.available()
# The weights of these sum to K at every step.
SUMMED = ("gradnorm", "gradnorm_simple", "learned")


@functools.cache
def programs(name, tasks=TASKS, **options):
    """A weighting, and its functions compiled once for all tests."""
    made = weighting.make(name, tasks=tasks, **options)
    update = jax.jit(made.update)

    def body(state, signals):
        state = made.update(state, signals)
        return state, (made.weights(state), state)

    @jax.jit
    def scan(state, signals):
        return jax.lax.scan(body, state, signals)

    return made, update, scan


@pytest.fixture(scope="module", params=NAMES)
def each(request):
    return request.param, *programs(request.param)


def make_signals(seed=0, steps=STEPS, tasks=K, present=0.6):
    """Random losses, norms and absences, as a training step reports them."""
    rng = np.random.default_rng(seed)
    active = rng.uniform(size=(steps, tasks)) < present
    losses = np.exp(rng.normal(size=(steps, tasks)))
    norms = np.exp(2 * rng.normal(size=(steps, tasks)))
    return weighting.Signals(
        losses=np.where(active, losses, 0).astype(np.float32),
        active=active,
        grad_norms=np.where(active, norms, 0).astype(np.float32),
        rate=rng.uniform(size=steps).astype(np.float32),
    )


def step_of(signals, number):
    return jax.tree.map(lambda leaf: leaf[number], signals)


def signals_of(losses, norms=None, active=None, rate=1.0):
    losses = np.asarray(losses, np.float32)
    return weighting.Signals(
        losses,
        np.ones(len(losses), bool) if active is None else np.asarray(active),
        np.ones(len(losses), np.float32)
        if norms is None
        else np.asarray(norms, np.float32),
        np.float32(rate),
    )


def same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def learned_of(state):
    """The learned numbers and their Adam, wherever the state keeps them."""
    return state if isinstance(state, weighting.Learned) else state.learned


def with_values(state, values):
    values = jnp.asarray(values, jnp.float32)
    if isinstance(state, weighting.Learned):
        return state._replace(values=values)
    return state._replace(learned=state.learned._replace(values=values))


# The contract.


def test_starts_with_one_for_every_task(each):
    _, made, _, _ = each
    np.testing.assert_allclose(made.weights(made.init()), 1, rtol=1e-6)


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
            made.weights(state), scanned[number], rtol=2e-5, atol=1e-7
        )
    first = made.update(made.init(), step_of(signals, 0))
    np.testing.assert_allclose(made.weights(first), scanned[0], rtol=1e-5)


def test_an_absent_tasks_weight_changes_no_bit(each):
    _, made, update, _ = each
    signals, state = make_signals(2), made.init()
    for number in range(STEPS):
        one = step_of(signals, number)
        new = update(state, one)
        np.testing.assert_array_equal(
            np.asarray(made.weights(new))[~one.active],
            np.asarray(made.weights(state))[~one.active],
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

    def run(active):
        active = np.broadcast_to(active, (20, K))
        return scan(made.init(), weighting.Signals(losses, active, norms, rate))[0]

    nobody = weighting.Signals(
        np.zeros((30, K), np.float32),
        np.zeros((30, K), bool),
        np.zeros((30, K), np.float32),
        np.ones(30, np.float32),
    )
    late, _ = scan(made.init(), nobody)
    everyone = np.ones((20, K), bool)
    late, _ = scan(late, weighting.Signals(losses, everyone, norms, rate))
    np.testing.assert_allclose(
        made.weights(late), made.weights(run(everyone)), rtol=1e-6
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
    if name in (*SUMMED, "fixed"):
        np.testing.assert_allclose(weights, 1, rtol=1e-5)


def test_vmap_over_two_runs_equals_two_runs(each):
    _, made, _, scan = each
    runs = [make_signals(seed) for seed in (9, 10)]
    both = jax.tree.map(lambda *leaves: np.stack(leaves), *runs)
    start = jax.vmap(lambda _: made.init())(np.arange(2))
    _, (found, _) = jax.vmap(scan)(start, both)
    for number, run in enumerate(runs):
        _, (wanted, _) = scan(made.init(), run)
        np.testing.assert_allclose(found[number], wanted, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", SUMMED)
def test_weights_sum_to_the_number_of_tasks(name):
    made, _, scan = programs(name)
    _, (weights, _) = scan(made.init(), make_signals(11))
    np.testing.assert_allclose(weights.sum(axis=-1), K, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
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
        weighting.make(name, tasks=TASKS, alpa=1.0)


# Fixed.


def test_fixed_weights_are_what_was_given():
    made = weighting.make("fixed", tasks=TASKS, values={"lip_sync": 1000, "overall": 0})
    np.testing.assert_array_equal(made.weights(made.init()), [1000, 1, 1, 0])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lips": 1.0}, "unknown task 'lips'; available: lip_sync"),
        ({"overall": -1.0}, "overall is -1.0; expected 0 or more"),
        ({"overall": float("nan")}, "overall is nan"),
    ],
)
def test_fixed_refuses_unusable_weights(values, said):
    with pytest.raises(schema.InputError, match=said):
        weighting.make("fixed", tasks=TASKS, values=values)


# GradNorm, against float64 NumPy.


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
                jnp.asarray(losses), jnp.ones(K, bool), jnp.asarray(norms), jnp.ones(())
            )
            state = update(state, signals)
            found = made.weights(state)
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


@pytest.mark.parametrize("name", ["gradnorm", "gradnorm_simple"])
def test_a_slow_task_rises(name):
    made, update, _ = programs(name, alpha=1.5)
    state = update(made.init(), signals_of(np.ones(K)))
    # Equal norms; task 0 kept its loss while the others halved theirs.
    for _ in range(10):
        state = update(state, signals_of([1.0, 0.5, 0.5, 0.5]))
    weights = np.asarray(made.weights(state))
    assert weights[0] > 1 and (weights[1:] < 1).all()


@pytest.mark.parametrize("name", ["gradnorm", "gradnorm_simple"])
def test_a_larger_norm_falls_at_equal_training_rates(name):
    made, update, _ = programs(name)
    state = made.init()
    for _ in range(10):
        state = update(state, signals_of(np.ones(K), [4.0, 1.0, 1.0, 1.0]))
    assert made.weights(state)[0] < 1


@pytest.mark.parametrize("log_domain", [False, True])
def test_gradnorm_equalises_norms_at_equal_training_rates(log_domain):
    norms = np.array([4.0, 1.0, 0.5, 2.0], np.float32)
    made, _, scan = programs("gradnorm", learning_rate=0.01, log_domain=log_domain)
    signals = jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, (800, *leaf.shape)),
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
    np.testing.assert_allclose(made.weights(plain), made.weights(scaled), rtol=1e-6)


def test_gradnorm_steps_follow_the_networks_learning_rate():
    made, update, _ = programs("gradnorm")
    half = update(made.init(), signals_of(np.ones(K), [4.0, 1, 1, 1], rate=0.5))
    still = update(made.init(), signals_of(np.ones(K), [4.0, 1, 1, 1], rate=0.0))
    np.testing.assert_array_equal(made.weights(still), 1)
    # Task 0 falls and the others rise by rate * 0.025 before the sum is restored.
    raw = np.exp(0.5 * 0.025 * np.array([-1.0, 1, 1, 1]))
    np.testing.assert_allclose(made.weights(half), raw * K / raw.sum(), rtol=1e-5)


def test_gradnorm_floor_keeps_every_weight_above_zero():
    # A step of 0.5 would make the linear form's weights negative at once.
    made, _, scan = programs("gradnorm", learning_rate=0.5, log_domain=False)
    _, (weights, _) = scan(made.init(), make_signals(14))
    # The floor is 1e-3 before the scaling to the sum, which at most halves it here.
    assert weights.min() > 1e-4


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
        np.testing.assert_allclose(made.weights(state), w, rtol=1e-5)


# Uncertainty.


def constant(losses, steps):
    return jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, (steps, *leaf.shape)), signals_of(losses)
    )


def test_uncertainty_reaches_the_papers_optimum():
    # d/ds (e^-s L + s) = 0 at s = log L, so the weight is 1 / L.
    losses = np.array([0.2, 1.0, 3.0, 10.0])
    made, _, scan = programs("uncertainty", learning_rate=0.05)
    state, _ = scan(made.init(), constant(losses, 600))
    np.testing.assert_allclose(learned_of(state).values, np.log(losses), atol=2e-3)
    np.testing.assert_allclose(made.weights(state), 1 / losses, rtol=3e-3)


def test_uncertainty_gradient_is_twice_the_papers():
    rng = np.random.default_rng(3)
    losses = np.exp(rng.normal(size=K)).astype(np.float32)
    s = rng.normal(size=K).astype(np.float32)
    made, update, _ = programs("uncertainty")
    found = learned_of(update(with_values(made.init(), s), signals_of(losses)))

    def paper(s):
        return (0.5 * jnp.exp(-s) * losses + 0.5 * s).sum()

    wanted = 2 * jax.grad(paper)(jnp.asarray(s))
    np.testing.assert_allclose(found.optimizer[0].mu / 0.1, wanted, rtol=1e-5)


@pytest.mark.parametrize(("loss", "bound"), [(0.0, -2.0), (1e9, 2.0)])
def test_uncertainty_is_clipped(loss, bound):
    made, _, scan = programs("uncertainty", learning_rate=0.1, limit=2.0)
    state, (weights, _) = scan(made.init(), constant([loss] * K, 100))
    np.testing.assert_allclose(learned_of(state).values, bound, rtol=1e-6)
    np.testing.assert_allclose(weights[-1], np.exp(-bound), rtol=1e-5)


def test_an_absent_tasks_uncertainty_does_not_run_away():
    # The term + s alone would drive s down and the weight up.
    made, _, scan = programs("uncertainty", learning_rate=0.1)
    signals = constant([1.0, 1.0, 1.0, 0.0], 200)
    active = np.broadcast_to([True, True, True, False], (200, K))
    _, (weights, _) = scan(made.init(), signals._replace(active=active))
    np.testing.assert_array_equal(weights[:, 3], 1)


# Learned.


def test_learned_collapses_without_normalisation():
    made, _, scan = programs("learned", normalise=False)
    start = np.asarray(made.weights(made.init()))
    np.testing.assert_allclose(start, 0.5 + 1e-4, rtol=1e-6)
    _, (weights, _) = scan(made.init(), constant([1.0, 0.5, 2.0, 1.0], 5000))
    assert (np.diff(np.asarray(weights), axis=0) <= 0).all()
    assert weights[-1].max() < 0.05


def test_learned_normalised_keeps_its_sum_and_moves_to_easy_tasks():
    made, _, scan = programs("learned", learning_rate=1e-2)
    _, (weights, _) = scan(made.init(), constant([1.0, 0.5, 2.0, 1.0], 200))
    np.testing.assert_allclose(weights.sum(axis=-1), K, rtol=1e-5)
    assert weights[-1].argmax() == 1 and weights[-1].argmin() == 2


def test_learned_descends_the_gradient_of_the_weighted_sum():
    losses = np.array([1.0, 0.5, 2.0, 1.5], np.float32)
    start = np.array([0.3, -0.2, 0.1, 0.5])
    for normalise in (True, False):
        made, update, _ = programs("learned", normalise=normalise)
        state = with_values(made.init(), start)

        def total(a, normalise=normalise):
            raw = 1 / (1 + np.exp(-a)) + 1e-4
            return (raw * (K / raw.sum() if normalise else 1) * losses).sum()

        steps = 1e-6 * np.eye(K)
        slope = [(total(start + h) - total(start - h)) / 2e-6 for h in steps]
        found = learned_of(update(state, signals_of(losses))).optimizer[0].mu / 0.1
        np.testing.assert_allclose(found, slope, rtol=1e-4)


def test_learned_does_not_hide_a_loss_that_is_not_finite():
    made, update, _ = programs("learned")
    state = update(made.init(), signals_of([1.0, np.nan, 1.0, 1.0]))
    assert np.isnan(made.weights(state)).any()


# Shared parts.


def test_mean_over_active():
    values, active = np.array([1.0, 2.0, 6.0]), np.array([True, False, True])
    assert weighting.mean_over_active(values, active) == 3.5
    assert weighting.mean_over_active(values, np.zeros(3, bool)) == 0


def test_renormalise_scales_active_tasks_to_their_sum():
    weights = np.array([1.0, 5.0, 3.0], np.float32)
    before = np.array([2.0, 7.0, 4.0], np.float32)
    active = np.array([True, False, True])
    found = weighting.renormalise(weights, before, active)
    np.testing.assert_allclose(found, [1.5, 7.0, 4.5], rtol=1e-6)
