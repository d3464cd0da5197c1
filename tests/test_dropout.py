"""The counter hash's statistics, and dropout itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tqa_jax.models import dropout

SHAPE = (64, 150, 256)
SEEDS = (0, 1, 2**31)


@functools.cache
def draw(seed, fold=0):
    """Bits as a layer draws them: a key folded with the step."""
    rng = jax.random.fold_in(jax.random.key(np.uint32(seed)), fold)
    return np.asarray(jax.jit(dropout.bits, static_argnums=1)(rng, SHAPE))


def is_standard_normal(values, deviations=5):
    """Whether values that should be N(0, 1) have its variance and no outlier."""
    values = np.ravel(values)
    spread = np.sqrt(2 / max(len(values), 1))
    assert np.abs(values).max() < deviations, np.abs(values).max()
    assert abs(np.mean(values**2) - 1) < deviations * spread


@pytest.mark.parametrize("seed", SEEDS)
def test_every_bit_is_set_half_of_the_time(seed):
    found = draw(seed)
    ones = np.array([((found >> bit) & 1).sum(dtype=np.int64) for bit in range(32)])
    is_standard_normal((ones - found.size / 2) / np.sqrt(found.size / 4))


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_are_uniform(seed, shift):
    counts = np.bincount(((draw(seed) >> shift) & 255).ravel(), minlength=256)
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rate_holds_along_every_axis(rate, axis):
    dropped = draw(0) < rate * 2**32
    sums = dropped.sum(axis=tuple({0, 1, 2} - {axis}))
    number = dropped.size / dropped.shape[axis]
    is_standard_normal((sums - rate * number) / np.sqrt(rate * (1 - rate) * number))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_neighbours_are_independent(rate):
    """At all short lags, powers of two, and the strides of the layers."""
    dropped = (draw(1) < rate * 2**32).ravel() - rate
    lags = {*range(1, 65), *(2**k for k in range(7, 20)), 150, 256, 150 * 256}
    products = [
        (dropped[lag:] * dropped[:-lag]).sum() / np.sqrt(len(dropped) - lag)
        for lag in sorted(lags)
    ]
    is_standard_normal(np.array(products) / (rate * (1 - rate)))


def test_masks_of_steps_seeds_and_layers_are_independent():
    keys = [(seed, fold) for seed in SEEDS for fold in range(4)]
    masks = [(draw(*key) < 2**31).ravel() * 2.0 - 1 for key in keys]
    products = [
        (masks[i] * masks[j]).sum() / np.sqrt(masks[i].size)
        for i in range(len(masks))
        for j in range(i)
    ]
    is_standard_normal(products)


def test_a_position_over_many_steps_is_fair():
    """The first entries of a layer over 20,000 steps: rate and serial correlation."""
    rngs = jax.vmap(lambda step: jax.random.fold_in(jax.random.key(3), step))(
        jnp.arange(20_000)
    )
    found = np.asarray(jax.jit(jax.vmap(lambda rng: dropout.bits(rng, (16,))))(rngs))
    signs = (found < 2**31) * 2.0 - 1
    is_standard_normal(signs.sum(axis=0) / np.sqrt(len(signs)))
    is_standard_normal((signs[1:] * signs[:-1]).sum(axis=0) / np.sqrt(len(signs) - 1))


def test_a_changed_position_or_key_changes_half_of_the_bits():
    found = draw(0).ravel()[: 2**16].copy()
    for bit in range(16):
        flipped = found ^ found[np.arange(len(found)) ^ (1 << bit)]
        share = np.unpackbits(flipped.view(np.uint8)).mean()
        assert abs(share - 0.5) < 0.003
    share = np.unpackbits((draw(0) ^ draw(1)).view(np.uint8)).mean()
    assert abs(share - 0.5) < 0.001


def test_vmapped_keys_draw_what_they_draw_alone():
    rngs = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda rng: dropout.bits(rng, (5, 7)))(rngs)
    for rng, found in zip(rngs, together, strict=True):
        np.testing.assert_array_equal(found, dropout.bits(rng, (5, 7)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_entries_are_scaled_and_the_gradient_is_the_mask(dtype):
    x = jnp.ones((100, 1000), dtype)
    found, pull = jax.vjp(lambda x: dropout.drop(x, 0.2, jax.random.key(0)), x)
    assert found.dtype == x.dtype
    assert set(np.unique(found.astype(np.float32))) == {0.0, 1.25}
    assert abs(float((found == 0).mean()) - 0.2) < 0.005
    np.testing.assert_array_equal(pull(jnp.ones_like(x))[0], found)


def test_a_traced_rate_is_the_number():
    x, rng = jnp.ones((50, 50)), jax.random.key(1)
    traced = jax.jit(lambda rate: dropout.drop(x, rate, rng))(0.3)
    np.testing.assert_array_equal(traced, dropout.drop(x, 0.3, rng))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_without_an_rng_or_a_rate_nothing_is_dropped(rate):
    x = jnp.arange(6.0)
    rngs = None if rate else {"dropout": jax.random.key(0)}
    np.testing.assert_array_equal(dropout.Dropout(rate).apply({}, x, rngs=rngs), x)
