"""Working memory of a training step and what it costs in time to have less of it.

The one thing to know: the numbers of bytes are the compiler's own, so they need no run
and are the same every time. The network is `configs/optimized.py` (width 512, 6
layers, 16 heads, FFN 2048) on 64 clips of 150 frames, with the preset `advanced`, and
`synced` as that config says; only what is named is changed. All cases give the loss of
the whole batch. Times are of 16 clips in micro-batches of the same size, since a step
on 64 clips is long on two CPU cores.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import timing
from experiments.benches import _sizes
from tqa_jax import assemble, batch, config_files, memory, schema, train_step

_PLAIN, _ACCUMULATION = "plain", "accumulation 8"
_REMAT = {"model.remat": "nothing_saveable"}
_TIMED_CLIPS = 16
_MOST_ROUNDS = 5
_DEVICE_BYTES = 16e9


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures bytes of all cases and seconds of some."""
    clips, frames, small = 64, 150, {}
    if quick:
        clips, frames = 16, 10
        options = _sizes.SMALL | {"fusion_layers": 1}
        small = {f"model.{name}": value for name, value in options.items()}
    changes = {"model.preset": "advanced", "train.accumulation": 1} | small
    cases = _cases(clips)
    if quick:
        cases = {name: cases[name] for name in (_PLAIN, _ACCUMULATION)}
    rows = []
    for name, options in cases.items():
        config = _config(clips, frames, changes | options)
        need = memory.needed(compile_step(config))
        rows.append(
            {
                "case": name,
                "temp_mib": need.temp / 2**20,
                "total_mib": need.total / 2**20,
            }
        )
    tables = [
        timing.Table(
            f"P4: memory of a step, advanced, {clips} clips of {frames} frames",
            rows,
            "temp_mib is working memory; total_mib adds state and batch.",
        ),
        _fits(clips, frames, small),
    ]
    timed = {name: cases[name] for name in cases if "bfloat16" not in name}
    seconds = timing.interleave(
        _timed(timed, clips, frames, changes), min(rounds, _MOST_ROUNDS)
    )
    few = min(_TIMED_CLIPS, clips)
    title = f"P4: time of a step on {few} clips, micro-batches as above"
    return [*tables, timing.compare(title, seconds, _PLAIN)]


def _cases(clips: int) -> dict[str, dict[str, Any]]:
    """Settings by name."""

    def parts(number: int) -> dict[str, Any]:
        return {"train.accumulation": number}

    bfloat16 = {"model.dtype": "bfloat16"}
    return {
        _PLAIN: {},
        "bfloat16": bfloat16,
        "remat": _REMAT,
        _ACCUMULATION: parts(8),
        f"chunks of {clips // 16}": parts(16),
        f"chunks of {clips // 16}, remat": parts(16) | _REMAT,
        "chunks of 1, remat": parts(clips) | _REMAT,
        f"chunks of {clips // 16}, bfloat16": parts(16) | bfloat16,
    }


def _config(
    clips: int, frames: int, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    config = config_files.load("optimized")
    flat = {"train.batch_size": clips, "data.max_frames": frames, **changes}
    config.update_from_flattened_dict(flat)
    return config


def _parts(config: ml_collections.ConfigDict) -> assemble.Parts:
    """The run that the config describes, of a data set with the usual schema."""
    number = len(schema.TASKS)
    facts = assemble.Facts(
        tasks=schema.TASKS,
        widths=_sizes.WIDTHS,
        label_means=np.full(number, 3, np.float32),
        label_variances=np.ones(number),
        label_correlation=np.eye(number, dtype=np.float32),
        steps_per_epoch=100,
    )
    return assemble.make(config, facts)


def _shapes(clips: int, frames: int) -> batch.Batch:
    """A batch as shapes."""

    def some(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clips, *shape), dtype)

    return batch.Batch(
        {name: some(frames, width) for name, width in _sizes.WIDTHS.items()},
        {name: some(frames, dtype=bool) for name in _sizes.WIDTHS},
        some(len(schema.TASKS)),
        some(len(schema.TASKS), dtype=bool),
    )


def compile_step(config: ml_collections.ConfigDict) -> jax.stages.Compiled:
    """Compiles the training step of a config, from shapes alone."""
    parts = _parts(config)
    state = jax.eval_shape(parts.init, 0)
    one = _shapes(config.train.batch_size, config.data.max_frames)
    return jax.jit(parts.step, donate_argnums=0).lower(state, one).compile()


def compile_run(config: ml_collections.ConfigDict, windows: int) -> jax.stages.Compiled:
    """Compiles what a run of a config executes: many steps over its windows.

    Args:
        config: of the run.
        windows: in the training split, all on the device.
    """
    parts = _parts(config)
    state = jax.eval_shape(parts.init, 0)
    data = _shapes(windows, config.data.max_frames)
    shape = (config.train.checkpoint_every, config.train.batch_size)
    order = jax.ShapeDtypeStruct(shape, jnp.int32)
    return train_step.scan(parts.step).lower(state, data, order).compile()


def largest_split(config: ml_collections.ConfigDict) -> int:
    """Most windows of the usual widths that a run keeps on the device."""
    one = 4 * config.data.max_frames * sum(_sizes.WIDTHS.values())
    return int(config.data.memory_gb * 2**30 / one)


def _fits(clips: int, frames: int, changes: Mapping[str, Any]) -> timing.Table:
    config = _config(clips, frames, changes)
    rows = []
    for windows in (100, largest_split(config)):
        need = memory.needed(compile_run(config, windows))
        rows.append(
            {
                "windows": windows,
                "resident_gb": need.resident / 1e9,
                "temp_gb": need.temp / 1e9,
                "total_gb": need.total / 1e9,
                "fits_16_gb": "yes" if need.total <= _DEVICE_BYTES else "no",
            }
        )
    accumulation = config.train.accumulation
    return timing.Table(
        "P4: the whole program of configs/optimized.py as it is "
        f"({config.model.preset}, batch {clips}, accumulation {accumulation})",
        rows,
        "A larger split than the last is streamed (data.memory_gb).",
    )


def _timed(
    cases: Mapping[str, Mapping[str, Any]],
    clips: int,
    frames: int,
    changes: Mapping[str, Any],
) -> dict[str, Callable[[], None]]:
    """Steps on fewer clips, in micro-batches of the size that all clips would have."""
    few = min(_TIMED_CLIPS, clips)
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == bool:
            return jnp.ones(leaf.shape, bool)
        return jnp.asarray(rng.uniform(1, 5, leaf.shape), leaf.dtype)

    data = jax.tree.map(fill, _shapes(few, frames))
    kept: list[train_step.State] = []

    def case(options: Mapping[str, Any]) -> Callable[[], None]:
        accumulation = max(1, options.get("train.accumulation", 1) * few // clips)
        settings = {**changes, **options, "train.accumulation": accumulation}
        parts = _parts(_config(few, frames, settings))
        program = jax.jit(parts.step, donate_argnums=0)
        if not kept:
            kept.append(parts.init(0))

        def once() -> None:
            kept[0], metrics = program(kept[0], data)
            jax.block_until_ready((kept[0], metrics))

        return once

    return {name: case(options) for name, options in cases.items()}
