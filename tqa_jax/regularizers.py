"""Consistency of the predicted scores of a clip or a batch.

The one thing to know: these look at the whole batch (all micro-batches and devices)
and at predictions only; missing labels play no part. Correlations of fewer than 8
clips are noise and count as 0. What `make` returns takes scores of any ranges; the
functions here take them as on a 1-5 scale, which their epsilons are for.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tqa_jax import schema

_EPSILON = 1e-6
_LEAST_CLIPS = 8

Consistency = Callable[[Float[Array, "B K"], Bool[Array, " B"]], Float[Array, ""]]


def std(scores: Float[Array, "B K"], there: Bool[Array, " B"]) -> Float[Array, ""]:
    """Mean over clips of the sample deviation over tasks; 0 when all tasks agree.

    Args:
        scores: predictions.
        there: False for rows that only fill the batch.
    """
    centred = scores - scores.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).sum(axis=-1) / (scores.shape[-1] - 1)
    # The square root's gradient at 0 is infinite; equal scores must send none.
    apart = variance > 0
    deviation = jnp.where(apart, jnp.sqrt(jnp.where(apart, variance, 1)), 0)
    return jnp.where(there, deviation, 0).sum() / jnp.maximum(there.sum(), 1)


def _centred(
    scores: Float[Array, "B K"], there: Bool[Array, " B"]
) -> tuple[Float[Array, "B K"], Float[Array, ""]]:
    count = there.sum().astype(jnp.float32)
    keep = there[:, None]
    mean = jnp.where(keep, scores, 0).sum(axis=0) / jnp.maximum(count, 1)
    return jnp.where(keep, scores - mean, 0), count


def correlation(
    scores: Float[Array, "B K"], there: Bool[Array, " B"]
) -> Float[Array, "K K"]:
    """Pearson correlation between tasks over the clips of the batch."""
    centred, count = _centred(scores, there)
    # Accelerators would multiply float32 matrices in fewer bits.
    products = jnp.matmul(centred.T, centred, precision="highest")
    covariance = products / (count - 1 + _EPSILON)
    deviation = jnp.sqrt(jnp.diag(covariance) + _EPSILON)
    return covariance / (jnp.outer(deviation, deviation) + _EPSILON)


def _enough(value: Float[Array, ""], there: Bool[Array, " B"]) -> Float[Array, ""]:
    return jnp.where(there.sum() >= _LEAST_CLIPS, value, 0)


def corr(scores: Float[Array, "B K"], there: Bool[Array, " B"]) -> Float[Array, ""]:
    """One minus the mean correlation between two tasks; 0 when all rise together."""
    lower = jnp.tril_indices(scores.shape[-1], -1)
    return _enough(1 - correlation(scores, there)[lower].mean(), there)


def cov(scores: Float[Array, "B K"], there: Bool[Array, " B"]) -> Float[Array, ""]:
    """Mean squared deviation of the scores from their batch means."""
    centred, count = _centred(scores, there)
    value = jnp.square(centred).sum() / jnp.maximum(count * scores.shape[-1], 1)
    return _enough(value, there)


def corr_target(target: Float[Array, "K K"]) -> Consistency:
    """Mean squared difference between the scores' and the labels' correlations.

    Where `corr` pulls every correlation to 1, this pulls it to what people's scores
    show.

    Args:
        target: correlation of the training labels; NaN where it is undefined.
    """

    def consistency(scores, there):
        lower = jnp.tril_indices(scores.shape[-1], -1)
        error = (correlation(scores, there) - target)[lower]
        known = jnp.isfinite(target)[lower]
        total = jnp.square(jnp.where(known, error, 0)).sum()
        return _enough(total / jnp.maximum(known.sum(), 1), there)

    return consistency


MODES = ("std", "corr", "cov", "corr_target")


def make(
    mode: str,
    target: Float[Array, "K K"],
    *,
    low: Float[Array, " K"] | float = 1.0,
    units: Float[Array, " K"] | float = 1.0,
) -> Consistency:
    """Returns the consistency of a name.

    Args:
        mode: one of `MODES`.
        target: see `corr_target`.
        low: lowest score of each task.
        units: factors on differences of scores, see `schema.Task.unit`.

    Raises:
        InputError: for another name.
    """
    if mode not in MODES:
        raise schema.InputError(
            f"unknown consistency {mode!r}; available: {', '.join(MODES)}"
        )
    modes = {"std": std, "corr": corr, "cov": cov, "corr_target": corr_target(target)}
    low, units = jnp.asarray(low, jnp.float32), jnp.asarray(units, jnp.float32)
    return lambda scores, there: modes[mode]((scores - low) * units, there)
