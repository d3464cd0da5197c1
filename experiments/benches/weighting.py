"""Cost of task weightings and gradient surgery over fixed weights.

Whole training steps of the `advanced` network at standard size (width 256, 150 frames,
batch 32, dropout on), and, of some, of the small network of `configs/gradnorm.py`,
where the heads are a larger share. The baseline is a step with fixed weights that
computes no gradient by task at all; every other case also computes and logs each
task's norm. Most of the time goes into compiling one program for each case.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import timing
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

_RATE = 1e-4
_WIDTHS = {"visual": 100, "audio": 200, "keypoints": 50, "action_units": 17}
_BASELINE = "fixed, nothing by task"
_SMALL = {
    "width": 64,
    "temporal_heads": 4,
    "fusion_layers": 2,
    "fusion_heads": 4,
    "fusion_ffn": 128,
    "head_hidden": (64, 32),
}


def run(rounds: int, *, quick: bool) -> str:
    """Measures every weighting and surgery on disk and returns the tables."""
    everything = weighting.available() + [f"fixed + {n}" for n in surgery.available()]
    some = ["fixed", "gradnorm", "famo", "fixed + pcgrad", "fixed + upgrad"]
    sizes: dict[str, tuple[str, dict[str, Any], int, int, list[str]]] = {
        "standard": ("advanced", {}, 32, 150, everything),
        "small": ("synced", _SMALL, 32, 80, some),
    }
    if quick:
        sizes = {"tiny": ("synced", _SMALL | {"width": 8}, 8, 10, some)}
    tables = []
    for name, (preset, options, clips, frames, wanted) in sizes.items():
        cases = _cases(preset, options, clips, frames, wanted)
        seconds = timing.interleave(cases, rounds)
        tables.append(
            f"\n{name}: {preset}, {clips} clips of {frames} frames\n\n"
            + timing.table(seconds, _BASELINE)
        )
    return "\n".join(tables)


def _cases(
    preset: str, options: dict[str, Any], clips: int, frames: int, wanted: list[str]
) -> dict[str, Callable[[], None]]:
    tasks = schema.TASKS
    names = [task.name for task in tasks]
    model = models.make(
        widths=_WIDTHS, tasks=tasks, max_frames=frames, preset=preset, **options
    )
    optimizer = optim.make(
        learning_rate=_RATE,
        schedule="constant",
        warmup_steps=0,
        total_steps=1000,
        end_learning_rate=0.0,
        stretch=0.0,
        weight_decay=1e-2,
        clip_norm=1.0,
        beta1=0.9,
        beta2=0.999,
        task_factors=[1.0] * len(tasks),
        plateau_drop=1.0,
    )
    objective = train_step.Objective(
        l1_weight=0.1,
        consistency=regularizers.make("corr", np.eye(4)),
        consistency_weight=0.05,
        consistency_tasks=(0, 1, 2, 3),
        smoothing=0.0,
        label_means=jnp.zeros(len(tasks)),
    )
    data = jax.device_put(_batch(clips, frames))
    facts = {"label_variances": np.ones(len(tasks)), "steps_per_epoch": 10}

    def case(
        weights_name: str, surgery_name: str = "", *, by_task: bool = True
    ) -> Callable[[], None]:
        weights = weighting.make(weights_name, tasks=names, facts=facts)
        step = train_step.make(
            model=model,
            optimizer=optimizer,
            weights=weights,
            objective=objective,
            peak_learning_rate=_RATE,
            accumulation=1,
            combine=surgery.make(surgery_name) if surgery_name else None,
        )

        def whole(state, data):
            state, metrics = step(state, data)
            if not by_task:  # Compiled away, with all that leads to it.
                metrics = {"total": metrics["total"]}
            return state, metrics

        program = jax.jit(whole, donate_argnums=0)
        kept = [
            jax.jit(
                lambda: train_step.init(
                    jnp.uint32(0),
                    model=model,
                    optimizer=optimizer,
                    weights=weights,
                    num_tasks=len(tasks),
                    scale_loss=False,
                )
            )()
        ]

        def once() -> None:
            kept[0], metrics = program(kept[0], data)
            jax.block_until_ready((kept[0], metrics))

        return once

    cases = {_BASELINE: case("fixed", by_task=False)}
    return cases | {name: case(*name.split(" + ")) for name in wanted}


def _batch(clips: int, frames: int) -> batch.Batch:
    rng = np.random.default_rng(0)
    features = {
        name: rng.normal(size=(clips, frames, width)).astype(np.float32)
        for name, width in _WIDTHS.items()
    }
    mask = {name: np.ones((clips, frames), bool) for name in _WIDTHS}
    shape = (clips, len(schema.TASKS))
    labels = rng.uniform(1, 5, shape).astype(np.float32)
    return batch.Batch(features, mask, labels, np.ones(shape, bool))
