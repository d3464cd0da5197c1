"""Cost of task weightings and gradient surgery over fixed weights.

Whole training steps of the `advanced` network at standard size (width 256, 150 frames,
batch 32, dropout on), and, of some, of the small network of `configs/gradnorm.py`,
where the heads are a larger share. The baseline is a step with fixed weights that
computes no gradient by task at all; every other case also computes and logs each
task's norm. Most of the time goes into compiling one program for each case.
"""

from collections.abc import Callable

import jax

from experiments import timing
from experiments.benches import _ours, _sizes
from tqa_jax import models, schema, surgery, weighting

_BASELINE = "fixed, nothing by task"


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures every weighting and surgery on disk."""
    everything = weighting.available() + [f"fixed + {n}" for n in surgery.available()]
    some = ["fixed", "gradnorm", "famo", "fixed + pcgrad", "fixed + upgrad"]
    small = _sizes.SMALL
    sizes = {
        "standard": ("advanced", _sizes.SIZES["standard"], everything),
        "small": ("synced", _sizes.Size(32, 80, small), some),
    }
    if quick:
        sizes = {"tiny": ("synced", _sizes.Size(8, 10, small | {"width": 8}), some)}
    return [
        timing.compare(
            f"{name}: {preset}, {size.clips} clips of {size.frames} frames",
            timing.interleave(_cases(preset, size, wanted), rounds),
            _BASELINE,
        )
        for name, (preset, size, wanted) in sizes.items()
    ]


def _cases(
    preset: str, size: _sizes.Size, wanted: list[str]
) -> dict[str, Callable[[], None]]:
    model = models.make(
        widths=_sizes.WIDTHS,
        tasks=schema.TASKS,
        max_frames=size.frames,
        preset=preset,
        **size.options,
    )
    data = jax.device_put(_ours.draw(size))

    def case(
        weights_name: str, surgery_name: str = "", *, by_task: bool = True
    ) -> Callable[[], None]:
        weights = _ours.weights(weights_name)
        combine = surgery.make(surgery_name) if surgery_name else None
        step = _ours.step(model, weights, combine)

        def whole(state, data):
            state, metrics = step(state, data)
            if not by_task:  # Compiled away, with all that leads to it.
                metrics = {"total": metrics["total"]}
            return state, metrics

        program = jax.jit(whole, donate_argnums=0)
        kept = [_ours.state(model, weights)]

        def once() -> None:
            kept[0], metrics = program(kept[0], data)
            jax.block_until_ready((kept[0], metrics))

        return once

    cases = {_BASELINE: case("fixed", by_task=False)}
    return cases | {name: case(*name.split(" + ")) for name in wanted}
