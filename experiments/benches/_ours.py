"""Our side of the training benchmarks: model, step, state and batch of a size.

The one thing to know: a side starts from the files that `write` leaves, so that all
sides have the same parameters and the same batch.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from experiments import sides
from experiments.benches import _sizes
from tqa_jax import (
    batch,
    models,
    optim,
    regularizers,
    schema,
    surgery,
    train_step,
    weighting,
)

_NOISE = 0.05
_MISSING = 0.1


def model(size: _sizes.Size, dropout: float) -> models.Model:
    """Makes the network of a size; without dropout it draws no random numbers."""
    found = models.make(
        widths=_sizes.WIDTHS,
        tasks=schema.TASKS,
        max_frames=max(size.frames, 2),  # Networks are initialised on two frames.
        preset="advanced",
        **dict(size.options) | _sizes.rates(dropout),
    )
    if dropout:
        return found
    return found._replace(
        trunk=lambda params, batch, rng=None: found.trunk(params, batch),
        join=lambda params, joined, rng=None: found.join(params, joined),
        heads=lambda params, features, rng=None: found.heads(params, features),
    )


def optimizer(
    learning_rate: float | jax.Array = _sizes.LEARNING_RATE,
) -> optax.GradientTransformationExtraArgs:
    """Makes AdamW with a constant learning rate, which may be traced, and clipping."""
    return optim.make(
        learning_rate=learning_rate,
        schedule="constant",
        warmup_steps=0,
        total_steps=1000,
        end_learning_rate=0.0,
        stretch=0.0,
        weight_decay=_sizes.WEIGHT_DECAY,
        clip_norm=_sizes.CLIP_NORM,
        beta1=0.9,
        beta2=0.999,
        task_factors=[1.0] * len(schema.TASKS),
        plateau_drop=1.0,
    )


def weights(name: str) -> weighting.Weighting:
    """Makes a task weighting."""
    tasks = [task.name for task in schema.TASKS]
    facts = {"label_variances": np.ones(len(tasks)), "steps_per_epoch": 10}
    return weighting.make(name, tasks=tasks, facts=facts)


def step(
    model: models.Model,
    weights: weighting.Weighting,
    combine: surgery.Combine | None = None,
    *,
    learning_rate: float | jax.Array = _sizes.LEARNING_RATE,
) -> train_step.Step:
    """Makes the training step of the library, not compiled."""
    return train_step.make(
        model=model,
        optimizer=optimizer(learning_rate),
        weights=weights,
        objective=train_step.Objective(
            l1_weight=_sizes.L1_WEIGHT,
            consistency=regularizers.make("corr", np.eye(4)),
            consistency_weight=_sizes.CONSISTENCY_WEIGHT,
            consistency_tasks=_sizes.CONSISTENCY_TASKS,
            smoothing=0.0,
            label_means=jnp.zeros(len(schema.TASKS)),
        ),
        peak_learning_rate=learning_rate,
        accumulation=1,
        combine=combine,
    )


def state(model: models.Model, weights: weighting.Weighting) -> train_step.State:
    """Starts a run."""
    return jax.jit(
        lambda: train_step.init(
            jnp.uint32(0),
            model=model,
            optimizer=optimizer(),
            weights=weights,
            num_tasks=len(schema.TASKS),
            scale_loss=False,
        )
    )()


def draw(size: _sizes.Size, *, missing: float = 0.0) -> batch.Batch:
    """Draws a batch of full clips, with a share of labels missing."""
    rng = np.random.default_rng(0)
    features = {
        name: rng.normal(size=(size.clips, size.frames, width)).astype(np.float32)
        for name, width in _sizes.WIDTHS.items()
    }
    mask = {name: np.ones((size.clips, size.frames), bool) for name in _sizes.WIDTHS}
    shape = (size.clips, len(schema.TASKS))
    labels = rng.uniform(1, 5, shape).astype(np.float32)
    present = rng.uniform(size=shape) >= missing
    return batch.Batch(features, mask, np.where(present, labels, 0), present)


def noisy(params: Any) -> Any:
    """Moves all parameters, so that no bias is 0 and no scale 1."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (np.asarray(leaf) + _NOISE * rng.normal(size=leaf.shape)).astype(
            np.float32
        ),
        params,
    )


def flat(params: Any) -> dict[str, np.ndarray]:
    """Parameters by path, such as `time_0/expand/kernel`."""
    found = traverse_util.flatten_dict(params, sep="/")
    return {name: np.asarray(leaf) for name, leaf in found.items()}


def write(folder: pathlib.Path, size: _sizes.Size, dropout: float) -> None:
    """Writes `options.json`, `params.npz` and `batch.npz` for all sides."""
    made = model(size, dropout)
    (folder / "options.json").write_text(json.dumps(made.options), encoding="utf-8")
    np.savez(folder / "params.npz", **flat(noisy(made.init(jax.random.key(0)))))
    drawn = draw(size, missing=_MISSING)
    np.savez(
        folder / "batch.npz",
        labels=drawn.labels,
        present=drawn.label_mask,
        **drawn.features,
    )


def side(folder: str, size: str, dropout: float) -> sides.Work:
    """Trains with our step: compiled, its state donated, the batch on the device.

    `check` takes the first step, writes what it led to to `ours.npz` and returns the
    name of the platform.

    Args:
        folder: where `write` wrote.
        size: a key of `_sizes.SIZES`.
        dropout: rate.
    """
    place = pathlib.Path(folder)
    chosen = _sizes.SIZES[size]
    network, fixed = model(chosen, dropout), weights("fixed")
    program = jax.jit(step(network, fixed), donate_argnums=0)
    data = jax.device_put(draw(chosen, missing=_MISSING))
    with np.load(place / "params.npz") as file:
        params = traverse_util.unflatten_dict(
            {name: jnp.asarray(file[name]) for name in file.files}, sep="/"
        )
    kept = [state(network, fixed).replace(params=params)]

    def once() -> Any:
        kept[0], metrics = program(kept[0], data)
        jax.block_until_ready((kept[0], metrics))
        return metrics

    def check() -> str:
        scores = np.asarray(jax.jit(network.apply)(kept[0].params, data))
        total = float(once()["total"])
        np.savez(place / "ours.npz", **outcome(kept[0], scores, total))
        return jax.devices()[0].platform

    return sides.Work(once, check)


def outcome(
    state: train_step.State, scores: np.ndarray, total: float
) -> dict[str, np.ndarray]:
    """What two sides are compared by after their first step.

    Args:
        state: after the step.
        scores: before it, without dropout.
        total: loss of the step.

    Returns:
        `scores`, `total`, `params/...` and `moment/...`, Adam's first moment: the
        clipped gradient, times 1 - beta1.
    """
    moment = optax.tree_utils.tree_get(state.opt_state, "mu")
    found = {"scores": scores, "total": np.float32(total)}
    for kind, tree in (("params", state.params), ("moment", moment)):
        found |= {f"{kind}/{name}": leaf for name, leaf in flat(tree).items()}
    return found
