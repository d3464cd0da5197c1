"""Our self-attention is Flax's, and windowed is full attention with a band mask."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import test_util

from tqa_jax.models import attention

HEADS, WIDTH = 2, 8


def make(window=0, dropout=0.0, dtype=jnp.float32):
    return attention.SelfAttention(HEADS, dropout, dtype, window)


def draw(frames, seed=0, clips=(2, 2)):
    """Tokens and a mask with gaps, one clip of which has nothing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*clips, frames, WIDTH)).astype(np.float32)
    mask = rng.random((*clips, frames)) < 0.7
    mask[0, 0] = False
    mask[-1, -1, : frames // 2] = False
    return x, mask


@pytest.fixture(scope="module")
def params():
    x, mask = draw(4)
    found = make().init(jax.random.key(0), x, mask)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), found
    )


def apply(layer, params, x, mask, rng=None):
    rngs = None if rng is None else {"dropout": rng}
    return layer.apply({"params": params}, x, mask, rngs=rngs)


def flax_apply(params, x, mask, dtype=jnp.float32):
    """Flax's module; `mask` is (..., 1 or T, T)."""
    layer = nn.MultiHeadDotProductAttention(
        num_heads=HEADS, dtype=dtype, force_fp32_for_softmax=True
    )
    return layer.apply({"params": params}, x, mask=mask[..., None, :, :])


def band(frames, window):
    place = np.arange(frames)
    return np.abs(place[:, None] - place) <= window


def gradients(function, params, x, weigh):
    """Gradients of a weighted sum of outputs by parameters and tokens."""

    def loss(params, x):
        return (function(params, x) * weigh).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)


def assert_close(got, want, tolerance=2e-6):
    """Compares leaves on the scale of the largest: a key's bias has gradient 0."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))

    def check(path, a, b):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, atol=tolerance * largest, err_msg=where)

    jax.tree_util.tree_map_with_path(check, got, want)


def test_parameters_are_those_of_flax_to_the_bit():
    x, mask = draw(4)
    ours = make().init(jax.random.key(3), x, mask)
    flax = nn.MultiHeadDotProductAttention(num_heads=HEADS).init(jax.random.key(3), x)
    jax.tree.map(np.testing.assert_array_equal, ours, flax)


@pytest.mark.parametrize("window", [0, 3])
def test_values_and_gradients_are_those_of_flax(params, window):
    frames = 9
    x, mask = draw(frames)
    seen = mask[..., None, :] & band(frames, window or frames)
    some = seen.any(axis=-1, keepdims=True)  # Other queries mean nothing.
    assert not some.all()
    got = apply(make(window), params, x, mask)
    want = flax_apply(params, x, seen)
    assert np.isfinite(got).all()
    assert_close(got * some, want * some, 1e-6)
    weigh = np.random.default_rng(2).normal(size=x.shape) * some
    assert_close(
        gradients(lambda p, x: apply(make(window), p, x, mask), params, x, weigh),
        gradients(lambda p, x: flax_apply(p, x, seen), params, x, weigh),
    )


def test_a_query_without_keys_gets_the_mean_of_values(params):
    x, mask = draw(5)
    layer = make()
    values = x @ params["value"]["kernel"].reshape(WIDTH, WIDTH)
    mean = (values + params["value"]["bias"].ravel())[0, 0].mean(axis=0)
    want = mean @ params["out"]["kernel"].reshape(WIDTH, WIDTH) + params["out"]["bias"]
    got = apply(layer, params, x, mask)[0, 0]
    np.testing.assert_allclose(got, np.tile(want, (5, 1)), rtol=1e-5, atol=1e-5)


def reference(params, x, mask, window):
    """One clip, query by query, float64; NaN where nothing is seen."""
    part = {
        name: np.einsum("td,dhe->hte", x, np.float64(one["kernel"]))
        + np.float64(one["bias"])[:, None]
        for name, one in params.items()
        if name != "out"
    }
    out = np.full(x.shape, np.nan)
    for t in range(len(x)):
        seen = [s for s in range(len(x)) if abs(s - t) <= window and mask[s]]
        if not seen:
            continue
        scores = np.einsum("he,hse->hs", part["query"][:, t], part["key"][:, seen])
        weights = np.exp(scores / np.sqrt(WIDTH / HEADS))
        weights /= weights.sum(axis=1, keepdims=True)
        heads = np.einsum("hs,hse->he", weights, part["value"][:, seen])
        out[t] = np.einsum("he,hed->d", heads, np.float64(params["out"]["kernel"]))
    return out + np.float64(params["out"]["bias"])


# In blocks from 4 frames on: one short of a block, whole blocks, one over; a window
# that is smaller than a block; and a length that takes the full path with a band.
@pytest.mark.parametrize(
    ("frames", "window"), [(23, 4), (24, 4), (25, 4), (22, 1), (11, 4), (13, 4)]
)
def test_windowed_attention_is_a_loop_over_queries(params, frames, window, monkeypatch):
    monkeypatch.setattr(attention, "_FEW_FRAMES", 4)
    x, mask = draw(frames, seed=frames)
    got = np.asarray(apply(make(window), params, x, mask))
    assert np.isfinite(got).all()
    seen = 0
    for place in np.ndindex(*x.shape[:2]):
        want = reference(params, np.float64(x[place]), mask[place], window)
        some = np.isfinite(want).all(axis=-1)
        np.testing.assert_allclose(got[place][some], want[some], rtol=2e-5, atol=2e-5)
        seen += some.sum()
    assert seen > 2 * frames


@pytest.mark.parametrize(("frames", "window"), [(23, 4), (24, 2)])
def test_gradients_in_blocks_are_those_of_flax(params, frames, window, monkeypatch):
    monkeypatch.setattr(attention, "_FEW_FRAMES", 4)
    x, mask = draw(frames)
    seen = mask[..., None, :] & band(frames, window)
    some = seen.any(axis=-1, keepdims=True)
    weigh = np.random.default_rng(2).normal(size=x.shape) * some
    layer = make(window)
    plain = gradients(lambda p, x: apply(layer, p, x, mask), params, x, weigh)
    assert_close(
        plain, gradients(lambda p, x: flax_apply(p, x, seen), params, x, weigh)
    )

    def one_by_one(params, x):
        return jax.lax.map(lambda clip: apply(layer, params, *clip), (x, mask))

    def vmapped(params, x):
        return jax.vmap(lambda x, mask: apply(layer, params, x, mask))(x, mask)

    def again(params, x):
        return jax.checkpoint(lambda p, x: apply(layer, p, x, mask))(params, x)

    for function in (one_by_one, vmapped, again):
        assert_close(gradients(function, params, x, weigh), plain)


@pytest.mark.parametrize("window", [17, 18, 500])
def test_window_that_covers_the_clip_is_full_attention(params, window):
    x, mask = draw(18)
    np.testing.assert_array_equal(
        apply(make(window), params, x, mask), apply(make(), params, x, mask)
    )


def test_padding_changes_nothing_in_a_window(params, monkeypatch):
    monkeypatch.setattr(attention, "_FEW_FRAMES", 4)
    x, mask = draw(21)
    want = apply(make(4), params, x, mask)
    for more in (1, 3, 8):
        padded = np.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)), constant_values=7)
        padded_mask = np.pad(mask, ((0, 0), (0, 0), (0, more)))
        got = apply(make(4), params, padded, padded_mask)[..., :21, :]
        some = (mask[..., None, :] & band(21, 4)).any(axis=-1)
        np.testing.assert_allclose(got[some], want[some], rtol=1e-6, atol=1e-6)


def test_work_grows_with_the_length_and_not_with_its_square(params):
    def work(frames):
        x, mask = draw(frames, clips=(1, 1))
        compiled = jax.jit(lambda x, m: apply(make(16), params, x, m)).lower(x, mask)
        return compiled.compile().cost_analysis()["flops"]

    assert work(2048) / work(512) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_has_a_float32_softmax(params, dtype, window, monkeypatch):
    monkeypatch.setattr(attention, "_FEW_FRAMES", 4)
    x, mask = draw(25)
    # Scores so far apart that a softmax in low precision would be off.
    far = jax.tree.map(lambda leaf: leaf, params)
    far["query"] = jax.tree.map(lambda leaf: 4 * leaf, params["query"])
    seen = mask[..., None, :] & band(25, window or 25)
    some = seen.any(axis=-1, keepdims=True)
    layer = make(window, dtype=jnp.dtype(dtype))
    weigh = np.random.default_rng(2).normal(size=x.shape) * some

    def both(function):
        out = function(far, x)
        return out * some, gradients(function, far, x, weigh)

    ours = both(lambda p, x: apply(layer, p, x, mask))
    flax = both(lambda p, x: flax_apply(p, x, seen, jnp.dtype(dtype)))
    exact = both(lambda p, x: flax_apply(p, x, seen))
    assert ours[0].dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(ours[1])} == {jnp.dtype("float32")}

    def error(found):
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
        of_out, *of_leaves = (np.square(np.float32(a) - b) for a, b in pairs)
        return np.sqrt(
            [of_out.mean(), np.concatenate([one.ravel() for one in of_leaves]).mean()]
        )

    # What is left is rounding, in other places than in Flax but as much of it.
    assert (error(ours) < 1.5 * error(flax)).all()


@pytest.mark.parametrize("window", [0, 2])
def test_dropout_scales_what_it_keeps_and_has_its_gradient(params, window):
    x, mask = draw(7)
    layer = make(window, dropout=0.4)
    rng = jax.random.key(5)
    np.testing.assert_array_equal(
        apply(layer, params, x, mask), apply(make(window), params, x, mask)
    )
    one = apply(layer, params, x, mask, rng)
    np.testing.assert_array_equal(one, apply(layer, params, x, mask, rng))
    # The mean over many masks is attention without dropout.
    many = jax.jit(jax.vmap(lambda rng: apply(layer, params, x, mask, rng)))(
        jax.random.split(rng, 4000)
    )
    error = many.std(axis=0) / np.sqrt(4000)
    off = np.abs(many.mean(axis=0) - apply(layer, params, x, mask)) / error
    assert off.max() < 5 and np.abs(one - many[0]).max() > 1e-2
    # A query without keys has no gradient that means anything.
    some = (mask[..., None, :] & band(7, window or 7)).any(axis=-1, keepdims=True)
    with jax.enable_x64(True):
        exact = attention.SelfAttention(HEADS, 0.4, jnp.float64, window)
        params64 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)

        def loss(params, x):
            return (some * apply(exact, params, x, mask, rng) ** 2).sum()

        test_util.check_grads(
            loss, (params64, jnp.float64(x)), 1, modes=["rev"], atol=1e-5, rtol=1e-5
        )


def test_dropped_weights_are_those_of_the_mask(params):
    # With values of one and no output bias, heads give the sum of what was kept.
    x, mask = draw(6, clips=(1, 50))
    mask[:] = True
    even = jax.tree.map(jnp.zeros_like, params)
    even["value"]["bias"] = jnp.ones_like(params["value"]["bias"])
    even["out"]["kernel"] = jnp.eye(WIDTH).reshape(params["out"]["kernel"].shape)
    sums = np.asarray(apply(make(dropout=0.25), even, x, mask, jax.random.key(0)))
    kept = sums[..., :: WIDTH // HEADS] * 6 * 0.75  # Weights are 1 / 6 each.
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-5)
    assert kept.mean() == pytest.approx(6 * 0.75, abs=0.2)
    assert set(np.round(np.unique(kept))) > {3, 4, 5, 6}


@pytest.mark.parametrize("window", [0, 3])
def test_head_by_head_nothing_changes(params, window, monkeypatch):
    monkeypatch.setattr(attention, "_FEW_FRAMES", 2)
    x, mask = draw(20)
    weigh = np.random.default_rng(3).normal(size=x.shape)

    def found(remat):
        layer = make(window, dropout=0.3).clone(remat=remat)

        def function(params, x):
            return apply(layer, params, x, mask, jax.random.key(5))

        return function(params, x), gradients(function, params, x, weigh)

    for one, other in zip(*map(jax.tree.leaves, map(found, (0, 1))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


SPREAD = """
import jax, numpy as np, re
from tqa_jax.models import attention

layer = attention.SelfAttention(2, 0.0, "float32", remat=True)
x, mask = np.ones((4, 3, 6, 8), "float32"), np.ones((4, 3, 6), bool)
params = layer.init(jax.random.key(0), x, mask)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
loss = lambda params, x, mask: (layer.apply(params, x, mask) ** 2).sum()
program = jax.jit(jax.grad(loss)).lower(params, *jax.device_put((x, mask), spread))
text = program.compile().as_text()
print(len(jax.devices()), text.count(" all-gather("), text.count(" all-reduce("))
"""


def test_head_by_head_clips_stay_on_their_device():
    done = subprocess.run(
        [sys.executable, "-c", SPREAD],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        check=True,
    )
    devices, gathers, reductions = map(int, done.stdout.split())
    assert devices == 2 and gathers == 0
    assert reductions > 0  # Of the gradients: the batch was spread indeed.
