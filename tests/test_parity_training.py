"""The training step against PyTorch's: what the bench `train` compares is equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benches import _ours, _sizes
from tqa_jax import schema

torch = pytest.importorskip("torch")

from experiments.benches import (  # noqa: E402
    _torch_network,
    _torch_training,
    train,
)

SIZE = _sizes.Size(8, 6, _sizes.SMALL | {"width": 16})
K = len(schema.TASKS)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Threads of sizes this small only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(dropout):
    """Model, its parameters, and PyTorch's run from the same ones."""
    model = _ours.model(SIZE, dropout)
    params = _ours.noisy(model.init(jax.random.key(0)))
    training = _torch_training.Training(
        model.options,
        _ours.flat(params),
        num_tasks=K,
        learning_rate=_sizes.LEARNING_RATE,
        device=torch.device("cpu"),
    )
    return model, params, training


def tensors(batch):
    features = [torch.tensor(batch.features[name]) for name in _sizes.WIDTHS]
    return features, torch.tensor(batch.labels), torch.tensor(batch.label_mask)


@pytest.fixture(scope="module")
def ours():
    """Our first step without dropout, with a fifth of the labels missing."""
    model, params, _ = start(0.0)
    batch = _ours.draw(SIZE, missing=0.2)
    assert not batch.label_mask.all()
    fixed = _ours.weights("fixed")
    state = _ours.state(model, fixed)
    state = state.replace(params=jax.tree.map(jnp.asarray, params))
    scores = np.asarray(jax.jit(model.apply)(state.params, batch))
    state, metrics = jax.jit(_ours.step(model, fixed))(state, batch)
    return batch, _ours.outcome(state, scores, float(metrics["total"]))


def compared(ours, change=lambda training: None):
    """Differences of a PyTorch run after the same step."""
    batch, outcome = ours
    _, _, training = start(0.0)
    change(training)
    features, labels, present = tensors(batch)
    scores = training.scores(features)
    total = float(training.step(features, labels, present))
    return _torch_training.differences(training, scores, total, outcome)


def test_scores_loss_gradient_and_updated_parameters_agree(ours):
    found = compared(ours)
    assert found["scores"] < 1e-5
    assert found["loss"] < 1e-6
    assert found["gradient"] < 1e-6
    assert found["params"] < 0.01
    assert found["unsure"] < 0.01


def more_decay(training):
    for group in training.optimizer.param_groups:
        group["weight_decay"] = 100.0


def moved(training):
    with torch.no_grad():
        training.network.path_a_contract.bias.mul_(1.1)


@pytest.mark.parametrize(
    "change, what", [(more_decay, "params"), (moved, "gradient"), (moved, "scores")]
)
def test_a_difference_is_seen(ours, change, what):
    assert compared(ours, change)[what] > train.LIMITS[what]


def test_dropout_moves_scores_as_much_on_both_sides():
    # Places and rates: mean and deviation over draws of one clip's scores.
    draws, rate = 4000, 0.4
    model, params, training = start(rate)
    batch = jax.tree.map(lambda leaf: leaf[:1], _ours.draw(SIZE))
    keys = jax.random.split(jax.random.key(1), draws)
    ours = jax.jit(jax.vmap(lambda key: model.apply(params, batch, key)[0]))(keys)
    torch.manual_seed(0)
    features, _, _ = tensors(batch)
    many = [one.expand(draws, -1, -1) for one in features]
    with torch.no_grad():
        theirs = training.network(*many).numpy()
    ours, deviation = np.asarray(ours), theirs.std(axis=0)
    assert deviation.min() > 0.05
    error = np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / deviation
    assert error.max() < 5 * np.sqrt(2 / draws)
    # The deviation of 4,000 draws is known to about 1.5 %, heavy tails included.
    np.testing.assert_allclose(ours.std(axis=0), deviation, rtol=0.07)


def test_without_dropout_nothing_is_random():
    _, _, training = start(0.0)
    features, _, _ = tensors(_ours.draw(SIZE))
    with torch.no_grad():
        one, two = training.network(*features), training.network(*features)
    np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_every_parameter_has_its_place():
    model = _ours.model(SIZE, 0.1)
    params = _ours.flat(model.init(jax.random.key(0)))
    arranged = _torch_network.arrange(params)
    found = sum(array.numel() for array in arranged.values())
    absent = params["absent"].size
    assert found + absent == sum(array.size for array in params.values())
