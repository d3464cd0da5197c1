"""The toy problem of the GradNorm paper (Chen et al., ICML 2018, section 4).

Task i regresses f_i(x) = sigma_i tanh((B + eps_i) x), B ~ N(0, 10), eps_i ~ N(0, 3.5),
from 250 inputs to 100 outputs. Four ReLU layers of 100 units are shared, an affine head
belongs to each task, and the loss is the squared error. Tasks are related and equally
hard; they differ in scale alone, so only L_i(t) / L_i(0) on test data compares them.

The paper leaves open the inputs' distribution, the batch size and the rates. Here 10
and 3.5 are standard deviations, x is uniform on [-1, 1] and scaled to unit length, and
every batch is drawn anew; the loss is the mean over samples and outputs.

The one thing to know: everything but the weighting is a function of seed and step, so
methods see the same data from the same start. Many seeds are one `vmap` over what a
single seed would do.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from tqa_jax import multitask, weighting

PATH = ("shared3", "kernel")  # W, of the last shared layer.
_LAYERS = 4

Params = dict[str, dict[str, jax.Array]]


class Sizes(NamedTuple):
    """Sizes of the problem; the defaults are the paper's where it gives them."""

    inputs: int = 250
    outputs: int = 100
    width: int = 100
    batch: int = 100
    test: int = 1000


DEFAULT_SIZES = Sizes()


class Samples(NamedTuple):
    """Inputs of unit length and every task's targets."""

    inputs: jax.Array  # (N, I)
    targets: jax.Array  # (K, N, O)


class Seed(NamedTuple):
    """What a seed decides.

    Attributes:
        matrices: B + eps_i of each task.
        params: of the network, at the start.
        test: samples that are never trained on.
        samples_rng: of the training samples.
        weights_rng: for a weighting that draws.
    """

    matrices: jax.Array  # (K, O, I)
    params: Params
    test: Samples
    samples_rng: jax.Array
    weights_rng: jax.Array


class State(NamedTuple):
    """What a method carries from step to step."""

    params: Params
    opt_state: optax.OptState
    weighting: weighting.State
    rng: jax.Array  # for a weighting that draws


class Measured(NamedTuple):
    """What is known on test data."""

    losses: jax.Array  # (K,)
    grad_norms: jax.Array  # (K,), of the unweighted losses at W


class History(NamedTuple):
    """What a run recorded on test data: R records of S seeds.

    Attributes:
        steps: taken before each record; the first is 0, the last the end.
        weights: of the tasks.
        ratios: L_i(t) / L_i(0).
        grad_norms: of the weighted losses at W.
    """

    steps: np.ndarray  # (R,)
    weights: np.ndarray  # (R, S, K)
    ratios: np.ndarray  # (R, S, K)
    grad_norms: np.ndarray  # (R, S, K)


def init(seed: Int[Array, ""], sigmas: Float[Array, " K"], sizes: Sizes) -> Seed:
    """Draws tasks, test samples and the network's start (He et al. 2015).

    Args:
        seed: source of all random numbers.
        sigmas: scale of each task's targets.
        sizes: of everything.
    """
    rngs = jax.random.split(jax.random.key(seed), 5)
    tasks_rng, test_rng, params_rng, samples_rng, weights_rng = rngs
    one, other = jax.random.split(tasks_rng)
    shape = (sizes.outputs, sizes.inputs)
    common = 10.0 * jax.random.normal(one, shape)
    matrices = common + 3.5 * jax.random.normal(other, (len(sigmas), *shape))

    rngs = jax.random.split(params_rng, _LAYERS + 1)
    he = jax.nn.initializers.he_normal()
    params = {}
    for layer in range(_LAYERS):
        shape = (sizes.width if layer else sizes.inputs, sizes.width)
        params[f"shared{layer}"] = {
            "kernel": he(rngs[layer], shape),
            "bias": jnp.zeros(sizes.width),
        }
    heads = jax.nn.initializers.he_normal(batch_axis=0)
    params["heads"] = {
        "kernel": heads(rngs[-1], (len(sigmas), sizes.width, sizes.outputs)),
        "bias": jnp.zeros((len(sigmas), sizes.outputs)),
    }
    test = sample(test_rng, matrices, sigmas, sizes.test)
    return Seed(matrices, params, test, samples_rng, weights_rng)


def sample(
    rng: jax.Array,
    matrices: Float[Array, "K O I"],
    sigmas: Float[Array, " K"],
    count: int,
) -> Samples:
    """Draws samples.

    Args:
        rng: key.
        matrices: B + eps_i of each task.
        sigmas: scale of each task's targets.
        count: number of samples.
    """
    inputs = jax.random.uniform(
        rng, (count, matrices.shape[-1]), minval=-1.0, maxval=1.0
    )
    inputs = inputs / jnp.linalg.norm(inputs, axis=-1, keepdims=True)
    raw = jnp.einsum("koi,ni->kno", matrices, inputs)
    return Samples(inputs, sigmas[:, None, None] * jnp.tanh(raw))


def batches(
    seed: Seed, steps: Int[Array, " S"], sigmas: Float[Array, " K"], count: int
) -> Samples:
    """Draws the training samples of some steps, with a leading axis of steps.

    Args:
        seed: from `init`.
        steps: numbers of the steps; a step has the same samples in any company.
        sigmas: scale of each task's targets.
        count: samples in a batch.
    """

    def one(step: Int[Array, ""]) -> Samples:
        return sample(
            jax.random.fold_in(seed.samples_rng, step), seed.matrices, sigmas, count
        )

    return jax.vmap(one)(steps)


def functions(samples: Samples) -> multitask.Functions:
    """The network and its losses on some samples."""

    def trunk(params: Params) -> Float[Array, "N H"]:
        hidden = samples.inputs
        for layer in range(_LAYERS - 1):
            hidden = _layer(params[f"shared{layer}"], hidden)
        return hidden

    def heads(params: Params, copies: Float[Array, "K N H"]) -> Float[Array, "K N O"]:
        found = jnp.matmul(copies, params["heads"]["kernel"])
        return found + params["heads"]["bias"][:, None]

    return multitask.Functions(
        trunk,
        lambda params, hidden: _layer(params[PATH[0]], hidden),
        heads,
        lambda outputs: jnp.square(outputs - samples.targets).mean(axis=(1, 2)),
    )


def _layer(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    return jax.nn.relu(inputs @ params["kernel"] + params["bias"])


def measure(params: Params, samples: Samples) -> Measured:
    """Measures losses and gradient norms.

    Args:
        params: of the network.
        samples: test data.
    """
    found = multitask.forward(
        functions(samples), params, path=PATH, num_tasks=len(samples.targets)
    )
    return Measured(found.losses, jnp.sqrt(jnp.diagonal(found.gram)))


def start(
    seed: Seed,
    weights: weighting.Weighting,
    optimizer: optax.GradientTransformation,
) -> State:
    """Starts a method."""
    return State(
        seed.params, optimizer.init(seed.params), weights.init(), seed.weights_rng
    )


def weights_of(
    weights: weighting.Weighting, state: State, measured: Measured
) -> Float[Array, " K"]:
    """Weights that the next step would use, were the test data its batch."""
    return weights.weights(state.weighting, _signals(measured, state.rng))


def _signals(measured: Measured, rng: jax.Array) -> weighting.Signals:
    return weighting.Signals(
        measured.losses,
        jnp.ones(measured.losses.shape, bool),
        measured.grad_norms,
        jnp.ones((), jnp.float32),
        rng,
    )


def make_train(
    weights: weighting.Weighting, optimizer: optax.GradientTransformation
) -> Callable[[State, Samples], State]:
    """Makes what trains one seed.

    Args:
        weights: the task weighting.
        optimizer: of the network.

    Returns:
        `(state, samples) -> state`, where samples have a leading axis of steps.
    """

    def step(state: State, samples: Samples) -> tuple[State, None]:
        rng, weights_rng = jax.random.split(state.rng)
        found = multitask.forward(
            functions(samples), state.params, path=PATH, num_tasks=len(samples.targets)
        )
        norms = jnp.sqrt(jnp.diagonal(found.gram))
        signals = _signals(Measured(found.losses, norms), weights_rng)
        # Algorithm 1: the network's gradient has the weights before their update.
        gradient = found.backward(weights.weights(state.weighting, signals))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        weighting_state = weights.update(state.weighting, signals)
        return State(params, opt_state, weighting_state, rng), None

    return lambda state, samples: jax.lax.scan(step, state, samples)[0]


def run(
    methods: Mapping[str, weighting.Weighting],
    *,
    sigmas: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    learning_rate: float = 1e-3,
    sizes: Sizes = DEFAULT_SIZES,
    every: int = 50,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, History]:
    """Trains every method from every seed; one program for each method.

    Args:
        methods: the weightings by name.
        sigmas: scale of each task's targets.
        seeds: of tasks, data and the network's start.
        steps: training steps.
        learning_rate: of Adam on the network, constant.
        sizes: of everything.
        every: steps between records; the start and the end are recorded in any case.
        advance: called after each record with the number of steps since the last.
    """
    scales = jnp.array(sigmas, jnp.float32)
    optimizer = optax.adam(learning_rate)
    drawn = jax.jit(jax.vmap(lambda seed: init(seed, scales, sizes)))(jnp.array(seeds))

    @jax.jit
    def draw(drawn: Seed, steps: Int[Array, " S"]) -> Samples:
        one = functools.partial(batches, steps=steps, sigmas=scales, count=sizes.batch)
        return jax.vmap(one)(drawn)

    measure_all = jax.jit(jax.vmap(measure))
    train, weigh, states, records = {}, {}, {}, {}
    for name, weights in methods.items():
        train[name] = jax.jit(jax.vmap(make_train(weights, optimizer)))
        weigh[name] = jax.jit(jax.vmap(functools.partial(weights_of, weights)))
        begin = functools.partial(start, weights=weights, optimizer=optimizer)
        states[name] = jax.vmap(begin)(drawn)
        records[name] = []

    numbers = sorted({*range(0, steps, every), steps})
    for last, number in zip([0, *numbers], numbers, strict=False):
        samples = draw(drawn, jnp.arange(last, number)) if number else None
        for name, state in states.items():
            if number:
                states[name] = state = train[name](state, samples)
            measured = measure_all(state.params, drawn.test)
            records[name].append(
                (measured.losses, measured.grad_norms, weigh[name](state, measured))
            )
        jax.block_until_ready(records)
        advance(number - last)

    found = {}
    for name, rows in records.items():
        losses, norms, weights = (np.array(one) for one in zip(*rows, strict=True))
        with np.errstate(all="ignore"):  # A method may have diverged.
            found[name] = History(
                np.array(numbers), weights, losses / losses[0], weights * norms
            )
    return found
