"""Loss weightings against TorchJD's scalarisations: same losses in, same weights out.

TorchJD's weight of a loss is the derivative of its scalar with respect to it, so that
nothing inside it is relied on. Where it sums weights to 1, ours sum to K.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tqa_jax import weighting

torch = pytest.importorskip("torch")
scalarization = pytest.importorskip("torchjd.scalarization")

TASKS = ("lip_sync", "audio_quality", "expression", "overall")
K = len(TASKS)
STEPS = 12
LOSSES = np.exp(np.random.default_rng(0).normal(size=(STEPS, K)))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def ours(name, **options):
    """Weights of every step, in float64."""
    facts = {"label_variances": np.ones(K), "steps_per_epoch": 3}
    made = weighting.make(name, tasks=TASKS, facts=facts, **options)

    def wide(leaf):
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(jnp.float64) if floats else leaf

    def step(state, losses):
        signals = weighting.Signals(
            losses, jnp.ones(K, bool), jnp.ones(K), jnp.ones(()), jax.random.key(0)
        )
        weights = made.weights(state, signals)
        return made.update(state, signals), weights

    start = jax.tree.map(wide, made.init())
    _, weights = jax.jit(lambda s, x: jax.lax.scan(step, s, x))(start, LOSSES)
    return np.asarray(weights)


def weights_of(scalar, losses):
    losses = torch.tensor(losses, requires_grad=True)
    scalar(losses).backward()
    return losses.grad.numpy()


def close(found, wanted, tolerance=1e-6):
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_uncertainty_is_twice_the_papers_form():
    # Adam does not see the factor of two, up to its epsilon.
    scalar = scalarization.UW(K).double()
    optimizer = torch.optim.Adam(scalar.parameters(), lr=0.05)
    weights = ours("uncertainty", learning_rate=0.05)
    for losses, found in zip(LOSSES, weights, strict=True):
        close(found, 2 * weights_of(scalar, losses))
        optimizer.zero_grad()
        scalar(torch.tensor(losses)).backward()
        optimizer.step()


def test_imtl_l():
    scalar = scalarization.IMTLL(K).double()
    optimizer = torch.optim.Adam(scalar.parameters(), lr=0.05)
    weights = ours("imtl_l", learning_rate=0.05)
    for losses, found in zip(LOSSES, weights, strict=True):
        close(found, weights_of(scalar, losses))
        optimizer.zero_grad()
        scalar(torch.tensor(losses)).backward()
        optimizer.step()


def test_dwa():
    scalar = scalarization.DWA(temperature=2.0)
    weights = ours("dwa", temperature=2.0)
    for number, losses in enumerate(LOSSES):
        wanted = weights_of(scalar, losses)
        if number % 3:  # Our epoch is ended by the first step of the next.
            close(weights[number], wanted)
        if number % 3 == 2:
            scalar.step()
    assert np.abs(weights[-1] - 1).max() > 0.1


def test_famo():
    # Its "after the step on the same batch" is here the next step.
    scalar = scalarization.FAMO(K, lr=0.025, weight_decay=1e-3).double()
    weights = ours("famo", learning_rate=0.025, decay=1e-3)
    for number, losses in enumerate(LOSSES):
        close(weights[number], K * weights_of(scalar, losses))
        if number:
            scalar(torch.tensor(LOSSES[number - 1]))
            scalar.update(torch.tensor(losses))
    assert np.abs(np.diff(weights * LOSSES, axis=0)).max() > 0.05


@pytest.mark.parametrize("mu", [0.2, 1.0, 10.0])
def test_stch(mu):
    # Its preferences are 1 / K, ours 1.
    scalar = scalarization.STCH(mu / K)
    weights = ours("stch", mu=mu)
    for losses, found in zip(LOSSES, weights, strict=True):
        close(found, K * K * weights_of(scalar, losses))


def test_rlw_is_a_softmax_of_normal_draws():
    # The generators differ: what is compared is the formula of a replayed draw.
    torch.manual_seed(3)
    drawn = torch.randn(K, dtype=torch.float64).numpy()
    torch.manual_seed(3)
    wanted = K * weights_of(scalarization.Random(), LOSSES[0])
    close(weighting.softmax(jnp.asarray(drawn), jnp.ones(K, bool)), wanted)


def test_fixed():
    values = dict(zip(TASKS, [2.0, 0.5, 1.0, 4.0], strict=True))
    weights = ours("fixed", values=values)
    scalar = scalarization.Constant(torch.tensor([2.0, 0.5, 1.0, 4.0]).double())
    close(weights[0], weights_of(scalar, LOSSES[0]))
