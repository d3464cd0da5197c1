"""The same gradients into TorchJD and into us: the same factors, in float64.

TorchJD's weights sum to 1 where a paper averages tasks; ours sum to the number of
tasks.
"""

import functools

import jax
import numpy as np
import pytest

from tqa_jax import surgery
from tqa_jax.surgery import pcgrad

torch = pytest.importorskip("torch")
aggregation = pytest.importorskip("torchjd.aggregation")

K = 5
SEEDS = range(10)


@functools.cache
def compiled(name, **options):
    return jax.jit(surgery.make(name, **options))


def gradients(seed, tasks=K, spread=1.0):
    """Random gradients in rows, some of them in conflict, of unequal norms."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(tasks, 12)) - 0.4 * rng.normal(size=12)
    return found * np.exp(spread * rng.normal(size=(tasks, 1)))


def ours(name, jacobian, **options):
    active = np.ones(len(jacobian), bool)
    with jax.enable_x64(True):
        gram = jacobian @ jacobian.T
        return np.asarray(compiled(name, **options)(gram, active, jax.random.key(0)))


def theirs(weighting, jacobian):
    jacobian = torch.from_numpy(jacobian)
    return weighting(jacobian @ jacobian.T).numpy()


@pytest.mark.parametrize("tasks", (1, 2, K))
def test_upgrad(tasks):
    pytest.importorskip("quadprog")
    pytest.importorskip("qpsolvers")
    from torchjd import linalg

    # Without the regularisation that TorchJD adds by default.
    projector = linalg.QuadprogProjector(norm_eps=0.0, reg_eps=0.0)
    weighting = aggregation.UPGradWeighting(projector=projector)
    for seed in SEEDS:
        jacobian = gradients(seed, tasks)
        expected = tasks * theirs(weighting, jacobian)
        np.testing.assert_allclose(ours("upgrad", jacobian), expected, rtol=1e-6)


def test_mgda_of_two_tasks():
    # One Frank-Wolfe step is exact for two tasks.
    weighting = aggregation.MGDAWeighting()
    for seed in SEEDS:
        jacobian = gradients(seed, 2)
        expected = 2 * theirs(weighting, jacobian)
        np.testing.assert_allclose(ours("mgda", jacobian), expected, atol=1e-6)


def test_mgda():
    # Frank-Wolfe comes near at a rate of 1 / steps, from above.
    weighting = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=3000)
    for seed in range(4):
        jacobian = gradients(seed)
        found = ours("mgda", jacobian) / K @ jacobian
        iterated = theirs(weighting, jacobian) @ jacobian
        assert found @ found <= (iterated @ iterated) * (1 + 1e-12)
        assert found @ found >= (iterated @ iterated) * (1 - 1e-3)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("c", (0.1, 0.4, 0.9))
def test_cagrad(c, monkeypatch):
    cvxpy = pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    # By default, the solver's steps are off by up to 2e-4.
    solve = functools.partialmethod(
        cvxpy.Problem.solve, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12
    )
    monkeypatch.setattr(cvxpy.Problem, "solve", solve)
    weighting = aggregation.CAGradWeighting(c=c, norm_eps=0.0)
    errors = []
    for seed in SEEDS:
        jacobian = gradients(seed)
        # TorchJD doesn't divide the step by 1 + c.
        expected = K / (1 + c) * theirs(weighting, jacobian) @ jacobian
        found = ours("cagrad", jacobian, c=c) @ jacobian
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    # An interior-point solver stops early where the optimum is flat.
    assert np.median(errors) < 1e-8
    assert max(errors) < 1e-5


@pytest.mark.parametrize("tasks", (1, 2, K))
def test_imtl_g(tasks):
    for seed in SEEDS:
        jacobian = gradients(seed, tasks)
        expected = tasks * theirs(aggregation.IMTLGWeighting(), jacobian)
        np.testing.assert_allclose(ours("imtl_g", jacobian), expected, rtol=1e-6)


@pytest.mark.parametrize("tasks", (1, 2, K))
def test_aligned(tasks):
    for seed in SEEDS:
        jacobian = gradients(seed, tasks)
        expected = tasks * theirs(aggregation.AlignedMTLWeighting(), jacobian)
        np.testing.assert_allclose(ours("aligned", jacobian), expected, rtol=1e-6)


def test_aligned_of_dependent_gradients():
    jacobian = gradients(0)[[0, 1, 2, 0, 1]]
    expected = K * theirs(aggregation.AlignedMTLWeighting(), jacobian)
    np.testing.assert_allclose(ours("aligned", jacobian), expected, rtol=1e-6)


def test_pcgrad():
    project = jax.jit(pcgrad.project)
    for seed in SEEDS:
        jacobian = gradients(seed)
        torch.manual_seed(seed)
        expected = theirs(aggregation.PCGradWeighting(), jacobian)
        torch.manual_seed(seed)
        orders = np.stack([torch.randperm(K).numpy() for _ in range(K)])
        with jax.enable_x64(True):
            found = project(jacobian @ jacobian.T, np.ones(K, bool), orders)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
def test_nash():
    pytest.importorskip("cvxpy")
    pytest.importorskip("ecos")
    for seed in SEEDS:
        # Norms far apart make TorchJD's solver fail, which it does not report.
        jacobian = gradients(seed, spread=0.0)
        aggregator = aggregation.NashMTL(n_tasks=K, max_norm=0.0)
        expected = aggregator.weighting(torch.from_numpy(jacobian)).numpy()
        # TorchJD solves the equation of the paper; we scale by the mean squared norm.
        expected = expected * np.sqrt((jacobian**2).sum() / K)
        np.testing.assert_allclose(ours("nash", jacobian), expected, rtol=1e-6)
