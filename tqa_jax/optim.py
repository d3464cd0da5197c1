"""Optimiser and learning-rate schedules as Optax transforms.

The one thing to know: what validation tells the optimiser comes in as extra arguments
of `update`, counts of stalls that are part of the training state; so a run that is
resumed does what an uninterrupted one does.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from tqa_jax import schema


class CosineState(NamedTuple):
    """State of `cosine`.

    Attributes:
        step: that comes next.
        since: step of the last stall, or of the end of the warm-up. Progress is counted
            from there: a float32 sum over a million steps would be off by thousands.
        progress: at that step.
        period: steps of a whole half cosine.
        stalls: so far.
        learning_rate: of the step that comes next.
    """

    step: Int[Array, ""]
    since: Int[Array, ""]
    progress: Float[Array, ""]
    period: Float[Array, ""]
    stalls: Int[Array, ""]
    learning_rate: Float[Array, ""]


def cosine(
    peak: float,
    *,
    warmup_steps: int,
    total_steps: int,
    end: float = 0.0,
    stretch: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Scales updates by a learning rate: linear warm-up, then half a cosine.

    The rate is a function of a progress that grows by 1 / period a step. With
    `stretch`, each stall makes the rest of the period longer: the rate falls more
    slowly from where it is. It never jumps and never rises after the warm-up; at
    progress 1 it stays at `end`.

    Args:
        peak: rate after the warm-up.
        warmup_steps: steps of linear increase from 0.
        total_steps: warm-up and cosine together, without stalls.
        end: final rate.
        stretch: relative lengthening of the period at a stall; 0.1 for the usual
            `adaptive_cosine`, 0 for a plain cosine.

    Returns:
        A transform whose `update` takes `stalls`, how often validation has stalled so
        far.
    """
    start = max(total_steps - warmup_steps, 1)

    def rate_of(step: Int[Array, ""], progress: Float[Array, ""]) -> jax.Array:
        warm = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
        fall = (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.asarray(warm * (end + (peak - end) * fall), jnp.float32)

    def init(params: Any) -> CosineState:
        del params
        return CosineState(
            step=jnp.zeros((), jnp.int32),
            since=jnp.full((), warmup_steps, jnp.int32),
            progress=jnp.zeros((), jnp.float32),
            period=jnp.full((), start, jnp.float32),
            stalls=jnp.zeros((), jnp.int32),
            learning_rate=rate_of(jnp.int32(0), jnp.float32(0)),
        )

    def update(
        updates: Any,
        state: CosineState,
        params: Any = None,
        *,
        stalls: Int[Array, ""],
        **extra: Any,
    ) -> tuple[Any, CosineState]:
        del params, extra
        new = stalls - state.stalls
        since = jnp.where(new > 0, jnp.maximum(state.step, state.since), state.since)
        progress = _progress(since, state)
        # What is left of the way, 1 - progress, now takes (1 + stretch) times longer.
        period = state.period * (1 + stretch) ** new.astype(jnp.float32)
        step = state.step + 1
        found = CosineState(step, since, progress, period, stalls, jnp.float32(0))
        found = found._replace(learning_rate=rate_of(step, _progress(step, found)))
        return jax.tree.map(lambda u: -state.learning_rate * u, updates), found

    return optax.GradientTransformationExtraArgs(init, update)


def _progress(step: Int[Array, ""], state: CosineState) -> Float[Array, ""]:
    taken = jnp.maximum(step - state.since, 0).astype(jnp.float32)
    return jnp.minimum(1.0, state.progress + taken / state.period)


def scale_heads(
    factors: Sequence[float], *, drop: float
) -> optax.GradientTransformationExtraArgs:
    """Gives each task's head its own learning rate.

    Args:
        factors: of each task, on the common rate.
        drop: further factor on a task's head each time its validation stalls; 1 is
            off.

    Returns:
        A transform whose `update` takes `task_stalls` (K,).
    """

    def update(
        updates: Any,
        state: optax.EmptyState,
        params: Any = None,
        *,
        task_stalls: Int[Array, " K"],
        **extra: Any,
    ) -> tuple[Any, optax.EmptyState]:
        del params, extra
        factor = jnp.array(factors, jnp.float32) * drop**task_stalls

        def scale(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            if path[0].key != "head":
                return leaf
            return leaf * factor.reshape(-1, *[1] * (leaf.ndim - 1))

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def decayed(params: Any) -> Any:
    """Marks the parameters that weight decay acts on: kernels, by their name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: path[-1].key == "kernel", params
    )


SCHEDULES = ("warmup_cosine", "adaptive_cosine", "constant")


def make(
    *,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    total_steps: int,
    end_learning_rate: float,
    stretch: float,
    weight_decay: float,
    clip_norm: float,
    beta1: float,
    beta2: float,
    task_factors: Sequence[float],
    plateau_drop: float,
) -> optax.GradientTransformationExtraArgs:
    """Makes AdamW with clipping, a schedule, and a learning rate for each head.

    Args:
        learning_rate: peak.
        schedule: one of `SCHEDULES`.
        warmup_steps: see `cosine`.
        total_steps: see `cosine`.
        end_learning_rate: see `cosine`.
        stretch: see `cosine`; read by `adaptive_cosine` only.
        weight_decay: on kernels (Loshchilov and Hutter 2019).
        clip_norm: largest global norm of the gradient.
        beta1: of Adam.
        beta2: of Adam.
        task_factors: see `scale_heads`.
        plateau_drop: see `scale_heads`.

    Raises:
        InputError: for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise schema.InputError(
            f"unknown schedule {schedule!r}; available: {', '.join(SCHEDULES)}"
        )
    constant = schedule == "constant"
    # 1 - beta must be the same number whether beta is traced, which is float32, or not.
    beta1, beta2 = jnp.float32(beta1), jnp.float32(beta2)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(beta1, beta2, mu_dtype=jnp.float32),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        scale_heads(task_factors, drop=plateau_drop),
        cosine(
            learning_rate,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            end=learning_rate if constant else end_learning_rate,
            stretch=stretch if schedule == "adaptive_cosine" else 0.0,
        ),
    )


def rate(state: optax.OptState) -> Float[Array, ""]:
    """Learning rate of the step that comes next, out of the optimiser's state."""
    return optax.tree_utils.tree_get(state, "learning_rate")
