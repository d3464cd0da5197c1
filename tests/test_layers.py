"""Building blocks against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tqa_jax.models import layers

X = np.linspace(-12, 12, 4001)


def test_gelu_is_x_times_the_normal_distribution():
    found = layers.gelu(jnp.float32(X))
    np.testing.assert_allclose(found, X * stats.norm.cdf(X), rtol=1e-6, atol=1e-6)


def test_gradient_of_gelu_is_its_derivative():
    found = jax.vmap(jax.grad(layers.gelu))(jnp.float32(X))
    expected = stats.norm.cdf(X) + X * stats.norm.pdf(X)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gelu_in_half_precision_is_the_rounded_one(dtype):
    x = jnp.asarray(X, dtype)
    found, pull = jax.vjp(layers.gelu, x)
    (slope,) = pull(jnp.ones_like(x))
    assert found.dtype == slope.dtype == x.dtype
    wide = np.asarray(x, np.float64)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.float64(found), wide * stats.norm.cdf(wide), rtol=eps, atol=1e-6
    )
    expected = stats.norm.cdf(wide) + wide * stats.norm.pdf(wide)
    np.testing.assert_allclose(np.float64(slope), expected, rtol=eps, atol=1e-6)
