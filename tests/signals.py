"""What a training step tells a weighting, made up; shared by the weightings' tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tqa_jax import weighting

TASKS = ("lip_sync", "audio_quality", "expression", "overall")
K = len(TASKS)
STEPS = 50


@functools.cache
def programs(name, tasks=TASKS, **options):
    """A weighting, and its functions compiled once for all tests."""
    facts = {"steps_per_epoch": 7, "label_variances": np.ones(len(tasks))}
    made = weighting.make(name, tasks=tasks, facts=facts, **options)
    update = jax.jit(made.update)

    def body(state, signals):
        state = made.update(state, signals)
        return state, (made.weights(state, signals), state)

    @jax.jit
    def scan(state, signals):
        return jax.lax.scan(body, state, signals)

    return made, update, scan


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
        rng=jax.random.split(jax.random.key(seed), steps),
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
        jax.random.key(0),
    )


def weights_of(made, state, signals=None):
    """Weights of a step in which all tasks have a loss of 1, unless told another."""
    return made.weights(state, signals_of(np.ones(K)) if signals is None else signals)


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


def constant(losses, steps):
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (steps, *leaf.shape)), signals_of(losses)
    )
