"""Time attention to all frames and to a window, as clips get longer.

Whole training steps of the `synced` network at width 64 with a batch of two clips, and
its time attention alone, forward and backward: a layer with the same shapes. A window
is 75 frames, 3 s, on either side. Every time is divided by the time at 600 frames of
the same round. Full attention to 2,400 frames takes about 2 GB.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import timing
from experiments.benches import _ours, _sizes
from tqa_jax import models, schema
from tqa_jax.models import attention

_Case = tuple[Callable[[], None], int]  # What is timed, and bytes of scratch memory.


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures both kinds of attention at every length."""
    window, *lengths = (8, 16, 64, 256) if quick else (75, 150, 600, 2400)
    base = lengths[1]
    kinds = {"full": 0, "windowed": window}
    tables = []
    for what, make in (("training step", _step), ("time attention alone", _alone)):
        cases = {
            (kind, frames): make(2, frames, kinds[kind])
            for frames in lengths
            for kind in kinds
        }
        timed = {f"{kind} {frames}": case[0] for (kind, frames), case in cases.items()}
        seconds = timing.interleave(timed, rounds)
        rows = []
        for kind, frames in cases:
            values = seconds[f"{kind} {frames}"]
            middle, low, high = timing.ratio(values, seconds[f"{kind} {base}"])
            rows.append(
                {
                    "attention": kind,
                    "frames": frames,
                    f"over_{base}_frames": middle,
                    "low": low,
                    "high": high,
                    "median_ms": 1000 * float(np.median(values)),
                    "temp_mib": cases[kind, frames][1] / 2**20,
                }
            )
        title = f"{what}: synced, width {_sizes.SMALL['width']}, 2 clips"
        note = f"The window is {window} frames on either side. P7: <= 4.4, windowed."
        tables.append(timing.Table(title, rows, note))
    return tables


def _step(clips: int, frames: int, window: int) -> _Case:
    model = models.make(
        widths=_sizes.WIDTHS,
        tasks=schema.TASKS,
        max_frames=frames,
        preset="synced",
        temporal_window=window,
        **_sizes.SMALL,
    )
    weights = _ours.weights("fixed")
    data = jax.device_put(_ours.draw(_sizes.Size(clips, frames)))
    kept = [_ours.state(model, weights)]
    step = jax.jit(_ours.step(model, weights), donate_argnums=0)
    program = step.lower(kept[0], data).compile()

    def once() -> None:
        kept[0], metrics = program(kept[0], data)
        jax.block_until_ready((kept[0], metrics))

    return once, program.memory_analysis().temp_size_in_bytes


def _alone(clips: int, frames: int, window: int) -> _Case:
    width, heads = _sizes.SMALL["width"], _sizes.SMALL["temporal_heads"]
    layer = attention.SelfAttention(heads, 0.0, jnp.float32, window)
    shape = (clips, len(_sizes.WIDTHS), frames, width)
    x = jax.random.normal(jax.random.key(0), shape)
    mask = jnp.ones(shape[:-1], bool)
    params = layer.init(jax.random.key(1), x[:1, :1], mask[:1, :1])

    def loss(params, x):
        return (layer.apply(params, x, mask) ** 2).sum()

    program = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()

    def once() -> None:
        jax.block_until_ready(program(params, x))

    return once, program.memory_analysis().temp_size_in_bytes
