"""The weights that attention gives out are those that it works with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.interpreting import over_time
from tqa_jax.models import attention

HEADS, WIDTH = 2, 8


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(("frames", "window"), [(7, 0), (7, 2), (90, 5), (90, 80)])
def test_weights_times_values_are_the_output_of_the_layer(frames, window, remat):
    rng = np.random.default_rng(frames)
    x = rng.normal(size=(3, 2, frames, WIDTH)).astype(np.float32)
    mask = rng.random((3, 2, frames)) < 0.7
    mask[..., 0] = True  # Every query of the first frames has something to see.
    layer = attention.SelfAttention(HEADS, 0.0, jnp.float32, window, remat)
    variables = layer.init(jax.random.key(0), x, mask)
    assert set(variables) == {"params"}
    params = jax.tree.map(
        lambda leaf: leaf + 0.4 * rng.normal(size=leaf.shape).astype(np.float32),
        variables["params"],
    )
    kept = [attention.WEIGHTS]
    found, given = layer.apply({"params": params}, x, mask, mutable=kept)
    (weights,) = given[attention.WEIGHTS]["weights"]
    assert weights.shape == (3, 2, HEADS, frames, frames)
    size = WIDTH // HEADS
    value = np.einsum("...td,dhk->...htk", x, params["value"]["kernel"])
    value = value + np.asarray(params["value"]["bias"])[:, None]
    mixed = np.einsum("...hqt,...htk->...qhk", weights, value)
    assert mixed.shape[-1] == size
    expected = np.einsum("...hk,hkd->...d", mixed, params["out"]["kernel"])
    expected = expected + np.asarray(params["out"]["bias"])
    place = np.arange(frames)
    near = abs(place[:, None] - place) <= (window or frames)
    sees = (mask[..., None, :] & near).any(axis=-1)
    assert sees.mean() > 0.7
    np.testing.assert_allclose(found[sees], expected[sees], atol=1e-5)
    np.testing.assert_allclose(np.asarray(weights).sum(axis=-1), 1, atol=1e-6)
    hidden = ~(mask[..., None, None, :] & near) & sees[..., None, :, None]
    assert np.abs(np.where(hidden, weights, 0)).max() == 0


def test_received_and_evenness_are_those_of_loops():
    rng = np.random.default_rng(0)
    mask = rng.random((2, 9)) < 0.7
    for window in (0, 3):
        near = abs(np.arange(9)[:, None] - np.arange(9)) <= (window or 9)
        weights = rng.random((4, 2, 3, 9, 9)) ** 4 * (mask[:, None, None, :] & near)
        weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)
        got = over_time.received(weights, mask, window)
        even = over_time.evenness(weights, mask, window)
        for m in range(2):
            asks = np.flatnonzero(mask[m])
            usual = np.zeros(9)
            for q in asks:
                seen = np.flatnonzero(mask[m] & near[q])
                usual[seen] += 1 / len(seen)
            given = weights[:, m][:, :, asks].sum(axis=2).mean(axis=(0, 1))
            np.testing.assert_allclose(got[m][asks], given[asks] / usual[asks])
            assert np.isnan(got[m][~mask[m]]).all()
            for h in range(3):
                shares = [
                    -(w[w > 0] * np.log(w[w > 0])).sum()
                    / np.log((mask[m] & near[q]).sum())
                    for layer in range(4)
                    for q in asks
                    if (mask[m] & near[q]).sum() > 1
                    for w in [weights[layer, m, h, q]]
                ]
                assert even[m, h] == pytest.approx(np.mean(shares))


def test_even_attention_is_one_everywhere_and_a_single_frame_is_zero():
    mask = np.array([[True, True, False, True, True]])
    for window in (0, 1):
        near = abs(np.arange(5)[:, None] - np.arange(5)) <= (window or 5)
        seen = (mask[0] & near).astype(float)
        even = (seen / seen.sum(axis=-1, keepdims=True))[None, None, None]
        shares = over_time.received(even, mask, window)
        np.testing.assert_allclose(shares[mask], 1)
        np.testing.assert_allclose(over_time.evenness(even, mask, window), 1)
    one = np.zeros((1, 1, 1, 5, 5))
    one[..., 3] = 1
    np.testing.assert_allclose(
        over_time.received(one, mask)[0], [0, 0, np.nan, 4, 0], equal_nan=True
    )
    np.testing.assert_allclose(over_time.evenness(one, mask), 0)
    nothing = np.zeros((1, 5), bool)
    assert np.isnan(over_time.received(one, nothing)).all()
    assert np.isnan(over_time.evenness(one, nothing)).all()
