"""Dropout whose random numbers are a hash of a counter.

The one thing to know: on a CPU, Threefry takes longer than the layers that its bits are
for. Here a mask entry is a 32-bit hash of its position and of a key which Threefry
draws, once a mask; a position's entry is the same whatever the devices, the vmapping or
the order of computation.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, UInt32

from tqa_jax import hyperparameters


def bits(rng: jax.Array, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Draws 32 random bits for each entry of a shape.

    A counter goes twice through the mixer `lowbias32` (Wellons 2018), each time with
    32 bits of the key. For masks, not for sampling: there are 2^64 streams, and
    positions repeat after 2^32.
    """
    one, two = jax.random.bits(rng, (2,), jnp.uint32)
    counter = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _mix(_mix(counter + one) ^ two)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def drop(x: jax.Array, rate: float | jax.Array, rng: jax.Array) -> jax.Array:
    """Zeroes entries and scales the others, so that the mean stays (Srivastava 2014).

    Args:
        x: of any shape.
        rate: chance of an entry to become 0, at least 0 and less than 1.
        rng: decides which.
    """
    threshold = (jnp.float32(rate) * 2.0**32).astype(jnp.uint32)
    factor = (1 / (1 - jnp.float32(rate))).astype(x.dtype)
    return jnp.where(bits(rng, x.shape) >= threshold, x * factor, 0)


class Dropout(nn.Module):
    """Dropout that is off without an rng named `dropout`.

    Attributes:
        rate: see `drop`; may be traced. The number 0 draws nothing.
    """

    rate: float | jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Drops entries of `x`, of any shape."""
        if hyperparameters.off(self.rate) or not self.has_rng("dropout"):
            return x
        return drop(x, self.rate, self.make_rng("dropout"))
