"""One optimisation step as a pure function, and many of them as one program.

The one thing to know: the objective is a function of the whole batch's scores. With
accumulation the trunk runs over micro-batches and is recomputed in the backward pass,
so every loss, correlation and gradient norm is that of the whole batch, and a
micro-batch never has a mean of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.training import dynamic_scale
from jaxtyping import Array, Float, Int

from tqa_jax import batch as batches
from tqa_jax import (
    hyperparameters,
    losses,
    models,
    multitask,
    optim,
    progress,
    regularizers,
    surgery,
    weighting,
)

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class State:
    """Everything that training carries from one step to the next.

    Attributes:
        step: steps taken, skipped ones included.
        seed: source of all of the run's random numbers.
        params: of the model, float32.
        opt_state: of the optimiser.
        weighting: of the task weighting.
        loss_scale: for float16 only, else None.
        progress: what validation has said so far.
        skipped: steps skipped in a row because something was not finite.
    """

    step: jax.Array  # ()
    seed: jax.Array  # ()
    params: Any
    opt_state: optax.OptState
    weighting: weighting.State
    loss_scale: dynamic_scale.DynamicScale | None
    progress: progress.Progress
    skipped: jax.Array  # ()


Step = Callable[[State, batches.Batch], tuple[State, Metrics]]


class Objective(NamedTuple):
    """What a step minimises, beside the task weights.

    Attributes:
        l1_weight: factor on the absolute error beside the squared one.
        consistency: of the predicted scores, see `regularizers`.
        consistency_weight: factor on it; 0 leaves it out.
        consistency_tasks: numbers of the tasks that it looks at.
        smoothing: how far labels shrink toward `label_means`.
        label_means: mean training label of each task.
        units: of each task's errors, see `schema.Task.unit`.
    """

    l1_weight: float
    consistency: regularizers.Consistency
    consistency_weight: float
    consistency_tasks: tuple[int, ...]
    smoothing: float
    label_means: Float[Array, " K"]
    units: Float[Array, " K"] | float = 1.0


def init(
    seed: Int[Array, ""],
    *,
    model: models.Model,
    optimizer: optax.GradientTransformationExtraArgs,
    weights: weighting.Weighting,
    num_tasks: int,
    scale_loss: bool,
) -> State:
    """Starts a run.

    Args:
        seed: of parameters, dropout and everything else random.
        model: the network.
        optimizer: the optimiser.
        weights: the task weighting.
        num_tasks: K.
        scale_loss: scales the loss dynamically, for float16: from 2^16, doubled after
            2,000 good steps and halved on overflow.
    """
    params = model.init(jax.random.key(seed))
    return State(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=params,
        opt_state=optimizer.init(params),
        weighting=weights.init(),
        loss_scale=dynamic_scale.DynamicScale(
            growth_interval=2000,
            fin_steps=jnp.int32(0),
            scale=jnp.float32(65536.0),
        )
        if scale_loss
        else None,
        progress=progress.init(num_tasks),
        skipped=jnp.zeros((), jnp.int32),
    )


def _trunk(
    model: models.Model,
    params: Any,
    batch: batches.Batch,
    rng: jax.Array,
    accumulation: int,
) -> dict[str, jax.Array]:
    """Runs the trunk; encodes micro-batches one after another if there are several.

    The fusion sees the whole batch: it is small, has most of the parameters, and their
    gradients are not needed in every micro-batch.
    """
    if accumulation == 1:
        return model.trunk(params, batch, rng)

    def split(array: jax.Array) -> jax.Array:
        # Strided, so that each micro-batch has a part on every device.
        return jnp.swapaxes(array.reshape(-1, accumulation, *array.shape[1:]), 0, 1)

    def merge(array: jax.Array) -> jax.Array:
        return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])

    @jax.checkpoint
    def one(part: tuple[batches.Batch, jax.Array]) -> dict[str, jax.Array]:
        return model.encode(params, *part)

    fusion_rng, *rngs = jax.random.split(rng, 1 + accumulation)
    parts = jax.tree.map(split, batch), jnp.stack(rngs)
    encoded = jax.tree.map(merge, jax.lax.map(one, parts))
    return model.fuse(params, encoded, fusion_rng)


def _next_scale(
    loss_scale: dynamic_scale.DynamicScale, finite: jax.Array
) -> dynamic_scale.DynamicScale:
    """Doubles the scale after enough good steps in a row and halves it after a bad one.

    `DynamicScale.value_and_grad` does the same, but takes a function to differentiate,
    and here the backward pass is in parts.
    """
    grow = finite & (loss_scale.fin_steps == loss_scale.growth_interval)
    largest = jnp.float32(jnp.finfo(jnp.float32).max)
    grown = jnp.minimum(loss_scale.scale * loss_scale.growth_factor, largest)
    kept = jnp.where(grow, grown, loss_scale.scale)
    smaller = loss_scale.scale * loss_scale.backoff_factor
    return loss_scale.replace(
        scale=jnp.where(finite, kept, smaller),
        fin_steps=jnp.where(grow | ~finite, 0, loss_scale.fin_steps + 1),
    )


def _all_finite(*trees: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(trees) if leaf.dtype.kind == "f"]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def make(
    *,
    model: models.Model,
    optimizer: optax.GradientTransformationExtraArgs,
    weights: weighting.Weighting,
    objective: Objective,
    peak_learning_rate: float,
    accumulation: int,
    combine: surgery.Combine | None = None,
    shared: Sequence[str] = (),
) -> Step:
    """Makes the training step.

    Args:
        model: the network.
        optimizer: the optimiser.
        weights: the task weighting.
        objective: what to minimise.
        peak_learning_rate: the weighting's own rate is relative to it.
        accumulation: micro-batches; divides the batch size.
        combine: gradient surgery on the weighted tasks; None adds them up.
        shared: path of the parameter at which tasks' gradients are compared; empty for
            the model's last shared kernel.

    Returns:
        `(state, batch) -> (state, metrics)`, pure. Metrics are float32: `total`,
        `consistency`, `lr`, `grad_norm`, `skipped`, `loss_scale` scalars; `loss`,
        `weight`, `coefficient`, `task_grad_norm`, `labels` (K,). A step with a loss,
        gradient or weight that is not finite changes nothing but the counters and the
        loss scale. A weighting that learns log-variances adds `log_variance` (K,).
    """
    path = tuple(shared) or model.last_shared
    columns = jnp.array(objective.consistency_tasks, jnp.int32)

    def step(state: State, batch: batches.Batch) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
        trunk_rng, join_rng, head_rng, weight_rng, surgery_rng = jax.random.split(
            rng, 5
        )
        num_tasks = batch.labels.shape[-1]
        labels = losses.smooth(batch.labels, objective.label_means, objective.smoothing)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale

        def task_losses(scores: Float[Array, "B K"]) -> Float[Array, " K"]:
            return losses.mean(
                *losses.task_loss_sums(
                    scores,
                    labels,
                    batch.label_mask,
                    l1_weight=objective.l1_weight,
                    units=objective.units,
                )
            )

        def agreement(scores: Float[Array, "B K"]) -> Float[Array, ""]:
            if hyperparameters.off(objective.consistency_weight):
                return jnp.zeros((), jnp.float32)
            return objective.consistency(scores[:, columns], batch.clip_mask)

        found = multitask.forward(
            multitask.Functions(
                lambda params: _trunk(model, params, batch, trunk_rng, accumulation),
                lambda params, joined: model.join(params, joined, join_rng),
                lambda params, copies: model.heads(params, copies, head_rng),
                task_losses,
            ),
            state.params,
            path=path,
            num_tasks=num_tasks,
            scale=scale,
        )
        task_norms = jnp.sqrt(jnp.diagonal(found.gram))
        rate = optim.rate(state.opt_state)
        active = batch.label_mask.any(axis=0)
        signals = weighting.Signals(
            found.losses,
            active,
            task_norms,
            rate / peak_learning_rate,
            weight_rng,
        )
        task_weights = weights.weights(state.weighting, signals)
        coefficients = None
        if combine is not None:
            gram = task_weights[:, None] * found.gram * task_weights
            # A task of weight 0 has no gradient, which would be the shortest.
            coefficients = combine(gram, active & (task_weights != 0), surgery_rng)
        agreed, slope = jax.value_and_grad(agreement)(found.outputs)
        total = (task_weights * found.losses).sum()
        total = total + objective.consistency_weight * agreed
        gradient = found.backward(
            task_weights, coefficients, objective.consistency_weight * slope
        )
        norm = optax.tree_utils.tree_norm(gradient)

        weighting_state = weights.update(state.weighting, signals)
        finite = _all_finite(total, norm, weighting_state)
        stalls = state.progress.stalls

        def take(params, opt_state, _):
            updates, opt_state = optimizer.update(
                gradient, opt_state, params, stalls=stalls[0], task_stalls=stalls[1:]
            )
            return optax.apply_updates(params, updates), opt_state, weighting_state

        # Not a choice between two results: that would copy all moments on a CPU.
        before = state.params, state.opt_state, state.weighting
        params, opt_state, weighting_state = jax.lax.cond(
            finite, take, lambda *before: before, *before
        )
        loss_scale = state.loss_scale
        if loss_scale is not None:
            # The unweighted gradients can overflow where the weighted sum did not.
            loss_scale = _next_scale(loss_scale, finite & _all_finite(task_norms))
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics = {
            "total": total,
            "consistency": agreed,
            "lr": rate,
            "grad_norm": norm,
            "skipped": skipped.astype(jnp.float32),
            "loss_scale": jnp.asarray(scale, jnp.float32),
            "loss": found.losses,
            "weight": task_weights,
            "coefficient": jnp.ones_like(task_weights)
            if coefficients is None
            else coefficients,
            "task_grad_norm": task_norms,
            "labels": batch.label_mask.sum(axis=0).astype(jnp.float32),
        }
        if isinstance(state.weighting, weighting.Learned):
            metrics["log_variance"] = state.weighting.values
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            weighting=weighting_state,
            loss_scale=loss_scale,
            skipped=skipped,
        )
        return state, metrics

    return step


def scan(
    step: Step, sharding: jax.sharding.Sharding | None = None
) -> Callable[[State, batches.Batch, Int[Array, "S B"]], tuple[State, Metrics]]:
    """Compiles many steps over a data set that lies on the device.

    Args:
        step: from `make`.
        sharding: of the batch axis over devices; None for one device.

    Returns:
        `(state, data, order) -> (state, metrics)`, where `order` lists the rows of
        each step's batch (see `pipeline.order`) and metrics have a leading axis of
        steps. The state is donated.
    """
    return jax.jit(segment(step, sharding), donate_argnums=0)


def segment(
    step: Step, sharding: jax.sharding.Sharding | None = None
) -> Callable[[State, batches.Batch, Int[Array, "S B"]], tuple[State, Metrics]]:
    """What `scan` compiles."""

    def run(state, data, order):
        def body(state, rows):
            batch = batches.take(data, rows)
            if sharding is not None:
                batch = jax.lax.with_sharding_constraint(batch, sharding)
            return step(state, batch)

        return jax.lax.scan(body, state, order)

    return run
