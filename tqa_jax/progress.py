"""What validation has said so far: best value, patience, stalls.

The one thing to know: it is part of the training state, so early stopping, schedules
and plateau drops go on after a resume as if nothing had happened.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Progress:
    """Counts over validations; leading entry is the selection metric, then tasks.

    Attributes:
        best: best value seen, -inf before the first; larger is better.
        since: validations since then.
        stalls: how often `since` has reached a multiple of the patience.
        epoch: epochs finished.
    """

    best: jax.Array  # (1 + K,)
    since: jax.Array  # (1 + K,)
    stalls: jax.Array  # (1 + K,)
    epoch: jax.Array  # ()


def init(num_tasks: int) -> Progress:
    """Starts with nothing seen."""
    return Progress(
        best=jnp.full(1 + num_tasks, -jnp.inf, jnp.float32),
        since=jnp.zeros(1 + num_tasks, jnp.int32),
        stalls=jnp.zeros(1 + num_tasks, jnp.int32),
        epoch=jnp.zeros((), jnp.int32),
    )


def advance(
    state: Progress, values: Sequence[float | None], *, patience: int, least: float
) -> Progress:
    """Takes in one validation, at the end of an epoch.

    Args:
        state: before.
        values: the selection metric, then one of each task; larger is better; None
            where undefined, which counts as no improvement.
        patience: validations without improvement that make a stall.
        least: improvement that counts.

    Returns:
        The state after; `since[0] == 0` says that the model is the best so far.
    """
    found = np.array([-np.inf if v is None else v for v in values], np.float32)
    better = found > np.asarray(state.best) + np.float32(least)
    since = np.where(better, 0, np.asarray(state.since) + 1).astype(np.int32)
    stalled = (since > 0) & (since % patience == 0)
    return Progress(
        best=jnp.asarray(np.where(better, found, state.best)),
        since=jnp.asarray(since),
        stalls=state.stalls + jnp.asarray(stalled.astype(np.int32)),
        epoch=state.epoch + 1,
    )
