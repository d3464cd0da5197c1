"""One contract for every surgery on disk, then each against its definition."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from tqa_jax import schema, surgery
from tqa_jax.surgery import pcgrad

K = 5
NAMES = surgery.available()
ALL = np.ones(K, bool)
KEY = jax.random.key(0)
# Each tries every subset of the tasks.
EXACT = ("cagrad", "mgda", "upgrad")
# Their result lowers every loss, or keeps it, to first order.
CONFLICT_FREE = ("mgda", "nash", "upgrad")


@functools.cache
def compiled(name):
    return jax.jit(surgery.make(name))


def factors(name, gram, active=None, key=KEY):
    """Factors as NumPy in the precision of the Gram matrix."""
    active = np.ones(len(gram), bool) if active is None else active
    if gram.dtype == np.float64:
        with jax.enable_x64(True):
            found = compiled(name)(gram, active, key)
    else:
        found = compiled(name)(gram, active, key)
    assert found.dtype == gram.dtype
    return np.asarray(found)


def gradients(seed, tasks=K, size=12, spread=1.0):
    """Random gradients in rows, some of them in conflict, of unequal norms."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(tasks, size)) - 0.4 * rng.normal(size=size)
    return found * np.exp(spread * rng.normal(size=(tasks, 1)))


def gram_of(jacobian, dtype=np.float64):
    return (jacobian @ jacobian.T).astype(dtype)


def conditioned(seed, condition, conflict):
    """A float32 Gram matrix of a condition number.

    With conflict, it is a combination of positive weights that nearly vanishes.
    """
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(K, K))
    if conflict:
        basis[:, 0] = rng.uniform(0.1, 1.0, size=K)
    basis = np.linalg.qr(basis)[0]
    return ((basis * np.geomspace(1 / condition, 1, K)) @ basis.T).astype(np.float32)


DEGENERATE = {
    "zero": np.zeros((K, 3)),
    "one_zero": np.concatenate([np.zeros((1, 12)), gradients(1, K - 1)]),
    "duplicates": gradients(2)[[0, 1, 1, 2, 0]],
    "opposite": np.outer([1, -1, 2, -3, 1], np.arange(1, 4)),
    "one_pair_opposite": gradients(3)[[0, 1, 2, 3, 0]] * [[1], [1], [1], [1], [-1]],
    "same": np.ones((K, 3)),
    "nearly_same": 1 + 1e-4 * gradients(4),
    "norms_apart": gradients(5) * np.geomspace(1e-6, 1e6, K)[:, None],
}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


# The contract.


def test_absent_task_has_factor_0_and_the_others_what_they_have_alone(name):
    gram = gram_of(gradients(0))
    active = np.array([False, True, False, True, False])
    alone = factors(name, gram[np.ix_(active, active)])
    for garbage in (1e9, -3.0, np.nan, np.inf):
        found = np.where(active[:, None] & active, gram, garbage)
        found = factors(name, found, active)
        np.testing.assert_array_equal(found[~active], 0)
        np.testing.assert_allclose(found[active], alone, rtol=1e-9)


def test_without_tasks_all_factors_are_0(name):
    found = factors(name, gram_of(gradients(0), np.float32), np.zeros(K, bool))
    np.testing.assert_array_equal(found, 0)


def test_single_task_has_factor_1(name):
    one = np.array([[7.0]], np.float32)
    np.testing.assert_allclose(factors(name, one), 1, rtol=1e-6)
    active = np.arange(K) == 2
    found = factors(name, gram_of(gradients(0), np.float32), active)
    np.testing.assert_allclose(found, active, rtol=1e-6)


def test_vmapped_is_each_alone(name):
    grams = np.stack([gram_of(gradients(seed), np.float32) for seed in range(3)])
    active = np.array([ALL, ALL, [True, True, False, True, False]])
    keys = jax.random.split(KEY, 3)
    found = jax.jit(jax.vmap(surgery.make(name)))(grams, active, keys)
    alone = [factors(name, *each) for each in zip(grams, active, keys, strict=True)]
    np.testing.assert_allclose(found, np.stack(alone), rtol=2e-4, atol=1e-5)


def test_compiles_once(name):
    combine = surgery.make(name)
    traces = []

    @jax.jit
    def program(gram, active, rng):
        traces.append(None)
        return combine(gram, active, rng)

    program(gram_of(gradients(0), np.float32), ALL, KEY)
    program(gram_of(gradients(1), np.float32), ~ALL, jax.random.key(1))
    assert len(traces) == 1


def test_products_are_in_full_precision(name):
    text = jax.jit(surgery.make(name)).lower(np.eye(K), ALL, KEY).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)


def test_order_of_tasks_does_not_matter(name):
    # The order of PCGrad's projections is drawn, and matters beyond two tasks.
    active = np.arange(K) < 2 if name == "pcgrad" else ALL
    gram = gram_of(gradients(6))
    order = np.random.default_rng(0).permutation(K)
    found = factors(name, gram[np.ix_(order, order)], active[order])
    expected = factors(name, gram, active)[order]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scale", (1e-12, 1e12))
def test_scale_of_all_gradients_does_not_matter(name, scale):
    gram = gram_of(gradients(7), np.float32)
    found = factors(name, gram * np.float32(scale))
    np.testing.assert_allclose(found, factors(name, gram), rtol=1e-3, atol=1e-4)


def test_orthogonal_gradients_of_one_length_are_summed(name):
    found = factors(name, 3 * np.eye(K))
    np.testing.assert_allclose(found, 1, rtol=1e-9)


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_degenerate_gradients_give_finite_factors(name, kind, dtype):
    gram = gram_of(DEGENERATE[kind], dtype)
    for scale in (1e-12, 1.0, 1e12):
        for active in (ALL, np.arange(K) < 2):
            found = factors(name, gram * dtype(scale), active)
            assert np.isfinite(found).all()
            np.testing.assert_array_equal(found[~active], 0)


@pytest.mark.parametrize("name", CONFLICT_FREE)
def test_no_task_gets_worse(name):
    for seed in range(20):
        gram = gram_of(gradients(seed))
        gains = gram @ factors(name, gram)
        assert gains.min() >= -1e-10 * np.trace(gram)
    for kind, jacobian in DEGENERATE.items():
        gram = gram_of(jacobian, np.float32)
        gains = gram.astype(np.float64) @ factors(name, gram)
        norms = np.sqrt(np.diagonal(gram))
        worst = (gains / np.maximum(norms * norms.max(), 1e-30)).min()
        assert worst >= -2e-3, kind


@pytest.mark.parametrize("conflict", (False, True))
@pytest.mark.parametrize("condition", (1e2, 1e4, 1e6))
def test_float32_agrees_with_float64(name, condition, conflict):
    tolerance = 1e-3
    if name == "nash":
        # Its step is along the least eigenvectors, which float32 blurs.
        tolerance = max(tolerance, 2e-7 * condition)
    for seed in range(10):
        gram = conditioned(seed, condition, conflict)
        exact = gram.astype(np.float64)
        difference = factors(name, gram) - factors(name, exact)
        error = difference @ exact @ difference / np.trace(exact)
        assert np.sqrt(error) < tolerance, seed


@pytest.mark.parametrize("condition", (1e2, 1e4, 1e6))
def test_float32_reaches_the_optimum(condition):
    def square_of_mgda(gram, found):
        return found @ gram @ found

    def worst_gain_of_cagrad(gram, found):
        return (gram @ found).min()

    def bargain_of_nash(gram, found):
        return found @ gram @ found / np.trace(gram) * K / 2 - np.log(found).sum()

    for seed in range(10):
        gram = conditioned(seed, condition, True)
        exact = gram.astype(np.float64)
        for objective in (square_of_mgda, worst_gain_of_cagrad, bargain_of_nash):
            name = objective.__name__.rsplit("_", 1)[-1]
            found = objective(exact, factors(name, gram).astype(np.float64))
            expected = objective(exact, factors(name, exact))
            assert found == pytest.approx(expected, rel=1e-3), objective.__name__


@pytest.mark.parametrize("noise", (1e-7, 1e-3))
def test_rounding_that_makes_the_gram_matrix_indefinite_is_survived(name, noise):
    for seed, kind in enumerate(("opposite", "same", "duplicates")):
        gram = gram_of(DEGENERATE[kind])
        error = np.random.default_rng(seed).normal(size=gram.shape) * np.trace(gram)
        gram = (gram + noise * (error + error.T)).astype(np.float32)
        assert np.linalg.eigvalsh(gram.astype(np.float64)).min() < 0
        assert np.isfinite(factors(name, gram)).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "imtl_g"])
def test_step_is_no_longer_than_the_gradients_laid_end_to_end(name):
    # Nearly dependent gradients, where large factors can cancel in the step.
    for seed in range(60):
        rng = np.random.default_rng(seed)
        jacobian = gradients(seed)[rng.integers(0, K, size=K)]
        jacobian = jacobian * rng.choice([-1, 1], size=(K, 1))
        jacobian = jacobian * np.exp(rng.normal(size=(K, 1)))
        noise = 10 ** rng.uniform(-8, -3)
        jacobian = jacobian + noise * rng.normal(size=jacobian.shape)
        step = factors(name, gram_of(jacobian, np.float32)) @ jacobian
        longest = np.linalg.norm(jacobian, axis=1).sum()
        assert np.linalg.norm(step) < 1.1 * longest, seed


def test_unknown_name_and_option_are_input_errors():
    with pytest.raises(schema.InputError, match="unknown surgery 'nahs'; available: "):
        surgery.make("nahs")
    with pytest.raises(schema.InputError, match="surgery.mgda: .*'steps'"):
        surgery.make("mgda", steps=3)
    with pytest.raises(schema.InputError, match="surgery.cagrad.c is 1.5; expected"):
        surgery.make("cagrad", c=1.5)


@pytest.mark.parametrize("name", EXACT)
def test_too_many_tasks_are_an_input_error(name):
    with pytest.raises(schema.InputError, match=f"{name} got 13 tasks .* at most 12"):
        surgery.make(name)(jnp.eye(13), jnp.ones(13, bool), KEY)


# Each against its definition.


def test_mgda_is_the_shortest_convex_combination():
    supports = set()
    for seed in range(40):
        jacobian = gradients(seed)
        weights = factors("mgda", gram_of(jacobian)) / K
        shortest = weights @ jacobian
        square = shortest @ shortest
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        # Its distance from the optimum is at most what a vertex gains.
        assert (jacobian @ shortest).min() >= square - 1e-9 * (jacobian**2).sum()
        supports.add((weights > 0).sum())
    assert len(supports) >= 3


def test_mgda_of_two_tasks_is_the_closed_form():
    for seed in range(10):
        first, second = gradients(seed, 2)
        weight = (second - first) @ second / ((second - first) @ (second - first))
        weight = np.clip(weight, 0, 1)
        found = factors("mgda", gram_of(np.stack([first, second])))
        np.testing.assert_allclose(found, [2 * weight, 2 - 2 * weight], atol=1e-12)


def test_upgrad_sums_the_projections_onto_the_dual_cone():
    for seed in range(20):
        jacobian = gradients(seed)
        expected = 0
        for own in range(K):
            extra, _ = optimize.nnls(jacobian.T, -jacobian[own])
            expected = expected + np.eye(K)[own] + extra
        found = factors("upgrad", gram_of(jacobian))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ("upgrad", "pcgrad"))
def test_without_conflict_gradients_are_summed(name):
    found = factors(name, gram_of(np.abs(gradients(0))))
    np.testing.assert_allclose(found, 1, rtol=1e-12)


def test_cagrad_helps_the_worst_task_most_within_its_ball():
    for seed in range(40):
        jacobian = gradients(seed)
        mean = jacobian.mean(0)
        radius = 0.4 * np.linalg.norm(mean)
        found = factors("cagrad", gram_of(jacobian))
        found = 1.4 * found  # The paper's isn't divided by 1 + c.
        step = found @ jacobian / K
        assert np.linalg.norm(step - mean) <= radius * (1 + 1e-9)
        # Any w on the simplex bounds the best step's worst gain from above.
        weights = found - 1
        weights /= weights.sum()
        assert weights.min() >= -1e-12
        combined = weights @ jacobian
        bound = combined @ mean + radius * np.linalg.norm(combined)
        scale = (jacobian**2).sum()
        assert (jacobian @ step).min() >= bound - 1e-9 * scale


def test_cagrad_without_a_ball_is_the_sum():
    with jax.enable_x64(True):
        combine = jax.jit(surgery.make("cagrad", c=0.0))
        found = combine(gram_of(gradients(0)), ALL, KEY)
    np.testing.assert_array_equal(found, 1)


def test_cagrad_stays_bounded_where_gradients_cancel():
    jacobian = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    found = factors("cagrad", gram_of(jacobian))
    np.testing.assert_allclose(found @ jacobian, [0, 1 / 1.4], atol=1e-9)
    assert found.max() < 500


def test_nash_solves_the_bargaining_equation():
    for seed in range(20):
        jacobian = gradients(seed, spread=3.0)
        found = factors("nash", gram_of(jacobian))
        assert found.min() > 0
        step = found @ jacobian
        gains = found * (jacobian @ step)
        np.testing.assert_allclose(gains, (jacobian**2).sum() / K, rtol=1e-9)


def test_nash_makes_a_loss_s_scale_irrelevant():
    jacobian = gradients(0)
    scales = np.array([1e-3, 1, 10, 1, 1e3])
    first = factors("nash", gram_of(jacobian)) @ jacobian
    scaled = jacobian * scales[:, None]
    second = factors("nash", gram_of(scaled)) @ scaled
    first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
    np.testing.assert_allclose(second, first, atol=1e-9)


def test_imtl_g_gives_equal_projections():
    for seed in range(20):
        jacobian = gradients(seed)
        found = factors("imtl_g", gram_of(jacobian))
        assert found.sum() == pytest.approx(K)
        step = found @ jacobian
        projections = jacobian @ step / np.linalg.norm(jacobian, axis=1)
        np.testing.assert_allclose(projections, projections[0], rtol=1e-8)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_imtl_g_of_opposite_gradients_stands_still(dtype):
    lengths = np.array([[1.0], [-1.3], [2.1], [-0.3]])
    gram = gram_of(lengths * gradients(0, 1), dtype)
    np.testing.assert_array_equal(factors("imtl_g", gram), 0)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("size", (2, 3, 4))
def test_imtl_g_of_gradients_without_an_equal_projection_stands_still(size, dtype):
    in_conflict = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    turns = 2 * np.pi / 3 * np.arange(3)
    star = np.array([[1], [2], [0.3]]) * np.stack([np.cos(turns), np.sin(turns)], 1)
    jacobians = [in_conflict, star, np.concatenate([in_conflict, np.zeros((2, 2))])]
    jacobians += [gradients(seed, size=size) for seed in range(20)]
    for jacobian in jacobians:
        np.testing.assert_array_equal(factors("imtl_g", gram_of(jacobian, dtype)), 0)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_imtl_g_of_dependent_gradients_has_equal_projections_that_lower_losses(dtype):
    # On a cone all have the same projection on its axis; a repeated gradient of another
    # length leaves the length of d, and its sign, to be chosen.
    angles = np.arange(float(K))
    cone = np.stack([np.cos(angles), np.sin(angles), np.ones(K)], axis=1)
    jacobians = [cone * np.array([[1], [5], [0.2], [3], [1]])]
    for seed in range(60):
        few = gradients(seed, K - 1)
        jacobians.append(np.concatenate([few, np.exp(seed % 5 - 2.5) * few[:1]]))
    for jacobian in jacobians:
        step = factors("imtl_g", gram_of(jacobian, dtype)) @ jacobian
        projections = jacobian @ step / np.linalg.norm(jacobian, axis=1)
        assert projections.min() > 0
        np.testing.assert_allclose(projections, projections.mean(), rtol=0.02)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_nash_of_gradients_that_no_step_helps_hardly_moves(dtype):
    jacobians = [np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])]
    for seed in range(20):
        jacobian = gradients(seed, size=2, spread=0.3)
        jacobians.append(np.concatenate([jacobian, -jacobian.sum(0, keepdims=True)]))
    for jacobian in jacobians:
        step = factors("nash", gram_of(jacobian, dtype)) @ jacobian
        assert np.linalg.norm(step) < 0.05 * np.linalg.norm(jacobian)


def test_aligned_sums_the_nearest_orthogonal_gradients():
    for seed in range(20):
        jacobian = gradients(seed)
        left, values, right = np.linalg.svd(jacobian, full_matrices=False)
        aligned = values.min() * left @ right
        assert np.linalg.cond(aligned) == pytest.approx(1)
        found = factors("aligned", gram_of(jacobian)) @ jacobian
        np.testing.assert_allclose(found, aligned.sum(0), rtol=1e-7, atol=1e-9)


def pcgrad_of_vectors(jacobian, active, orders):
    """The paper's algorithm 1 on whole gradients."""
    total = 0
    for own in np.flatnonzero(active):
        found = jacobian[own]
        for other in orders[own]:
            if other != own and active[other]:
                against = min(found @ jacobian[other], 0)
                found = found - against / (jacobian[other] ** 2).sum() * jacobian[other]
        total = total + found
    return total


def test_pcgrad_is_the_loop_over_whole_gradients():
    project = jax.jit(pcgrad.project)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        jacobian = gradients(seed)
        orders = np.stack([rng.permutation(K) for _ in range(K)])
        active = ALL if seed < 10 else rng.uniform(size=K) < 0.6
        with jax.enable_x64(True):
            found = np.asarray(project(gram_of(jacobian), active, orders))
        expected = pcgrad_of_vectors(jacobian, active, orders)
        np.testing.assert_allclose(found @ jacobian, expected, rtol=1e-9, atol=1e-9)


def test_pcgrad_draws_every_order_equally_often():
    # Three tasks: six results at most a task, two orders of the others each.
    jacobian = np.array([[1.0, 0.0], [-1.0, 0.6], [-0.5, -1.0]])
    gram = gram_of(jacobian)
    possible = []
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        total = pcgrad_of_vectors(jacobian, np.ones(3, bool), orders)
        possible.append(total)
    with jax.enable_x64(True):
        draw = jax.jit(jax.vmap(surgery.make("pcgrad"), in_axes=(None, None, 0)))
        found = draw(gram, np.ones(3, bool), jax.random.split(KEY, 4000))
        found = np.asarray(found) @ jacobian
    assert np.ptp(possible, axis=0).min() > 0.1
    error = np.std(possible, axis=0) / np.sqrt(4000)
    np.testing.assert_array_less(
        abs(found.mean(0) - np.mean(possible, axis=0)), 4 * error
    )
